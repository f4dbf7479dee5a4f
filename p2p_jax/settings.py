"""What a configuration may say: every value checked, and what goes together."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from p2p_jax.configfile import flatten
from p2p_jax.faults import ON_NONFINITE
from p2p_jax.lookup import UserError, pick, shortlist
from p2p_jax.losses import LEAST_SIZES, PIXEL_LOSSES
from p2p_jax.metrics import SSIM_WINDOW
from p2p_jax.models import FROM_LABELS
from p2p_jax.models.layers import STATISTICS
from p2p_jax.optim import OptimOptions, find_problems
from p2p_jax.perceptual import LPIPS_NETWORKS, PERCEPTUAL_LOSSES, Lpips, PerceptualDistance, lpips


def _shares(value: Any) -> bool:
    return 0 <= value < 1


def _probability(value: Any) -> bool:
    return 0 <= value <= 1


def _bounds(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: len(value) == 2 and least <= value[0] <= value[1] <= most


def _boundaries(value: Any) -> bool:
    rising = all(a < b for a, b in itertools.pairwise(value))
    return rising and (all(0 < v < 1 for v in value) or all(v >= 1 and v == int(v) for v in value))


def _least(least: float, more: str = '') -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= least, f'at least {least}{more}'


# What a key's value must be, where its type alone does not say it.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'seed': (lambda v: 0 <= v < 2**31, 'an integer from 0 to 2³¹ - 1'),
    'value_range': (lambda v: len(v) == 2 and v[0] < v[1], 'two numbers, the lower first'),
    'data.classes': (lambda v: len(set(v)) == len(v), 'different names, or ()'),
    'data.direction': (lambda v: v in ('AtoB', 'BtoA'), 'AtoB or BtoA'),
    'data.channels': (lambda v: v in (1, 3), '1 or 3'),
    'data.on_problem': (lambda v: v in ('stop', 'drop'), 'stop or drop'),
    'data.split': (
        lambda v: len(v) == 3 and min(v) > 0 and abs(sum(v) - 1) < 1e-6,
        'three positive shares (train, val, test) that sum to 1',
    ),
    'data.limit': (
        lambda v: len(v) == 3 and all(n is None or n >= 1 for n in v),
        'three counts (train, val, test), each at least 1 or None',
    ),
    'data.grid': (lambda v: len(v) == 2 and min(v) >= 1, 'two counts, rows and columns, at least 1'),
    'data.tile_size': _least(1, ', or None'),
    'data.tile_overlap': _least(0),
    'data.resize': _least(1, ', or None'),
    'data.crop_size': _least(1),
    'data.jitter': (_shares, 'in [0, 1)'),
    'data.mixup': (_probability, 'in [0, 1]'),
    'data.cut_blur': (_probability, 'in [0, 1]'),
    'data.cache_mb': _least(0),
    'data.threads': _least(1, ', or None'),
    'data.prefetch': _least(1),
    **{
        f'degrade.{name}': (_bounds(least), f'two numbers of at least {least}, the lower first')
        for name, least in {
            'awgn.std': 0,
            'awgn.percentage': 0,
            'poisson.peak': 1e-3,
            'poisson_gaussian.shot': 1e-9,
            'poisson_gaussian.read': 1e-9,
            'camera.shot': 1e-9,
            'camera.read': 1e-9,
            'camera.red_gain': 1,
            'camera.blue_gain': 1,
            'gaussian_blur.sigma': 0,
            'lens_blur.radius': 0,
            'motion_blur.length': 0,
            'motion_blur.angle': -360,
            'quantisation.levels': 2,
            'resample.factor': 1,
            'salt_and_pepper.amount': 0,
            'speckle.std': 0,
        }.items()
    },
    'degrade.jpeg.quality': (_bounds(1, 100), 'two numbers from 1 to 100, the lower first'),
    'degrade.camera.quality': (_bounds(1, 100), 'two numbers from 1 to 100, the lower first'),
    'generator.unet.init_std': _least(0),
    'generator.dcgan.latent': _least(1),
    'generator.sngan.latent': _least(1),
    **{
        f'discriminator.{network}.{name}': _least(least)
        for network in ('patchgan', 'multiscale')
        for name, least in {'strided': 0, 'unstrided': 0, 'width': 1, 'init_std': 0}.items()
    },
    'discriminator.multiscale.scales': _least(1),
    'norm.statistics': (lambda v: v in STATISTICS, ' or '.join(STATISTICS)),
    'gan.weight': _least(0),
    'gan.start_step': _least(0),
    'gan.pretrain_steps': _least(0),
    'gan.d_steps': _least(1),
    'gan.feature_weight': _least(0),
    'gan.label_smoothing': (_shares, 'in [0, 1)'),
    'gan.r1_weight': _least(0),
    'gan.gp_weight': (lambda v: v > 0, 'more than 0'),
    **{
        f'optim.{section}{name}': rule
        for section in ('', 'discriminator.')
        for name, rule in {
            'lr': _least(0),
            'b1': (_shares, 'in [0, 1)'),
            'b2': (_shares, 'in [0, 1)'),
            'weight_decay': _least(0),
            'clip_norm': _least(0),
            'decay_factor': (lambda v: 0 < v <= 1, 'in (0, 1]'),
            'plateau_patience': _least(0),
        }.items()
    },
    'optim.warmup_steps': _least(0),
    'optim.final_lr': _least(0),
    'optim.decay_start': (_shares, 'in [0, 1)'),
    'optim.decay_every': _least(1),
    'optim.boundaries': (_boundaries, 'rising numbers, either all shares of the steps in (0, 1) or all whole steps'),
    'optim.values': (lambda v: all(factor >= 0 for factor in v), 'factors of at least 0'),
    'optim.plateau_threshold': (_shares, 'in [0, 1)'),
    'ema.decay': (_shares, 'in [0, 1)'),
    'train.batch_size': _least(1),
    'train.accumulate': _least(1),
    'train.patience': _least(1, ', or None'),
    'fault.on_nonfinite': (lambda v: v in ON_NONFINITE, ', '.join(ON_NONFINITE)),
    'fault.skip_limit': _least(1),
    'fault.rollback_limit': _least(1),
    'fault.rollback_lr_factor': (lambda v: 0 < v <= 1, 'in (0, 1]'),
    'fault.collapse_steps': _least(1, ', or None'),
    'fault.collapse_eps': _least(0),
    'eval.batch_size': _least(1),
    'eval.names': (lambda v: len(v) == 2, 'two names, of the input and the output'),
    'eval.pictures': _least(0),
}

# Others that are read, whose values the tables of their choices check, or any will do.
_CHOICES = {'conv_form', 'dtype', 'degrade.name', 'generator.name', 'discriminator.name', 'norm.sync', 'gan.mode'}
_CHOICES |= {'gan.augment', 'eval.lpips', 'eval.dropout', 'data.square', 'data.balanced'}

# Keys that may be None; of each pair of lengths, one is.
_OPTIONAL = {'init_from', 'data.dir', 'data.tile_size', 'data.resize', 'data.threads', 'eval.crop_size'}
_OWN_OPTIM = {'name', 'lr', 'b1', 'b2', 'weight_decay', 'clip_norm', 'schedule'}
_OWN_OPTIM |= {'decay_factor', 'plateau_metric', 'plateau_patience'}
_OPTIONAL |= {'optim.decay_every', *(f'optim.discriminator.{key}' for key in _OWN_OPTIM)}
_OPTIONAL |= {'train.steps', 'train.epochs', 'train.patience', 'generator.nafnet.local_size'}
_OPTIONAL |= {'loss.vgg_scores.weights', 'fault.collapse_steps'}
_OPTIONAL |= {f'{section}.every_{unit}' for section in ('log', 'eval', 'checkpoint') for unit in ('steps', 'epochs')}


def build_losses(config: ml_collections.ConfigDict) -> dict[str, tuple[Callable[..., jax.Array], float]]:
    """Builds the losses that have a weight; the other keys of a section are the loss's options."""
    table: dict[str, Callable[..., Any]] = {**PIXEL_LOSSES, **PERCEPTUAL_LOSSES}
    losses = {}
    for name, section in config.loss.items():
        options = section.to_dict()
        weight = options.pop('weight')
        if weight:
            losses[name] = (pick(table, name, 'loss')(tuple(config.value_range), **options), weight)
    return losses


