"""Decoding and encoding of image files: 8 and 16 bits, grey or colour, with or without alpha."""

import contextlib
import dataclasses
import functools
import io
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from p2p_jax.data import metadata as meta
from p2p_jax.data.metadata import Metadata
from p2p_jax.files import write_file
from p2p_jax.lookup import UserError

EXTENSIONS = frozenset(('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'))
JPEG_QUALITY = 95  # libjpeg's; colour at full resolution
LARGEST_JPEG = 65500  # pixels a side, libjpeg's limit
_ORIENTATION = 0x0112  # EXIF tag; the values 5 to 8 exchange width and height
# TIFF tags; photometric 1 is grey with black as 0, 2 is RGB.
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _PROFILE = 256, 257, 258, 262, 34675
# Pillow's mode: (the mode in which we take the pixels, its channels).
_MODES = {
    '1': ('L', 1),
    'L': ('L', 1),
    'LA': ('LA', 2),
    'La': ('LA', 2),
    'P': ('RGB', 3),
    'PA': ('RGBA', 4),
    'RGB': ('RGB', 3),
    'RGBA': ('RGBA', 4),
    'RGBa': ('RGBA', 4),
    'RGBX': ('RGB', 3),
    'CMYK': ('RGB', 3),
    'YCbCr': ('RGB', 3),
    'LAB': ('RGB', 3),
    'HSV': ('RGB', 3),
}
_WITH_ALPHA = {'L': ('LA', 2), 'RGB': ('RGBA', 4)}
# Large images are expected here; those above twice Pillow's limit are refused all the same.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
warnings.filterwarnings('ignore', message='Corrupt EXIF data')  # an image without orientation then
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R BT.601, as Pillow's


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file holds, as `decode` gives it.

    Attributes:
      height: in pixels, after the EXIF orientation.
      width: likewise.
      channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
      bits: a channel, 8 or 16.
    """

    height: int
    width: int
    channels: int
    bits: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def __str__(self) -> str:
        kind = ('grey', 'grey+alpha', 'RGB', 'RGBA')[self.channels - 1]
        return f'{self.height}×{self.width} {kind} {self.bits} bit'


@contextlib.contextmanager
def _blamed(name: str, what: str) -> Iterator[None]:
    """Makes one UserError, which names the file, of whatever decoders raise: of damaged files it can be anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{name}: {what} ({error})') from None


def _open(name: str, file: Path | bytes) -> Image.Image:
    """Opens a file without decoding its pixels; raises a UserError that names it."""
    try:
        if (isinstance(file, Path) and file.is_file() and not file.stat().st_size) or file == b'':
            raise UserError(f'{name}: the file is empty (0 bytes)')
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except FileNotFoundError:
        raise UserError(f'{name}: no such file') from None
    except Image.DecompressionBombError as error:
        raise UserError(f'{name}: refused, for its size might exhaust the memory ({error})') from None
    except UserError:
        raise
    except Exception as error:  # whatever the format's own code raises
        reason = 'no image format that is known' if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(f'{name}: not a readable image ({reason})') from None


def _layout(name: str, image: Image.Image) -> tuple[str, int, int]:
    """Returns (mode to take the pixels in, channels, bits) of an opened image."""
    # Pillow opens 16-bit colour as 8 bits; the raw mode of its decoder tells.
    deep = image.format == 'TIFF' and max(image.tag_v2.get(_BITS, (1,))) == 16  # type: ignore[attr-defined]
    if deep and image.mode in ('L', 'LA', 'RGB', 'RGBA'):
        return image.mode, len(image.mode), 16
    raw = re.search(r"'(\w+);16", ' '.join(repr(tile.args) for tile in getattr(image, 'tile', ())))
    if image.mode.startswith('I;16'):
        return 'I;16', 1, 16
    if raw and raw[1] in ('LA', 'RGB', 'RGBA'):
        return raw[1], len(raw[1]), 16
    if image.mode not in _MODES:
        raise UserError(
            f'{name}: pixels of mode {image.mode}, which is neither 8 nor 16 bits a channel. Convert it to one of them.'
        )
    mode, channels = _MODES[image.mode]
    if 'transparency' in image.info and mode in _WITH_ALPHA:
        mode, channels = _WITH_ALPHA[mode]
    return mode, channels, 8


