"""Generators in other programs' formats: they give there what they give here, or nothing is left behind."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from p2p_jax import export, modelfile
from p2p_jax.inference import Model
from p2p_jax.job import build_job, training_size
from p2p_jax.lookup import UserError
from tests.conftest import picture, small_config
from tests.models.generators import draw

# Network: its options, the smallest that have all kinds of its layers.
IMAGES = {
    'unet': dict(depth=2, width=8, norm='batch', dropout=0.0),
    'classical_unet': dict(depth=1, width=4, norm='group'),
    'nafnet': dict(width=4, encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), local_size=12),
    'resnet': dict(blocks=1, width=4, norm='instance'),
    'resnet_unet': dict(depth=1, width=4, norm='spectral', dropout=0.0),
}
LABELS = {
    'dcgan': dict(latent=6, width=8, norm='batch'),
    'sngan': dict(latent=6, width=4, norm='spectral'),
}
with_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in export.FORMATS['onnx'].packages), reason='an extra'
)

SAVEDMODELS_RUN = tuple(map(int, jax.__version__.split('.')[:2])) < (0, 11)


def load(folder, name, **keys):
    """A model with drawn weights, as it is loaded from the model file that is written to the folder."""
    config = default.get_config()
    config.generator.name, config.data.crop_size = name, 32
    config.generator[name].update(IMAGES.get(name) or LABELS[name])
    config.update_from_flattened_dict(keys)
    if name in LABELS:
        config.discriminator.name, config.data.classes = name, ('cat', 'dog', 'hen')
        config.update_from_flattened_dict(
            {f'loss.{loss}.weight': 0.0 for loss in config.loss} | {'degrade.name': 'none'}
        )
    job = build_job(config, 1)
    noise = jnp.zeros((1, LABELS[name]['latent'])) if name in LABELS else None
    variables = draw(job.generator, (jnp.zeros(1, jnp.int32), noise) if name in LABELS else jnp.zeros((1, 32, 32, 3)))
    path = folder / 'drawn.safetensors'
    model = Model(config, job, variables, 7, folder / 'run', 1.0)
    facts = modelfile.Facts(config.to_dict(), step=7, weights='raw', scale=1.0, scores={}, examples={'train': 5})
    modelfile.write(path, variables, facts)
    return model, dataclasses.replace(model, origin=path)


@pytest.fixture(scope='module')
def unet(tmp_path_factory):
    return load(tmp_path_factory.mktemp('unet'), 'unet')[1]


@pytest.fixture(scope='module')
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp('photograph') / 'photo.png'
    export.images.write_image(path, picture(0, 20, 50))
    return path


def differences(model, program, form, folder, cases):
    """Of what a format gives, run back, to the model itself."""
    path = folder / export.FORMATS[form].name
    export.FORMATS[form].write(program, path)
    run = export.FORMATS[form].read(path)
    apply = jax.jit(model.job.apply)
    for arrays in cases:
        expected = apply(model.variables, tuple(arrays.values()) if model.job.classes else arrays['image'])
        result = run(arrays)
        assert result.shape == expected.shape and result.dtype == np.float32
        assert float(expected.std()) > 0.05  # the image is not all of one value
        yield float(np.abs(result - expected).max())


def random_images(*shapes):
    return [{'image': np.random.default_rng(0).random((*shape, 3), np.float32)} for shape in shapes]


def some_labels():
    random = np.random.default_rng(0)
    return [{'labels': np.array([0, 2, 1, 0], np.int32), 'noise': random.normal(size=(4, 6)).astype(np.float32)}]


@pytest.mark.parametrize('name', [*IMAGES, *LABELS])
def test_stablehlo_gives_the_same_at_any_size(name, tmp_path):
    model, _ = load(tmp_path, name)
    program = export.prepare(model)
    cases = some_labels() if name in LABELS else random_images((2, 33, 18))
    assert max(differences(model, program, 'stablehlo', tmp_path, cases)) < 1e-5
    said = json.loads((tmp_path / 'model.stablehlo.json').read_text())
    assert said['config']['generator']['name'] == name and said['step'] == 7
    if name in IMAGES:
        assert said['inputs'] == {'image': {'shape': 'n, h, w, 3', 'dtype': 'float32'}}
    exported = jax.export.deserialize(bytearray((tmp_path / 'model.stablehlo').read_bytes()))
    assert exported.platforms == ('cpu', 'cuda', 'tpu')
    assert 'u' not in {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(program.variables)}


def test_batch_norm_by_the_images_at_hand(tmp_path):
    model, _ = load(tmp_path, 'unet', **{'norm.statistics': 'batch', 'value_range': (0.0, 1.0)})
    cases = random_images((2, 9, 7), (1, 1, 5))
    assert max(differences(model, export.prepare(model), 'stablehlo', tmp_path, cases)) < 1e-5


@pytest.mark.skipif(not SAVEDMODELS_RUN, reason='TensorFlow 2.21 does not read what jax 0.11 writes')
@pytest.mark.parametrize('name', ['nafnet', 'dcgan'])
def test_savedmodel_gives_the_same_at_any_size(name, tmp_path):
    model, _ = load(tmp_path, name, **({'generator.nafnet.local_size': None} if name == 'nafnet' else {}))
    cases = some_labels() if name in LABELS else random_images((2, 33, 18))
    assert max(differences(model, export.prepare(model), 'savedmodel', tmp_path, cases)) < 1e-5
    said = json.loads((tmp_path / 'saved_model' / 'assets.extra' / 'p2p_jax.json').read_text())
    assert said['config']['generator']['name'] == name


@with_onnx
@pytest.mark.parametrize('name', [*IMAGES, *LABELS])
def test_onnx_gives_the_same_at_its_size(name, tmp_path):
    model, _ = load(tmp_path, name)
    cases = some_labels() if name in LABELS else random_images((1, 33, 18), (2, 33, 18))
    program = export.prepare(model, (33, 18))
    assert max(differences(model, program, 'onnx', tmp_path, cases)) < 2e-5


def test_several_formats_fill_a_folder_and_run_as_the_report_says(unet, photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, '_OTHER_SIZES', ((2, 9, 7),))
    formats = ['safetensors', 'stablehlo', *(['savedmodel'] if SAVEDMODELS_RUN else [])]
    target = export.plan(','.join(formats), tmp_path / 'out')
    assert export.export(unet, target, (12, 16), photograph)
    files = {'model.safetensors', 'model.stablehlo', 'model.stablehlo.json', 'parity.json'}
    files |= {'saved_model'} if SAVEDMODELS_RUN else set()
    assert {path.name for path in (tmp_path / 'out').iterdir()} == files
    parity = json.loads((tmp_path / 'out' / 'parity.json').read_text())
    assert list(parity['formats']) == formats and parity['tolerance'] == 1e-4
    image = np.random.default_rng(3).random((2, 9, 7, 3), np.float32)
    expected = jax.jit(unet.job.apply)(unet.variables, image)
    printed = capsys.readouterr().out
    for name, part in parity['formats'].items():
        assert set(part['differences']) == {
            'random, batch 1, 12×16', 'random, batch 2, 9×7', str(photograph)
        }  # fmt: skip
        assert part['largest_difference'] == max(part['differences'].values()) < 1e-5, name
        here = tmp_path / 'out' / part['file']
        assert part['bytes'] == sum(p.stat().st_size for p in [here, *here.rglob('*')] if p.is_file())
        assert part['run'] in printed
        scope = {'image': image}
        exec(part['run'], scope)
        np.testing.assert_allclose(scope['result'], expected, atol=1e-5)


def test_what_does_not_run_is_not_kept(unet, photograph, tmp_path, monkeypatch):
    def broken(path):
        raise RuntimeError('unknown operation\nof a newer version')

    monkeypatch.setitem(export.FORMATS, 'stablehlo', dataclasses.replace(export.FORMATS['stablehlo'], read=broken))
    message = r'--format=stablehlo: what jax .* RuntimeError: unknown operation of a newer version; nothing is kept'
    with pytest.raises(UserError, match=message):
        export.export(unet, export.plan('stablehlo', tmp_path / 'new' / 'model.stablehlo'), (12, 16), photograph)
    assert not (tmp_path / 'new').exists()


def test_a_model_file_comes_out_as_it_went_in(unet, photograph, tmp_path, monkeypatch):
    monkeypatch.setattr(export, '_OTHER_SIZES', ())
    assert export.export(unet, export.plan('safetensors', tmp_path / 'new' / 'copy.safetensors'), (12, 16), photograph)
    before, after = (modelfile.read(path) for path in (unet.origin, tmp_path / 'new' / 'copy.safetensors'))
    assert before[1] == after[1]
    jax.tree.map(np.testing.assert_array_equal, before[0], after[0])
    assert {p.name for p in (tmp_path / 'new').iterdir()} == {'copy.safetensors', 'copy.safetensors.parity.json'}


def test_bfloat16_is_exported_in_float32(unet, tmp_path):
    model, _ = load(tmp_path, 'unet', dtype='bfloat16')
    cases = random_images((1, 16, 16))
    assert max(differences(unet, export.prepare(model), 'stablehlo', tmp_path, cases)) < 1e-5
    assert 1e-4 < max(differences(model, export.prepare(model), 'stablehlo', tmp_path, cases)) < 0.05


@pytest.mark.parametrize('wrong', [lambda y: y + 2e-4, lambda y: y * np.nan, lambda y: y[:, :-1]])
def test_a_result_that_differs_leaves_nothing(wrong, unet, photograph, tmp_path, monkeypatch, capsys):
    # What is read back is the model itself, but for what is wrong with it.
    apply = jax.jit(unet.job.apply)
    bad = dataclasses.replace(
        export.FORMATS['safetensors'],
        read=lambda path: lambda arrays: wrong(np.asarray(apply(unet.variables, arrays['image']))),
    )
    monkeypatch.setitem(export.FORMATS, 'safetensors', bad)
    monkeypatch.setattr(export, '_OTHER_SIZES', ())
    assert not export.export(unet, export.plan('safetensors', tmp_path / 'a' / 'b'), (8, 8), photograph)
    assert 'more than 1e-04: nothing is kept' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    (tmp_path / 'out').mkdir()
    assert not export.export(unet, export.plan('stablehlo,safetensors', tmp_path / 'out'), (8, 8), photograph)
    assert not list((tmp_path / 'out').iterdir())


def test_what_a_converter_cannot_do_is_an_error_and_leaves_nothing(unet, photograph, tmp_path, monkeypatch):
    def fail(program, path):
        path.write_text('half')
        raise NotImplementedError('primitive conv\nmore')

    monkeypatch.setitem(export.FORMATS, 'stablehlo', dataclasses.replace(export.FORMATS['stablehlo'], write=fail))
    with pytest.raises(UserError, match='--format=stablehlo: cannot express this network: NotImplementedError: .*v$'):
        export.export(unet, export.plan('stablehlo', tmp_path / 'out' / 'm'), (8, 8), photograph)
    assert not (tmp_path / 'out').exists()


def test_mistakes_are_found_before_anything_is_loaded(tmp_path, monkeypatch):
    for name in ('m.stablehlo', 'm.stablehlo.json', 'm.stablehlo.parity.json'):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=f'(?s)exists and is not overwritten:.*/{name}$'):
            export.plan('stablehlo', tmp_path / 'm.stablehlo')
        (tmp_path / name).unlink()
    (tmp_path / 'saved_model').mkdir()
    with pytest.raises(UserError, match='(?s)exists and is not overwritten:.*saved_model$'):
        export.plan('savedmodel', tmp_path / 'saved_model')
    with pytest.raises(UserError, match='(?s)exists and is not overwritten:.*saved_model$'):
        export.plan('stablehlo,savedmodel', tmp_path)
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='file: that is a file; expected a folder for stablehlo,safetensors'):
        export.plan('stablehlo,safetensors', tmp_path / 'file')
    missing = dataclasses.replace(export.FORMATS['onnx'], packages=('jax2onnx_of_nobody', 'json'))
    monkeypatch.setitem(export.FORMATS, 'onnx', missing)
    with pytest.raises(UserError, match=r"onnx needs jax2onnx_of_nobody, not installed: pip install 'p2p_jax\[onnx\]'"):
        export.plan('stablehlo,onnx', tmp_path / 'new')
    for size in ('256', '0x4', '4x', 'axb', '-4x4'):
        with pytest.raises(UserError, match=f'--size={size}: expected height and width'):
            export.parse_size(size)
    config = small_config()
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='empty: no images there'):
        export.photographs(tmp_path / 'empty', config, (8, 8))


def test_photographs_are_cut_from_the_middle_or_continued(tmp_path):
    image = picture(0, 30, 20)
    export.images.write_image(tmp_path / 'a.png', image)
    ((_, cut),) = export.photographs(tmp_path, small_config(), (10, 24)).items()
    assert cut.shape == (1, 10, 24, 3)
    np.testing.assert_array_equal(np.rint(cut[0, :, :20] * 255), image[10:20])
    np.testing.assert_array_equal(cut[0, :, 20:], cut[0, :, 19:15:-1])
    sample = export.photographs(None, small_config(), (16, 16))
    assert [Path(name).stem for name in sample] == ['chelsea', 'rocket', 'astronaut']


def test_the_export_of_a_training_says_what_it_was_trained_on(tmp_path):
    config = small_config()
    job = build_job(config, 1)
    shapes = jax.eval_shape(lambda: job.create_state(0, training_size(config))).generator.variables
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    splits = {'train': ['a', 'b'], 'val': ['c'], 'test': []}
    (tmp_path / 'data.json').write_text(json.dumps({'scale': 2.0, 'splits': splits}))
    (tmp_path / 'metrics.jsonl').write_text('{"step": 4, "val/psnr": 30.0}\n{"step": 5, "val/psnr": 31.0}\n')
    facts = export.prepare(Model(config, job, variables, 5, tmp_path, 2.0)).facts
    assert facts.examples == {'train': 2, 'val': 1, 'test': 0}
    assert facts.scale == 2.0 and facts.scores == {'psnr': 31.0}
    bare = export.prepare(Model(config, job, variables, 5, tmp_path / 'none', 1.0)).facts
    assert bare.examples == {} and bare.scores == {}
