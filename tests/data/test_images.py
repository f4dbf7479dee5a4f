import io
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from p2p_jax.data import images
from p2p_jax.lookup import UserError
from tests.conftest import picture


def random_image(bits, channels, height=13, width=9):
    most = 2**bits
    return np.random.default_rng(bits + channels).integers(0, most, (height, width, channels)).astype(f'uint{bits}')


def read(path):
    return images.decode(str(path), path)


def header(path):
    return images.header(str(path), path)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('bits', [8, 16])
def test_round_trip_of_every_depth_and_channels(tmp_path, bits, channels, suffix):
    image = random_image(bits, channels)
    if channels == 1:
        image = image[..., 0][..., None]  # a view whose strides not every encoder takes
    path = tmp_path / 'deep' / f'a{suffix}'
    images.write_image(path, image)
    assert header(path) == images.Header(13, 9, channels, bits)
    result = read(path)
    assert result.dtype == image.dtype
    np.testing.assert_array_equal(result, image)
    np.testing.assert_array_equal(images.decode('bytes', path.read_bytes()), image)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ('mode', 'suffix', 'channels'),
    [
        ('P', '.png', 3), ('1', '.png', 1), ('L', '.jpg', 1), ('RGB', '.jpg', 3), ('CMYK', '.jpg', 3),
        ('CMYK', '.tif', 3), ('P', '.bmp', 3), ('RGB', '.webp', 3), ('1', '.tif', 1), ('P', '.tif', 3),
    ],
)  # fmt: skip
def test_other_modes_become_grey_or_rgb_as_pillow_has_them(tmp_path, mode, suffix, channels):
    path = tmp_path / f'a{suffix}'
    Image.fromarray(picture(0, 30, 20)).convert(mode).save(path)
    assert header(path) == images.Header(30, 20, channels, 8)
    expected = np.asarray(Image.open(path).convert('L' if channels == 1 else 'RGB')).reshape(30, 20, channels)
    np.testing.assert_array_equal(read(path), expected)


def test_transparency_of_a_palette_is_alpha(tmp_path):
    image = Image.fromarray(picture(0, 30, 20)).convert('P')
    image.save(tmp_path / 'a.png', transparency=3)
    assert header(tmp_path / 'a.png').channels == read(tmp_path / 'a.png').shape[-1] == 4


@pytest.mark.parametrize('options', [{'compression': 'lzw'}, {'tile': (16, 16)}, {'predictor': True, 'compression': 8}])
def test_tiff_as_others_write_it(tmp_path, options):
    for image in (random_image(8, 1, 40, 50)[..., 0], random_image(16, 3, 40, 50)):
        tifffile.imwrite(tmp_path / 'a.tif', image, **options)
        np.testing.assert_array_equal(read(tmp_path / 'a.tif'), image.reshape(40, 50, -1))


def test_tiff_planes_after_one_another_and_white_as_zero(tmp_path):
    image = random_image(16, 3)
    tifffile.imwrite(tmp_path / 'a.tif', np.moveaxis(image, -1, 0), photometric='rgb', planarconfig='separate')
    np.testing.assert_array_equal(read(tmp_path / 'a.tif'), image)
    tifffile.imwrite(tmp_path / 'b.tif', np.zeros((4, 5), np.uint8), photometric='miniswhite')
    assert read(tmp_path / 'b.tif').min() == 255


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_to_pixels_and_size(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f'a{suffix}'
    Image.fromarray(picture(0, 30, 20)).save(path, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(read(path), upright)
    assert header(path).size == upright.shape[:2] == ((20, 30) if orientation >= 5 else (30, 20))


def test_a_large_tiff(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', np.zeros((5000, 5000, 3), np.uint8))
    assert read(tmp_path / 'a.tif').shape == (5000, 5000, 3)


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.tif', '.webp', '.bmp'])
def test_truncated_files_are_named(tmp_path, suffix):
    stream = io.BytesIO()
    names = {'.jpg': 'JPEG', '.tif': 'TIFF'}
    Image.fromarray(random_image(8, 3, 64, 64)).save(stream, names.get(suffix, suffix[1:].upper()))
    content = stream.getvalue()
    for share in (0.5, 0.9):
        path = tmp_path / f'half{suffix}'
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=rf'half\{suffix}: (truncated or damaged|not a readable image)'):
            read(path)


def test_damaged_missing_empty_and_other_files_are_named(tmp_path):
    content = bytearray(imagecodecs.png_encode(random_image(8, 3, 64, 64)))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / 'damaged.png').write_bytes(content)
    with pytest.raises(UserError, match=r'damaged.png: truncated or damaged'):
        read(tmp_path / 'damaged.png')
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty.png').touch()
    for name, message in (('text', 'no image format'), ('empty', r'empty \(0 bytes\)'), ('none', 'no such file')):
        for function in (read, header):
            with pytest.raises(UserError, match=rf'{name}.png: .*{message}'):
                function(tmp_path / f'{name}.png')


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    bomb = bytearray(imagecodecs.png_encode(np.zeros((4, 4), np.uint8)))
    bomb[16:24] = (60_000).to_bytes(4, 'big') * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, 'big')
    (tmp_path / 'bomb.png').write_bytes(bomb)
    for function in (read, header):
        with pytest.raises(UserError, match=r'bomb.png: refused, for its size'):
            function(tmp_path / 'bomb.png')


