"""The verb `evaluate` for generators of images from labels: how near to real images of the classes theirs are."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from p2p_jax import datasets, html, neighbours, page, report, summary
from p2p_jax.data import images
from p2p_jax.data.pipeline import centre_crop
from p2p_jax.data.records import SPLITS, Record, Splits, in_threads, limit
from p2p_jax.generate import build_sampler, interpolate
from p2p_jax.inference import Model
from p2p_jax.lookup import UserError, pick
from p2p_jax.pretrained import PACKAGE
from p2p_jax.sample_scores import Eyes, Result, Row, alone, score
from p2p_jax.settings import takes_labels

_SHOWN = 8  # images of each class that are looked at, and in each row from one to another
_LEAST = 10  # samples; the inception score is a mean over so many parts
_HELD_OUT = 256  # real images whose nearest training images are looked for
_HOW = (
    'Equally many images of each label, rounded to 8 bits. These distances depend on the number of images: only equal '
    'numbers compare, those of a class with those of a class.'
)
# Of each class some generated images, float (h, w, c) in [0, 1].
Pictures = list[list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A published way to compute the FID of CIFAR-10.

    Attributes:
      samples: that are made, and real images that there must be.
      splits: that the real images are from.
      text: what it is.
      published: network to its FID.
    """

    samples: int
    splits: tuple[str, ...]
    text: str
    published: dict[str, float]


