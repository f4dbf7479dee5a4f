"""The verb `evaluate`: mostly of the input itself, which needs no network."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from p2p_jax import contenders, inference, modelfile, summary
from p2p_jax.baselines import BASELINES, Baseline
from p2p_jax.data.images import read_image, write_image
from p2p_jax.datasets import find_splits, store_splits
from p2p_jax.evaluate import Options, build_evaluator, evaluate_models
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from p2p_jax.perceptual import lpips
from p2p_jax.predictor import Predictor
from tests import trees
from tests.conftest import picture, small_config
from tests.weights import write_package

QUICK = Options(protocols=('float',))


@functools.cache
def variables(channels):
    """Those of `small_config`'s network as it is before training."""
    config = small_config()
    config.data.channels = channels
    job = build_job(config, 1)
    return jax.jit(lambda: job.generator.init(jax.random.key(0), jax.numpy.zeros((1, 16, 16, channels)), train=False))()


def small_model(config, origin):
    return inference.Model(config, build_job(config, 1), variables(config.data.channels), 0, Path(origin), 1.0)


def psnr(image, target):
    return -10 * np.log10(np.mean((np.float64(image) / 255 - np.float64(target) / 255) ** 2))


def test_every_image_of_the_chosen_split_is_scored(config, pairs, tmp_path, capsys):
    for split in ('test', 'val'):
        (result,) = evaluate_models(['identity'], config, Options(split), tmp_path / 'report.json')
        files = sorted((pairs / split / 'target').iterdir())
        assert [image.name for image in result.images] == [f'{split}/{path.stem}' for path in files]
        for image, path in zip(result.images, files, strict=True):
            expected = psnr(read_image(pairs / split / 'input' / path.name), read_image(path))
            assert image.scores['output'] == image.scores['input']
            assert image.scores['input']['psnr'] == pytest.approx(expected, abs=1e-3)
            assert image.size == read_image(path).shape[:2]
        content = json.loads((tmp_path / 'report.json').read_text())
        assert [row['name'] for row in content['images']] == [image.name for image in result.images]
        assert list(content['protocols']) == ['float', 'float_3d', 'uint8']
        assert content['versions']['jax'] == jax.__version__ and content['options']['split'] == split
        assert f'{split}: 4 examples, whole images' in capsys.readouterr().out


def test_pictures_are_made_on_demand(config, pairs):
    (result,) = evaluate_models(['identity'], config)
    shown = result.images[-1].pictures()
    np.testing.assert_array_equal(shown['input'], read_image(pairs / 'test' / 'input' / 'other.png'))
    np.testing.assert_array_equal(shown['output'], shown['input'])
    np.testing.assert_array_equal(shown['target'], read_image(pairs / 'test' / 'target' / 'other.png'))


def test_scores_and_degradations_are_those_of_training(pairs, capsys):
    """A trained model's means are what the validation of the training gives, noise included."""
    config = small_config(pairs)
    config.degrade.name = 'poisson_gaussian'
    config.eval.crop_size = 24
    model = small_model(config, 'runs/a')
    expected = build_evaluator(model.job, config, find_splits(config, ['test'])['test'])(model.variables).scores
    first, second = evaluate_models([model, 'identity'], options=QUICK)
    assert (first.name, second.name) == ('a', 'identity')
    for side in ('input', 'output'):
        for metric in ('psnr', 'ssim'):
            mean = np.mean([image.scores[side][metric] for image in first.images])
            assert mean == pytest.approx(expected[side][metric], abs=1e-3)
    assert [image.scores['input'] for image in second.images] == [image.scores['output'] for image in second.images]
    assert [i.scores['input'] for i in first.images] == [i.scores['input'] for i in second.images]
    shown = first.images[1].pictures()
    assert psnr(shown['input'], shown['target']) == pytest.approx(first.images[1].scores['input']['psnr'], abs=0.05)
    assert psnr(shown['output'], shown['target']) == pytest.approx(first.images[1].scores['output']['psnr'], abs=0.05)
    out = capsys.readouterr().out
    assert 'identity - a' in out and 'central 24×24' in out


