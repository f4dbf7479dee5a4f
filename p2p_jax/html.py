"""The HTML report: one page of scores, pictures and curves that opens from disk and loads nothing else.

`encode` turns the images of one example into what the page shows of them, so that a long evaluation keeps no arrays;
`render` fills the template beside this module with one block of JSON.
"""

import base64
import bisect
import dataclasses
import functools
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from p2p_jax.intervals import Interval
from p2p_jax.lookup import UserError

VIEW = 768  # pixels; the longest side of the large views
PATCH = 48  # pixels; the side of the patch that is shown enlarged
_QUALITY = 90
_POINTS = 1000  # of a curve
_SMALL = 640  # pixels; pictures up to so wide are shown twice as large
_STOPS = 64  # colours of the error map's scale
# The error that is white is the smallest of these that all errors but one in 200 stay below.
_PEAKS = (8, 16, 32, 64, 128, 255)
# Dark to bright: black, violet, red, orange, yellow, white.
_ANCHORS = ((0, 0, 0), (70, 15, 120), (200, 40, 80), (250, 140, 30), (255, 230, 110), (255, 255, 255))
_TEMPLATE = Path(__file__).with_name('report.html')
# Plot: the names in metrics.jsonl that it shows; a name that ends in a slash stands for all that begin with it.
_PLOTS = {
    'validation PSNR (dB)': ('val/psnr', 'val/input_psnr'),
    'validation SSIM': ('val/ssim', 'val/input_ssim'),
    'validation LPIPS': ('val/lpips', 'val/input_lpips'),
    'losses': ('loss/',),
    'learning rates': ('lr/',),
    'discriminator': ('d/',),
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a score is printed: its label, unit, digits after the point, direction, and what exactly it is."""

    label: str
    unit: str
    digits: int
    higher_is_better: bool
    definition: str


METRICS = {
    'psnr': Metric('PSNR', 'dB', 2, True, 'peak signal-to-noise ratio over all pixels and channels of an image'),
    'ssim': Metric(
        'SSIM (2-D)', '', 4, True, 'each channel by itself, Gaussian window of 11×11 with σ 1.5 inside the image; mean'
    ),
    'ssim_3d': Metric(
        'SSIM (3-D)',
        '',
        4,
        True,
        'Gaussian window of 11×11×11 with σ 1.5 over rows, columns and channels; edges repeated',
    ),
    'psnr_uint8': Metric('PSNR (uint8)', 'dB', 2, True, 'of images rounded to 8 bits'),
    'ssim_uint8': Metric('SSIM (2-D, uint8)', '', 4, True, 'SSIM (2-D) of images rounded to 8 bits'),
    'lpips': Metric('LPIPS', '', 4, False, 'learned perceptual distance'),
}
METRICS |= {
    f'{name}_y': dataclasses.replace(metric, label=f'{metric.label}, Y', definition=f'{metric.definition}; Y channel')
    for name, metric in METRICS.items()
    if name != 'lpips'
}
METRICS |= {
    'fid': Metric('FID', '', 2, False, 'Fréchet distance of Inception-v3 features (Heusel et al. 2017)'),
    'kid': Metric(
        'KID', '', 5, False, 'kernel distance of Inception-v3 features (Bińkowski et al. 2018); ± 1 standard deviation'
    ),
    'inception_score': Metric(
        'IS', '', 2, True, 'Inception score (Salimans et al. 2016), mean of ten parts; ± 1 standard deviation'
    ),
    'frechet_vgg16': Metric('Fréchet, VGG16', '', 2, False, 'Fréchet distance of VGG16 features; no FID'),
    'agreement': Metric(
        'class agreement', '', 3, True, 'share in which a classifier sees the label that was asked for'
    ),
    'nearest': Metric(
        'nearest', '', 4, True, 'median distance to the nearest training image, pixels in [0, 1], root mean square'
    ),
}

# Name of a row (the input, a model, or 'gain') to metric to interval.
Rows = Mapping[str, Mapping[str, Interval]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What stands at the top of the page.

    Attributes:
      heading: of the scores.
      rows: the scores over all examples; a row named 'gain' is printed with signs.
      breakdowns: attribute to its value to the scores over the examples that have it.
      names: what inputs and outputs are called, for example ('noisy', 'denoised').
      protocol: how the numbers were computed, and what the intervals are; line breaks stay.
      notes: one paragraph each.
    """

    heading: str
    rows: Rows
    breakdowns: Mapping[str, Mapping[str, Rows]]
    names: tuple[str, str]
    protocol: str
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What the page shows of one example; made by `encode`.

    Attributes:
      size: (width, height) of the images.
      shown: (width, height) of the views.
      views: JPEG of 'input', 'output', 'target' and 'error'.
      peak: the error, of 255, that the error map shows in white.
      corner: (left, top) of the worst patch.
      patch: (width, height) of it.
      patches: PNG of the worst patch of 'input', 'output' and 'target'.
    """

    size: tuple[int, int]
    shown: tuple[int, int]
    views: Mapping[str, bytes]
    peak: int
    corner: tuple[int, int]
    patch: tuple[int, int]
    patches: Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of the split.

    Attributes:
      name: for example a file name.
      attributes: what the page filters by, for example {'camera': 'Canon 5D'}.
      scores: 'output', and 'input' where it can be compared with the target, to metric to value; the output has 'psnr'.
      pictures: None shows the numbers alone.
    """

    name: str
    attributes: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]
    pictures: Pictures | None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture of its own, uint8 (h, w, 3), with what it shows."""

    title: str
    caption: str
    picture: np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """A scalar over the steps of a training; NaN leaves a gap. Curves of one plot share its axes."""

    plot: str
    name: str
    steps: Sequence[int]
    values: Sequence[float]


def error_colours(error: np.ndarray, peak: float) -> np.ndarray:
    """Returns the colours of an error map: black for no error, ever brighter, white from `peak` on.

    Args:
      error: (h, w), at least 0.
      peak: in the unit of `error`.

    Returns:
      uint8 (h, w, 3).
    """
    place = np.clip(error / peak, 0, 1) * (len(_ANCHORS) - 1)
    channels = [np.interp(place, range(len(_ANCHORS)), channel) for channel in zip(*_ANCHORS, strict=True)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def _over_channels(image: np.ndarray) -> np.ndarray:
    """The sum over the last axis, plane by plane, which for so few is many times quicker than NumPy's own."""
    return functools.reduce(np.add, np.moveaxis(image, -1, 0))


