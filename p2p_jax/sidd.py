"""The protocols of SIDD's sRGB blocks: validation beside published scores, and the files that its benchmark takes.

Abdelhamed et al. 2018. Both sets are 40 photographs with 32 blocks of 256×256 each.
"""

import base64
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from scipy import io as scipy_io

from p2p_jax import contenders, report, summary
from p2p_jax.baselines import BASELINES
from p2p_jax.data import LAYOUTS
from p2p_jax.data.records import find
from p2p_jax.data.sources import mat_blocks
from p2p_jax.datasets import selection
from p2p_jax.evaluate import Options, assess, refuse_labels, write_results
from p2p_jax.inference import Model
from p2p_jax.job import build_job
from p2p_jax.lookup import UserError
from p2p_jax.predictor import PredictOptions
from p2p_jax.scoring import Examples, ModelResult

SHAPE = (40, 32, 256, 256, 3)  # photographs, blocks of each, height, width, channels
BENCHMARK = 'BenchmarkNoisyBlocksSrgb.mat'
VALIDATION = ('ValidationNoisyBlocksSrgb.mat', 'ValidationGtBlocksSrgb.mat')
CSV, MAT = 'SubmitSrgb.csv', 'SubmitSrgb.mat'
_PROTOCOLS = ('float_3d', 'uint8')  # in which scores on the validation set are published


@dataclasses.dataclass(frozen=True)
class Published:
    """A published score: the method, PSNR in dB, SSIM 3-D, 'validation' or 'benchmark', and the source."""

    name: str
    psnr: float
    ssim: float
    split: str
    source: str


PUBLISHED = (
    Published('NAFNet-64', 40.305, 0.9614, 'validation', 'Chen et al. 2022'),
    Published('Restormer', 40.02, 0.960, 'validation', 'Zamir et al. 2022'),
    Published('NAFNet-32', 39.967, 0.9599, 'validation', 'Chen et al. 2022'),
    Published('MAXIM-3S', 39.96, 0.960, 'validation', 'Tu et al. 2022'),
    Published('MPRNet', 39.71, 0.958, 'validation', 'Zamir et al. 2021'),
    Published('VDN', 39.28, 0.956, 'validation', 'Yue et al. 2019'),
    Published('RIDNet', 38.71, 0.951, 'validation', 'Anwar and Barnes 2019'),
    Published('BM3D', 25.65, 0.685, 'benchmark', 'Dabov et al. 2007'),
    Published('DnCNN', 23.66, 0.583, 'benchmark', 'Zhang et al. 2017'),
)


def _remark(shape: tuple[int, ...]) -> str:
    """A line where blocks are not those that are published; else nothing."""
    if shape == SHAPE:
        return ''
    return f'note: blocks of shape {shape}, not the {SHAPE} of SIDD: no score is comparable, no file can be submitted'


def _published_text(split: str, results: Sequence[ModelResult] = ()) -> str:
    rows = {row.name: [f'{row.psnr:.2f}', f'{row.ssim:.4f}', row.source] for row in PUBLISHED if row.split == split}
    for result in results:
        mean = summary.means(result)['output']
        rows[f'> {result.name}'] = [f'{mean["psnr"].mean:.2f}', f'{mean["ssim_3d"].mean:.4f}', 'here']
    lines = summary.aligned(rows, ['PSNR (dB)', 'SSIM 3-D', ''])
    how = 'convention float_3d' if split == 'validation' else 'by its server'
    return '\n'.join(['', f'published on SIDD {split}, {how}', *lines])