def test_y_channel(config):
    (result,) = evaluate_models(['identity'], config, Options(y_channel=True))
    scores = result.images[0].scores['input']
    assert {'psnr_y', 'ssim_y', 'ssim_3d_y', 'psnr_uint8_y', 'ssim_uint8_y'} < set(scores)
    # Noise of equal strength in three channels is less in their weighted mean, and the range is smaller.
    assert scores['psnr_y'] > scores['psnr'] + 3


def test_lpips(config, pairs, tmp_path, monkeypatch):
    write_package(tmp_path, monkeypatch)
    config.eval.crop_size = 40
    for folder in (pairs / 'test' / 'input', pairs / 'test' / 'target'):
        (folder / 'other.png').unlink()
    (result,) = evaluate_models(['identity'], config, dataclasses.replace(QUICK, lpips='alex'))
    shown = result.images[0].pictures()
    score = lpips((0.0, 1.0), 'alex')
    image, target = (shown[side][None] / np.float32(255) for side in ('output', 'target'))
    expected = float(score(image, target, score.read_weights())[0])
    assert result.images[0].scores['output']['lpips'] == pytest.approx(expected, rel=1e-3)
    assert config.eval.lpips == 'none', 'the given configuration is not changed'


def test_grey_network_takes_colours_one_after_another(pairs):
    grey = small_config(pairs)
    grey.data.channels = 1
    colour = small_config(pairs)
    (result,) = evaluate_models([small_model(grey, 'grey.safetensors')], colour, QUICK)
    shown = result.images[0].pictures()
    assert shown['output'].shape == shown['target'].shape == (48, 40, 3)
    with pytest.raises(
        UserError, match='its network takes 3 channels, the images that are scored have data.channels=1'
    ):
        evaluate_models([small_model(colour, 'colour.safetensors')], grey)


