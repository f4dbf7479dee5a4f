"""One-file models: what they hold, that they do what the checkpoint does, and what is said of broken ones."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from p2p_jax import inference, modelfile
from p2p_jax.data.images import read_image, write_image
from p2p_jax.evaluate import evaluate_model
from p2p_jax.job import build_job, training_size
from p2p_jax.lookup import UserError
from p2p_jax.predict import predict
from p2p_jax.predictor import PredictOptions
from p2p_jax.train import train
from tests.conftest import picture, small_config, write_model, write_pairs


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A short training with moving averages and spectral norm in the generator."""
    root = tmp_path_factory.mktemp('trained')
    write_pairs(root / 'pairs', 8)
    config = small_config(root / 'pairs')
    config.update_from_flattened_dict({'ema.decay': 0.5, 'train.steps': 4, 'data.resize': 24, 'gan.weight': 0.0})
    config.generator.unet.norm = 'spectral'
    train(config, root / 'run')
    write_model(root / 'run', root / 'model.safetensors')
    return root


def test_the_file_says_all_about_itself(trained):
    variables, facts = modelfile.read(trained / 'model.safetensors')
    assert facts.step == 4 and facts.weights == 'ema' and facts.folded
    assert facts.config == json.loads((trained / 'run' / 'config.json').read_text())
    assert facts.scale == pytest.approx(24 / np.sqrt(48 * 40))
    assert set(facts.scores) == {'psnr', 'ssim', 'input_psnr', 'input_ssim'}
    stored = json.loads((trained / 'run' / 'data.json').read_text())['splits']
    assert facts.examples == {split: len(names) for split, names in stored.items()}
    assert set(facts.examples) == {'train', 'val', 'test'} and sum(facts.examples.values()) == 8
    assert set(variables) == {'params'}


def test_the_file_does_what_the_checkpoint_does(trained, tmp_path):
    whole, single = inference.load(trained / 'run', 'latest'), inference.load_file(trained / 'model.safetensors')
    image = picture(5)[None] / np.float32(255)
    expected = whole.job.apply(whole.variables, image)
    np.testing.assert_allclose(single.job.apply(single.variables, image), expected, atol=2e-6)
    scores = [evaluate_model(model).scores['output'] for model in (whole, single)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    write_image(tmp_path / 'in.png', picture(5))
    predict(single, tmp_path / 'in.png', tmp_path / 'out', PredictOptions(native=True))
    result = read_image(tmp_path / 'out' / 'in.png').astype(int)
    assert np.abs(result - np.rint(np.asarray(expected[0]) * 255)).max() <= 1


def test_raw_weights_are_others_than_the_averages(trained, tmp_path):
    write_model(trained / 'run', tmp_path / 'raw.safetensors', raw=True)
    raw, facts = modelfile.read(tmp_path / 'raw.safetensors')
    averages, _ = modelfile.read(trained / 'model.safetensors')
    assert facts.weights == 'raw'
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(raw), jax.tree.leaves(averages), strict=True))


@pytest.mark.parametrize('norm', ['batch', 'instance', 'group', 'none'])
def test_other_norms_go_in_and_out_unchanged(tmp_path, norm):
    config = small_config()
    config.generator.unet.norm = norm
    job = build_job(config, 1)
    shapes = jax.eval_shape(lambda: job.create_state(0, training_size(config))).generator.variables
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), shapes)
    facts = modelfile.Facts(config.to_dict(), step=1, weights='raw', scale=1.0, scores={})
    modelfile.write(tmp_path / 'a' / 'm.safetensors', variables, facts)
    read, said = modelfile.read(tmp_path / 'a' / 'm.safetensors')
    assert jax.tree.structure(read) == jax.tree.structure({k: v for k, v in variables.items() if v})
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(read), strict=True):
        np.testing.assert_array_equal(a, b)
    assert said == dataclasses.replace(facts, config=json.loads(json.dumps(facts.config)))
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['m.safetensors']
    image = picture(0)[None] / np.float32(255)
    loaded = inference.load_file(tmp_path / 'a' / 'm.safetensors')
    np.testing.assert_array_equal(loaded.job.apply(loaded.variables, image), job.apply(variables, image))


def test_broken_foreign_and_newer_files(trained, tmp_path, monkeypatch):
    content = (trained / 'model.safetensors').read_bytes()
    for name, data, message in (
        ('half', content[: len(content) // 2], 'truncated, or no safetensors file'),
        ('text', b'hello', 'truncated, or no safetensors file'),
        ('empty', b'', 'truncated, or no safetensors file'),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f'{name}: {message}'):
            inference.load_file(tmp_path / name)
    with pytest.raises(UserError, match='none: no such file'):
        inference.load_file(tmp_path / 'none')
    save_file({'x': np.zeros(3, np.float32)}, tmp_path / 'foreign')
    with pytest.raises(UserError, match='foreign: its header is not one of p2p_jax'):
        inference.load_file(tmp_path / 'foreign')
    variables, facts = modelfile.read(trained / 'model.safetensors')
    config = json.loads(json.dumps(facts.config))
    config['generator']['unet']['width'] = 16
    modelfile.write(tmp_path / 'other', variables, dataclasses.replace(facts, config=config))
    with pytest.raises(UserError, match=r"(?s)other: its weights do not fit its configuration:.*\['params'\]"):
        inference.load_file(tmp_path / 'other')
    older = dataclasses.asdict(facts)
    del older['examples']
    header = {'p2p_jax': json.dumps({'version': 2, **older})}
    save_file({'params|kernel': np.zeros(3, np.float32)}, tmp_path / 'older', metadata=header)
    assert modelfile.read(tmp_path / 'older')[1] == dataclasses.replace(facts, examples={})
    monkeypatch.setattr(modelfile, 'VERSION', modelfile.VERSION + 1)
    modelfile.write(tmp_path / 'newer', variables, facts)
    monkeypatch.undo()
    with pytest.raises(UserError, match='newer: written by p2p_jax .*, whose files this version cannot read'):
        inference.load_file(tmp_path / 'newer')


@pytest.mark.parametrize(
    ('header', 'message'),
    [
        ('{"version": 3', 'its header is damaged'),
        ('[3]', r'its header is damaged \(it names no version'),
        ('{"version": "3"}', r'its header is damaged \(it names no version'),
        ('{"version": 3}', r'its header is damaged \(it should have config, step, weights, .*not \)'),
        ('{"version": 99}', 'written by p2p_jax None, whose files'),
        (json.dumps({'version': 3, 'config': 1, 'step': 0, 'weights': 'raw', 'scale': 1, 'scores': {}}), 'config=1'),
        ('[' * 100_000, 'its header is damaged'),
    ],
)
def test_a_damaged_header_is_one_error(header, message, tmp_path):
    save_file({'params|kernel': np.zeros(3, np.float32)}, tmp_path / 'model', metadata={'p2p_jax': header})
    with pytest.raises(UserError, match=f'--model={tmp_path / "model"}: .*{message}'):
        modelfile.read(tmp_path / 'model')


def test_names_that_contradict_each_other_are_one_error(tmp_path):
    facts = {'config': {}, 'step': 0, 'weights': 'raw', 'scale': 1.0, 'scores': {}}
    header = {'p2p_jax': json.dumps({'version': 3, **facts})}
    arrays = {'params': np.zeros(3, np.float32), 'params|kernel': np.zeros(3, np.float32)}
    save_file(arrays, tmp_path / 'model', metadata=header)
    with pytest.raises(UserError, match='its header is damaged'):
        modelfile.read(tmp_path / 'model')
