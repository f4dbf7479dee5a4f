"""Damaged files, made by the hundred thousand: readers must answer each with a UserError or a result.

python -m experiments.faults.fuzz --seconds=60

Atheris (the extra `fuzz`), which looks for inputs that reach new code, is the engine where it is installed; otherwise
bytes are mutated blindly. What it found is written below --output. The exit code is 1 where a reader crashed.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import pickle
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

with contextlib.suppress(ImportError):
    import atheris

# With Atheris, the code below is imported so that it notes which of its branches run.
_INSTRUMENTED = ['p2p_jax', 'safetensors', 'PIL']
_LONGEST = 1 << 16  # bytes of an input


def _of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """Makes a target of a reader of files."""
    path = Path(tempfile.mkdtemp()) / name

    def target(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return target


def model_file() -> tuple[Callable[[bytes], None], list[bytes]]:
    """The reader of model files."""
    from p2p_jax import modelfile

    path = Path(tempfile.mkdtemp()) / 'seed.safetensors'
    facts = modelfile.Facts({'seed': 0}, 3, 'raw', 1.0, {'psnr': 30.0})
    modelfile.write(path, {'params': {'a': {'kernel': np.ones((2, 2), np.float32)}}}, facts)
    return _of_file('model.safetensors', modelfile.read), [path.read_bytes()]


def _cifar(name: str, seeds: list[bytes]) -> tuple[Callable[[bytes], None], list[bytes]]:
    from p2p_jax.data import sources

    def read(path: Path) -> None:
        sources.cifar_batch.cache_clear()
        sources.cifar_batch(path)

    return _of_file(name, read), seeds


def cifar_binary() -> tuple[Callable[[bytes], None], list[bytes]]:
    """The reader of CIFAR-10's binary batches."""
    return _cifar('data_batch_1.bin', [bytes(3073), bytes(2 * 3073)])


def cifar_pickled() -> tuple[Callable[[bytes], None], list[bytes]]:
    """The reader of CIFAR-10's pickled batches."""
    batch = {b'data': np.zeros((2, 3072), np.uint8), b'labels': [3, 4]}
    named = {'data': np.zeros((1, 3072), np.uint8), 'labels': [3]}
    return _cifar('data_batch_1', [pickle.dumps(batch, protocol=2), pickle.dumps(named)])


def image() -> tuple[Callable[[bytes], None], list[bytes]]:
    """The decoders of images, and the readers of what is in the files besides."""
    from p2p_jax.data import images

    def target(data: bytes) -> None:
        images.header('file', data)
        images.read_metadata('file', data)
        images.decode('file', data)

    picture = Image.effect_noise((9, 7), 50).convert('RGB')
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: 'maker'})
    seeds = []
    for form, mode in (('PNG', 'RGB'), ('PNG', 'P'), ('JPEG', 'RGB'), ('TIFF', 'RGB'), ('BMP', 'RGB'), ('WEBP', 'RGB')):
        stream = io.BytesIO()
        picture.convert(mode).save(stream, form, exif=exif)
        seeds.append(stream.getvalue())
    deep = images.encode(np.zeros((5, 6, 2), np.uint16), '.tif', images.Metadata())
    return target, [*seeds, deep]


def config() -> tuple[Callable[[bytes], None], list[bytes]]:
    """The reader of configurations, and their check."""
    from p2p_jax import configfile, settings

    def read(path: Path) -> None:
        settings.check(configfile.get_config(str(path)))

    return _of_file('config.json', read), [json.dumps(configfile.defaults().to_dict()).encode()]


TARGETS = {f.__name__: f for f in (model_file, cifar_binary, cifar_pickled, image, config)}


def _mutate(data: bytes, source: random.Random) -> bytes:
    """Changes a few bytes, cuts, repeats or inserts."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        at, length = source.randrange(len(changed) + 1), source.choice((1, 2, 4, 64))
        piece = source.choice((source.randbytes(length), b'\xff' * length, bytes(length), bytes(changed[at:][:length])))
        how = source.randrange(4)
        if how == 0:
            changed[at : at + length] = piece
        elif how == 1:
            changed[at:at] = piece
        elif how == 2:
            del changed[at : at + length]
        else:
            del changed[at:]
    return bytes(changed[:_LONGEST])


def _blindly(target: Callable[[bytes], None], seeds: list[bytes], seconds: float, found: Path) -> int:
    """Runs a target on mutated seeds, the first input that is none of its documented errors is kept."""
    source, count, end = random.Random(0), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = _mutate(source.choice(seeds), source)
        count += 1
        try:
            target(data)
        except Exception:
            found.write_bytes(data)
            print(f'executions: {count}', flush=True)
            raise
    print(f'executions: {count}')
    return 0


def _work(name: str, engine: str, seconds: int, found: Path) -> None:
    """Runs one target in this process."""
    if engine == 'atheris':
        with atheris.instrument_imports(include=_INSTRUMENTED):
            raw, seeds = TARGETS[name]()
    else:
        raw, seeds = TARGETS[name]()
    from p2p_jax.lookup import UserError

    def target(data: bytes) -> None:
        with contextlib.suppress(UserError):
            raw(data)

    for seed in seeds:  # whole files are no errors
        raw(seed)
    if engine != 'atheris':
        _blindly(target, seeds, seconds, found)
        return
    corpus = Path(tempfile.mkdtemp())
    for place, seed in enumerate(seeds):
        (corpus / str(place)).write_bytes(seed)
    options = [f'-max_total_time={seconds}', f'-exact_artifact_path={found}', f'-max_len={_LONGEST}', '-timeout=30']
    atheris.Setup([sys.argv[0], str(corpus), *options, '-print_final_stats=1', '-rss_limit_mb=4096'], target)
    atheris.Fuzz()


def main() -> int:
    """Runs the targets, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=int, default=60, help='for each target')
    parser.add_argument('--targets', nargs='+', choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        '--engine', choices=('atheris', 'blind'), default=None, help='default: Atheris where there is one'
    )
    parser.add_argument('--output', type=Path, default=Path('fuzz'), help='folder of inputs that crash')
    parser.add_argument('--json', type=Path, help='file of the results')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    options = parser.parse_args()
    engine = options.engine or ('atheris' if importlib.util.find_spec('atheris') else 'blind')
    if options.worker:
        _work(options.worker, engine, options.seconds, options.output)
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.targets:
        found = options.output / f'{name}.crash'
        found.unlink(missing_ok=True)
        command = [
            sys.executable,
            '-m',
            'experiments.faults.fuzz',
            f'--worker={name}',
            f'--engine={engine}',
            f'--output={found}',
        ]
        done = subprocess.run([*command, f'--seconds={options.seconds}'], capture_output=True, text=True)
        log = done.stdout + done.stderr
        counted = re.search(r'(?:number_of_executed_units|executions): *(\d+)', log)
        row = {'target': name, 'engine': engine, 'executions': int(counted[1]) if counted else None}
        rows.append(row | {'crash': str(found) if done.returncode else None})
        print(f'{name:14} {engine:8} {row["executions"] or "?":>9} executions, {rows[-1]["crash"] or "no crash"}')
        if done.returncode:
            print('\n'.join(line[:200] for line in log[max(0, log.find('Uncaught Python')) :].splitlines()[-25:]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + '\n')
    return int(any(row['crash'] for row in rows))


if __name__ == '__main__':
    sys.exit(main())