def build_lpips(config: ml_collections.ConfigDict) -> Lpips | None:
    """Builds the score; images are in [0, 1] when they are scored."""
    name = config.eval.lpips
    pick({'none': None, **LPIPS_NETWORKS}, name, 'eval.lpips')
    return None if name == 'none' else lpips((0.0, 1.0), name, 'eval.lpips')


def takes_labels(config: ml_collections.ConfigDict) -> bool:
    """Whether the generator makes images from labels, not from images."""
    return config.generator.name in FROM_LABELS


def optim_options(config: ml_collections.ConfigDict) -> dict[str, OptimOptions]:
    """Returns each network's options by the section's key; what the discriminator's leaves open is shared."""
    shared = config.optim.to_dict()
    own = {name: value for name, value in shared.pop('discriminator').items() if value is not None}
    options = {'optim': OptimOptions(**shared)}
    if config.gan.weight:
        options['optim.discriminator'] = OptimOptions(**(shared | own))
    return options


def least_scored(config: ml_collections.ConfigDict) -> tuple[int, str]:
    """Returns the least side of an image that can be scored, in pixels, and what asks for it."""
    if takes_labels(config):
        return config.data.crop_size, f'data.crop_size={config.data.crop_size}'
    needs = [(SSIM_WINDOW, f"SSIM's window of {SSIM_WINDOW} pixels")]
    score = build_lpips(config)
    if score:
        needs.append((score.least_size, f'eval.lpips={config.eval.lpips}, which needs {score.least_size} pixels'))
    return max(needs)