def worst_patch(output: np.ndarray, target: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """Returns (left, top, width, height) of the patch with the largest squared error, the first of equals.

    Args:
      output: uint8 (h, w, c).
      target: of the same shape.
      size: the side of the patch; a shorter side of the image limits it.
    """
    height, width = (min(size, side) for side in output.shape[:2])
    error = _over_channels((output.astype(np.int32) - target) ** 2)
    # Entry (i, j) is the sum over the first i rows and j columns.
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0, dtype=np.int64).cumsum(1)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(left), int(top), width, height


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def encode(condition: np.ndarray, output: np.ndarray, target: np.ndarray) -> Pictures:
    """Returns what the page shows of an example: JPEG views of at most VIEW pixels a side, the worst patch as PNG.

    Args:
      condition: the input, uint8 (h, w, 1 or 3).
      output: uint8 (h, w, 1 or 3).
      target: of the output's shape.

    Raises:
      ValueError: arrays of another type, or shapes that do not fit.
    """
    images = {'input': condition, 'output': output, 'target': target}
    if any(image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) for image in images.values()):
        raise ValueError('expected uint8 (h, w, 1 or 3) of input, output and target')
    if output.shape != target.shape or condition.shape[:2] != target.shape[:2]:
        raise ValueError(f'shapes do not fit: {[image.shape for image in images.values()]} of input, output, target')
    height, width = target.shape[:2]
    scale = min(1.0, VIEW / max(height, width))
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    as_files = {
        name: Image.fromarray(np.squeeze(image, -1) if image.shape[-1] == 1 else image)
        for name, image in images.items()
    }
    # Without chroma subsampling, which would hide the coloured part of noise.
    views = {
        name: _file(image.resize(shown, Image.Resampling.BOX), 'JPEG', quality=_QUALITY, subsampling=0)
        for name, image in as_files.items()
    }
    error = _over_channels(np.abs(output.astype(np.int16) - target)) / np.float32(target.shape[-1])
    peak = next(peak for peak in _PEAKS if np.quantile(error, 0.995) <= peak)
    error = np.asarray(Image.fromarray(error).resize(shown, Image.Resampling.BOX))
    views['error'] = _file(Image.fromarray(error_colours(error, peak)), 'JPEG', quality=_QUALITY, subsampling=0)
    left, top, *patch = worst_patch(output, target, PATCH)
    box = (left, top, left + patch[0], top + patch[1])
    patches = {name: _file(image.crop(box), 'PNG') for name, image in as_files.items()}
    return Pictures((width, height), shown, views, peak, (left, top), (patch[0], patch[1]), patches)