def _orientation(image: Image.Image) -> int:
    # The base class's method: that of PNG decodes all pixels, which takes minutes over a large set.
    return Image.Image.getexif(image).get(_ORIENTATION, 1)


def _rare_tiff(file: Path | bytes) -> tifffile.TiffPage | None:
    """The first page of a TIFF file of 8 or 16 bits that Pillow cannot open, such as 16-bit grey with alpha."""
    try:
        page = tifffile.TiffFile(io.BytesIO(file) if isinstance(file, bytes) else file).pages.first
        known = page.dtype in (np.uint8, np.uint16) and page.axes in ('YX', 'YXS', 'SYX') and page.samplesperpixel <= 4
        # Not what Pillow refuses for its size.
        sound = 0 < page.imagelength * page.imagewidth <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
        return page if known and sound else None
    except Exception:  # whatever damaged tags make it raise
        return None


def _open_any(name: str, file: Path | bytes) -> Image.Image | tifffile.TiffPage:
    try:
        return _open(name, file)
    except UserError:
        page = _rare_tiff(file)
        if page is None:
            raise
        return page


def header(name: str, file: Path | bytes) -> Header:
    """Returns what a file holds, without decoding its pixels.

    Args:
      name: of the file, for messages.
      file: its path, or its content.

    Raises:
      UserError: it is missing, empty, no image, too large to be trusted, or neither 8 nor 16 bits a channel.
    """
    image = _open_any(name, file)
    if isinstance(image, tifffile.TiffPage):
        return Header(image.imagelength, image.imagewidth, image.samplesperpixel, image.bitspersample)
    with image, _blamed(name, 'not a readable image'):
        _, channels, bits = _layout(name, image)
        width, height = image.size
        # Of TIFF files, Pillow gives the size as turned already.
        turned = image.format != 'TIFF' and _orientation(image) >= 5
        return Header(*((width, height) if turned else (height, width)), channels, bits)


def _fast_decode(image: Image.Image, mode: str, bits: int, content: bytes) -> np.ndarray | None:
    """Decodes what imagecodecs decodes faster than Pillow, or with more bits; None for the rest."""
    plain = image.mode == mode or bits == 16
    if image.format == 'PNG' and plain and 'transparency' not in image.info:
        return imagecodecs.png_decode(content)
    # libjpeg fills what a truncated file lacks with grey and says nothing: only whole files go this way.
    if image.format == 'JPEG' and plain and content.rstrip(b'\0').endswith(b'\xff\xd9'):
        return imagecodecs.jpeg8_decode(content)
    if image.format == 'TIFF' and plain and image.tag_v2.get(_PHOTOMETRIC) in (1, 2):  # type: ignore[attr-defined]
        pixels = imagecodecs.tiff_decode(content)
        tags = image.tag_v2  # type: ignore[attr-defined]
        planes_apart = pixels.shape[:2] != (tags[_HEIGHT], tags[_WIDTH])
        return np.moveaxis(pixels, 0, -1) if planes_apart else pixels
    return None


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation (CIPA DC-008, tag 274)."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    return np.rot90(pixels, {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0))