def _check_sizes(data: ml_collections.ConfigDict) -> list[str]:
    """Finds sizes that contradict each other."""
    problems = []
    if data.tile_size and (data.tile_overlap or 0) >= data.tile_size:
        problems.append(f'data.tile_overlap={data.tile_overlap}: expected less than data.tile_size={data.tile_size}')
    if data.tile_size and tuple(data.grid) != (1, 1):
        problems.append(f'data.grid={tuple(data.grid)} and data.tile_size={data.tile_size}: give one of them')
    part = 'resize' if data.resize else 'tile_size'
    if data[part] and data[part] < data.crop_size:
        problems.append(f'data.crop_size={data.crop_size}: expected at most data.{part}={data[part]}')
    return problems


def _check_losses(config: ml_collections.ConfigDict) -> list[str]:
    """Finds losses that the training images are too small for."""
    losses = {name: loss for name, (loss, _) in build_losses(config).items()}
    own = {name: loss.least_size for name, loss in losses.items() if isinstance(loss, PerceptualDistance)}
    return [
        f'loss.{name}.weight={config.loss[name].weight}: expected data.crop_size of at least {least}, '
        f'not {config.data.crop_size}; {name} needs so many pixels'
        for name, least in (LEAST_SIZES | own).items()
        if name in losses and config.data.crop_size < least
    ]


