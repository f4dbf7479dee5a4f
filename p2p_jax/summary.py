"""What the scores of single images say together: means with intervals, differences, parts of the data, worst images."""

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from p2p_jax import __version__
from p2p_jax.intervals import FEW, LEVEL, RESAMPLES, Interval, bootstrap
from p2p_jax.metrics import PROTOCOLS
from p2p_jax.scoring import ImageResult, ModelResult

MAIN = 'psnr'  # what images are ranked by, and what breakdowns show
_LABELS = {'psnr': 'PSNR (dB)', 'ssim': 'SSIM 2-D', 'ssim_3d': 'SSIM 3-D', 'lpips': 'LPIPS'}
_PACKAGES = ('jax', 'numpy', 'scipy', 'scikit-image', 'opencv-python-headless', 'PyWavelets', 'bm3d')
_VALUES = 20  # of an attribute, on the screen
# Metric to its interval.
Row = dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Part:
    """The images that share a value of an attribute: how many, and the mean PSNR of inputs and of each output."""

    count: int
    input: float
    outputs: dict[str, float]


def _matrix(rows: Iterable[Mapping[str, float]]) -> np.ndarray:
    return np.array([list(row.values()) for row in rows], np.float64)


def _column(result: ModelResult, side: str) -> np.ndarray:
    return np.array([image.scores[side][MAIN] for image in result.images])


def means(result: ModelResult) -> dict[str, Row]:
    """Returns the rows 'input', 'output' and 'gain', the mean of output less input, with their intervals."""
    names = list(result.images[0].scores['input'])
    before, after = (_matrix(image.scores[side] for image in result.images) for side in ('input', 'output'))
    scenes = [image.scene for image in result.images]
    found = bootstrap(np.concatenate([before, after, after - before], axis=1), scenes)
    return {
        side: dict(zip(names, found[i * len(names) :], strict=False))
        for i, side in enumerate(('input', 'output', 'gain'))
    }


def differences(results: Sequence[ModelResult]) -> dict[str, Row]:
    """Returns, for each model but the first, the mean of its scores less the first's, image by image."""
    first, *others = results
    scenes = [image.scene for image in first.images]
    base = _matrix(image.scores['output'] for image in first.images)
    names = list(first.images[0].scores['output'])
    return {
        other.name: dict(
            zip(names, bootstrap(_matrix(image.scores['output'] for image in other.images) - base, scenes), strict=True)
        )
        for other in others
    }


def _order(value: str) -> tuple[float, str]:
    """Numbers by size, before the rest."""
    try:
        return float(value), ''
    except ValueError:
        return math.inf, value


def attributes(image: ImageResult) -> dict[str, str]:
    """Returns what is known of an image, its scene among it."""
    return {name: str(value) for name, value in image.attributes.items()} | {'scene': image.scene}


def breakdown(results: Sequence[ModelResult]) -> dict[str, dict[str, Part]]:
    """Returns attribute to value to the part of the images that have it; attributes of one value are left out.

    The scene counts as an attribute where images share scenes.
    """
    shown = [attributes(image) for image in results[0].images]
    tables = {}
    for key in dict.fromkeys(key for row in shown for key in row):
        values = np.array([row.get(key, '') for row in shown])
        kinds = sorted(set(values.tolist()), key=_order)
        if len(kinds) < 2 or (key == 'scene' and len(kinds) == len(values)):
            continue
        tables[key] = {
            kind: Part(
                count=int((values == kind).sum()),
                input=float(_column(results[0], 'input')[values == kind].mean()),
                outputs={result.name: float(_column(result, 'output')[values == kind].mean()) for result in results},
            )
            for kind in kinds
        }
    return tables


def worst(result: ModelResult, count: int) -> list[ImageResult]:
    """Returns the images of the lowest PSNR of the output, the lowest first."""

    def order(image: ImageResult) -> tuple[float, str]:
        score = image.scores['output'][MAIN]
        return -math.inf if math.isnan(score) else score, image.name

    return sorted(result.images, key=order)[:count]


def _digits(metric: str) -> int:
    return 2 if metric.startswith('psnr') else 4


def _label(metric: str) -> str:
    return _LABELS[metric.removesuffix('_y').removesuffix('_uint8')]


def _cell(value: Interval, digits: int, sign: str) -> str:
    if math.isnan(value.low):
        return f'{value.mean:{sign}.{digits}f}'
    return f'{value.mean:{sign}.{digits}f} [{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]'


def aligned(rows: Mapping[str, Sequence[str]], heads: Sequence[str]) -> list[str]:
    """Lines of a table, indented; the first column is the rows' names."""
    grid = [['', *heads], *([name, *cells] for name, cells in rows.items())]
    first, *others = (max(len(line[i]) for line in grid) for i in range(len(grid[0])))
    lines = []
    for name, *cells in grid:
        padded = [f'{cell:>{width}}' for cell, width in zip(cells, others, strict=True)]
        lines.append('  '.join([f'  {name:{first}}', *padded]).rstrip())
    return lines


