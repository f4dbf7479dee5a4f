import jax
import numpy as np
import pytest
from flax import traverse_util

from p2p_jax import inference
from p2p_jax.finetune import initialise, merge
from p2p_jax.job import build_job, training_size
from p2p_jax.lookup import UserError
from p2p_jax.train import train
from tests.conftest import picture, small_config, write_model, write_pairs


def fresh(config, seed=1):
    return jax.jit(lambda: build_job(config, 1).create_state(seed, training_size(config)))()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A training of two steps: its folder, and a model file of it."""
    root = tmp_path_factory.mktemp('trained')
    write_pairs(root / 'pairs', 8)
    config = small_config(root / 'pairs')
    config.train.steps = 2
    train(config, root / 'run')
    write_model(root / 'run', root / 'model.safetensors')
    return root, config


def test_a_training_starts_where_the_other_ended(trained, tmp_path, capsys):
    root, config = trained
    averaged = config.copy_and_resolve_references()
    averaged.ema.decay = 0.9
    _, _, before, _ = inference.load_state(root / 'run', 'best')
    state = initialise(fresh(averaged), root / 'run', print)
    out = capsys.readouterr().out
    assert 'generator: ' in out and 'discriminator: ' in out and 'as initialised' not in out
    for a, b in (
        (state.generator.variables, before.generator.variables),
        (state.discriminator.variables, before.discriminator.variables),
        (state.ema, before.generator.variables),
    ):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)
    assert int(state.step) == 0
    config = config.copy_and_resolve_references()
    config.init_from = str(root / 'model.safetensors')
    train(config, tmp_path / 'run')
    out = capsys.readouterr().out
    assert 'arrays taken' in out and 'step 2/2' in out
    train(config, tmp_path / 'run')
    assert 'arrays taken' not in capsys.readouterr().out  # a resumed training has its own weights


def test_colour_becomes_grey_and_back(trained):
    """On grey pictures, the adapted network gives the grey of what the one for colours gives."""
    root, config = trained
    grey = config.copy_and_resolve_references()
    grey.update_from_flattened_dict({'data.channels': 1, 'gan.weight': 0.0})
    said = []
    state = initialise(fresh(grey), root / 'run', said.append)
    assert any('adapted to' in line for line in said) and not any('as initialised' in line for line in said)
    image = np.repeat(picture(3)[None, ..., :1] / np.float32(255), 3, -1)
    model = inference.load(root / 'run', 'best')
    wide = np.asarray(model.job.generator.apply(model.variables, image, train=False)).mean(-1, keepdims=True)
    narrow = build_job(grey, 1).generator.apply(state.generator.variables, image[..., :1], train=False)
    # The mean of tanh is not tanh of the mean, but nearly so where outputs are small.
    np.testing.assert_allclose(narrow, wide, atol=2e-2)


def test_what_does_not_fit_is_named(trained):
    root, config = trained
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({'generator.unet.depth': 3, 'gan.weight': 0.0})
    said = []
    initialise(fresh(other), root / 'model.safetensors', said.append)
    assert any('new, as initialised' in line for line in said)
    variables = inference.load(root / 'run', 'best').variables
    renamed = {'params': {f'x{key}': value for key, value in variables['params'].items()}}
    with pytest.raises(UserError, match=r'init_from: nothing of the generator fits:(.|\n)*new, as initialised'):
        merge('generator', variables, renamed)


def test_adapted_kernels_sum_over_the_input_and_repeat_the_output():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 6, 3)).astype(np.float32)
    shapes = {'in': (3, 3, 2, 3), 'out': (3, 3, 6, 1), 'other': (3, 3, 5, 3)}
    for name, shape in shapes.items():
        tree = {'params': {'conv': {'kernel': np.zeros(shape, np.float32)}, 'same': np.zeros(2, np.float32)}}
        merged, _ = merge('g', tree, {'params': {'conv': {'kernel': kernel}, 'same': np.ones(2, np.float32)}})
        result = traverse_util.flatten_dict(merged, sep='/')['params/conv/kernel']
        expected = {
            'in': np.stack([kernel[:, :, :3].sum(2), kernel[:, :, 3:].sum(2)], 2),
            'out': kernel.mean(3, keepdims=True),
            'other': np.zeros(shape),
        }[name]
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_missing_source_is_one_error_before_anything_is_made(trained, tmp_path):
    config = trained[1].copy_and_resolve_references()
    config.init_from = str(tmp_path / 'none')
    with pytest.raises(UserError, match='init_from=.*none: no such model file or workdir'):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