def _check_conditions(config: ml_collections.ConfigDict) -> list[str]:
    """Finds what does not go with conditions that are labels, or with those that are images."""
    network, values = config.generator.name, flatten(config.to_dict())
    without: dict[str, Any]
    if not takes_labels(config):
        if config.gan.weight and config.discriminator.name in FROM_LABELS:
            return [f'discriminator.name={config.discriminator.name}: it judges by labels, but {network} takes images']
        without = {'data.classes': (), 'data.balanced': False}  # a restored configuration has lists
        return [
            f'{key}={values[key]}: generator.name={network} takes images, not labels; expected {none}'
            for key, none in without.items()
            if values[key]
        ]
    problems = [] if config.gan.weight else ['gan.weight=0: without a discriminator nothing says what labels look like']
    if config.discriminator.name not in FROM_LABELS:
        known = ', '.join(sorted(FROM_LABELS))
        problems.append(
            f'discriminator.name={config.discriminator.name}: generator.name={network} makes images from labels; '
            f'expected one of {known}'
        )
    without = dict.fromkeys([key for key in values if key.startswith('loss.') and key.endswith('.weight')], 0)
    without |= {'degrade.name': 'none', 'data.mixup': 0, 'data.cut_blur': 0, 'gan.feature_weight': 0}
    without |= {'train.patience': None, 'eval.lpips': 'none'}
    problems += [
        f'{key}={values[key]}: generator.name={network} makes images from labels, which have no target; expected {none}'
        for key, none in without.items()
        if values[key] != none
    ]
    for key, options in optim_options(config).items():
        if options.schedule == 'plateau' and options.plateau_metric != 'loss':
            problems.append(
                f'{key}.plateau_metric={options.plateau_metric}: images from labels have none; expected loss'
            )
    return problems


def _check_scores(config: ml_collections.ConfigDict) -> list[str]:
    """Finds a crop that is too small to be scored."""
    least, what = least_scored(config)
    crop = config.eval.crop_size
    small = crop is not None and crop < least and not takes_labels(config)
    return [f'eval.crop_size={crop}: too small for {what}'] if small else []


def _check_optim(config: ml_collections.ConfigDict) -> list[str]:
    """Finds schedules and optimisers whose options contradict each other."""
    problems = find_problems(optim_options(config))
    if config.train.steps and config.optim.warmup_steps >= config.train.steps:
        problems.append(
            f'optim.warmup_steps={config.optim.warmup_steps}: expected less than train.steps={config.train.steps}'
        )
    return problems


def _holds(test: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value passes; one of another kind, such as (None, 1) for two numbers, does not."""
    try:
        return test(value)
    except TypeError:
        return False


def check(config: ml_collections.ConfigDict) -> None:
    """Checks the values of a configuration that need neither data nor networks.

    Raises:
      UserError: names every key whose value is out of range, and what was expected.
    """
    values = flatten(config.to_dict())
    missing = sorted((_CHECKS.keys() | _CHOICES) - values.keys())
    if missing:
        raise UserError(
            f'the configuration lacks {len(missing)} keys; it was written by another version of p2p_jax:'
            f'{shortlist(missing)}'
        )
    problems = [f'{key}=None: expected a value' for key, v in values.items() if v is None and key not in _OPTIONAL]
    for key, (test, expected) in _CHECKS.items():
        if values[key] is not None and not _holds(test, values[key]):
            problems.append(f'{key}={values[key]}: expected {expected}')
    weights = {key: v for key, v in values.items() if key.startswith('loss.') and key.endswith('.weight')}
    problems += [f'{key}={v}: expected at least 0' for key, v in weights.items() if v is not None and v < 0]
    if not problems:  # these compare values that are right by themselves
        problems = _check_sizes(config.data)
        if 'camera' in config.degrade.name.split('+') and config.data.channels != 3:
            problems.append(f'degrade.name={config.degrade.name}: a camera has three channels; set data.channels=3')
        if not config.gan.weight and not any(weights.values()):
            problems.append('gan.weight=0 and every loss.<term>.weight=0: nothing is left to train on')
    if not problems:
        problems = _check_losses(config) + _check_optim(config) + _check_conditions(config) + _check_scores(config)
    if problems:
        raise UserError(f'the configuration has {len(problems)} bad values:{shortlist(problems)}')