def decode(name: str, file: Path | bytes) -> np.ndarray:
    """Returns the pixels in the file's own depth and channels, upright.

    Args:
      name: of the file, for messages.
      file: its path, or its content.

    Returns:
      uint8 or uint16 (height, width, channels); channels as in `Header`. Palettes, CMYK and YCbCr become RGB.

    Raises:
      UserError: as `header`, or the file is truncated or damaged.
    """
    image = _open_any(name, file)
    if isinstance(image, tifffile.TiffPage):
        with _blamed(name, 'truncated or damaged'):
            pixels = image.asarray()
            pixels = np.moveaxis(pixels, 0, -1) if image.axes == 'SYX' else pixels
            return pixels.reshape(*pixels.shape[:2], -1)
    with image:
        with _blamed(name, 'truncated or damaged'):
            mode, channels, bits = _layout(name, image)
            content = file.read_bytes() if isinstance(file, Path) else file
            orientation = _orientation(image)
            fast = _fast_decode(image, mode, bits, content)
            if fast is None:
                pixels = np.asarray(image if bits == 16 else image.convert(mode))
                orientation = 1 if image.format == 'TIFF' else orientation  # Pillow has turned these
            else:
                pixels = fast
            pixels = pixels.reshape(*pixels.shape[:2], -1)
        if pixels.dtype == bool:
            pixels = pixels * np.uint8(255)
        if (pixels.shape[-1], pixels.dtype.itemsize * 8) != (channels, bits):
            raise UserError(
                f'{name}: its header says {channels} channels of {bits} bits, its pixels are {pixels.shape[-1]} '
                f'channels of {pixels.dtype}. Convert it first.'
            )
        # Byte order is the file's; the machine's is what is computed with.
        return np.ascontiguousarray(_upright(pixels.astype(f'uint{bits}', copy=False), orientation))


def to_format(pixels: np.ndarray, channels: int, bits: int) -> np.ndarray:
    """Converts pixels to 1 or 3 channels of 8 or 16 bits; alpha is dropped, colour becomes luma.

    Args:
      pixels: uint8 or uint16 (height, width, 1 to 4).
      channels: 1 or 3.
      bits: 8 or 16.
    """
    image = pixels[..., :1] if pixels.shape[-1] < 3 else pixels[..., :3]
    if image.shape[-1] != channels:
        image = np.repeat(image, 3, -1) if channels == 3 else np.rint(image @ _GREY)[..., None].astype(image.dtype)
    if bits == 16 and image.dtype == np.uint8:
        return image.astype(np.uint16) * np.uint16(257)
    if bits == 8 and image.dtype == np.uint16:
        return np.rint(image / np.float32(257)).astype(np.uint8)
    return image


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """Returns a file as uint8 (height, width, channels), upright; see `decode` for what it raises."""
    return to_format(decode(str(path), path), channels, 8)


def _tiff_exif(image: Image.Image) -> bytes | None:
    """What a TIFF file's tags say about the photograph, as EXIF."""
    tags, kept = Image.Image.getexif(image), Image.Exif()
    for tag in meta.DESCRIPTIVE:
        if tag in tags:
            kept[tag] = tags.get_ifd(tag) if tag in (meta.EXIF_IFD, meta.GPS_IFD) else tags[tag]
    return kept.tobytes() if len(kept) else None


def read_metadata(name: str, file: Path | bytes) -> Metadata:
    """Returns what a file holds beside its pixels, as it goes with what `decode` gives.

    EXIF then says that the image is upright, and has lost its thumbnail. A profile of other colours than those of the
    pixels, such as of CMYK, which `decode` makes RGB, is left out, as is damaged EXIF.

    Args:
      name: of the file, for messages.
      file: its path, or its content.

    Raises:
      UserError: as `header`.
    """
    found = header(name, file)
    image = _open_any(name, file)
    if isinstance(image, tifffile.TiffPage):
        tag = image.tags.get(_PROFILE)
        icc, exif = (tag.value if tag else None), None
    else:
        with image:
            icc = image.info.get('icc_profile')
            try:
                exif = _tiff_exif(image) if image.format == 'TIFF' else image.info.get('exif')
            except Exception:  # whatever damaged tags make it raise
                exif = None
    fitting = b'GRAY' if found.channels < 3 else b'RGB '
    return Metadata(
        icc=icc if icc and icc[16:20] == fitting else None,
        exif=meta.upright(exif.removeprefix(meta.EXIF_PREFIX), *found.size) if exif else None,
    )


