"""A model applied to files: what is to be done, what is done already, and what was not possible."""

import dataclasses
import glob
import hashlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from p2p_jax.data import images, metadata
from p2p_jax.files import write_file
from p2p_jax.inference import Model
from p2p_jax.lookup import UserError, pick, shortlist
from p2p_jax.predictor import PredictOptions, Predictor
from p2p_jax.report import duration

RECORD = 'predict.jsonl'  # in the folder of the results: what made them, a line for each
_FORMATS = {'png': '.png', 'tif': '.tif', 'jpg': '.jpg', 'same': None}
_WRITTEN = ('.png', '.tif', '.tiff', '.jpg', '.jpeg')
_EVERY = 10  # seconds between lines on one image


@dataclasses.dataclass(frozen=True)
class Task:
    """An image that is to be done.

    Attributes:
      source: its file.
      target: the result's.
      megapixels: of the image.
    """

    source: Path
    target: Path
    megapixels: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
      tasks: images without a result.
      done: number of those whose results are there, made by the same model in the same way.
      unreadable: a line for each file that cannot be read.
    """

    tasks: list[Task]
    done: int
    unreadable: list[str]


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def fingerprint(model: Model, options: PredictOptions) -> dict[str, Any]:
    """Returns what decides about a result's pixels: the weights' SHA-256, the network, the options."""
    digest = hashlib.sha256()
    for place, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(model.variables)):
        digest.update(f'{jax.tree_util.keystr(place)} {leaf.shape} {leaf.dtype}'.encode())
        digest.update(np.ascontiguousarray(leaf).data)
    config = model.config
    chosen = dataclasses.asdict(options)
    return {
        'weights': digest.hexdigest(),
        'network': {'name': config.generator.name, **config.generator[config.generator.name].to_dict()},
        'statistics': config.norm.statistics,
        'dropout': config.eval.dropout,
        'value_range': list(config.value_range),
        'dtype': config.dtype,
        'trained': {'resize': config.data.resize, 'scale': model.scale},
        'options': {name: value for name, value in chosen.items() if name not in ('overwrite', 'batch')},
    }


class Record:
    """The file beside the results that says, for each, what made it of what."""

    def __init__(self, folder: Path, made_by: dict[str, Any]) -> None:
        """Reads the record of a folder, which may have none.

        Args:
          folder: of the results.
          made_by: see `fingerprint`.
        """
        self._path, self._made_by = folder / RECORD, made_by
        self._key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        self._lines: dict[str, dict[str, Any]] = {}
        self._begun = False
        for line in self._path.read_text().splitlines() if self._path.is_file() else []:
            try:
                content = json.loads(line)
            except ValueError:
                continue  # the last line of an interrupted run; its file has not got its name then
            if 'output' in content:
                self._lines[content['output']] = content

    def objection(self, name: str, source: Path, target: Path) -> str | None:
        """Returns why a result that exists is not what would be made now; None: it is."""
        line = self._lines.get(name)
        if not line or line['written'] != _stamp(target.stat()):
            return f'was not made by predict, or was changed since ({RECORD} does not know it)'
        if line['by'] != self._key:
            return 'was made by another model or with other options'
        return None if line['read'] == _stamp(source.stat()) else f'was made of another version of {source}'

    def add(self, name: str, source: Path, written: os.stat_result) -> None:
        """Notes a result, just before it gets its name."""
        line = {'output': name, 'written': _stamp(written), 'input': str(source), 'read': _stamp(source.stat())}
        lines = [] if self._begun else [{'by': self._key, 'made_by': self._made_by}]
        with self._path.open('a') as file:
            # A line that was cut off must not swallow this one.
            file.write(''.join(f'\n{json.dumps(content)}' for content in [*lines, {**line, 'by': self._key}]))
        self._begun = True


def _inputs(source: Path, output: Path) -> tuple[Path, list[Path]]:
    """Returns the folder that names are kept from, and all image files: of a file, a folder or a pattern."""
    if source.is_dir():
        if output.resolve() == source.resolve():
            raise UserError(f'--output={output} is the folder of the inputs; results go to another')
        root, files = source, images.find_images(source)
    elif source.exists() or not glob.has_magic(str(source)):
        if not source.exists():
            raise UserError(f'--input={source}: no such file or folder')
        return source.parent, [source]
    else:
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), source.parts))
        found = [Path(path) for path in sorted(glob.glob(str(source), recursive=True))]
        files = [path for path in found if path.suffix.lower() in images.EXTENSIONS and path.is_file()]
    if output.resolve() != root.resolve():  # results of before are no inputs
        files = [path for path in files if not path.resolve().is_relative_to(output.resolve())]
    if not files:
        raise UserError(f'--input={source}: no images there ({", ".join(sorted(images.EXTENSIONS))})')
    return root, files


def _suffix(path: Path, form: str) -> str:
    suffix = pick(_FORMATS, form, '--format')
    if suffix is None:
        return path.suffix if path.suffix.lower() in _WRITTEN else '.png'
    return suffix


def _jpeg_problem(path: Path, header: images.Header) -> str | None:
    """Returns what of an image JPEG cannot hold."""
    if header.bits == 16:
        return f'{path}: 16 bits, of which JPEG keeps 8; take --format=png or tif'
    if header.channels in (2, 4):
        return f'{path}: JPEG has no alpha; take --format=png or tif'
    if max(header.size) > images.LARGEST_JPEG:
        return f'{path}: JPEG has sides of at most {images.LARGEST_JPEG} pixels; take --format=png or tif'
    return None


def make_plan(source: Path, output: Path, options: PredictOptions, record: Record) -> Plan:
    """Finds the inputs, their results' names, and all that would go wrong, before anything is done.

    Args:
      source: a file, a folder or a pattern.
      output: folder of the results.
      options: how they are made.
      record: of what is there.

    Raises:
      UserError: no inputs, two results of one name, a result that is in the way, or one that its format cannot hold.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f'--output={output}: that is a file; expected a folder, which may be new')
    root, files = _inputs(source, output)
    targets: dict[Path, Path] = {}
    tasks, unreadable, problems, done = [], [], [], 0
    own = {path.resolve() for path in files}
    for path in files:
        name = path.relative_to(root)
        target = output / name.with_suffix(_suffix(path, options.format))
        first = targets.setdefault(target, path)
        if first is not path:
            problems.append(f'{first} and {path} would both be written to {target}')
            continue
        if target.resolve() in own:
            problems.append(f'{target} is an input; give another --output')
            continue
        if target.exists() and not options.overwrite:
            objection = record.objection(target.relative_to(output).as_posix(), path, target)
            done += objection is None
            if objection:
                problems.append(f'{target} exists and is not overwritten without --overwrite; it {objection}')
            continue
        try:
            header = images.header(str(path), path)
        except UserError as error:
            unreadable.append(str(error))
            continue
        problem = _jpeg_problem(path, header) if target.suffix.lower() in ('.jpg', '.jpeg') else None
        problems += [problem] if problem else []
        tasks.append(Task(path, target, header.height * header.width / 1e6))
    if problems:
        raise UserError(f'nothing was done, for {len(problems)} reasons:{shortlist(problems)}')
    return Plan(tasks, done, unreadable)


