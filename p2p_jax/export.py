"""A trained generator for other programs: written in their formats, run back from there, and compared.

Every format takes and gives float32 images (n, h, w, c) in [0, 1], as `Job.apply`, and has the weights inside. Outside
model files, a network of bfloat16 computes in float32, for not every runtime has the other.
"""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import ml_collections
import numpy as np

from p2p_jax import modelfile, report
from p2p_jax.data import LAYOUTS, images
from p2p_jax.datasets import STORED, selection
from p2p_jax.inference import Model, load_file
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError, pick, shortlist
from p2p_jax.modelfile import Facts

DEFAULT = 'safetensors'
SIZE = (256, 256)
# Largest difference in [0, 1] to the model's own result, by the type that it computes in. What is exported computes in
# float32, so that half of the digits of a bfloat16 model are its own error.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 0.05}
_PLATFORMS = ('cpu', 'cuda', 'tpu')
_LARGEST_BATCH = 2
_OTHER_SIZES = ((_LARGEST_BATCH, 33, 47), (1, 97, 64))  # odd, and smaller than what most U-Nets pad to
_PHOTOGRAPHS = 3
Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Program:
    """A generator as other programs get it.

    Attributes:
      config: of a network of float32 whose spectral norm, if any, is inside the kernels.
      variables: of that network, arrays of numpy.
      facts: of the model.
      size: (height, width) for formats whose images have one size.
    """

    config: ml_collections.ConfigDict
    variables: Any
    facts: Facts
    size: tuple[int, int]

    @property
    def inputs(self) -> dict[str, tuple[tuple[Any, ...], Any]]:
        """Name to (shape, in which letters are lengths of the caller's choice; type), in order."""
        if self.config.data.classes:
            latent = self.config.generator[self.config.generator.name].latent
            return {'labels': (('n',), np.int32), 'noise': (('n', latent), np.float32)}
        return {'image': (('n', 'h', 'w', self.config.data.channels), np.float32)}

    def function(self, form: str) -> Callable[..., jax.Array]:
        """Returns f(variables, *inputs) with strided convolutions of the given form."""
        config = ml_collections.ConfigDict(self.config.to_dict())
        config.conv_form = form
        job = build_job(config, steps=1)
        return lambda variables, *inputs: job.apply(variables, inputs if job.classes else inputs[0])

    def describe(self) -> dict[str, Any]:
        """Returns what there is to know in order to run it, for JSON."""
        inputs = {
            name: {'shape': ', '.join(map(str, shape)), 'dtype': np.dtype(dtype).name}
            for name, (shape, dtype) in self.inputs.items()
        }
        values = 'images are float32 in [0, 1], with the channels last; noise is from N(0, 1), labels count from 0'
        return {'inputs': inputs, 'values': values, **dataclasses.asdict(self.facts)}


def _write_safetensors(program: Program, path: Path) -> None:
    modelfile.write(path, program.variables, program.facts)


def _read_safetensors(path: Path) -> Run:
    model = load_file(path)
    apply = jax.jit(model.job.apply)

    def run(arrays: Arrays) -> np.ndarray:
        given: Any = tuple(arrays.values()) if model.job.classes else arrays['image']
        return np.asarray(apply(model.variables, given))

    return run


def _write_stablehlo(program: Program, path: Path) -> None:
    scope = jax.export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(', '.join(map(str, shape)), scope=scope), dtype)
        for shape, dtype in program.inputs.values()
    ]
    function = program.function('portable')
    inside = jax.jit(lambda *inputs: function(program.variables, *inputs))
    path.write_bytes(jax.export.export(inside, platforms=_PLATFORMS)(*shapes).serialize())
    report.write_json(path.with_name(f'{path.name}.json'), program.describe())


def _read_stablehlo(path: Path) -> Run:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return lambda arrays: np.asarray(exported.call(*arrays.values()))


def _write_savedmodel(program: Program, path: Path) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    inputs = program.inputs
    converted = jax2tf.convert(
        program.function('portable'),
        polymorphic_shapes=[None, *(', '.join(map(str, shape)) for shape, _ in inputs.values())],
        with_gradient=False,
        native_serialization_platforms=_PLATFORMS,
    )
    module = tf.Module()
    module.variables_of_network = jax.tree.map(tf.Variable, program.variables)
    signature = [
        tf.TensorSpec([None if isinstance(length, str) else length for length in shape], dtype, name=name)
        for name, (shape, dtype) in inputs.items()
    ]
    module.apply = tf.function(
        lambda *arrays: converted(module.variables_of_network, *arrays), input_signature=signature, autograph=False
    )
    tf.saved_model.save(module, str(path), signatures=module.apply.get_concrete_function())
    report.write_json(path / 'assets.extra' / 'p2p_jax.json', program.describe())


