"""What an image file holds beside its pixels: colour profile (ICC) and EXIF, put into encoded PNG, JPEG and TIFF."""

import dataclasses
import struct
import zlib
from typing import Literal

EXIF_IFD, GPS_IFD = 0x8769, 0x8825  # tags that point to lists of tags
EXIF_PREFIX = b'Exif\0\0'
_ORIENTATION, _PIXELS_WIDE, _PIXELS_HIGH = 0x0112, 0xA002, 0xA003
_STRIP_OFFSETS = 273
# Tags of a photograph's first list that say something about it; the others are on how its pixels are stored.
DESCRIPTIVE = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, EXIF_IFD, GPS_IFD)
_SHORT, _LONG = 3, 4
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_LARGEST_SEGMENT = 65533  # bytes that a JPEG segment can hold
_ICC_PREFIX = b'ICC_PROFILE\0'


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is kept of a file beside its pixels.

    Attributes:
      icc: colour profile.
      exif: as a TIFF structure, which is how PNG has it.
    """

    icc: bytes | None = None
    exif: bytes | None = None


def byte_order(tiff: bytes) -> Literal['<', '>']:
    """Returns '<' or '>', as a TIFF structure begins.

    Raises:
      struct.error: it is none.
    """
    if tiff[:4] not in (b'II*\0', b'MM\0*'):
        raise struct.error('no TIFF structure')
    return '<' if tiff[:1] == b'I' else '>'


def _entries(tiff: bytes, place: int) -> tuple[dict[int, int], int]:
    """Finds each tag's entry of 12 bytes in the list at `place`, and the link to the next list after them."""
    order = byte_order(tiff)
    (count,) = struct.unpack_from(f'{order}H', tiff, place)
    end = place + 2 + 12 * count
    return {struct.unpack_from(f'{order}H', tiff, at)[0]: at for at in range(place + 2, end, 12)}, end


def _pointer(tiff: bytes, at: int) -> int:
    return struct.unpack_from(f'{byte_order(tiff)}I', tiff, at)[0]


def upright(exif: bytes, height: int, width: int) -> bytes | None:
    """Returns EXIF for pixels that were turned as it says: changed in place, so that makers' own notes stay valid.

    Args:
      exif: a TIFF structure.
      height: of the pixels that it goes with.
      width: likewise.

    Returns:
      With orientation 1, these sizes, and no thumbnail, which would show what was; None for damaged EXIF.
    """
    blob = bytearray(exif)
    try:
        order = byte_order(exif)
        main, link = _entries(exif, _pointer(exif, 4))
        struct.pack_into(f'{order}I', blob, link, 0)
        if _ORIENTATION in main:
            struct.pack_into(f'{order}HIHH', blob, main[_ORIENTATION] + 2, _SHORT, 1, 1, 0)
        if EXIF_IFD in main:
            photograph, _ = _entries(exif, _pointer(exif, main[EXIF_IFD] + 8))
            for tag, length in ((_PIXELS_WIDE, width), (_PIXELS_HIGH, height)):
                if tag in photograph:
                    struct.pack_into(f'{order}HII', blob, photograph[tag] + 2, _LONG, 1, length)
    except struct.error:
        return None
    return bytes(blob)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def into_png(png: bytes, metadata: Metadata) -> bytes:
    """Puts iCCP and eXIf after the header (PNG, third edition, 11.3)."""
    header = 33  # bytes of the signature and of IHDR
    profile = _chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(metadata.icc)) if metadata.icc else b''
    exif = _chunk(b'eXIf', metadata.exif) if metadata.exif else b''
    return png[:header] + profile + exif + png[header:]


def _segment(number: int, data: bytes) -> bytes:
    return struct.pack('>BBH', 0xFF, 0xE0 + number, len(data) + 2) + data


def into_jpeg(jpeg: bytes, metadata: Metadata) -> bytes:
    """Puts APP1 (EXIF) and APP2 (ICC.1, annex B.4) behind APP0; EXIF that is too large for a segment is left out."""
    head = 2
    if jpeg[2:4] == b'\xff\xe0':
        head += 2 + struct.unpack_from('>H', jpeg, 4)[0]
    exif = EXIF_PREFIX + (metadata.exif or b'')
    parts = [_segment(1, exif)] if metadata.exif and len(exif) <= _LARGEST_SEGMENT else []
    size = _LARGEST_SEGMENT - len(_ICC_PREFIX) - 2
    icc = metadata.icc or b''
    pieces = [icc[at : at + size] for at in range(0, len(icc), size)]
    parts += [_segment(2, _ICC_PREFIX + bytes((i, len(pieces))) + piece) for i, piece in enumerate(pieces, 1)]
    return jpeg[:head] + b''.join(parts) + jpeg[head:]


def into_tiff(tiff: bytes, exif: bytes) -> bytes:
    """Puts the descriptive tags of EXIF, and the lists that they point to, into a TIFF file.

    The file then begins with the EXIF as it is, so that all that points into it stays valid; the image follows.

    Args:
      tiff: with one image, of the byte order of the EXIF.
      exif: a TIFF structure.
    """
    order = byte_order(exif)
    base = len(exif) + len(exif) % 2
    body = bytearray(exif.ljust(base, b'\0') + tiff)
    own, _ = _entries(tiff, _pointer(tiff, 4))
    for tag, at in own.items():
        _, kind, count, place = struct.unpack_from(f'{order}HHII', tiff, at)
        inside = _TYPE_BYTES[kind] * count <= 4
        if not inside:
            struct.pack_into(f'{order}I', body, base + at + 8, base + place)
        if tag == _STRIP_OFFSETS:
            first = base + at + 8 if inside else base + place
            for spot in range(first, first + 4 * count, 4):
                struct.pack_into(f'{order}I', body, spot, base + struct.unpack_from(f'{order}I', body, spot)[0])
    described, _ = _entries(exif, _pointer(exif, 4))
    places = {tag: at for tag, at in described.items() if tag in DESCRIPTIVE}
    places |= {tag: base + at for tag, at in own.items() if tag not in places}
    entries = [bytes(body[at : at + 12]) for _, at in sorted(places.items())]
    body += b'\0' * (len(body) % 2)
    struct.pack_into(f'{order}I', body, 4, len(body))
    return bytes(body) + struct.pack(f'{order}H', len(entries)) + b''.join(entries) + bytes(4)