def _blocks(metrics: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """What is printed together: the name of a convention, to its text and those of the metrics that belong to it."""
    blocks = {}
    for name, protocol in PROTOCOLS.items():
        for ending, what in (('', ''), ('_y', 'Y of ITU-R BT.601, 16 to 235 of 255, as MATLAB; ')):
            if all(metric + ending in metrics for metric in protocol.scores):
                blocks[name + ending] = (what + protocol.text, [metric + ending for metric in protocol.scores])
    return blocks | ({'lpips': ('LPIPS 0.1 of floats, less is better', ['lpips'])} if 'lpips' in metrics else {})


def _means_text(results: Sequence[ModelResult], names: Sequence[str]) -> list[str]:
    """The tables of the conventions; names are those of inputs and, of a single model, outputs."""
    found = [means(result) for result in results]
    rows = {names[0]: found[0]['input']}
    if len(results) == 1:
        rows |= {names[1]: found[0]['output'], 'gain': found[0]['gain']}
    else:
        rows |= {result.name: row['output'] for result, row in zip(results, found, strict=True)}
    compared = {f'{name} - {results[0].name}': row for name, row in differences(results).items()}
    lines = []
    for block, (text, metrics) in _blocks(list(rows[names[0]])).items():
        cells = {
            name: [_cell(row[m], _digits(m), '+' if name == 'gain' or name in compared else '') for m in metrics]
            for name, row in (rows | compared).items()
        }
        lines += ['', f'{block}: {text}', *aligned(cells, [_label(metric) for metric in metrics])]
    return lines


def _breakdown_text(results: Sequence[ModelResult], names: Sequence[str]) -> list[str]:
    lines = []
    for key, parts in breakdown(results).items():
        shown = list(parts.items())[:_VALUES]
        heads = ['images', names[0]]
        for result in results:
            heads += [names[1] if len(results) == 1 else result.name, 'gain']
        cells = {}
        for value, part in shown:
            outputs = [cell for mean in part.outputs.values() for cell in (f'{mean:.2f}', f'{mean - part.input:+.2f}')]
            cells[value or '(none)'] = [str(part.count), f'{part.input:.2f}', *outputs]
        lines += ['', f'by {key}: mean PSNR (dB), float', *aligned(cells, heads)]
        if len(parts) > _VALUES:
            lines.append(f'  … and {len(parts) - _VALUES} more, in --output')
    return lines


def _worst_text(results: Sequence[ModelResult], names: Sequence[str], count: int) -> list[str]:
    lines = []
    for result in results:
        of = '' if len(results) == 1 else f' of {result.name}'
        cells = {}
        for image in worst(result, count):
            before, after = image.scores['input'], image.scores['output']
            gain = after[MAIN] - before[MAIN]
            cells[image.name] = [f'{before[MAIN]:.2f}', f'{after[MAIN]:.2f}', f'{gain:+.2f}']
            cells[image.name] += [f'{after["ssim"]:.4f}'] if 'ssim' in after else []
        heads = [names[0], names[1] if len(results) == 1 else result.name, 'gain']
        heads += ['SSIM 2-D'] if 'ssim' in result.images[0].scores['output'] else []
        if cells:
            lines += ['', f'the {len(cells)} worst{of}, by PSNR (dB), float', *aligned(cells, heads)]
    return lines


def interval_text(result: ModelResult) -> str:
    """Returns what the intervals are, and where they are not to be trusted."""
    scenes = len({image.scene for image in result.images})
    shared = f'the {scenes} scenes, for images of one scene are not independent'
    unit = 'images' if scenes == len(result.images) else shared
    text = f'[{LEVEL:.0%} interval: percentile bootstrap, {RESAMPLES:,} resamples of {unit}]'
    if scenes < 2:
        return 'no intervals: one scene says nothing about others'
    return text + (f'\n[fewer than {FEW} of them: such an interval is too narrow]' if scenes < FEW else '')


def describe(title: str, results: Sequence[ModelResult], names: Sequence[str], count: int) -> str:
    """Returns all tables.

    Args:
      title: what was scored.
      results: of at least one model, on the same images.
      names: of inputs, and of outputs where there is one model.
      count: of the worst images to name.
    """
    lines = [title, interval_text(results[0]), *_means_text(results, names)]
    lines += _breakdown_text(results, names) + _worst_text(results, names, count)
    return '\n'.join(lines)


def plain(value: Any) -> Any:
    """Returns what JSON can hold: an interval becomes a dictionary, NaN becomes None."""
    if isinstance(value, Interval):
        return plain(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(results: Sequence[ModelResult], count: int) -> dict[str, Any]:
    """Returns everything: means, differences, parts, the worst, and the scores of every image."""
    first = results[0]
    content = {
        'count': len(first.images),
        'scenes': len({image.scene for image in first.images}),
        'protocols': {
            name: {'text': text, 'metrics': metrics}
            for name, (text, metrics) in _blocks(list(first.images[0].scores['input'])).items()
        },
        'intervals': interval_text(first),
        'models': {
            result.name: {
                'facts': result.facts,
                'means': means(result),
                'worst': [image.name for image in worst(result, count)],
            }
            for result in results
        },
        'differences': {'from': first.name, 'means': differences(results)} if len(results) > 1 else None,
        'breakdown': breakdown(results),
        'images': [
            {
                'name': image.name,
                'scene': image.scene,
                'attributes': dict(image.attributes),
                'size': image.size,
                'input': image.scores['input'],
                'outputs': {result.name: result.images[i].scores['output'] for result in results},
            }
            for i, image in enumerate(first.images)
        ],
    }
    return plain(content)


def versions() -> dict[str, str]:
    """Returns the versions of what computed, and the device."""
    found = {'p2p_jax': __version__, 'python': platform.python_version(), 'device': jax.devices()[0].device_kind}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