def test_a_model_that_names_no_data_takes_those_of_a_configuration(config, tmp_path, pairs):
    imported = small_config()
    model = small_model(imported, tmp_path / 'imported.safetensors')
    modelfile.write(model.origin, model.variables, modelfile.Facts(imported.to_dict(), 0, 'imported', 1.0, {}))
    model = inference.load_file(model.origin)
    with pytest.raises(
        UserError, match=r'imported.safetensors names no data: give --config=FILE with --config.data.dir'
    ):
        evaluate_models([model])
    # Of the configuration, the networks play no part.
    config.generator.unet.update(depth=3, width=4)
    (result,) = evaluate_models([model], config, QUICK)
    assert result.name == 'imported' and len(result.images) == 4
    assert result.facts['config']['generator']['unet']['depth'] == 2
    assert result.facts['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(model.variables['params']))


def test_models_of_one_name_are_told_apart(config):
    first, second = (small_model(config, f'runs/{name}/x') for name in 'ab')
    assert contenders.names([first, second, 'identity']) == ['runs/a/x', 'runs/b/x', 'identity']
    assert contenders.names([first, 'identity']) == ['x', 'identity']
    with pytest.raises(UserError, match='runs/a/x: given twice'):
        evaluate_models([first, first])


def test_says_what_a_model_was_trained_on(config, tmp_path, capsys):
    splits = find_splits(config, ['train', 'val', 'test'])
    store_splits(tmp_path / 'honest', splits)
    store_splits(tmp_path / 'cheat', {**splits, 'train': splits['train'] + splits['test'][:2]})
    evaluate_models([small_model(config, tmp_path / name) for name in ('honest', 'cheat')], options=QUICK)
    out = capsys.readouterr().out
    assert out.count('note:') == 1 and f'2 of the 4 examples have names that {tmp_path / "cheat"}' in out
    store_splits(tmp_path / 'other', {**splits, 'test': splits['test'][1:]})
    with pytest.raises(UserError, match='holds a training on other data'):
        evaluate_models([small_model(config, tmp_path / 'other')])


def test_baselines_are_tuned_on_the_validation_split(config, tmp_path, monkeypatch, capsys):
    """The validation images are brighter by 8 of 255 than their targets; the test images are not."""
    made = Baseline('made up', lambda: lambda image, strength: image - strength / 255, (0, 4, 8, 12), 4)
    monkeypatch.setitem(BASELINES, 'made', made)
    root = tmp_path / 'shifted'
    for split, shift in (('train', 0), ('val', 8), ('test', 2)):
        for i in range(3):
            target = picture(i + len(split) * 10) // 2 + 40
            write_image(root / split / 'target' / f'{i}.png', target)
            write_image(root / split / 'input' / f'{i}.png', target + np.uint8(shift))
    config.data.dir = str(root)
    config.data.on_problem = 'stop'
    (result,) = evaluate_models(['made'], config, QUICK)
    assert result.facts['strength'] == 8 and set(result.facts['tried']) == {0, 4, 8, 12}
    assert 'strength 8: the best on the central 128×128 of 3 validation images' in capsys.readouterr().out
    assert result.images[0].scores['output']['psnr'] == pytest.approx(-20 * np.log10(6 / 255), abs=0.01)
    evaluate_models(['made'], config, dataclasses.replace(QUICK, split='val'))
    assert 'the strengths of made are chosen on images that are scored' in capsys.readouterr().out


def test_without_validation_images_the_default_is_taken(config, tmp_path, monkeypatch, capsys):
    made = Baseline('made up', lambda: lambda image, strength: image, (0, 4), 4)
    monkeypatch.setitem(BASELINES, 'made', made)
    root = tmp_path / 'blocks'
    trees.sidd_validation(root)
    config.data.dir = str(root)
    (result,) = evaluate_models(['made'], config, QUICK)
    assert result.facts['strength'] == 4 and result.facts['tried'] == {}
    assert 'there is no validation split' in capsys.readouterr().out


def test_mistakes(config, monkeypatch):
    labels = small_config()
    labels.generator.name = 'dcgan'
    cases = [
        (['identity'], None, Options(), 'baselines know no data: give --config=FILE'),
        (['identity'], config, Options('tset'), "--split='tset' is unknown.*Did you mean 'test'"),
        (['identity', 'identity'], config, Options(), 'identity: given twice'),
        (['identity'], labels, Options(), '--config: it makes images from labels'),
        (['identity'], config, Options(lpips='alxe'), "eval.lpips='alxe' is unknown"),
    ]
    for models, given, options, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate_models(models, given, options)
    grey = small_config()
    grey.data.channels = 1
    with pytest.raises(UserError, match='--y-channel needs colour images: data.channels=1'):
        evaluate_models(['identity'], grey, Options(y_channel=True))
    model = small_model(config, 'x')
    of_labels = dataclasses.replace(model, job=dataclasses.replace(model.job, classes=('cat',)))
    with pytest.raises(UserError, match='x makes images from labels: there is no target'):
        evaluate_models([of_labels], config)


def test_large_images_are_scored_in_tiles(pairs, monkeypatch):
    config = small_config(pairs)
    config.generator.unet.norm = 'none'  # what depends on the whole image has no exact tiles
    model = small_model(config, 'runs/a')
    (whole,) = evaluate_models([model], options=QUICK)
    seen = []
    apply = Predictor.apply
    monkeypatch.setattr(Predictor, 'apply', lambda self, pixels: seen.append(pixels.shape[1:3]) or apply(self, pixels))
    (tiled,) = evaluate_models([model], options=dataclasses.replace(QUICK, tile=4, overlap='exact'))
    assert seen and all(height < 48 for height, _ in seen)
    for a, b in zip(whole.images, tiled.images, strict=True):
        assert a.scores['output'] == pytest.approx(b.scores['output'], abs=1e-3)


def test_the_page_shows_what_the_tables_say(config, tmp_path):
    config.eval.names = ('noisy', 'denoised')
    results = evaluate_models(['identity'], config, html=tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    content = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])
    assert content['title'] == 'test: 4 examples, whole images' and content['curves'] == []
    assert list(content['rows']) == ['noisy', 'denoised', 'gain']
    means = summary.means(results[0])
    assert content['rows']['denoised']['ssim_uint8'] == pytest.approx(list(means['output']['ssim_uint8']))
    assert [row['name'] for row in content['examples']] == [image.name for image in results[0].images]
    assert all(
        row['pictures']['size'] == list(image.size[::-1])
        for row, image in zip(content['examples'], results[0].images, strict=True)
    )
    assert 'rounded to 8 bits' in content['protocol'] and '[95% interval' in content['protocol']