def _encode_tiff(image: np.ndarray, metadata: Metadata) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        image[..., 0] if image.shape[-1] == 1 else image,
        byteorder=meta.byte_order(metadata.exif) if metadata.exif else None,
        photometric='rgb' if image.shape[-1] >= 3 else 'minisblack',
        extrasamples=['unassalpha'] if image.shape[-1] in (2, 4) else None,
        compression='deflate',
        predictor=True,
        iccprofile=metadata.icc,
    )
    return meta.into_tiff(stream.getvalue(), metadata.exif) if metadata.exif else stream.getvalue()


def encode(image: np.ndarray, suffix: str, metadata: Metadata) -> bytes:
    """Returns the content of an image file.

    Args:
      image: uint8 or uint16 (height, width, 1 to 4); for JPEG uint8 without alpha.
      suffix: .png, .tif, .tiff, .jpg or .jpeg.
      metadata: what goes in beside the pixels.

    Raises:
      UserError: another suffix, or an image that JPEG cannot hold.
    """
    if suffix in ('.tif', '.tiff'):
        return _encode_tiff(image, metadata)
    flat = np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)
    if suffix in ('.jpg', '.jpeg'):
        if image.dtype != np.uint8 or image.shape[-1] in (2, 4) or max(image.shape) > LARGEST_JPEG:
            raise UserError(f'{suffix}: JPEG holds 8 bits, no alpha, and sides of at most {LARGEST_JPEG} pixels')
        jpeg = imagecodecs.jpeg8_encode(flat, level=JPEG_QUALITY, subsampling='444')
        return meta.into_jpeg(bytes(jpeg), metadata)
    if suffix != '.png':
        raise UserError(f'{suffix}: images are written as .png, .tif or .jpg')
    return meta.into_png(bytes(imagecodecs.png_encode(flat, level=6)), metadata)


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 or uint16 (height, width, 1 to 4) by the path's ending; see `encode` and `files.write_file`."""
    write_file(path, encode(image, path.suffix.lower(), Metadata()))


def resize(image: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """Resizes with antialiasing (bicubic over the support of the reduction), or takes the nearest pixels.

    Args:
      image: uint8 or uint16 (height, width, channels).
      size: (height, width) of the result.
      nearest: for masks, whose values must not be mixed.

    Returns:
      (*size, channels) in the image's type.
    """
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    planes = [
        np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize(size[::-1], method))
        for c in range(image.shape[-1])
    ]
    most = np.iinfo(image.dtype).max
    return np.clip(np.rint(np.stack(planes, -1)), 0, most).astype(image.dtype)


def restore_format(result: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Gives a result the depth, the greyness and the alpha of the image that it was made from.

    Args:
      result: float (height, width, 1 or 3) in [0, 1].
      original: uint8 or uint16 (height, width, 1 to 4), as `decode` gave it.

    Returns:
      (height, width, channels of the original) in the original's type.
    """
    colours = 1 if original.shape[-1] < 3 else 3
    if result.shape[-1] > colours:
        result = (result @ _GREY)[..., None]
    pixels = np.rint(np.clip(result, 0, 1) * np.iinfo(original.dtype).max).astype(original.dtype)
    if pixels.shape[-1] < colours:
        pixels = np.repeat(pixels, colours, -1)
    return np.concatenate([pixels, original[..., -1:]], -1) if original.shape[-1] in (2, 4) else pixels


@functools.cache
def _is_image_name(suffix: str) -> bool:
    return suffix.lower() in EXTENSIONS


def find_images(folder: Path) -> list[Path]:
    """Returns all image files below a folder, sorted; hidden files and folders are passed over."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        # A link to a folder that was visited already, such as one above, would lead round in a circle.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith('.'))
        names = [] if real in seen else names
        seen.add(real)
        found += [Path(parent, name) for name in names if name[0] != '.' and _is_image_name(os.path.splitext(name)[1])]
    return sorted(found)
