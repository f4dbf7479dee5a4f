"""Weights from PyTorch: recognises a published network by its keys and shapes, and writes it as a model file.

These are the networks of the reference repository of pix2pix and CycleGAN (its U-Nets, its generators of residual
blocks, its discriminators on pairs) and NAFNet as its authors' repository has it. What a network is made of is read
off its weights; each array's place, key and layout then stand in one list, which is checked as a whole.

In the reference, convolutions before batch norm have no bias and those before instance norm do, which tells the two
apart. Its instance norm has no parameters; the statistics that PyTorch before 0.4 stored with it are unused.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from p2p_jax import modelfile
from p2p_jax.job import build_job, training_size
from p2p_jax.lookup import UserError, pick, shortlist
from p2p_jax.models.layers import STATISTICS
from p2p_jax.statedict import State, read_state_dict

Shape = tuple[int, ...]

_DROPOUT = 0.5  # the reference's rate, wherever it has dropout

# Layout: (an array of PyTorch to ours, the shape of ours to PyTorch's). Its kernels are (out, in, height, width), those
# of transposed convolutions (in, out, height, width) and mirrored in height and width.
_LAYOUTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[Shape], Shape]]] = {
    'kernel': (lambda a: a.transpose(2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1])),
    'transposed': (lambda a: a.transpose(2, 3, 0, 1)[::-1, ::-1], lambda s: (s[2], s[3], s[0], s[1])),
    'vector': (lambda a: a, lambda s: s),
    'scale': (lambda a: a.reshape(-1), lambda s: (1, *s, 1, 1)),
}


class Row(NamedTuple):
    """One array.

    Attributes:
      ours: its place in the variables; '' for one that is left out.
      theirs: its key; '' for one that the network does not have there, and which is 0.
      layout: key of _LAYOUTS.
    """

    ours: str
    theirs: str
    layout: str = 'vector'


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A network, read off its weights.

    Attributes:
      network: 'generator' or 'discriminator'.
      entering: channels of its input.
      leaving: channels of its output.
      settings: of the configuration, by flat key.
      rows: every array that it has.
      note: what its weights do not say and is assumed, or ''.
    """

    network: str
    entering: int
    leaving: int
    settings: dict[str, Any]
    rows: list[Row]
    note: str = ''


def _size(state: State, key: str, axis: int, default: int) -> int:
    """The length of a kernel's axis; the default stands in for a missing kernel, which is reported later."""
    return state[key].shape[axis] if key in state and state[key].ndim == 4 else default


def _count(state: State, pattern: str, start: int = 0) -> int:
    """The number of integers from `start` on, without a gap, that complete the pattern to the beginning of a key."""
    return next(n for n in itertools.count() if not any(k.startswith(pattern.format(start + n)) for k in state))


def _layer(ours: str, theirs: str, bias: bool, layout: str = 'kernel') -> list[Row]:
    kernel = Row(f'params/{ours}/kernel', f'{theirs}.weight', layout)
    return [kernel, Row(f'params/{ours}/bias', f'{theirs}.bias')] if bias else [kernel]


def _norm(ours: str, theirs: str, norm: str) -> list[Row]:
    places = {'weight': 'params/{}/scale', 'bias': 'params/{}/bias'} if norm == 'batch' else {}
    places |= {
        'running_mean': 'batch_stats/{}/mean' if norm == 'batch' else '',
        'running_var': 'batch_stats/{}/var' if norm == 'batch' else '',
        'num_batches_tracked': '',
    }
    return [Row(place.format(ours), f'{theirs}.{key}') for key, place in places.items()]