def _read_savedmodel(path: Path) -> Run:
    import tensorflow as tf

    module = tf.saved_model.load(str(path))
    return lambda arrays: module.apply(*arrays.values()).numpy()


def _write_onnx(program: Program, path: Path) -> None:
    import jax2onnx
    import onnx

    function, inputs = program.function('native'), program.inputs
    # The converter knows no padding and no skips of images whose height and width are open.
    sizes = dict(zip('hw', program.size, strict=True))
    model = jax2onnx.to_onnx(
        lambda *arrays: function(program.variables, *arrays),
        [
            jax.ShapeDtypeStruct(tuple(sizes.get(length, length) for length in shape), dtype)
            for shape, dtype in inputs.values()
        ],
        input_names=list(inputs),
        output_names=['result'],
    )
    # Layouts that the converter turns leave wrong shapes in between, of which runtimes warn; they find their own.
    del model.graph.value_info[:]
    onnx.helper.set_model_props(model, {'p2p_jax': json.dumps(program.describe())})
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda arrays: session.run(None, arrays)[0]


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to hand a generator over.

    Attributes:
      name: of the file or folder among those of other formats.
      write: writes a program to a path.
      read: returns a function of what `write` wrote.
      snippet: the lines of Python that run it, with {path}, {condition} (as `Job.apply` takes it), {arguments} (one by
        one) and {named} (with their names).
      packages: that it needs and that p2p_jax does not.
      extra: of p2p_jax, with these packages.
      beside: endings of what lies beside the file.
      any_size: takes images of any height and width.
    """

    name: str
    write: Callable[[Program, Path], None]
    read: Callable[[Path], Run]
    snippet: str
    packages: tuple[str, ...] = ()
    extra: str = ''
    beside: tuple[str, ...] = ()
    any_size: bool = True

    def how_to_run(self, program: Program, path: Path) -> str:
        """Returns the lines of Python that run what lies at a path."""
        names = list(program.inputs)
        arguments = ', '.join(names)
        condition = f'({arguments})' if len(names) > 1 else arguments
        named = ', '.join(f'{name}={name}' for name in names)
        return self.snippet.format(path=str(path), condition=condition, arguments=arguments, named=named)

    def names(self, name: str) -> list[str]:
        """Names of all that is written for a file of the given name."""
        return [name, *(name + ending for ending in self.beside)]


FORMATS = {
    'safetensors': Format(
        'model.safetensors',
        _write_safetensors,
        _read_safetensors,
        'import pathlib\nfrom p2p_jax import inference\nmodel = inference.load_file(pathlib.Path({path!r}))\n'
        'result = model.job.apply(model.variables, {condition})',
    ),
    'stablehlo': Format(
        'model.stablehlo',
        _write_stablehlo,
        _read_stablehlo,
        "import jax.export\nwith open({path!r}, 'rb') as file:\n"
        '    model = jax.export.deserialize(bytearray(file.read()))\nresult = model.call({arguments})',
        beside=('.json',),
    ),
    'savedmodel': Format(
        'saved_model',
        _write_savedmodel,
        _read_savedmodel,
        'import tensorflow as tf\nmodel = tf.saved_model.load({path!r})\nresult = model.apply({arguments})',
    ),
    'onnx': Format(
        'model.onnx',
        _write_onnx,
        _read_onnx,
        'import onnxruntime\nmodel = onnxruntime.InferenceSession({path!r})\n'
        "result = model.run(['result'], dict({named}))[0]",
        packages=('jax2onnx', 'onnxruntime'),
        extra='onnx',
        any_size=False,
    ),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
      folder: of all of it.
      names: format to the name of its file or folder.
      parity: name of the report.
    """

    folder: Path
    names: dict[str, str]
    parity: str