def validate(
    models: Sequence[Model | str],
    defaults: ml_collections.ConfigDict,
    folder: Path,
    options: Options,
    output: Path | None = None,
) -> tuple[ModelResult, ...]:
    """Scores models on the validation blocks and prints the published scores beside theirs.

    Args:
      models: trained ones, and keys of BASELINES, whose strengths are the defaults.
      defaults: `configs/default.py`.
      folder: of the two .mat files.
      options: of the evaluation; the protocols are those of the published scores.
      output: a JSON file to write everything to.

    Raises:
      UserError: the files are missing or belong to different sets, or a model does not fit them.
    """
    refuse_labels(models)
    missing = [name for name in VALIDATION if not (folder / name).is_file()]
    if missing:
        raise UserError(f'{folder}: no {" and no ".join(missing)}; SIDD publishes both, as sRGB validation blocks')
    config = ml_collections.ConfigDict(defaults.to_dict())
    config.data.update(layout='sidd_blocks', dir=str(folder))
    config.eval.names = ('noisy', 'denoised')
    config.eval.lpips = options.lpips or 'none'
    contenders.check(models, config.data.channels)
    job = build_job(config, steps=1)
    # As they are: a published set is not audited.
    records = find(LAYOUTS, 'sidd_blocks', folder, selection(config))[1].records
    shape = mat_blocks(folder / VALIDATION[0]).shape
    print(f'{", ".join(map(str, models))}; {len(records)} blocks of SIDD validation …', flush=True)
    options = dataclasses.replace(options, protocols=_PROTOCOLS)
    examples = Examples(job, config, records)
    results = assess(models, examples, None, options)
    title = f'SIDD validation: {len(records)} blocks of {shape[2]}×{shape[3]}'
    print(summary.describe(title, results, config.eval.names, options.worst))
    print(_published_text('validation', results))
    if _remark(shape):
        print(_remark(shape))
    if output:
        write_results(output, results, examples, options)
    return results


