import numpy as np
import pytest
from PIL import Image

from p2p_jax.data import images
from p2p_jax.lookup import UserError
from tests.conftest import picture


def test_png_round_trip(tmp_path):
    image = picture(0)
    images.write_png(tmp_path / 'deep' / 'a.png', image)
    np.testing.assert_array_equal(images.read_image(tmp_path / 'deep' / 'a.png'), image)
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == ['a.png']


def test_grey_becomes_rgb(tmp_path):
    grey = picture(0)[..., 0]
    Image.fromarray(grey).save(tmp_path / 'g.png')
    np.testing.assert_array_equal(images.read_image(tmp_path / 'g.png'), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_to_pixels_and_size(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(0, 30, 20)).save(tmp_path / 'a.png', exif=exif)
    size = images.image_size(tmp_path / 'a.png')
    assert size == images.read_image(tmp_path / 'a.png').shape[:2]
    assert size == ((20, 30) if orientation >= 5 else (30, 20))


@pytest.mark.parametrize(
    'array',
    [np.zeros((8, 8), np.uint16), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 2), np.uint8)],
    ids=['16 bit', 'RGBA', 'grey with alpha'],
)
def test_what_would_lose_something_is_refused(tmp_path, array):
    Image.fromarray(array).save(tmp_path / 'a.png')
    for function in (images.image_size, images.read_image):
        with pytest.raises(UserError, match=r'a\.png: an image of mode .* expected 8 bits'):
            function(tmp_path / 'a.png')


def test_broken_files_are_named(tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(UserError, match=r'text\.png: not a readable image'):
        images.image_size(tmp_path / 'text.png')
    images.write_png(tmp_path / 'whole.png', picture(0))
    (tmp_path / 'half.png').write_bytes((tmp_path / 'whole.png').read_bytes()[:500])
    with pytest.raises(UserError, match=r'half\.png: cannot be decoded'):
        images.read_image(tmp_path / 'half.png')
    with pytest.raises(UserError, match=r'none\.png: no such file'):
        images.read_image(tmp_path / 'none.png')


def test_find_images_passes_over_other_and_hidden_files(tmp_path):
    for name in ('b.PNG', 'sub/a.jpg', '.hidden.png', 'notes.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert images.find_images(tmp_path) == [tmp_path / 'b.PNG', tmp_path / 'sub' / 'a.jpg']