def plan(formats: str, output: Path) -> Plan:
    """Finds what would go wrong before anything is loaded.

    Args:
      formats: keys of FORMATS, with commas between them.
      output: the file (a folder for a SavedModel); of several formats, a folder that may be there already.

    Raises:
      UserError: an unknown format, a package that is not installed, or something in the way.
    """
    chosen = {name: pick(FORMATS, name, '--format') for name in formats.split(',')}
    for name, form in chosen.items():
        missing = [package for package in form.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(
                f"--format={name} needs {' and '.join(missing)}, not installed: pip install 'p2p_jax[{form.extra}]'"
            )
    if len(chosen) == 1:
        names, folder, parity = {name: output.name for name in chosen}, output.parent, f'{output.name}.parity.json'
    else:
        names, folder, parity = {name: form.name for name, form in chosen.items()}, output, 'parity.json'
        if output.exists() and not output.is_dir():
            raise UserError(f'--output={output}: that is a file; expected a folder for {formats}')
    written = [name for key, form in chosen.items() for name in form.names(names[key])]
    there = [str(folder / name) for name in [*written, parity] if (folder / name).exists()]
    if there:
        raise UserError(f'--output={output} exists and is not overwritten:{shortlist(there)}')
    return Plan(folder, names, parity)


def parse_size(text: str) -> tuple[int, int]:
    """Returns (height, width) of 'HEIGHTxWIDTH'.

    Raises:
      UserError: it is not of that form.
    """
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not found:
        raise UserError(f'--size={text}: expected height and width in pixels, such as 256x384')
    return int(found[1]), int(found[2])


def _scores_at(log: Path, step: int) -> dict[str, float]:
    """The validation scores of a step in metrics.jsonl."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    found = [line for line in lines if line.get('step') == step and 'val/psnr' in line]
    return (
        {key.removeprefix('val/'): value for key, value in found[-1].items() if key.startswith('val/')} if found else {}
    )


def _facts(model: Model, raw: bool) -> Facts:
    if model.origin.is_file():
        return modelfile.read(model.origin)[1]
    stored = model.origin / STORED
    description = json.loads(stored.read_text()) if stored.is_file() else {}
    return Facts(
        config=model.config.to_dict(),
        step=model.step,
        weights='raw' if raw or not model.config.ema.decay else 'ema',
        scale=model.scale,
        scores=_scores_at(model.origin / 'metrics.jsonl', model.step),
        folded=model.config.generator[model.config.generator.name].get('norm') == 'spectral',
        examples={split: len(names) for split, names in description.get('splits', {}).items()},
    )


def prepare(model: Model, size: tuple[int, int] = SIZE, *, raw: bool = False) -> Program:
    """Makes of a model what other programs get.

    Args:
      model: loaded from a workdir or a model file.
      size: (height, width) for formats whose images have one size.
      raw: it was loaded with the weights themselves instead of their moving averages.
    """
    facts = _facts(model, raw)
    config = ml_collections.ConfigDict(model.config.to_dict())
    config.dtype = 'float32'
    variables = jax.device_get(model.variables)
    # A model file with norms folded in was loaded without them.
    if config.generator[config.generator.name].get('norm') == 'spectral':
        variables = jax.device_get(jax.jit(modelfile.fold_spectral_norm)(variables))
        config.generator[config.generator.name].norm = 'none'
    return Program(config, variables, facts, size)


def photographs(source: Path | None, config: ml_collections.ConfigDict, size: tuple[int, int]) -> Arrays:
    """Reads the real images on which an export is checked.

    Args:
      source: a file or a folder, of which the first three images are taken; None: those of the sample set.
      config: of the model.
      size: (height, width) of what is cut out of their middle; smaller ones are continued by their mirror image.

    Returns:
      Name to float32 (1, *size, channels) in [0, 1]; nothing for a model that takes labels.

    Raises:
      UserError: no images there, or one that cannot be read.
    """
    if config.data.classes:
        return {}
    if source is None:
        sample = LAYOUTS['sample']
        found = sample.find(sample.default_root(), selection(config)).records  # type: ignore[misc]
        files = [record.target.path for record in found if record.split != 'train']
    else:
        files = images.find_images(source) if source.is_dir() else [source]
        if not files:
            raise UserError(f'--input={source}: no images there ({", ".join(sorted(images.EXTENSIONS))})')
    cut = {}
    for path in files[:_PHOTOGRAPHS]:
        image = images.read_image(path, config.data.channels)
        lacks = [max(0, length - there) for length, there in zip(size, image.shape[:2], strict=True)]
        image = np.pad(image, (*((0, lack) for lack in lacks), (0, 0)), mode='symmetric')
        top, left = ((there - length) // 2 for length, there in zip(size, image.shape[:2], strict=True))
        image = image[top : top + size[0], left : left + size[1]]
        cut[str(path)] = image[None].astype(np.float32) / 255
    return cut


def _cases(program: Program, real: Arrays, any_size: bool) -> Iterator[tuple[str, Arrays]]:
    """Yields the inputs of a check, each with its name: random ones of several sizes and real ones."""
    if program.config.data.classes:
        for n in range(1, _LARGEST_BATCH + 1):
            random = np.random.default_rng(n)
            labels = random.integers(len(program.config.data.classes), size=n, dtype=np.int32)
            (_, latent), _ = program.inputs['noise']
            noise = random.normal(size=(n, latent)).astype(np.float32)
            yield f'random, batch {n}', {'labels': labels, 'noise': noise}
        return
    for shape in ((1, *program.size), *(_OTHER_SIZES if any_size else ((_LARGEST_BATCH, *program.size),))):
        image = np.random.default_rng(0).random((*shape, program.config.data.channels), np.float32)
        yield f'random, batch {shape[0]}, {shape[1]}×{shape[2]}', {'image': image}
    for name, image in real.items():
        yield name, {'image': image}


def _bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in ([path] if path.is_file() else path.rglob('*')) if part.is_file())


class _Check:
    """Compares formats with the model itself, whose results are kept for the next format."""

    def __init__(self, model: Model, program: Program, real: Arrays):
        self._model, self._program, self._real = model, program, real
        self._apply = jax.jit(model.job.apply)
        self._expected: Arrays = {}

    def _reference(self, name: str, arrays: Arrays) -> np.ndarray:
        if name not in self._expected:
            given: Any = tuple(arrays.values()) if self._model.job.classes else arrays['image']
            self._expected[name] = np.asarray(self._apply(self._model.variables, given))
        return self._expected[name]

    def differences(self, run: Run, any_size: bool) -> dict[str, float]:
        """Returns for each input the largest absolute difference to the model's own result; NaN where shapes differ."""
        found = {}
        for name, arrays in _cases(self._program, self._real, any_size):
            expected, result = self._reference(name, arrays), run(arrays)
            same = result.shape == expected.shape
            found[name] = float(np.abs(result - expected).max()) if same else float('nan')
        return found


def _write_one(name: str, program: Program, path: Path, check: _Check) -> dict[str, Any]:
    """Writes one format, runs it, and returns its part of the report."""
    form, start = FORMATS[name], time.monotonic()
    try:
        form.write(program, path)
    except UserError:
        raise
    except Exception as error:  # a converter may fail in any way on what it does not know
        lines = str(error).splitlines() or ['']
        raise UserError(f'--format={name}: cannot express this network: {type(error).__name__}: {lines[0]}') from error
    written = time.monotonic()
    try:
        differences = check.differences(form.read(path), form.any_size)
    except UserError:
        raise
    except Exception as error:  # as TensorFlow 2.21 on StableHLO of jax 0.11
        raise UserError(
            f'--format={name}: what jax {jax.__version__} wrote does not run here: {type(error).__name__}: '
            f'{" ".join(str(error).split())[:300]}; nothing is kept. Other versions of jax may do (constraints.txt)'
        ) from error
    return {
        'bytes': _bytes(path),
        'seconds_to_write': round(written - start, 2),
        'seconds_to_check': round(time.monotonic() - written, 2),
        # NaN is larger than anything.
        'largest_difference': float(np.max(list(differences.values()))),
        'differences': differences,
    }


def export(
    model: Model,
    target: Plan,
    size: tuple[int, int] = SIZE,
    source: Path | None = None,
    *,
    raw: bool = False,
) -> bool:
    """Writes a model in the planned formats and compares what each gives with what the model gives.

    Everything is written under a temporary name first; either all of it stays or, where a format fails, none.

    Args:
      model: what is exported.
      target: where, in which formats.
      size: (height, width) of images in formats that have one size, and of most that are compared on.
      source: see `photographs`.
      raw: the model was loaded with the weights themselves instead of their moving averages.

    Returns:
      Whether all formats give what the model gives, within the tolerance.

    Raises:
      UserError: a format cannot express the network, what was written does not run, or `source` cannot be read.
    """
    tolerance = TOLERANCES[model.config.dtype]
    program = prepare(model, size, raw=raw)
    facts, check = program.facts, _Check(model, program, photographs(source, model.config, size))
    scores = ', '.join(f'{name} {value:.4g}' for name, value in facts.scores.items())
    print(f'{model} ({facts.weights} weights; validation {scores or "unknown"}) -> {target.folder}', flush=True)
    new = not target.folder.exists()
    temporary = target.folder / f'.export.{os.getpid()}.tmp'
    temporary.mkdir(parents=True)
    try:
        parts, whole = {}, True
        for name, file in target.names.items():
            part = _write_one(name, program, temporary / file, check)
            close = part['largest_difference'] <= tolerance
            print(
                f'{name}: {file}, {part["bytes"] / 1e6:.1f} MB in {part["seconds_to_write"]}s; largest difference '
                f'{part["largest_difference"]:.1e} on {len(part["differences"])} inputs'
                f'{"" if close else f", more than {tolerance:.0e}: nothing is kept"}',
                flush=True,
            )
            whole &= close
            how = FORMATS[name].how_to_run(program, target.folder / file)
            parts[name] = {'file': file, **part, 'run': how}
        if not whole:
            return False
        content = {'model': str(model), 'dtype': model.config.dtype, 'tolerance': tolerance, 'formats': parts}
        report.write_json(temporary / target.parity, content)
        for path in temporary.iterdir():
            path.rename(target.folder / path.name)
    finally:
        shutil.rmtree(temporary)
        if new and not any(target.folder.iterdir()):
            target.folder.rmdir()
    for part in parts.values():
        print(f'\n{part["run"]}')
    print(f'\nall differences: {target.folder / target.parity}')
    return True
