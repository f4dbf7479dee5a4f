"""What a configuration means: the row of each table that it chooses, put together."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from p2p_jax.augment import AUGMENTATIONS, augment
from p2p_jax.data.degrade import DEGRADATIONS, Degradation, chain, cut_blur
from p2p_jax.faults import FaultOptions
from p2p_jax.lookup import UserError, pick
from p2p_jax.losses import GAN_LOSSES, GanLoss
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.models.layers import CONVOLVED, NORMS, Style
from p2p_jax.optim import Optimizer, build_optimizer
from p2p_jax.perceptual import Lpips, PerceptualDistance
from p2p_jax.settings import build_losses, build_lpips, check, optim_options, takes_labels
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
      remat: what lies between convolutions is computed anew for the gradients instead of kept.
      lpips: the score of that name, or None.
      faults: what is done where numbers go wrong.
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
    remat: bool
    lpips: Lpips | None
    faults: FaultOptions

    def sparing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of which, with `remat`, only what convolutions give is kept for its slope."""
        policy = jax.checkpoint_policies.save_only_these_names(CONVOLVED)
        return jax.checkpoint(function, policy=policy) if self.remat else function

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

    def given(self, condition: jax.Array, keys: jax.Array, truncation: jax.Array | float | None = None) -> Any:
        """Returns what the generator is given: the images, or the labels with noise from N(0, 1).

        Args:
          condition: (n, h, w, c) in the value range, or int32 (n,).
          keys: (n,), one of each example's noise.
          truncation: the noise lies within ± this; None: anywhere.
        """
        if not self.classes:
            return condition
        shape = (self.generator.latent,)
        if truncation is None:
            return condition, jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        draw = functools.partial(jax.random.truncated_normal, lower=-truncation, upper=truncation, shape=shape)
        return condition, jax.vmap(draw)(keys)

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

    def apply(self, variables: PyTree, condition: Any) -> jax.Array:
        """Runs the generator as after training: images in [0, 1], or (labels, noise), to (n, h, w, c) in [0, 1]."""
        given = condition if self.classes else self.to_network(condition)
        style: Style = self.generator.style
        # The same noise each time, for results that can be repeated.
        rngs = {'dropout': jax.random.key(0)} if style.noise else {}
        output: Any = self.generator.apply(variables, given, train=False, rngs=rngs)
        return self.from_network(output)


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
        noise=config.eval.dropout,
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
        optimizer=build_optimizer(optim_options(config)[key], max(steps - gan.start_step, 1), key),
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
        optimizer=build_optimizer(optim_options(config)['optim'], steps),
        adversary=_build_adversary(config, steps),
        pixel_losses=build_losses(config),
        degradation=_build_degradation(config.degrade),
        cut_blur=config.data.cut_blur,
        value_range=tuple(config.value_range),
        ema_decay=config.ema.decay,
        accumulate=config.train.accumulate,
        remat=config.train.remat,
        lpips=build_lpips(config),
        faults=FaultOptions(**config.fault),
    )