PROTOCOLS = {
    'cifar10-50k-train': Protocol(
        50_000,
        ('train', 'val'),
        '50,000 generated images against the 50,000 of the training set',
        {'BigGAN (Brock et al. 2019)': 14.73, 'StyleGAN2-ADA (Karras et al. 2020)': 2.42},
    ),
    'cifar10-10k-test': Protocol(
        10_000,
        ('test',),
        '10,000 generated images against the 10,000 of the test set, as StudioGAN',
        {'ACGAN': 45.6, 'ProjGAN': 33.8, 'SNGAN': 13.25, 'BigGAN': 8.03},
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What may be asked for.

    Attributes:
      split: of the real images.
      samples: images that are made, and the most real ones that they are compared with.
      seed: of the noise.
      batch_size: images at a time; it does not change them.
      truncation: see `generate.build_sampler`.
      inception: file of Inception's weights, for FID, KID and IS.
      vgg: file of VGG16's weights, or PACKAGE.
      classifier: file of a classifier, for class agreement.
      protocol: key of PROTOCOLS; it says `samples` and the splits.
    """

    split: str = 'test'
    samples: int = 10_000
    seed: int = 0
    batch_size: int = 64
    truncation: float | None = None
    inception: str | None = None
    vgg: str = PACKAGE
    classifier: Path | None = None
    protocol: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of the real images."""
        return PROTOCOLS[self.protocol].splits if self.protocol else (self.split,)


def _check(models: Sequence[Model], options: Options) -> Options:
    """Returns the options with what their protocol says, or raises a UserError."""
    pick(dict.fromkeys(SPLITS), options.split, '--split')
    if options.protocol is not None:
        protocol = pick(PROTOCOLS, options.protocol, '--protocol')
        options = dataclasses.replace(options, samples=protocol.samples)
        if options.inception is None:
            raise UserError(f'--protocol={options.protocol}: FID needs --inception=FILE; see --help')
    first = models[0]
    for model in models:
        if model.job.classes != first.job.classes:
            raise UserError(f'{model.origin} and {first.origin} make images of different classes; evaluate them apart')
        if model.config.data.crop_size != first.config.data.crop_size:
            raise UserError(f'{model.origin} and {first.origin} make images of different sizes; evaluate them apart')
    least = max(2 * len(first.job.classes), _LEAST)
    if options.samples < least or options.batch_size < 1:
        raise UserError(
            f'--samples={options.samples} --batch={options.batch_size}: expected at least {least} samples, of each '
            'class two, and a batch of at least 1'
        )
    if options.truncation is not None and options.truncation <= 0:
        raise UserError(f'--truncation={options.truncation}: expected more than 0')
    return options


def _find(model: Model, config: ml_collections.ConfigDict | None) -> Splits:
    """Finds the data to compare with: those of the training, or others of the model's classes and size."""
    chosen = model.config if config is None else config
    if not takes_labels(chosen):
        raise UserError('--config: it makes images from images; expected one of labels, such as configs/labelled.py')
    size = model.config.data.crop_size
    if chosen.data.crop_size != size:
        raise UserError(
            f'--config: data.crop_size={chosen.data.crop_size}, but {model.origin} makes images of {size} pixels; set '
            f'it and, for larger pictures, data.resize to {size}'
        )
    if chosen.data.dir is None and chosen.data.layout == 'auto':
        raise UserError(f'{model.origin} names no data: give --config=FILE with --config.data.dir=DIR')
    splits = datasets.find_splits(chosen, SPLITS)
    if config is None:
        datasets.check_stored_splits(model.origin, splits)
    classes = tuple(datasets.with_classes(chosen, splits).data.classes)
    if classes != model.job.classes:
        raise UserError(f'{model.origin} makes {", ".join(model.job.classes)}; the data have {", ".join(classes)}')
    return splits


def _choose(splits: Splits, options: Options, classes: Sequence[str]) -> list[Record]:
    """The real images to compare with, at least two of each class."""
    records = [record for name in options.splits for record in splits[name]]
    if options.protocol and len(records) != options.samples:
        raise UserError(
            f'--protocol={options.protocol}: {PROTOCOLS[options.protocol].text}; the splits '
            f'{" and ".join(options.splits)} have {len(records)}. Give the whole of CIFAR-10, or --samples and --split.'
        )
    chosen = limit(records, options.samples)
    few = [kind for label, kind in enumerate(classes) if sum(record.label == label for record in chosen) < 2]
    if few:
        raise UserError(f'--split={options.split}: fewer than two real images of {", ".join(few)}; take another split')
    return chosen


def _read(record: Record, size: int) -> np.ndarray:
    """The centre of an example in colour, uint8 (size, size, 3)."""
    return centre_crop(images.to_format(record.target.read(), 3, 8), size)


def _real(
    records: Sequence[Record], size: int, batch_size: int, threads: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    chunks = [records[first : first + batch_size] for first in range(0, len(records), batch_size)]

    def load(chunk: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([record.label for record in chunk]), np.stack([_read(record, size) for record in chunk])

    yield from in_threads(load, chunks, threads)


def _made(model: Model, options: Options) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    sample = build_sampler(model.job, options.batch_size)
    classes = len(model.job.classes)
    for label in range(classes):
        count = options.samples // classes + (label < options.samples % classes)
        for first in range(0, count, options.batch_size):
            numbers = range(first, min(count, first + options.batch_size))
            batch = np.stack(sample(model.variables, label, numbers, options.seed, options.truncation))
            # What is scored is what a file would hold.
            yield np.full(len(batch), label), np.rint(batch * 255).astype(np.uint8)


def _pictures(model: Model, options: Options) -> Pictures:
    sample = build_sampler(model.job, _SHOWN)
    labels = range(len(model.job.classes))
    return [sample(model.variables, label, range(_SHOWN), options.seed, options.truncation) for label in labels]


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Whether generators repeat their training images.

    Attributes:
      generated: for each model the median distance of generated images to the nearest training image.
      held_out: the same of real images that were not trained on.
      rows: the first model's images, each followed by its nearest training image.
    """

    generated: list[float]
    held_out: float
    rows: Pictures


def find_neighbours(pictures: Sequence[Pictures], splits: Splits, size: int, threads: int | None) -> Neighbours:
    """Looks for the training images that resemble generated ones most, mirrored or not, pixel by pixel.

    Args:
      pictures: of each model.
      splits: the records.
      size: of the generated images.
      threads: that decode.
    """
    train, others = splits['train'], limit([*splits['val'], *splits['test']], _HELD_OUT)
    with report.progress_bar(len(train) + len(others), 'looking for resembling training images') as bar:

        def small(records: Sequence[Record]) -> np.ndarray:
            rows = []
            for row in in_threads(lambda record: neighbours.thumbnail(_read(record, size)), records, threads, ahead=64):
                rows.append(row)
                bar.update()
            return np.stack(rows)

        pool, unseen = small(train), small(others)
    found = []
    for rows in pictures:
        colour = [np.broadcast_to(image, (size, size, 3)) for row in rows for image in row]
        queries = [neighbours.thumbnail(np.rint(image * 255).astype(np.uint8)) for image in colour]
        found.append(neighbours.nearest(np.stack(queries), pool))
    nearest = iter(_read(train[int(place)], size) / np.float32(255) for place in found[0][0])
    return Neighbours(
        [float(np.median(distance)) for _, distance in found],
        float(np.median(neighbours.nearest(unseen, pool)[1])),
        [[tile for image in row for tile in (image, next(nearest))] for row in pictures[0]],
    )


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    """The numbers of a row, as `html.METRICS` has them printed."""
    cells = []
    for metric in metrics:
        value, digits = row.get(metric), html.METRICS[metric].digits
        spread = '' if value is None or math.isnan(value.low) else f' ± {value.high - value.mean:.{digits}f}'
        cells.append('–' if value is None else f'{value.mean:.{digits}f}{spread}')
    return cells


def _table(rows: dict[str, Row]) -> list[str]:
    metrics = [metric for metric in html.METRICS if any(metric in row for row in rows.values())]
    heads = [f'{html.METRICS[m].label} {"↑" if html.METRICS[m].higher_is_better else "↓"}' for m in metrics]
    return summary.aligned({name: _cells(row, metrics) for name, row in rows.items()}, heads)


def describe(title: str, rows: dict[str, Row], results: Sequence[Result], protocol: str | None) -> str:
    """Returns all tables: of whole sets, of classes, and published values where there is a protocol."""
    lines = [title, _HOW, *_table(rows)]
    if protocol:
        published = {name: [f'{fid:.2f}'] for name, fid in PROTOCOLS[protocol].published.items()}
        lines += ['', f'published, {PROTOCOLS[protocol].text}', *summary.aligned(published, ['FID ↓'])]
    for result in results:
        lines += ['', f'by class: {result.name}', *_table(result.by_class)]
    return '\n'.join(lines)


def _write_page(
    path: Path, title: str, rows: dict[str, Row], results: Sequence[Result], model: Model, close: Neighbours
) -> None:
    """Writes the tables, and of the first model pictures and the curves of its training."""
    names = model.job.classes
    ways = interpolate(model.job, model.variables, _SHOWN, seed=0)
    shown = {
        'Samples': ('A row for each class.', [row[::2] for row in close.rows]),
        'Nearest training images': (
            'Each generated image, then the training image that is nearest to it, mirrored or not. Median distance '
            f'(root mean square of pixels in [0, 1]): {close.generated[0]:.4f} of generated images, '
            f'{close.held_out:.4f} of real ones that were not trained on. A generator that repeats its training images '
            'has a far smaller one.',
            close.rows,
        ),
        'From label to label': ('One noise, from each class to the next.', ways['labels']),
        'From noise to noise': ('One label, along the sphere from one noise to another.', ways['noises']),
    }
    figures = [html.Figure(head, text, report.grid(grid, names=names)) for head, (text, grid) in shown.items() if grid]
    by_class = {kind: {result.name: result.by_class[kind] for result in results} for kind in names}
    about = html.Summary('Scores', rows, {'class': by_class}, ('real', 'generated'), _HOW, [])
    page.save(path, html.render(title, about, [], page.curves([model]), figures, budget_mb=page.BUDGET))


def evaluate_labels(
    models: Sequence[Model],
    config: ml_collections.ConfigDict | None = None,
    options: Options = Options(),
    output: Path | None = None,
    html_file: Path | None = None,
) -> tuple[Result, ...]:
    """Scores generators of images from labels and prints the tables: the verb `evaluate` for them.

    Args:
      models: trained ones, of the same classes and size.
      config: whose section `data` says what they are compared with; None: that of the first.
      options: of the evaluation.
      output: a JSON file to write everything to.
      html_file: a page to write: tables, the first model's pictures and curves.

    Raises:
      UserError: weights are missing or wrong, or the data do not fit; before anything is made.
    """
    first, options = models[0], _check(models, options)
    classes, size = first.job.classes, first.config.data.crop_size
    weights = {'inception': options.inception} if options.inception else {}
    eyes = Eyes.build(weights | {'vgg16': options.vgg}, options.classifier, classes)
    splits = _find(first, config)
    records, threads = _choose(splits, options, classes), (first.config if config is None else config).data.threads
    title = f'{options.samples} generated images against {len(records)} real ones of {" and ".join(options.splits)}'
    print(f'{", ".join(map(str, models))}: {title} …', flush=True)
    close = find_neighbours([_pictures(model, options) for model in models], splits, size, threads)
    with report.progress_bar(len(records) + options.samples * len(models), 'looking at images') as bar:
        batch = options.batch_size
        real = eyes.look(_real(records, size, batch, threads), batch, bar.update)
        made = [eyes.look(_made(model, options), batch, bar.update) for model in models]
    results = tuple(score(str(m), seen, real, classes) for m, seen in zip(models, made, strict=True))
    rows = {'real images': {'nearest': alone(close.held_out)}}
    if found := real.agreement(classes):
        rows['real images']['agreement'] = alone(found.overall)
    for result, distance in zip(results, close.generated, strict=True):
        rows[result.name] = result.scores | {'nearest': alone(distance)}
    print(describe(title, rows, results, options.protocol))
    if output:
        content: dict[str, Any] = {'versions': summary.versions(), 'options': options, 'title': title, 'scores': rows}
        content |= {'by_class': {result.name: result.by_class for result in results}}
        content |= {'confusion': {r.name: r.confusion.tolist() for r in results if r.confusion is not None}}
        report.write_json(output, summary.plain(content | {'classes': classes}))
        print(f'numbers: {output}')
    if html_file:
        _write_page(html_file, title, rows, results, first, close)
    return results