def test_float_pixels_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', np.zeros((4, 5), np.float32))
    with pytest.raises(UserError, match=r'a.tif: pixels of mode F, which is neither 8 nor 16 bits'):
        read(tmp_path / 'a.tif')


def test_other_endings_are_not_written(tmp_path):
    with pytest.raises(UserError, match='written as .png, .tif or .jpg'):
        images.write_image(tmp_path / 'a.gif', picture(0))


def test_formats_convert_as_pillow_does():
    image = random_image(8, 4)
    np.testing.assert_array_equal(images.to_format(image, 3, 8), image[..., :3])
    grey = np.asarray(Image.fromarray(image[..., :3]).convert('L'))
    assert np.abs(images.to_format(image, 1, 8)[..., 0].astype(int) - grey).max() <= 1
    deep = images.to_format(image, 3, 16)
    assert deep.dtype == np.uint16 and deep.max() == 257 * int(image[..., :3].max())
    np.testing.assert_array_equal(images.to_format(deep, 3, 8), image[..., :3])
    two = random_image(16, 2)
    np.testing.assert_array_equal(images.to_format(two, 3, 16), np.repeat(two[..., :1], 3, -1))


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('bits', [8, 16])
def test_results_get_back_depth_greyness_and_alpha(bits, channels):
    original = random_image(bits, channels)
    colours = original[..., :1] if channels < 3 else original[..., :3]
    scaled = np.broadcast_to(colours / np.float32(2**bits - 1), (13, 9, 3))
    result = images.restore_format(scaled, original)
    assert result.dtype == original.dtype
    np.testing.assert_array_equal(result, original)


@pytest.mark.parametrize('bits', [8, 16])
def test_resize_is_antialiased_and_leaves_masks_alone(bits):
    image = random_image(bits, 3, 40, 60)
    small = images.resize(image, (10, 15))
    assert small.dtype == image.dtype and small.shape == (10, 15, 3)
    if bits == 8:
        expected = np.asarray(Image.fromarray(image).resize((15, 10), Image.Resampling.BICUBIC))
        assert np.abs(small.astype(int) - expected).max() <= 1
    nearest = images.resize(image, (10, 15), nearest=True)
    assert set(np.unique(nearest)) <= set(np.unique(image))


def test_find_images_passes_over_other_and_hidden_files(tmp_path):
    for name in ('b.PNG', 'sub/a.jpg', '.hidden.png', '.cache/x.png', 'notes.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert images.find_images(tmp_path) == [tmp_path / 'b.PNG', tmp_path / 'sub' / 'a.jpg']
    (tmp_path / 'sub' / 'circle').symlink_to(tmp_path)
    assert images.find_images(tmp_path) == [tmp_path / 'b.PNG', tmp_path / 'sub' / 'a.jpg']


def tiff(changes=()):
    """An uncompressed TIFF file of 4 × 4 pixels with some bytes changed: place, value."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(stream, 'TIFF')
    content = bytearray(stream.getvalue())
    for place, value in changes:
        content[place] = value
    return bytes(content)


@pytest.mark.parametrize(
    ('reader', 'change', 'message'),
    [
        (images.decode, (8, 255), r'truncated or damaged \(directory out of range'),  # the number of tags
        (images.header, (21, 255), 'refused, for its size might exhaust the memory'),  # the width
        (images.decode, (21, 255), 'refused, for its size might exhaust the memory'),  # tifffile refuses nothing
        (images.header, (26, 0), 'not a readable image'),  # how many heights; to tifffile it is then 0
        (images.decode, (26, 0), 'not a readable image'),
    ],
)
def test_a_damaged_tiff_is_named_whatever_its_decoder_raises(reader, change, message):
    assert images.decode('x', tiff()).shape == (4, 4, 3)
    with pytest.raises(UserError, match=f'x: {message}'):
        reader('x', tiff([change]))
