"""From files to files: what is kept, what is refused, what is done again and what is not."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from p2p_jax import inference, predictor
from p2p_jax.data import images
from p2p_jax.data.metadata import Metadata
from p2p_jax.files import write_file
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from p2p_jax.predict import RECORD, predict
from p2p_jax.predictor import PredictOptions, Predictor
from tests.conftest import picture, small_config
from tests.models import generators

SIZE = (24, 36)
ICC = {kind: ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes() for kind in ('sRGB', 'LAB')}
GREY_ICC = ICC['sRGB'][:16] + b'GRAY' + ICC['sRGB'][20:]  # as far as we look


def model(scale=1.0, seed=0, **changes):
    """A small residual U-Net of drawn weights."""
    config = small_config()
    config.generator.unet.update(depth=1, width=4, norm='none', last_activation='none', residual=True)
    config.value_range = (0.0, 1.0)
    config.update_from_flattened_dict(changes)
    job = build_job(config, 1)
    x = generators.image(16, 16, channels=config.data.channels)
    variables = jax.tree.map(lambda leaf: leaf * np.float32(0.2 + 0.01 * seed), generators.draw(job.generator, x))
    return inference.Model(config, job, variables, 7, Path('m.safetensors'), scale)


@pytest.fixture(scope='module')
def small():
    return model()


def by_hand(made, image):
    """The result of an 8-bit colour image, whole."""
    return np.asarray(generators.run(made.job.generator, made.variables, image[None] / np.float32(255)))[0].clip(0, 1)


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112], exif[271], exif[306] = orientation, 'Maker', '2020:02:02 02:02:02'
    exif[0x8769] = {0x829A: TiffImagePlugin.IFDRational(1, 100), 0xA002: 5, 0xA003: 6, 0x927C: b'a note of the maker'}
    exif[0x8825] = {1: 'N'}
    loaded = Image.Exif()  # Pillow writes the lists below into TIFF only where it has read them
    loaded.load(exif.tobytes())
    return loaded


def check_exif(path, size):
    found = Image.Image.getexif(Image.open(path))
    assert found.get(0x0112, 1) == 1 and (found[271], found[306]) == ('Maker', '2020:02:02 02:02:02')
    details = found.get_ifd(0x8769)
    assert details[0x829A] == 0.01 and (details[0xA003], details[0xA002]) == size
    assert details[0x927C] == b'a note of the maker' and found.get_ifd(0x8825) == {1: 'N'}


@pytest.mark.parametrize('form', ['png', 'tif', 'jpg'])
@pytest.mark.parametrize('suffix', ['.jpg', '.tif', '.png'])
@pytest.mark.parametrize('orientation', [1, 6, 7])
def test_metadata_is_kept_and_nothing_is_turned_twice(small, tmp_path, suffix, form, orientation):
    path = tmp_path / 'in' / f'a{suffix}'
    path.parent.mkdir()
    Image.fromarray(picture(0, *SIZE)).save(path, exif=exif_of(orientation), icc_profile=ICC['sRGB'])
    upright = images.decode('a', path)
    assert predict(small, path, tmp_path / 'out', PredictOptions(format=form)) == 0
    target = tmp_path / 'out' / f'a.{form}'
    result, other = images.decode('b', target), np.asarray(Image.open(target))
    expected = by_hand(small, upright) * 255
    assert result.shape == upright.shape == other.shape
    assert np.abs(result - expected).max() < (30 if form == 'jpg' else 0.51)
    np.testing.assert_allclose(result.astype(int), other, atol=1)  # another reader turns nothing either
    assert Image.open(target).info['icc_profile'] == ICC['sRGB']
    check_exif(target, upright.shape[:2])


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_sixteen_bits_alpha_and_grey_are_kept(small, tmp_path, channels, suffix):
    image = np.random.default_rng(0).integers(0, 2**16, (*SIZE, channels)).astype(np.uint16)
    icc = GREY_ICC if channels < 3 else ICC['sRGB']
    exif = exif_of(1).tobytes()[6:]
    write_file(tmp_path / f'a{suffix}', images.encode(image, suffix, Metadata(icc, exif)))
    predict(small, tmp_path / f'a{suffix}', tmp_path / 'out', PredictOptions(format=suffix[1:]))
    target = tmp_path / 'out' / f'a{suffix}'
    result = images.decode('a', target)
    assert (result.dtype, result.shape) == (image.dtype, image.shape)
    if channels in (2, 4):
        np.testing.assert_array_equal(result[..., -1], image[..., -1])
    kept = images.read_metadata('a', target)
    assert kept.icc == icc
    if (channels, suffix) != (2, '.tif'):  # Pillow, by which TIFF's tags are read, cannot open it
        check_exif(target, SIZE)
    if channels == 3:
        expected = generators.run(small.job.generator, small.variables, image[None] / np.float32(65535))[0]
        assert np.abs(result - np.clip(expected, 0, 1) * 65535).max() < 2


def test_metadata_that_does_not_fit_is_left_out(tmp_path):
    path = tmp_path / 'a.tif'
    Image.fromarray(picture(0)).convert('CMYK').save(path, icc_profile=ICC['sRGB'][:16] + b'CMYK' + ICC['sRGB'][20:])
    assert images.read_metadata('a', path) == Metadata()
    Image.fromarray(picture(0)).save(tmp_path / 'b.jpg', exif=b'Exif\0\0II*\0\xff\xff\0\0')
    assert images.read_metadata('b', tmp_path / 'b.jpg') == Metadata()
    large = Metadata(bytes(16) + b'RGB ' + os.urandom(200_000), b'II*\0' + bytes(70_000))
    write_file(tmp_path / 'c.jpg', images.encode(picture(0), '.jpg', large))
    assert Image.open(tmp_path / 'c.jpg').info['icc_profile'] == large.icc  # in four pieces
    assert not images.read_metadata('c', tmp_path / 'c.jpg').exif  # which JPEG has no place for


def test_other_formats_and_same(small, tmp_path):
    for name in ('a.jpg', 'b.TIF', 'c.webp', 'd.png', 'e.JPEG'):
        suffix = {'.tif': 'TIFF', '.jpg': 'JPEG', '.jpeg': 'JPEG'}.get(name[1:].lower(), name[2:].upper())
        (tmp_path / 'in').mkdir(exist_ok=True)
        Image.fromarray(picture(0, *SIZE)).save(tmp_path / 'in' / name, suffix)
    predict(small, tmp_path / 'in', tmp_path / 'out', PredictOptions(format='same'))
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == ['a.jpg', 'b.TIF', 'c.png', 'd.png', 'e.JPEG', RECORD]
    assert images.header('b', tmp_path / 'out' / 'b.TIF').size == SIZE
    quantization = Image.open(tmp_path / 'out' / 'a.jpg').quantization[0]
    assert quantization[0] == 2 and Image.open(tmp_path / 'out' / 'a.jpg').layer[1][1:3] == (1, 1)  # 95, 4:4:4
    images.write_image(tmp_path / 'deep.png', picture(0).astype(np.uint16))
    images.write_image(tmp_path / 'alpha.png', np.concatenate([picture(0), picture(0)[..., :1]], -1))
    for name, message in (('deep', '16 bits, of which JPEG keeps 8'), ('alpha', 'JPEG has no alpha')):
        with pytest.raises(UserError, match=message):
            predict(small, tmp_path / f'{name}.png', tmp_path / 'jpg', PredictOptions(format='jpg'))
    assert not (tmp_path / 'jpg').exists()
    with pytest.raises(UserError, match="--format='gif' is unknown. Available: jpg, png, same, tif"):
        predict(small, tmp_path / 'in', tmp_path / 'gif', PredictOptions(format='gif'))


def write(*paths):
    for number, path in enumerate(paths):
        images.write_image(path, picture(number, *SIZE))


def test_folders_patterns_and_names(small, tmp_path, capsys):
    write(tmp_path / 'in' / 'a.png', tmp_path / 'in' / 'deep' / 'b.png', tmp_path / 'in' / 'deep' / 'c.tif')
    (tmp_path / 'in' / 'notes.txt').write_text('no image')

    def results(source, folder):
        predict(small, source, folder, PredictOptions())
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.png'))

    everything = ['a.png', 'deep/b.png', 'deep/c.png']
    assert results(tmp_path / 'in', tmp_path / '1') == everything
    assert results(tmp_path / 'in' / '**' / '*', tmp_path / '2') == everything
    assert results(tmp_path / 'in' / '*' / '[bx].png', tmp_path / '3') == ['deep/b.png']
    # Results below the inputs are no inputs the next time.
    assert results(tmp_path / 'in', tmp_path / 'in' / 'out') == everything
    capsys.readouterr()
    assert results(tmp_path / 'in', tmp_path / 'in' / 'out') == everything
    assert '0 images; 3 done before' in capsys.readouterr().out
    for source, output, message in (
        ('none', '5', 'no such file or folder'),
        ('in/*.gif', '5', r'no images there \(.bmp'),
        ('in', 'in', 'is the folder of the inputs'),
        ('in/a.png', 'in', 'a.png is an input; give another --output'),
        ('in', 'in/a.png', 'that is a file; expected a folder'),
    ):
        with pytest.raises(UserError, match=message):
            predict(small, tmp_path / source, tmp_path / output, PredictOptions(overwrite=True))
    write(tmp_path / 'in' / 'a.tif')
    with pytest.raises(UserError, match=r'(?s)a.png and .*a.tif would both be written to .*a.png'):
        predict(small, tmp_path / 'in', tmp_path / '4', PredictOptions())
    assert not (tmp_path / '4').exists()


def test_after_an_interruption_it_goes_on(small, tmp_path, monkeypatch, capsys):
    write(*(tmp_path / 'in' / f'{i}.png' for i in range(4)))
    out, calls = tmp_path / 'out', []
    whole = Predictor.__call__

    def third_fails(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(Predictor, '__call__', third_fails)
    with pytest.raises(KeyboardInterrupt):
        predict(small, tmp_path / 'in', out, PredictOptions())
    monkeypatch.undo()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob('*.png')}
    assert sorted(path.name for path in stamps) == ['0.png', '1.png']
    with (out / RECORD).open('a') as file:
        file.write('\n{"output": "2.pn')  # of the moment in which the power failed
    (out / '.2.png.1.tmp').write_bytes(b'half')
    capsys.readouterr()
    assert predict(small, tmp_path / 'in', out, PredictOptions(batch=2)) == 0
    assert '2 images; 2 done before' in capsys.readouterr().out
    assert len(list(out.glob('*.png'))) == 4 and all(path.stat().st_mtime_ns == stamps[path] for path in stamps)
    predict(small, tmp_path / 'in', out, PredictOptions())
    assert '0 images; 4 done before' in capsys.readouterr().out


def test_results_of_another_origin_stop_it_before_it_starts(small, tmp_path):
    write(tmp_path / 'in' / 'a.png', tmp_path / 'in' / 'b.png')
    out = tmp_path / 'out'
    predict(small, tmp_path / 'in', out, PredictOptions())

    def refused(message, made=small, **options):
        before = (out / 'a.png').read_bytes()
        with pytest.raises(UserError, match=rf'(?s)a.png exists and is not overwritten without --overwrite.*{message}'):
            predict(made, tmp_path / 'in', out, PredictOptions(**options))
        assert (out / 'a.png').read_bytes() == before

    refused('was made by another model or with other options', overlap='exact')
    refused('was made by another model or with other options', model(seed=1))
    first = (out / 'a.png').read_bytes()
    predict(model(seed=1), tmp_path / 'in', out, PredictOptions(overwrite=True))
    assert (out / 'a.png').read_bytes() != first
    refused('was made by another model')
    predict(small, tmp_path / 'in', out, PredictOptions(overwrite=True))
    shutil.copy(tmp_path / 'in' / 'b.png', out / 'a.png')
    refused('was not made by predict, or was changed since')
    predict(small, tmp_path / 'in', out, PredictOptions(overwrite=True))
    assert (out / 'a.png').read_bytes() == first
    write(tmp_path / 'in' / 'a.png')
    refused('was made of another version of .*a.png')
    lines = [json.loads(line) for line in (out / RECORD).read_text().split('\n') if line]
    assert {line['made_by']['options']['overlap'] for line in lines if 'made_by' in line} == {'blend'}
    (out / RECORD).unlink()
    refused('was not made by predict')


def test_unreadable_files_are_named_at_the_end_and_the_rest_is_done(small, tmp_path, capsys):
    write(tmp_path / 'in' / 'a.png', tmp_path / 'in' / 'c.png', tmp_path / 'in' / 'd.png')
    (tmp_path / 'in' / 'b.png').write_text('no image')
    content = (tmp_path / 'in' / 'c.png').read_bytes()
    (tmp_path / 'in' / 'c.png').write_bytes(content[: len(content) // 2])
    assert predict(small, tmp_path / 'in', tmp_path / 'out', PredictOptions()) == 2
    said = capsys.readouterr().out
    tail = said[said.index('2 files could not be read:') :]
    assert 'b.png: not a readable image' in tail and 'c.png: truncated or damaged' in tail
    assert sorted(path.name for path in (tmp_path / 'out').glob('*.png')) == ['a.png', 'd.png']
    assert '1/3 | 0.0/0.0 megapixels' in said and 'ETA 0s' in said
    (tmp_path / 'in' / 'b.png').unlink()
    write(tmp_path / 'in' / 'c.png')
    assert predict(small, tmp_path / 'in', tmp_path / 'out', PredictOptions()) == 0
    assert '1 images; 2 done before' in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_one_error(small, tmp_path, monkeypatch):
    write(tmp_path / 'a.png')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('p2p_jax.predict.write_file', full)
    with pytest.raises(UserError, match=r'a.png: cannot be written \(.*No space left on device\); started again'):
        predict(small, tmp_path / 'a.png', tmp_path / 'out', PredictOptions())


def test_the_ensemble_is_the_mean_of_eight_orientations(small):
    image = picture(0, 50, 43)
    expected = np.zeros(image.shape)
    for turns in range(4):
        for mirror in (slice(None), slice(None, None, -1)):
            shown = np.rot90(image[:, mirror], turns)
            expected += np.rot90(by_hand(small, shown), -turns)[:, mirror] / 8
    for options in ({}, {'tile': 32, 'overlap': 'exact'}):
        result = Predictor(small, PredictOptions(ensemble=True, **options))(image)
        assert np.abs(result - expected * 255).max() < 0.51
    assert np.abs(result - by_hand(small, image) * 255).max() > 2


@pytest.mark.parametrize(
    'changes', [{}, {'generator.unet.depth': 2, 'generator.unet.norm': 'batch', 'norm.statistics': 'batch'}]
)
def test_results_depend_neither_on_devices_nor_on_the_batch(monkeypatch, changes):
    made = model(**changes)
    # Statistics of the image at hand bear no padding.
    height = 96 if made.config.norm.statistics == 'batch' else 97
    image = np.random.default_rng(0).integers(0, 2**16, (height, 80, 3)).astype(np.uint16)
    results = []
    assert jax.local_device_count() == 2
    for batch, devices in ((1, 2), (3, 2), (2, 1)):
        monkeypatch.setattr(jax, 'local_device_count', lambda devices=devices: devices)
        results.append(Predictor(made, PredictOptions(tile=32, batch=batch))(image).astype(int))
    assert max(np.abs(result - results[0]).max() for result in results) <= 1  # 1.5e-5 of full scale
    assert np.abs(results[0] - image).max() > 100


def test_bfloat16_is_near(small):
    image = picture(0, 40, 40)
    full, half = (Predictor(small, PredictOptions(dtype=name))(image).astype(int) for name in (None, 'bfloat16'))
    assert 0 < np.abs(full - half).max() < 10
    with pytest.raises(UserError, match="--dtype='float16' is unknown. Available: bfloat16, float32"):
        Predictor(small, PredictOptions(dtype='float16'))


def test_a_grey_network_takes_colours_one_after_another():
    made, image = model(**{'data.channels': 1}), picture(0, 40, 44)
    result = Predictor(made, PredictOptions(tile=16, overlap='exact'))(image)
    expected = [by_hand(made, image[..., c : c + 1]) for c in range(3)]
    assert np.abs(result - np.concatenate(expected, -1) * 255).max() < 0.51


def test_a_network_that_pads_with_its_own_zero_is_exact_in_tiles():
    blocks = {'encoder_blocks': (1,), 'middle_blocks': 1, 'decoder_blocks': (1,), 'width': 4, 'local_size': 4}
    changes = {f'generator.nafnet.{name}': value for name, value in blocks.items()}
    made = model(**{'generator.name': 'nafnet', 'value_range': (-1.0, 1.0), **changes})
    image = picture(0, 61, 75)
    expected = np.asarray(jax.jit(made.job.apply)(made.variables, image[None] / np.float32(255)))[0] * 255
    assert np.abs(Predictor(made, PredictOptions(tile=8, overlap='exact'))(image) - expected).max() < 0.51


def test_models_of_another_scale_are_refused_or_shown_what_they_know():
    resized, image = model(scale=0.05, **{'data.resize': 16}), picture(0, 60, 80)
    with pytest.raises(UserError, match=r'resized to 16×16 pixels .* --resize .* --splits=N .* --native'):
        Predictor(resized, PredictOptions())
    parts = [images.resize(part, (16, 16)) for half in np.split(image, 2) for part in np.split(half, 2, axis=1)]
    done = [by_hand(resized, part) for part in parts]
    expected = np.concatenate([np.concatenate(done[i : i + 2], axis=1) for i in (0, 2)])
    for options, wanted in (
        (PredictOptions(resize=True), by_hand(resized, images.resize(image, (16, 16)))),
        (PredictOptions(splits=2), expected),
        (PredictOptions(native=True), by_hand(resized, image)),
    ):
        result = Predictor(resized, options)(image)
        assert result.shape == wanted.shape and np.abs(result - wanted * 255).max() < 0.51
    half = Predictor(model(scale=0.5), PredictOptions(resize=True))(image)
    assert half.shape == (30, 40, 3)
    Predictor(model(scale=1.04), PredictOptions())
    for made, options, message in (
        (model(), {'resize': True}, "--resize: .*trained at the photographs' own scale; leave the flag out"),
        (resized, {'resize': True, 'native': True}, '--resize and --native: give one of them'),
        (resized, {'splits': 0}, '--splits=0: expected at least 1'),
        (resized, {'native': True, 'batch': 0}, '--batch=0: expected at least 1'),
    ):
        with pytest.raises(UserError, match=message):
            Predictor(made, PredictOptions(**options))


def test_compiled_programs_are_dropped_in_time(small, monkeypatch):
    monkeypatch.setattr(predictor, '_PROGRAMS', 2)
    apply = Predictor(small, PredictOptions())
    for width in (5, 6, 7, 5):
        image = picture(0, 9, width)
        assert np.abs(apply(image) - by_hand(small, image) * 255).max() < 0.51
    assert len(apply._sizes) <= 2


def test_conversions_are_said(small, tmp_path, capsys):
    images.write_image(tmp_path / 'in' / 'grey.png', picture(0, 24, 24)[..., :1])
    assert predict(small, tmp_path / 'in', tmp_path / 'out', PredictOptions()) == 0
    assert 'note: grey images were given to this network of colour images' in capsys.readouterr().out
    images.write_image(tmp_path / 'colour' / 'a.png', picture(0, 24, 24))
    assert predict(small, tmp_path / 'colour', tmp_path / 'out', PredictOptions()) == 0
    assert 'note:' not in capsys.readouterr().out


def test_a_model_of_labels_is_refused(tmp_path):
    config = small_config()
    config.generator.name = config.discriminator.name = 'dcgan'
    config.data.update(classes=('a', 'b'), crop_size=16)
    config.loss.l1.weight = 0.0
    model = inference.Model(config, build_job(config, 1), None, 0, tmp_path, 1.0)
    with pytest.raises(UserError, match='makes images from labels, not from images; see generate'):
        Predictor(model, PredictOptions())