def _unet(state: State) -> Recognised:
    # Each level holds the next inside its own list of modules, behind its convolution (and its norm).
    paths = ['model.model']
    while any(key.startswith(inner := f'{paths[-1]}.{1 if len(paths) == 1 else 3}.model') for key in state):
        paths.append(inner)
    depth = len(paths)
    biased = 'model.model.0.bias' in state
    norm = 'instance' if biased else 'batch'
    rows = []
    for level, path in enumerate(paths):
        innermost = level == depth - 1
        down, up = (1 if level else 0), (5 if level and not innermost else 3)
        rows += _layer(f'down_{level}', f'{path}.{down}', biased)
        rows += _layer(f'up_{level}', f'{path}.{up}', biased or not level, 'transposed')
        if level and not innermost:
            rows += _norm(f'down_norm_{level}', f'{path}.{down + 1}', norm)
        if level:
            rows += _norm(f'up_norm_{level}', f'{path}.{up + 1}', norm)
    width, entering = state['model.model.0.weight'].shape[:2]
    settings = {
        'name': 'unet',
        'unet.depth': depth,
        'unet.width': width,
        'unet.norm': norm,
        'unet.dropout': _DROPOUT if depth > 5 else 0.0,
        'unet.last_activation': 'tanh',
        'unet.residual': False,
    }
    note = f"dropout={_DROPOUT}, the reference's, is assumed: the weights do not show it. It acts in training only."
    leaving = _size(state, 'model.model.3.weight', 1, entering)
    return Recognised('generator', entering, leaving, settings, rows, note if depth > 5 else '')


def _resnet(state: State) -> Recognised:
    blocks = max(_count(state, 'model.{}.conv_block.', 10), 1)
    biased = 'model.1.bias' in state
    norm = 'instance' if biased else 'batch'
    # A module of dropout stands before the second padding, and moves what follows.
    dropout = _size(state, 'model.10.conv_block.6.weight', 0, 0) > 0
    rows = _layer('first', 'model.1', biased) + _norm('first_norm', 'model.2', norm)
    for i in range(2):
        rows += _layer(f'down_{i}', f'model.{4 + 3 * i}', biased) + _norm(f'down_norm_{i}', f'model.{5 + 3 * i}', norm)
    for i, j in itertools.product(range(blocks), (1, 2)):
        at = 1 if j == 1 else 5 + dropout
        theirs = f'model.{10 + i}.conv_block'
        rows += _layer(f'block_{i}_conv_{j}', f'{theirs}.{at}', biased)
        rows += _norm(f'block_{i}_norm_{j}', f'{theirs}.{at + 1}', norm)
    for i in range(2):
        at = 10 + blocks + 3 * i
        rows += _layer(f'up_{i}', f'model.{at}', biased, 'transposed') + _norm(f'up_norm_{i}', f'model.{at + 1}', norm)
    head = f'model.{17 + blocks}'
    rows += _layer('head', head, True)
    width, entering = state['model.1.weight'].shape[:2]
    settings = {
        'name': 'resnet',
        'resnet.blocks': blocks,
        'resnet.width': width,
        'resnet.norm': norm,
        'resnet.dropout': _DROPOUT if dropout else 0.0,
        'resnet.last_activation': 'tanh',
        'resnet.residual': False,
    }
    return Recognised('generator', entering, _size(state, f'{head}.weight', 0, entering), settings, rows)


def _discriminator(strided: int, unstrided: int, first: np.ndarray, norm: str, rows: list[Row]) -> Recognised:
    width, entering = first.shape[:2]
    settings = {
        'name': 'patchgan',
        'patchgan.strided': strided,
        'patchgan.unstrided': unstrided,
        'patchgan.width': width,
        'patchgan.norm': norm,
        'patchgan.activation': 'leaky_relu',
        'patchgan.last_activation': 'none',
    }
    return Recognised('discriminator', entering, 1, settings, rows)


def _patchgan(state: State) -> Recognised:
    # Convolutions are at 0, 2, 5, 8, …; the last two of them have stride 1.
    strided = max(next(n for n in itertools.count() if f'model.{3 * n + 2}.weight' not in state) - 1, 1)
    biased = 'model.2.bias' in state
    norm = 'instance' if biased else 'batch'
    rows = _layer('conv_0', 'model.0', True)
    for i in range(1, strided + 1):
        rows += _layer(f'conv_{i}', f'model.{3 * i - 1}', biased) + _norm(f'norm_{i}', f'model.{3 * i}', norm)
    rows += _layer('head', f'model.{3 * strided + 2}', True)
    return _discriminator(strided, 1, state['model.0.weight'], norm, rows)