def _denoise(restore: Callable[[np.ndarray], np.ndarray], blocks: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the denoised blocks, and the seconds a megapixel that they took, without compilation."""
    flat = blocks.reshape(-1, *blocks.shape[2:])
    denoised = np.empty(flat.shape, np.uint8)  # not empty_like: SciPy's arrays are in MATLAB's order
    restore(flat[0] / np.float32(255))
    start = time.monotonic()
    with report.progress_bar(len(flat), 'denoising') as bar:
        for place, block in enumerate(flat):
            denoised[place] = np.rint(np.clip(restore(block / np.float32(255)), 0, 1) * 255).astype(np.uint8)
            bar.update()
    return denoised.reshape(blocks.shape), (time.monotonic() - start) / (flat[..., 0].size / 1e6)


def write_csv(path: Path, blocks: np.ndarray) -> None:
    """Writes what Kaggle's benchmark takes: ID, 0 … by photograph, then block; BLOCK, base64 of the block's bytes.

    Args:
      path: of the file.
      blocks: uint8 (photographs, blocks, height, width, 3); bytes in C order.
    """
    with path.open('w', newline='') as file:
        file.write('ID,BLOCK\n')
        for place, block in enumerate(blocks.reshape(-1, *blocks.shape[2:])):
            file.write(f'{place},{base64.b64encode(block.tobytes()).decode()}\n')


def read_csv(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the blocks of a file that `write_csv` wrote.

    Args:
      path: of the file.
      shape: (photographs, blocks, height, width, 3).

    Raises:
      UserError: it is no such file.
    """
    with path.open(newline='') as file:
        if file.readline() != 'ID,BLOCK\n':
            raise UserError(f'{path}: its first line is not ID,BLOCK')
        rows = list(_rows(path, file, int(np.prod(shape[2:]))))
    if len(rows) != shape[0] * shape[1]:
        raise UserError(f'{path}: {len(rows)} blocks; expected {shape[0] * shape[1]}')
    return np.stack(rows).reshape(shape)


def _rows(path: Path, lines: Iterator[str], size: int) -> Iterator[np.ndarray]:
    for place, line in enumerate(lines):
        number, _, block = line.rstrip('\n').partition(',')
        try:
            pixels = np.frombuffer(base64.b64decode(block, validate=True), np.uint8)
        except ValueError as error:
            raise UserError(f'{path}: block {number} is not base64 ({error})') from None
        if number != str(place) or pixels.size != size:
            raise UserError(
                f'{path}: line {place + 2} has ID {number} and {pixels.size} bytes; expected {place}, {size}'
            )
        yield pixels


def write_mat(path: Path, blocks: np.ndarray, seconds: float, facts: dict[str, Any]) -> None:
    """Writes what the benchmark's own server took: a cell of blocks, the time and what else there is to say.

    Args:
      path: of the file.
      blocks: uint8 (photographs, blocks, height, width, 3).
      seconds: a megapixel.
      facts: names to texts.
    """
    cells = np.empty(blocks.shape[:2], object)
    for place in np.ndindex(*cells.shape):
        cells[place] = blocks[place]
    content = {'DenoisedBlocksSrgb': cells, 'TimeMPSrgb': seconds, 'OptionalData': facts}
    scipy_io.savemat(path, content, appendmat=False, do_compression=True)


def read_mat(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the blocks of a file that `write_mat` wrote; a UserError where it is no such file."""
    content = scipy_io.loadmat(path, appendmat=False)
    cells = content.get('DenoisedBlocksSrgb')
    if cells is None or cells.shape != shape[:2] or not {'TimeMPSrgb', 'OptionalData'} <= content.keys():
        raise UserError(f'{path}: no cell DenoisedBlocksSrgb of {shape[:2]} with TimeMPSrgb and OptionalData')
    return np.array([[cells[i, j] for j in range(shape[1])] for i in range(shape[0])]).reshape(shape)


def submit(model: Model | str, folder: Path, output: Path) -> None:
    """Denoises the benchmark's blocks and writes the two files that it takes, each read back and compared.

    Args:
      model: a trained one, or a key of BASELINES, whose strength is the default.
      folder: of BenchmarkNoisyBlocksSrgb.mat.
      output: folder of the files; nothing is overwritten.

    Raises:
      UserError: the blocks are missing, a file exists, or what was written is not what is read.
    """
    refuse_labels([model])
    there = [name for name in (CSV, MAT) if (output / name).exists()]
    if there:
        raise UserError(f'--output={output} holds {" and ".join(there)}, and nothing is overwritten')
    if not (folder / BENCHMARK).is_file():
        raise UserError(f'{folder}: no {BENCHMARK}, as SIDD publishes it')
    contenders.check([model], SHAPE[-1])
    blocks = mat_blocks(folder / BENCHMARK)
    if _remark(blocks.shape):
        print(_remark(blocks.shape))
    (contender,) = contenders.build([model], SHAPE[-1], None, PredictOptions())
    print(f'{model}; {blocks.shape[0] * blocks.shape[1]} blocks of the SIDD benchmark …', flush=True)
    denoised, seconds = _denoise(contender.restore, blocks)
    about = f'{BASELINES[model].text}' if isinstance(model, str) else str(model)
    output.mkdir(parents=True, exist_ok=True)
    facts = {'MethodName': contender.name, 'About': about}
    writers: dict[str, tuple[Callable[[Path], None], Callable[..., np.ndarray]]] = {
        CSV: (lambda path: write_csv(path, denoised), read_csv),
        MAT: (lambda path: write_mat(path, denoised, seconds, facts), read_mat),
    }
    for name, (write, read) in writers.items():
        temporary = output / f'.{name}.tmp'
        try:
            write(temporary)
            if not np.array_equal(read(temporary, denoised.shape), denoised):
                raise UserError(f'{temporary}: what was read back is not what was written; is the disk full?')
            temporary.rename(output / name)
        finally:
            temporary.unlink(missing_ok=True)
        print(f'{output / name}: {(output / name).stat().st_size / 1e6:.1f} MB, read back and equal')
    print(f'{seconds:.2f} s a megapixel')
    print(_published_text('benchmark'))
