"""Forces two CPU devices before jax is imported, and makes small data sets on disk."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

# What the tests run is small and what they compile is much, so that the compiler is to do little.
COMPILE_FAST = '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
if version('jaxlib').startswith('0.10.'):  # later ones do not know the flag, and end at once
    COMPILE_FAST += ' --xla_cpu_use_fusion_emitters=false'
_COMPILED = 'p2p_jax-compiled-'
# What pytest's first process sets, those that it starts inherit, and those that the tests start.
if _COMPILED not in os.environ.get('JAX_COMPILATION_CACHE_DIR', ''):
    # Many tests compile the same.
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix=_COMPILED)
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count=2 {COMPILE_FAST}'
# Without more threads than cores, two CPU devices on two cores can deadlock in a collective.
os.environ.setdefault('NPROC', '8')
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
os.environ['TF_ENABLE_ONEDNN_OPTS'] = '0'

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from p2p_jax import export, inference, modelfile
from p2p_jax.data.images import write_image


def picture(seed: int, height: int = 48, width: int = 40) -> np.ndarray:
    """A smooth random image, uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20
    waves = [np.sin(x * random.uniform(0.5, 2) + y * random.uniform(0.5, 2) + random.uniform(0, 6)) for _ in range(3)]
    return np.rint(127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def noisy(image: np.ndarray, seed: int) -> np.ndarray:
    """The image with noise of standard deviation 20."""
    noise = np.random.default_rng(seed).normal(0, 20, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_pairs(folder: Path, count: int, seed: int = 0, **size: int) -> None:
    """Writes `count` pairs below input/ and target/."""
    for i in range(count):
        image = picture(seed + i, **size)
        write_image(folder / 'target' / f'{i}.png', image)
        write_image(folder / 'input' / f'{i}.png', noisy(image, seed + i))


# The files that take longest, which come first: otherwise one process would wait for the other at the end.
_LONGEST = ('test_processes', 'test_resume', 'test_configs', 'test_train', 'test_main', 'test_steps')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files; within a file the tests stay as they are."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


# Each program takes some of the 65,530 memory maps that a process may have.
_MAPS = 20_000


@pytest.fixture(autouse=True)
def _not_too_many_programs() -> Iterator[None]:
    """Drops what the tests compiled where it has become much; what they compile again comes from the disk."""
    yield
    maps = Path('/proc/self/maps')
    if not maps.is_file() or maps.read_bytes().count(b'\n') > _MAPS:
        jax.clear_caches()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of train, val and test pairs; those to evaluate have two sizes."""
    root = tmp_path / 'pairs'
    write_pairs(root / 'train', 6)
    for seed, split in ((100, 'val'), (200, 'test')):
        write_pairs(root / split, 3, seed)
        image = picture(seed + 50, 30, 50)
        write_image(root / split / 'target' / 'other.png', image)
        write_image(root / split / 'input' / 'other.png', noisy(image, seed))
    return root


def small_config(data: Path | None = None) -> ConfigDict:
    """A configuration that trains in seconds; two devices."""
    config = default.get_config()
    config.data.dir = None if data is None else str(data)
    config.data.crop_size = 16
    config.data.rotate = True
    config.generator.unet.update(depth=2, width=8, norm='instance', dropout=0.0)
    config.discriminator.patchgan.update(strided=1, unstrided=1, width=8, norm='batch')
    config.train.update(batch_size=4, steps=8)
    config.log.every_steps = 2
    config.eval.every_steps = 4
    config.checkpoint.every_steps = 2
    return config


@pytest.fixture
def config(pairs: Path) -> ConfigDict:
    """`small_config` on the folder `pairs`."""
    return small_config(pairs)


def write_model(workdir: Path, path: Path, *, raw: bool = False) -> None:
    """Writes the latest checkpoint's generator to a model file, without the comparison that follows in `export`."""
    program = export.prepare(inference.load(workdir, 'latest', raw=raw), raw=raw)
    modelfile.write(path, program.variables, program.facts)


@pytest.fixture(scope='session')
def real_data() -> Path:
    """The folder of real data sets, where there is one."""
    root = os.environ.get('P2P_JAX_DATA')
    if not root:
        pytest.skip('P2P_JAX_DATA names no folder of real data')
    return Path(root)
