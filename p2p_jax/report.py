"""What a person looks at: tables and picture grids."""

import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from p2p_jax.data.pipeline import centre_crop
from p2p_jax.files import write_file

_LARGEST = 512  # pixels; larger images are shown by their centre
_GAP = 4
_CAPTION = 24
# Score: its heading, the width of the column, decimals.
_COLUMNS = {'psnr': ('PSNR (dB)', 11, 2), 'ssim': ('SSIM', 8, 4), 'lpips': ('LPIPS', 8, 4)}


def table(title: str, rows: dict[str, dict[str, float]]) -> str:
    """Returns a text table of PSNR, SSIM and, where there is one, LPIPS, with the gain of the last row over the first.

    Args:
      title: what was scored.
      rows: name to {'psnr' in dB, 'ssim', 'lpips'}; all have the same scores.
    """
    first, *_, last = rows.values()
    width = max(len(name) for name in [*rows, 'gain'])
    columns = {score: column for score, column in _COLUMNS.items() if score in first}

    def line(name: str, row: dict[str, float], sign: str = '') -> str:
        cells = [f'{row[score]:{sign}{wide}.{digits}f}' for score, (_, wide, digits) in columns.items()]
        return f'  {name:{width}}{"".join(cells)}'

    lines = [title, f'  {"":{width}}' + ''.join(f'{label:>{wide}}' for label, wide, _ in columns.values())]
    lines += [line(name, row) for name, row in rows.items()]
    gain = {score: last[score] - first[score] for score in columns}
    return '\n'.join([*lines, line('gain', gain, '+')])


def _colours(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.rint(image * 255).astype(np.uint8), (*image.shape[:2], 3))


def _without_marks(text: str) -> str:
    """Letters without accents and the like: the font that comes with Pillow has few beyond ASCII."""
    return ''.join(letter for letter in unicodedata.normalize('NFKD', text) if not unicodedata.combining(letter))


def grid(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str] = (), names: Sequence[str] = ()) -> np.ndarray:
    """Returns one picture with a row for each example.

    Args:
      rows: for each example its images, float (h, w, 1 or 3) in [0, 1], of equal size within the row.
      captions: one over each column, or none.
      names: one before each row, or none.

    Returns:
      uint8 (height, width, 3).
    """
    tiles = [[_colours(centre_crop(image, _LARGEST)) for image in row] for row in rows]
    font = ImageFont.load_default(16)
    names = [_without_marks(name) for name in names]
    margin = max((round(font.getlength(name)) + 2 * _GAP for name in names), default=0)
    width = margin + max(sum(tile.shape[1] + _GAP for tile in row) for row in tiles) - _GAP
    top = _CAPTION if captions else 0
    height = top + sum(row[0].shape[0] + _GAP for row in tiles) - _GAP
    canvas = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(canvas)
    left = margin
    for tile, caption in zip(tiles[0], captions or [''] * len(tiles[0]), strict=True):
        draw.text((left + _GAP, 2), caption, fill='black', font=font)
        left += tile.shape[1] + _GAP
    for row, name in zip(tiles, names or [''] * len(tiles), strict=True):
        draw.text((_GAP, top + row[0].shape[0] // 2 - 8), name, fill='black', font=font)
        left = margin
        for tile in row:
            canvas.paste(Image.fromarray(tile), (left, top))
            left += tile.shape[1] + _GAP
        top += row[0].shape[0] + _GAP
    return np.asarray(canvas)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, under a temporary name first."""
    write_file(path, (json.dumps(content, indent=2) + '\n').encode())


def progress_bar(total: int, what: str) -> tqdm:
    """Returns a bar with an ETA over `total` examples; in a file or a pipe it says something every ten seconds."""
    interval = 0.1 if sys.stdout.isatty() else 10
    return tqdm(total=total, desc=what, unit=' examples', file=sys.stdout, mininterval=interval)


def duration(seconds: float) -> str:
    """Returns a length of time as a person writes it: 45s, 3m05s, 2h10m."""
    total = round(seconds)
    if total < 60:
        return f'{total}s'
    if total < 3600:
        return f'{total // 60}m{total % 60:02}s'
    return f'{total // 3600}h{total % 3600 // 60:02}m'
