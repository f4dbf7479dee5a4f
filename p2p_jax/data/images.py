"""Decoding and encoding of 8-bit image files as RGB."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from p2p_jax.lookup import UserError

CHANNELS = 3
EXTENSIONS = frozenset(('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'))
# Modes whose pixels are 8 bits deep and turn into RGB without loss of anything that was visible.
_MODES = frozenset(('1', 'L', 'P', 'RGB', 'CMYK', 'YCbCr'))
_ORIENTATION = 0x0112  # EXIF tag; the values 5 to 8 exchange width and height


def _open(path: Path) -> Image.Image:
    """Opens a file without decoding its pixels; raises a UserError that names it."""
    try:
        image = Image.open(path)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f'{path}: not a readable image ({error})') from None
    if image.mode not in _MODES or 'transparency' in image.info:
        raise UserError(
            f'{path}: an image of mode {image.mode}{" with transparency" if "transparency" in image.info else ""}; '
            'expected 8 bits a channel, grey or RGB, without alpha. Convert it first.'
        )
    return image


def image_size(path: Path) -> tuple[int, int]:
    """Returns (height, width) in pixels as `read_image` would give them, from the file's header alone.

    Raises:
      UserError: the file is missing, is no image, or is not 8-bit grey or RGB.
    """
    with _open(path) as image:
        width, height = image.size
        # The base class's method: that of PNG decodes all pixels, which takes minutes over a large set.
        if Image.Image.getexif(image).get(_ORIENTATION, 1) >= 5:
            width, height = height, width
    return height, width


def read_image(path: Path) -> np.ndarray:
    """Returns the file as uint8 (height, width, 3), RGB, turned upright by its EXIF orientation.

    Raises:
      UserError: as `image_size`, or the file is truncated.
    """
    with _open(path) as image:
        try:
            return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f'{path}: cannot be decoded ({error})') from None


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (height, width, 3) as PNG; under a temporary name first, so that no half file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        Image.fromarray(image).save(temporary, format='PNG')
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def find_images(folder: Path) -> list[Path]:
    """Returns all image files below a folder, sorted; hidden files are passed over."""
    return sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith('.') and path.is_file()
    )