def _pixelgan(state: State) -> Recognised:
    biased = 'net.2.bias' in state
    norm = 'instance' if biased else 'batch'
    rows = _layer('conv_0', 'net.0', True) + _layer('conv_1', 'net.2', biased) + _norm('norm_1', 'net.3', norm)
    # With batch norm, the reference's head has no bias.
    rows += _layer('head', 'net.5', biased) + ([] if biased else [Row('params/head/bias', '')])
    return _discriminator(0, 2, state['net.0.weight'], norm, rows)


def _nafnet(state: State) -> Recognised:
    depth = _count(state, 'downs.{}.')
    encoder, decoder = (
        tuple(_count(state, f'{side}.{level}.{{}}.') for level in range(depth)) for side in ('encoders', 'decoders')
    )
    middle = _count(state, 'middle_blks.{}.')
    rows = _layer('intro', 'intro', True) + _layer('ending', 'ending', True)
    for i in range(depth):
        rows += _layer(f'down_{i}', f'downs.{i}', True) + _layer(f'up_{i}', f'ups.{i}.0', False)
    blocks = [(f'middle_{j}', f'middle_blks.{j}') for j in range(middle)]
    for side, counts in (('encoder', encoder), ('decoder', decoder)):
        blocks += [(f'{side}_{i}_{j}', f'{side}s.{i}.{j}') for i, count in enumerate(counts) for j in range(count)]
    convolutions = {**{f'conv_{n}': f'conv{n}' for n in range(1, 6)}, 'attention': 'sca.1'}
    for ours, theirs in blocks:
        for name, key in convolutions.items():
            rows += _layer(f'{ours}/{name}', f'{theirs}.{key}', True)
        for n in (1, 2):
            rows += [
                Row(f'params/{ours}/norm_{n}/scale', f'{theirs}.norm{n}.weight'),
                Row(f'params/{ours}/norm_{n}/bias', f'{theirs}.norm{n}.bias'),
            ]
        rows += [Row(f'params/{ours}/{name}', f'{theirs}.{name}', 'scale') for name in ('beta', 'gamma')]
    width, entering = state['intro.weight'].shape[:2]
    settings = {
        'name': 'nafnet',
        'nafnet.width': width,
        'nafnet.encoder_blocks': encoder,
        'nafnet.middle_blocks': middle,
        'nafnet.decoder_blocks': decoder,
    }
    return Recognised('generator', entering, _size(state, 'ending.weight', 0, entering), settings, rows)


class Family(NamedTuple):
    """Networks of one kind: the kernel (its key, its side) that they are known by, their range, how to read them."""

    key: str
    side: int
    value_range: tuple[float, float]
    read: Callable[[State], Recognised]


FAMILIES = {
    "pix2pix's U-Net": Family('model.model.0.weight', 4, (-1.0, 1.0), _unet),
    "CycleGAN's generator of residual blocks": Family('model.1.weight', 7, (-1.0, 1.0), _resnet),
    "pix2pix's PatchGAN": Family('model.0.weight', 4, (-1.0, 1.0), _patchgan),
    "pix2pix's PixelGAN": Family('net.0.weight', 1, (-1.0, 1.0), _pixelgan),
    'NAFNet': Family('intro.weight', 3, (0.0, 1.0), _nafnet),
}


def _recognise(source: Path, state: State) -> tuple[str, Family]:
    """Returns the family, and its name."""
    for name, family in FAMILIES.items():
        array = state.get(family.key)
        if array is not None and array.ndim == 4 and array.shape[2:] == (family.side, family.side):
            return name, family
    known = [f'{name}, by a {f.side}×{f.side} kernel {f.key}' for name, f in FAMILIES.items()]
    there = [f'{key}: {array.shape}' for key, array in state.items()]
    raise UserError(
        f'--input={source}: no network that is known. Known are:{shortlist(known)}\nThe file has:{shortlist(there)}'
    )