def spread(order: Sequence[int], count: int) -> list[int]:
    """Returns `count` entries: a third of them from the start, a third from the end, the rest evenly between.

    Args:
      order: from worst to best.
      count: at most its length.
    """
    ends = count // 3
    middle = order[ends : len(order) - ends]
    between = count - 2 * ends
    picked = [middle[(2 * i + 1) * len(middle) // (2 * between)] for i in range(between)]
    return [*order[:ends], *picked, *order[len(order) - ends :]]


def read_curves(workdir: Path) -> list[Curve]:
    """Returns the curves that the page shows, from the training's metrics.jsonl; none where there is no such file.

    A last line that was cut off is left out. Where a step was written twice, the later line counts.

    Args:
      workdir: of the training.

    Raises:
      UserError: a line is not what training writes.
    """
    path = workdir / 'metrics.jsonl'
    if not path.exists():
        return []
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith('\n'):
            break
        try:
            values = json.loads(line)
            step = int(values['step'])
            scalars = {name: math.nan if value is None else float(value) for name, value in values.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f'{path}: line {number} is not {{"step": …, name: number, …}} ({error}); mend or remove it'
            ) from None
        for name, value in scalars.items():
            found.setdefault(name, {})[step] = value
    curves = []
    for plot, chosen in _PLOTS.items():
        for start in chosen:
            for name in sorted(found):
                if name == start or (start.endswith('/') and name.startswith(start)):
                    steps = sorted(found[name])
                    curves.append(Curve(plot, name, steps, [found[name][step] for step in steps]))
    return curves


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def _rows(rows: Rows) -> Any:
    return {
        name: {metric: [_number(value) for value in interval] for metric, interval in row.items()}
        for name, row in rows.items()
    }


def _source(kind: str, file: bytes) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(file).decode()}'


def _pictures(pictures: Pictures) -> dict[str, Any]:
    return {
        'size': pictures.size,
        'shown': pictures.shown,
        'peak': pictures.peak,
        'corner': pictures.corner,
        'patch': pictures.patch,
        'views': {name: _source('jpeg', file) for name, file in pictures.views.items()},
        'patches': {name: _source('png', file) for name, file in pictures.patches.items()},
    }


def _example(example: Example, with_pictures: bool) -> dict[str, Any]:
    return {
        'name': example.name,
        'attributes': {name: str(value) for name, value in example.attributes.items()},
        'scores': {side: {m: _number(v) for m, v in scores.items()} for side, scores in example.scores.items()},
        'pictures': _pictures(example.pictures) if with_pictures and example.pictures else None,
    }


def _curve(curve: Curve) -> dict[str, Any]:
    kept = np.unique(np.linspace(0, len(curve.steps) - 1, min(_POINTS, len(curve.steps))).round().astype(int))
    return {
        'plot': curve.plot,
        'name': curve.name,
        'steps': [int(curve.steps[i]) for i in kept],
        'values': [_number(curve.values[i]) for i in kept],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    source = _source('png', _file(Image.fromarray(figure.picture), 'PNG'))
    width = figure.picture.shape[1]
    width *= 1 if width > _SMALL else 2
    return {'title': figure.title, 'caption': figure.caption, 'source': source, 'width': width}


def policy(template: str, *more: str) -> str:
    """Returns a Content-Security-Policy that lets nothing run or load but the template's own script and style.

    Args:
      template: a page with one <script> and one <style> that have no attributes.
      more: directives of what else it may do.
    """

    def digest(tag: str) -> str:
        inside = template.partition(f'<{tag}>')[2].partition(f'</{tag}>')[0]
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"

    own = f'script-src {digest("script")}', f'style-src {digest("style")}'
    return '; '.join(("default-src 'none'", *more, *own, "base-uri 'none'", "form-action 'none'"))


def fill(template: str, title: str, content: Mapping[str, Any]) -> str:
    """Returns the template with a title, the JSON, and its policy, in none of which text can become markup.

    Args:
      template: it holds {{title}}, {{content}} and perhaps {{policy}}.
      title: of the page.
      content: what JSON can hold.
    """
    parts = {
        'policy': policy(template, 'img-src data:'),
        # A file name may hold bytes that are not text; they become U+FFFD.
        'title': html.escape(title).encode('ascii', 'xmlcharrefreplace').decode(),
        # Neither </script> nor <!-- may end or hide the block.
        'content': json.dumps(content, allow_nan=False, separators=(',', ':')).replace('<', '\\u003c'),
    }
    return re.sub(r'\{\{(\w+)\}\}', lambda match: parts[match[1]], template)


def render(
    title: str,
    summary: Summary,
    examples: Sequence[Example],
    curves: Sequence[Curve],
    figures: Sequence[Figure] = (),
    *,
    budget_mb: float,
) -> str:
    """Returns the page.

    Args:
      title: what was scored.
      summary: the tables and what they mean.
      examples: all that were scored, those without pictures included.
      curves: of the training; none leaves the plots out.
      figures: further pictures; they count towards the budget, and are all shown.
      budget_mb: the size of the page in megabytes (10⁶ bytes). Where the pictures of all examples would exceed it, the
        worst, the best and evenly spread ones between keep theirs, by the PSNR of the output.

    Raises:
      UserError: the budget is negative or not a number.
      ValueError: a score is not in METRICS.
    """
    if not budget_mb >= 0:
        raise UserError(f'budget_mb={budget_mb}: expected megabytes, at least 0')
    scored = [*summary.rows.values(), *(scores for example in examples for scores in example.scores.values())]
    used = {name for row in scored for name in row}
    if unknown := used - METRICS.keys():
        raise ValueError(f'METRICS does not say how {sorted(unknown)} are printed')
    content = {
        'title': title,
        'names': list(summary.names),
        'heading': summary.heading,
        'metrics': {name: dataclasses.asdict(METRICS[name]) for name in METRICS if name in used},
        'rows': _rows(summary.rows),
        'breakdowns': {a: {v: _rows(rows) for v, rows in values.items()} for a, values in summary.breakdowns.items()},
        'protocol': summary.protocol,
        'notes': list(summary.notes),
        'curves': [_curve(curve) for curve in curves if len(curve.steps)],
        'figures': [_figure(figure) for figure in figures],
        'view': VIEW,
        'colours': error_colours(np.linspace(0, 1, _STOPS)[None], 1)[0].tolist(),
    }
    template = _TEMPLATE.read_text(encoding='utf-8')
    numbers = [_example(example, False) for example in examples]
    room = budget_mb * 1e6 - len(fill(template, title, content | {'examples': numbers}).encode())
    order = [i for i, example in enumerate(examples) if example.pictures]
    order.sort(key=lambda i: examples[i].scores['output']['psnr'])
    sizes = {i: len(json.dumps(_example(examples[i], True))) for i in order}
    # The size grows with the count but for small exceptions; whatever the search ends with was tried and fits.
    tried = range(len(order) + 1)
    count = bisect.bisect_right(tried, room, key=lambda n: sum(sizes[i] for i in spread(order, n))) - 1
    shown = set(spread(order, max(count, 0)))
    return fill(template, title, content | {'examples': [_example(e, i in shown) for i, e in enumerate(examples)]})
