"""What a configuration means: the row of each table that it chooses, checked and put together."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from p2p_jax.augment import AUGMENTATIONS, augment
from p2p_jax.data.degrade import DEGRADATIONS, Degradation, chain, cut_blur
from p2p_jax.lookup import UserError, pick, shortlist
from p2p_jax.losses import GAN_LOSSES, LEAST_SIZES, PIXEL_LOSSES, GanLoss
from p2p_jax.metrics import SSIM_WINDOW
from p2p_jax.models import DISCRIMINATORS, FROM_LABELS, GENERATORS
from p2p_jax.models.layers import NORMS, STATISTICS, Style
from p2p_jax.optim import Optimizer, OptimOptions, build_optimizer, find_problems
from p2p_jax.perceptual import LPIPS_NETWORKS, PERCEPTUAL_LOSSES, Lpips, PerceptualDistance, lpips
from p2p_jax.state import TrainState, create_state

AXIS = 'batch'  # the name of the axis over which the steps are mapped
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The adversarial part of a job.

    Attributes:
      network: D(condition, image).
      optimizer: its optimiser, whose schedule counts generator updates since `start_step`.
      loss: the pair of losses.
      weight: of the generator's adversarial loss.
      start_step: the step from which D runs.
      pretrain_steps: updates of D alone before its first step with G.
      d_steps: updates of D for each of G from then on, each on a batch of its own.
      feature_weight: λ of feature matching; 0: none.
      r1_weight: γ of the R1 penalty; 0: none.
      gp_weight: λ of WGAN-GP's penalty; 0: none.
      augmentation: maps an image (h, w, c) in the value range and a key to what D is shown of it; None: the image.
    """

    network: nn.Module
    optimizer: Optimizer
    loss: GanLoss
    weight: float
    start_step: int
    pretrain_steps: int
    d_steps: int
    feature_weight: float
    r1_weight: float
    gp_weight: float
    augmentation: Callable[[jax.Array, jax.Array], jax.Array] | None

    def shown(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns what D is shown of (n, h, w, c), with a key for each example."""
        return jax.vmap(self.augmentation)(images, keys) if self.augmentation else images

    @property
    def penalised(self) -> bool:
        """Whether D pays for its slope."""
        return bool(self.r1_weight or self.gp_weight)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained, as functions: what differs between two jobs differs here.

    Attributes:
      generator: G(condition), or, where conditions are labels, G((labels, noise)).
      classes: the names of the labels; () where conditions are images.
      optimizer: its optimiser.
      adversary: None where the generator trains alone.
      pixel_losses: name to (loss, weight); a PerceptualDistance takes its network's weights as well.
      degradation: makes the condition from a clean image, or None.
      cut_blur: probability of exchanging a rectangle of condition and target in the condition, in training.
      value_range: lowest and highest value of the images inside the networks.
      ema_decay: 0 keeps no averages.
      accumulate: parts that a device's share of a batch is worked on in, one after the other.
      lpips: the score of that name, or None.
    """

    generator: nn.Module
    classes: tuple[str, ...]
    optimizer: Optimizer
    adversary: Adversary | None
    pixel_losses: dict[str, tuple[Callable[..., jax.Array], float]]
    degradation: Degradation | None
    cut_blur: float
    value_range: tuple[float, float]
    ema_decay: float
    accumulate: int
    lpips: Lpips | None

    @property
    def watches_psnr(self) -> bool:
        """Whether a learning rate waits for the PSNR on the training batches."""
        optimizers = [self.optimizer, *([self.adversary.optimizer] if self.adversary else [])]
        return 'train_psnr' in [optimizer.metric for optimizer in optimizers]

    def phases(self, first: int, last: int) -> Iterator[tuple[int, str]]:
        """Yields, for each batch, the step that it belongs to and what is trained on it: see `steps.train_step`.

        Args:
          first: steps that are done.
          last: steps in all. A state is saved between two of them only, so that nothing else says where it stands.
        """
        for step in range(first + 1, last + 1):
            if not self.adversary or step <= self.adversary.start_step:
                yield step, 'generator'
                continue
            alone = self.adversary.d_steps - 1
            if step == self.adversary.start_step + 1:
                alone += self.adversary.pretrain_steps
            yield from itertools.repeat((step, 'discriminator'), alone)
            yield step, 'both'

    @property
    def terms(self) -> tuple[str, ...]:
        """The metrics that must be finite, in the order in which a step computes them."""
        adversarial: tuple[str, ...] = ()
        if self.adversary:
            penalty = ('loss/d_penalty',) if self.adversary.penalised else ()
            matching = ('loss/feature_matching',) if self.adversary.feature_weight else ()
            of_d = ('loss/d_real', 'loss/d_generated', *penalty, 'grad_norm/discriminator')
            adversarial = (*of_d, 'loss/gan', *matching)
        pixel = tuple(f'loss/{name}' for name in self.pixel_losses)
        return (*adversarial, *pixel, 'grad_norm/generator')

    def create_state(self, seed: int, size: tuple[int, int, int]) -> TrainState:
        """Returns the state at step 0; see `state.create_state`."""
        adversary = (self.adversary.network, self.adversary.optimizer) if self.adversary else None
        image = jnp.zeros((1, *size))
        condition = jnp.zeros((1,), jnp.int32) if self.classes else image
        inputs = (self.given(condition, jax.random.split(jax.random.key(seed), 1)), condition, image)
        return create_state(seed, inputs, (self.generator, self.optimizer), adversary, self.ema_decay > 0)

    def given(self, condition: jax.Array, keys: jax.Array) -> Any:
        """Returns what the generator is given: the images, or the labels with noise from N(0, 1).

        Args:
          condition: (n, h, w, c) in the value range, or int32 (n,).
          keys: (n,), one of each example's noise.
        """
        if not self.classes:
            return condition
        return condition, jax.vmap(lambda key: jax.random.normal(key, (self.generator.latent,)))(keys)

    def read_frozen(self) -> dict[str, PyTree]:
        """Reads the weights of the networks that losses look through, which stay as they are, by the losses' names.

        Raises:
          UserError: they are missing, or not what they should be.
        """
        losses = {name: loss for name, (loss, _) in self.pixel_losses.items() if isinstance(loss, PerceptualDistance)}
        return {name: loss.read_weights() for name, loss in losses.items()}

    def to_network(self, image: jax.Array) -> jax.Array:
        """Maps [0, 1] to the value range."""
        low, high = self.value_range
        return image * (high - low) + low

    def from_network(self, image: jax.Array) -> jax.Array:
        """Maps the value range to [0, 1] and clamps; nothing is rounded."""
        low, high = self.value_range
        return jnp.clip((image - low) / (high - low), 0.0, 1.0)

    def images(
        self, batch: dict[str, jax.Array], key: jax.Array, *, training: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Returns condition and target as float32 in [0, 1]; labels stay as they are.

        Args:
          batch: 'condition', 'target' (n, h, w, c) in their stored integers, or the condition int32 (n,); 'index' (n,).
          key: of the degradations, together with each example's index.
          training: what else is drawn for each example happens as well.
        """

        def scaled(name: str) -> jax.Array:
            return batch[name].astype(jnp.float32) / jnp.iinfo(batch[name].dtype).max

        if self.classes:
            return batch['condition'], scaled('target')
        condition, target = scaled('condition'), scaled('target')
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])
        if self.degradation:
            condition = jax.vmap(self.degradation)(condition, keys)
        if training and self.cut_blur:
            draw = functools.partial(cut_blur, probability=self.cut_blur)
            condition = jax.vmap(draw)(condition, target, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys))
        return condition, target

    def apply(self, variables: PyTree, condition: jax.Array) -> jax.Array:
        """Runs the generator as after training: (n, h, w, c) in [0, 1] to the same."""
        output: Any = self.generator.apply(variables, self.to_network(condition), train=False)
        return self.from_network(output)


def _shares(value: Any) -> bool:
    return 0 <= value < 1


def _probability(value: Any) -> bool:
    return 0 <= value <= 1


def _bounds(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: len(value) == 2 and least <= value[0] <= value[1] <= most


def _boundaries(value: Any) -> bool:
    rising = all(a < b for a, b in itertools.pairwise(value))
    return rising and (all(0 < v < 1 for v in value) or all(v >= 1 and v == int(v) for v in value))


# What a key's value must be, where its type alone does not say it.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'seed': (lambda v: 0 <= v < 2**31, 'an integer from 0 to 2³¹ - 1'),
    'value_range': (lambda v: len(v) == 2 and v[0] < v[1], 'two numbers, the lower first'),
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
    'data.tile_size': (lambda v: v >= 1, 'at least 1, or None'),
    'data.tile_overlap': (lambda v: v >= 0, 'at least 0'),
    'data.resize': (lambda v: v >= 1, 'at least 1, or None'),
    'data.crop_size': (lambda v: v >= 1, 'at least 1'),
    'data.jitter': (_shares, 'in [0, 1)'),
    'data.mixup': (_probability, 'in [0, 1]'),
    'data.cut_blur': (_probability, 'in [0, 1]'),
    'data.cache_mb': (lambda v: v >= 0, 'at least 0'),
    'data.threads': (lambda v: v >= 1, 'at least 1, or None'),
    'data.prefetch': (lambda v: v >= 1, 'at least 1'),
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
    'generator.unet.init_std': (lambda v: v >= 0, 'at least 0'),
    **{
        f'discriminator.{network}.{name}': (test, expected)
        for network in ('patchgan', 'multiscale')
        for name, test, expected in (
            ('strided', lambda v: v >= 0, 'at least 0'),
            ('unstrided', lambda v: v >= 0, 'at least 0'),
            ('width', lambda v: v >= 1, 'at least 1'),
            ('init_std', lambda v: v >= 0, 'at least 0'),
        )
    },
    'discriminator.multiscale.scales': (lambda v: v >= 1, 'at least 1'),
    'norm.statistics': (lambda v: v in STATISTICS, ' or '.join(STATISTICS)),
    'gan.weight': (lambda v: v >= 0, 'at least 0'),
    'gan.start_step': (lambda v: v >= 0, 'at least 0'),
    'gan.pretrain_steps': (lambda v: v >= 0, 'at least 0'),
    'gan.d_steps': (lambda v: v >= 1, 'at least 1'),
    'gan.feature_weight': (lambda v: v >= 0, 'at least 0'),
    'generator.dcgan.latent': (lambda v: v >= 1, 'at least 1'),
    'generator.sngan.latent': (lambda v: v >= 1, 'at least 1'),
    'data.classes': (lambda v: len(set(v)) == len(v), 'different names, or ()'),
    'gan.label_smoothing': (_shares, 'in [0, 1)'),
    'gan.r1_weight': (lambda v: v >= 0, 'at least 0'),
    'gan.gp_weight': (lambda v: v > 0, 'more than 0'),
    **{
        f'optim.{section}{name}': (test, expected)
        for section in ('', 'discriminator.')
        for name, test, expected in (
            ('lr', lambda v: v >= 0, 'at least 0'),
            ('b1', _shares, 'in [0, 1)'),
            ('b2', _shares, 'in [0, 1)'),
            ('weight_decay', lambda v: v >= 0, 'at least 0'),
            ('clip_norm', lambda v: v >= 0, 'at least 0'),
        )
    },
    'optim.warmup_steps': (lambda v: v >= 0, 'at least 0'),
    'optim.final_lr': (lambda v: v >= 0, 'at least 0'),
    'optim.decay_start': (_shares, 'in [0, 1)'),
    'optim.decay_every': (lambda v: v >= 1, 'at least 1'),
    **{
        f'optim.{section}{name}': (test, expected)
        for section in ('', 'discriminator.')
        for name, test, expected in (
            ('decay_factor', lambda v: 0 < v <= 1, 'in (0, 1]'),
            ('plateau_patience', lambda v: v >= 0, 'at least 0'),
        )
    },
    'optim.plateau_threshold': (_shares, 'in [0, 1)'),
    'optim.boundaries': (_boundaries, 'rising numbers, either all shares of the steps in (0, 1) or all whole steps'),
    'optim.values': (lambda v: all(factor >= 0 for factor in v), 'factors of at least 0'),
    'ema.decay': (_shares, 'in [0, 1)'),
    'train.batch_size': (lambda v: v >= 1, 'at least 1'),
    'train.accumulate': (lambda v: v >= 1, 'at least 1'),
    'train.patience': (lambda v: v >= 1, 'at least 1, or None'),
    'eval.batch_size': (lambda v: v >= 1, 'at least 1'),
    'eval.names': (lambda v: len(v) == 2, 'two names, of the input and the output'),
    'eval.pictures': (lambda v: v >= 0, 'at least 0'),
}

# Keys that may be None; of each pair of lengths, one is.
_OPTIONAL = {'init_from', 'data.dir', 'data.tile_size', 'data.resize', 'data.threads', 'eval.crop_size'}
_OWN_OPTIM = {'name', 'lr', 'b1', 'b2', 'weight_decay', 'clip_norm', 'schedule'}
_OWN_OPTIM |= {'decay_factor', 'plateau_metric', 'plateau_patience'}
_OPTIONAL |= {'optim.decay_every', *(f'optim.discriminator.{key}' for key in _OWN_OPTIM)}
_OPTIONAL |= {'train.steps', 'train.epochs', 'train.patience', 'generator.nafnet.local_size'}
_OPTIONAL |= {'loss.vgg_scores.weights'}
_OPTIONAL |= {f'{section}.every_{unit}' for section in ('log', 'eval', 'checkpoint') for unit in ('steps', 'epochs')}


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns nested dictionaries as one, whose keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return flat


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
    losses = {name: loss for name, (loss, _) in _build_losses(config).items()}
    own = {name: loss.least_size for name, loss in losses.items() if isinstance(loss, PerceptualDistance)}
    return [
        f'loss.{name}.weight={config.loss[name].weight}: expected data.crop_size of at least {least}, '
        f'not {config.data.crop_size}; {name} needs so many pixels'
        for name, least in (LEAST_SIZES | own).items()
        if name in losses and config.data.crop_size < least
    ]


def takes_labels(config: ml_collections.ConfigDict) -> bool:
    """Whether the generator makes images from labels, not from images."""
    return config.generator.name in FROM_LABELS


def _check_conditions(config: ml_collections.ConfigDict) -> list[str]:
    """Finds what does not go with conditions that are labels, or with those that are images."""
    network, values = config.generator.name, flatten(config.to_dict())
    if not takes_labels(config):
        if config.gan.weight and config.discriminator.name in FROM_LABELS:
            return [f'discriminator.name={config.discriminator.name}: it judges by labels, but {network} takes images']
        return [] if not config.data.classes else [f'data.classes: generator.name={network} takes images; expected ()']
    problems = [] if config.gan.weight else ['gan.weight=0: without a discriminator nothing says what labels look like']
    if config.discriminator.name not in FROM_LABELS:
        known = ', '.join(sorted(FROM_LABELS))
        problems.append(
            f'discriminator.name={config.discriminator.name}: generator.name={network} makes images from labels; '
            f'expected one of {known}'
        )
    without: dict[str, Any] = dict.fromkeys(
        [key for key in values if key.startswith('loss.') and key.endswith('.weight')], 0
    )
    without |= {'degrade.name': 'none', 'data.mixup': 0, 'data.cut_blur': 0, 'gan.feature_weight': 0}
    without |= {'train.patience': None}
    problems += [
        f'{key}={values[key]}: generator.name={network} makes images from labels, which have no target; expected {none}'
        for key, none in without.items()
        if values[key] != none
    ]
    for key, options in _optim_options(config).items():
        if options.schedule == 'plateau' and options.plateau_metric != 'loss':
            problems.append(
                f'{key}.plateau_metric={options.plateau_metric}: images from labels have none; expected loss'
            )
    return problems


def least_scored(config: ml_collections.ConfigDict) -> tuple[int, str]:
    """Returns the least side of an image that can be scored, in pixels, and what asks for it."""
    needs = [(SSIM_WINDOW, f"SSIM's window of {SSIM_WINDOW} pixels")]
    score = _build_lpips(config)
    if score:
        needs.append((score.least_size, f'eval.lpips={config.eval.lpips}, which needs {score.least_size} pixels'))
    return max(needs)


def _check_scores(config: ml_collections.ConfigDict) -> list[str]:
    """Finds a crop that is too small to be scored."""
    least, what = least_scored(config)
    crop = config.eval.crop_size
    small = crop is not None and crop < least
    return [f'eval.crop_size={crop}: too small for {what}'] if small else []


def _optim_options(config: ml_collections.ConfigDict) -> dict[str, OptimOptions]:
    """Returns each network's options by the section's key; what the discriminator's leaves open is shared."""
    shared = config.optim.to_dict()
    own = {name: value for name, value in shared.pop('discriminator').items() if value is not None}
    options = {'optim': OptimOptions(**shared)}
    if config.gan.weight:
        options['optim.discriminator'] = OptimOptions(**(shared | own))
    return options


def _check_optim(config: ml_collections.ConfigDict) -> list[str]:
    """Finds schedules and optimisers whose options contradict each other."""
    problems = find_problems(_optim_options(config))
    if config.train.steps and config.optim.warmup_steps >= config.train.steps:
        problems.append(
            f'optim.warmup_steps={config.optim.warmup_steps}: expected less than train.steps={config.train.steps}'
        )
    return problems


def check(config: ml_collections.ConfigDict) -> None:
    """Checks the values of a configuration that need neither data nor networks.

    Raises:
      UserError: names every key whose value is out of range, and what was expected.
    """
    values = flatten(config.to_dict())
    problems = [f'{key}=None: expected a value' for key, v in values.items() if v is None and key not in _OPTIONAL]
    for key, (test, expected) in _CHECKS.items():
        if values[key] is not None and not test(values[key]):
            problems.append(f'{key}={values[key]}: expected {expected}')
    weights = {key: v for key, v in values.items() if key.startswith('loss.') and key.endswith('.weight')}
    problems += [f'{key}={v}: expected at least 0' for key, v in weights.items() if v is not None and v < 0]
    problems += _check_sizes(config.data)
    if 'camera' in config.degrade.name.split('+') and config.data.channels != 3:
        problems.append(f'degrade.name={config.degrade.name}: a camera has three channels; set data.channels=3')
    if not config.gan.weight and not any(weights.values()):
        problems.append('gan.weight=0 and every loss.<term>.weight=0: nothing is left to train on')
    if not problems:  # these compare values that are right by themselves
        problems = _check_losses(config) + _check_optim(config) + _check_conditions(config) + _check_scores(config)
    if problems:
        raise UserError(f'the configuration has {len(problems)} bad values:{shortlist(problems)}')


def _build_network(
    config: ml_collections.ConfigDict, key: str, table: dict[str, type[nn.Module]], **more: Any
) -> nn.Module:
    """Builds the network that `config[key].name` names with the options of the section of that name."""
    network = pick(table, config[key].name, f'{key}.name')
    options = config[key][config[key].name].to_dict()
    # A network without the choice of a norm, or of how its kernels start, takes the style's defaults.
    norm = options.pop('norm', Style.norm)
    pick(dict.fromkeys(NORMS, norm), norm, f'{key}.{config[key].name}.norm')
    style = Style(
        norm=norm,
        init_std=options.pop('init_std', Style.init_std),
        conv_form=config.conv_form,
        norm_axis=AXIS if config.norm.sync else None,
        dtype=pick(DTYPES, config.dtype, 'dtype'),
        statistics=config.norm.statistics,
    )
    return network(style=style, **options, **more)


def _build_adversary(config: ml_collections.ConfigDict, steps: int) -> Adversary | None:
    if not config.gan.weight:
        return None
    of_labels = {'classes': len(config.data.classes), 'size': config.data.crop_size} if takes_labels(config) else {}
    network = _build_network(config, 'discriminator', DISCRIMINATORS, **of_labels)
    gan = config.gan
    for name in gan.augment:
        pick(AUGMENTATIONS, name, 'gan.augment')
    loss = pick(GAN_LOSSES, gan.mode, 'gan.mode')(gan.label_smoothing)
    last = config.discriminator[config.discriminator.name].last_activation
    if loss.on_logits and last != 'none':
        raise UserError(
            f'gan.mode={gan.mode!r} works on logits: with discriminator.{config.discriminator.name}.'
            f'last_activation={last!r} they would be bounded. Set that to none, or take gan.mode=lsgan.'
        )
    augmentation = functools.partial(augment, policy=tuple(gan.augment), value_range=tuple(config.value_range))
    key = 'optim.discriminator'
    return Adversary(
        network=network,
        optimizer=build_optimizer(_optim_options(config)[key], max(steps - gan.start_step, 1), key),
        loss=loss,
        weight=gan.weight,
        start_step=gan.start_step,
        pretrain_steps=gan.pretrain_steps,
        d_steps=gan.d_steps,
        feature_weight=gan.feature_weight,
        r1_weight=gan.r1_weight,
        gp_weight=gan.gp_weight if loss.gradient_penalty else 0.0,
        augmentation=augmentation if gan.augment else None,
    )


def _build_degradation(section: ml_collections.ConfigDict) -> Degradation | None:
    """Builds what `degrade.name` names: none, one, or several joined by +, in that order."""
    if section.name == 'none':
        return None
    names = section.name.split('+')
    if 'none' in names:
        raise UserError(f'degrade.name={section.name!r}: none stands alone')
    # With none among the choices that the error lists.
    table: dict[str, Any] = {'none': None, **DEGRADATIONS}
    parts = [pick(table, name, 'degrade.name')(**section[name].to_dict()) for name in names]
    return parts[0] if len(parts) == 1 else chain(*parts)


def _build_losses(config: ml_collections.ConfigDict) -> dict[str, tuple[Callable[..., jax.Array], float]]:
    """Builds the losses that have a weight; the other keys of a section are the loss's options."""
    table: dict[str, Callable[..., Any]] = {**PIXEL_LOSSES, **PERCEPTUAL_LOSSES}
    losses = {}
    for name, section in config.loss.items():
        options = section.to_dict()
        weight = options.pop('weight')
        if weight:
            losses[name] = (pick(table, name, 'loss')(tuple(config.value_range), **options), weight)
    return losses


def _build_lpips(config: ml_collections.ConfigDict) -> Lpips | None:
    """Builds the score; images are in [0, 1] when they are scored."""
    name = config.eval.lpips
    pick({'none': None, **LPIPS_NETWORKS}, name, 'eval.lpips')
    return None if name == 'none' else lpips((0.0, 1.0), name, 'eval.lpips')


def training_size(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """Returns (height, width, channels) of a training image."""
    return config.data.crop_size, config.data.crop_size, config.data.channels


def build_job(config: ml_collections.ConfigDict, steps: int) -> Job:
    """Puts together what a configuration names.

    Args:
      config: complete, as `configs/default.py`.
      steps: length of the training, for the schedules.

    Raises:
      UserError: an unknown name, or options that contradict each other.
    """
    check(config)
    options = {'out_channels': config.data.channels}
    if takes_labels(config):
        if not config.data.classes:
            raise UserError(f'data.classes=(): generator.name={config.generator.name} needs the names of the labels')
        options |= {'classes': len(config.data.classes), 'size': config.data.crop_size}
    return Job(
        generator=_build_network(config, 'generator', GENERATORS, **options),
        classes=tuple(config.data.classes),
        optimizer=build_optimizer(_optim_options(config)['optim'], steps),
        adversary=_build_adversary(config, steps),
        pixel_losses=_build_losses(config),
        degradation=_build_degradation(config.degrade),
        cut_blur=config.data.cut_blur,
        value_range=tuple(config.value_range),
        ema_decay=config.ema.decay,
        accumulate=config.train.accumulate,
        lpips=_build_lpips(config),
    )