def _image_channels(source: Path, found: Recognised) -> int:
    """Returns the channels of the images, which are the same on both sides."""
    entering, leaving = found.entering, found.leaving
    if found.network == 'discriminator':
        if entering not in (2, 6):
            raise UserError(
                f'--input={source}: this discriminator judges {entering} channels. Here one judges an input and an '
                "image together, 2 or 6 channels; those that judge images by themselves, as CycleGAN's, have no place."
            )
        return entering // 2
    if entering != leaving or entering not in (1, 3):
        raise UserError(
            f'--input={source}: this generator makes images of {leaving} channels from {entering}; here both are 3, or '
            'both are 1'
        )
    return entering


def _place(source: Path, family: str, state: State, rows: list[Row], shapes: dict[str, Shape]) -> dict[str, np.ndarray]:
    """Returns our arrays by their places.

    Args:
      source: the file, for messages.
      family: likewise.
      state: PyTorch's arrays.
      rows: where each belongs.
      shapes: of all our arrays.

    Raises:
      UserError: lists what is missing, of a wrong shape, or has no place.
    """
    known = {row.theirs for row in rows}
    problems = [f'{key}: unexpected' for key in state if key not in known]
    flat = {}
    for row in rows:
        if not row.ours:
            continue
        convert, their_shape = _LAYOUTS[row.layout]
        expected = their_shape(shapes[row.ours])
        array = state.get(row.theirs, None if row.theirs else np.zeros(expected, np.float32))
        if array is None:
            problems.append(f'{row.theirs}: missing')
        elif array.shape != expected:
            problems.append(f'{row.theirs}: of shape {array.shape}, expected {expected}')
        else:
            flat[row.ours] = convert(array)
    if problems:
        raise UserError(f'--input={source}: {family}, but for {len(problems)} keys:{shortlist(problems)}')
    assert flat.keys() == shapes.keys(), 'every array of a network has its row'
    return flat


def import_torch(source: Path, output: Path, config: ml_collections.ConfigDict, statistics: str) -> None:
    """Writes a model file of a network that was trained in PyTorch.

    Args:
      source: what `torch.save(network.state_dict(), …)` wrote, bare or below params_ema, params or state_dict; or the
        same state dict as .safetensors.
      output: the file, which must not exist.
      config: complete, the defaults; what the weights show takes their place.
      statistics: 'running' or 'batch': what the generator's batch norm uses. The reference tests with the statistics
        of the test image ('batch') unless told otherwise, and results then depend on what else is in the batch. It
        leaves dropout on as well, which is off here.

    Raises:
      UserError: the file cannot be read, is of no known network, or does not fit it; or the output exists.
    """
    pick(dict.fromkeys(STATISTICS), statistics, '--statistics')
    if output.exists():
        raise UserError(f'--output={output} exists and is not overwritten')
    state = read_state_dict(source, '--input')
    kind, family = _recognise(source, state)
    found = family.read(state)
    settings = {f'{found.network}.{key}': value for key, value in found.settings.items()}
    name = found.settings['name']
    if statistics == 'batch' and (found.network, found.settings.get(f'{name}.norm')) != ('generator', 'batch'):
        raise UserError(f'--statistics=batch: {source} is no generator with batch norm ({kind}); leave it out')
    settings |= {
        'value_range': family.value_range,
        'data.channels': _image_channels(source, found),
        'norm.statistics': statistics,
        # An example that leaves something of itself after all halvings.
        'data.crop_size': max(config.data.crop_size, 2 ** (found.settings.get('patchgan.strided', 0) + 2)),
    }
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(settings)

    job = build_job(config, steps=1)
    fresh = getattr(jax.eval_shape(lambda: job.create_state(config.seed, training_size(config))), found.network)
    wanted = traverse_util.flatten_dict(fresh.variables, sep='/')
    flat = _place(source, kind, state, found.rows, {place: leaf.shape for place, leaf in wanted.items()})
    facts = modelfile.Facts(
        config=config.to_dict(), step=0, weights='imported', scale=1.0, scores={}, network=found.network
    )
    modelfile.write(output, traverse_util.unflatten_dict(flat, sep='/'), facts)
    count = sum(array.size for place, array in flat.items() if place.startswith('params/'))
    print(f'{source}: {kind}, {count:,} parameters -> {output}')
    print(', '.join(f'{key}={value}' for key, value in settings.items()))
    if found.note:
        print(found.note)