class _Progress:
    """Says how far the work is: after each image, and now and then within one."""

    def __init__(self, tasks: list[Task]) -> None:
        self._count, self._total = len(tasks), sum(task.megapixels for task in tasks)
        self._start = self._said = time.monotonic()

    def say(self, images_done: int, megapixels: float, what: str = '') -> None:
        now = time.monotonic()
        if not what and now - self._said < _EVERY:
            return
        self._said = now
        rate = max(megapixels, 1e-9) / max(now - self._start, 1e-9)
        left = duration((self._total - megapixels) / rate) if megapixels else 'unknown'
        print(
            f'{images_done}/{self._count} | {megapixels:.1f}/{self._total:.1f} megapixels, {rate:.2g}/s | ETA {left}'
            + (f' | {what}' if what else ''),
            flush=True,
        )


def predict(model: Model, source: Path, output: Path, options: PredictOptions) -> int:
    """Applies a generator to photographs, and writes results of their depth, channels, alpha, ICC profile and EXIF.

    Started again after an interruption, it goes on: results that the same model made in the same way of the same files
    are left. Any other result that exists is in the way, unless the options say to overwrite.

    Args:
      model: what is applied.
      source: a file, a folder, whose subfolders are kept, or a pattern such as photos/*.jpg.
      output: folder of the results.
      options: how.

    Returns:
      The number of files that could not be read, which are named at the end.

    Raises:
      UserError: something is wrong with the options, the model or the names, and nothing was written; or a result
        cannot be written, or the memory does not suffice.
    """
    predictor = Predictor(model, options)
    record = Record(output, fingerprint(model, options))
    plan = make_plan(source, output, options, record)
    progress = _Progress(plan.tasks)
    before = f'; {plan.done} done before' if plan.done else ''
    print(f'{model}; {len(plan.tasks)} images{before}', flush=True)
    finished, unreadable = 0.0, list(plan.unreadable)
    converted: set[str] = set()
    for number, task in enumerate(plan.tasks, 1):

        def advance(share: float, task: Task = task, number: int = number, finished: float = finished) -> None:
            progress.say(number - 1, finished + share * task.megapixels)

        try:
            original = images.decode(str(task.source), task.source)
            kept = images.read_metadata(str(task.source), task.source)
        except UserError as error:
            unreadable.append(str(error))
        else:
            converted |= _conversion(original.shape[-1], model.config.data.channels)
            _write(predictor(original, advance), kept, task, output, record)
        finished += task.megapixels
        progress.say(number, finished, str(task.target))
    for note in sorted(converted):
        print(note)
    if unreadable:
        print(f'{len(unreadable)} files could not be read:{shortlist(unreadable, len(unreadable))}')
    return len(unreadable)


def _conversion(there: int, wanted: int) -> set[str]:
    """What is to be said of images of so many channels, alpha included, and a network of so many."""
    if wanted == 3 and there < 3:
        return {'note: grey images were given to this network of colour images with three equal channels'}
    if wanted == 1 and there > 2:
        return {'note: the colours of an image were given to this network of grey images one after another'}
    return set()


def encode_result(result: np.ndarray, suffix: str, kept: metadata.Metadata) -> bytes:
    """Returns the content of a result's file, with what its input held beside the pixels; see `images.encode`."""
    if kept.exif:  # the size may be another now
        kept = dataclasses.replace(kept, exif=metadata.upright(kept.exif, *result.shape[:2]))
    return images.encode(result, suffix, kept)


def _write(result: np.ndarray, kept: metadata.Metadata, task: Task, output: Path, record: Record) -> None:
    name = task.target.relative_to(output).as_posix()
    try:
        content = encode_result(result, task.target.suffix.lower(), kept)
        write_file(task.target, content, lambda written: record.add(name, task.source, written))
    except OSError as error:
        raise UserError(f'{task.target}: cannot be written ({error}); started again, predict goes on here') from None
