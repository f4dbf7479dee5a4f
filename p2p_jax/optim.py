"""Learning rates and optimisers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2p_jax.lookup import pick

PyTree = Any


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """The keys of the section `optim`, for one network; a default from `final_lr` on belongs to other schedules.

    Attributes:
      lr: learning rate at the start, after the warm-up.
      name: key of OPTIMIZERS.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      weight_decay: adamw's λ.
      clip_norm: largest global norm of the gradients; 0: any.
      schedule: key of SCHEDULES.
      warmup_steps: steps in which the rate rises to the schedule's.
      final_lr: learning rate at the last step; plateau: the lowest.
      decay_start: share of the steps before the decay.
      decay_every: steps that multiply the rate by `decay_factor` once.
      decay_factor: see there; plateau: what one plateau multiplies the rate by.
      boundaries: where the rate changes; shares of the steps where all are below 1, otherwise steps.
      values: factors of `lr`, each from its boundary on.
      plateau_metric: key of PLATEAU_METRICS, what the plateau is one of.
      plateau_every: key of PLATEAU_TIMES, when it is looked at.
      plateau_patience: how many looks without improvement are put up with.
      plateau_threshold: share of the best value by which it must improve.
    """

    lr: float
    name: str = 'adam'
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    schedule: str = 'constant'
    warmup_steps: int = 0
    final_lr: float = 0.0
    decay_start: float = 0.5
    decay_every: int | None = None
    decay_factor: float = 0.1
    boundaries: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    plateau_metric: str = 'val_psnr'
    plateau_every: str = 'evaluation'
    plateau_patience: int = 10
    plateau_threshold: float = 1e-4


def _constant(options: OptimOptions, steps: int) -> optax.Schedule:
    return optax.constant_schedule(options.lr)


def _cosine(options: OptimOptions, steps: int) -> optax.Schedule:
    """Loshchilov and Hutter 2017, equation 5, without restarts; half a period between warm-up and last step."""
    floor = options.final_lr / options.lr if options.lr else 0.0
    decay = optax.cosine_decay_schedule(options.lr, max(steps - options.warmup_steps, 1), floor)
    return lambda step: decay(jnp.maximum(step - options.warmup_steps, 0))


def _linear_decay(options: OptimOptions, steps: int) -> optax.Schedule:
    """The reference pix2pix's `linear`, by steps instead of epochs."""
    start = round(options.decay_start * steps)
    return optax.linear_schedule(options.lr, options.final_lr, max(steps - start, 1), start)


def _piecewise(options: OptimOptions, steps: int) -> optax.Schedule:
    shares = max(options.boundaries) < 1
    boundaries = np.asarray([round(b * steps) if shares else int(b) for b in options.boundaries])
    rates = options.lr * np.asarray([1.0, *options.values], np.float32)
    return lambda step: jnp.asarray(rates)[jnp.sum(step >= boundaries)]


def _decay(staircase: bool) -> Callable[[OptimOptions, int], optax.Schedule]:
    def build(options: OptimOptions, steps: int) -> optax.Schedule:
        assert options.decay_every is not None  # find_problems sees to it
        return optax.exponential_decay(options.lr, options.decay_every, options.decay_factor, staircase=staircase)

    return build


class ScheduleRow(NamedTuple):
    """A schedule.

    Attributes:
      build: maps (options, number of steps) to the learning rate as a function of the step, without warm-up and
        plateaus.
      uses: the options that it uses besides `lr` and `warmup_steps`.
    """

    build: Callable[[OptimOptions, int], optax.Schedule]
    uses: tuple[str, ...] = ()


SCHEDULES: dict[str, ScheduleRow] = {
    'constant': ScheduleRow(_constant),
    'cosine': ScheduleRow(_cosine, ('final_lr',)),
    'linear_decay': ScheduleRow(_linear_decay, ('final_lr', 'decay_start')),
    'piecewise': ScheduleRow(_piecewise, ('boundaries', 'values')),
    'step': ScheduleRow(_decay(staircase=True), ('decay_every', 'decay_factor')),
    'exponential': ScheduleRow(_decay(staircase=False), ('decay_every', 'decay_factor')),
    'plateau': ScheduleRow(
        _constant,
        ('final_lr', 'decay_factor', 'plateau_metric', 'plateau_every', 'plateau_patience', 'plateau_threshold'),
    ),
}


class PlateauMetric(NamedTuple):
    """What a plateau may be one of: whether more is better, and whether each training step gives a value."""

    rises: bool
    of_steps: bool


PLATEAU_METRICS = {
    'loss': PlateauMetric(rises=False, of_steps=True),  # the network's own
    'train_psnr': PlateauMetric(rises=True, of_steps=True),
    'val_psnr': PlateauMetric(rises=True, of_steps=False),
    'val_ssim': PlateauMetric(rises=True, of_steps=False),
}
PLATEAU_TIMES = {'step': True, 'evaluation': False}
# Whether the weights decay, for each.
OPTIMIZERS = {'adam': False, 'adamw': True}


def _schedule_problems(options: OptimOptions, key: str) -> list[str]:
    """Finds what the chosen schedule lacks or cannot do."""
    problems = []
    uses = SCHEDULES[options.schedule].uses if options.schedule in SCHEDULES else ()
    if 'final_lr' in uses and options.final_lr > options.lr:
        problems.append(f'optim.final_lr={options.final_lr}: expected at most {key}.lr={options.lr}')
    if 'decay_every' in uses and options.decay_every is None:
        problems.append(f'optim.decay_every=None: {key}.schedule={options.schedule} needs a number of steps')
    if 'boundaries' in uses and not len(options.boundaries) == len(options.values) > 0:
        problems.append(
            f'optim.boundaries={tuple(options.boundaries)} and optim.values={tuple(options.values)}: '
            f'{key}.schedule=piecewise needs a value for each boundary, and at least one'
        )
    if 'plateau_metric' in uses:
        if options.final_lr <= 0:
            problems.append(
                f'optim.final_lr={options.final_lr}: {key}.schedule=plateau needs a lowest rate above 0, for losses '
                'that stay where they are, as those of a GAN do, take the rate down to it'
            )
        metric = PLATEAU_METRICS.get(options.plateau_metric)
        if metric and not metric.of_steps and options.plateau_every == 'step':
            problems.append(
                f'optim.plateau_every=step: {key}.plateau_metric={options.plateau_metric} is known at evaluations only'
            )
    return problems


def find_problems(networks: dict[str, OptimOptions]) -> list[str]:
    """Finds options that contradict each other, and those that are given but not used.

    Args:
      networks: the section's key, 'optim' or 'optim.discriminator', to its options.

    Returns:
      A line each.
    """
    problems: list[str] = []
    for key, options in networks.items():
        problems += _schedule_problems(options, key)
        if options.weight_decay and not OPTIMIZERS.get(options.name, True):
            problems.append(
                f'{key}.weight_decay={options.weight_decay}: {key}.name={options.name} has none; take adamw, or 0'
            )
    chosen = [options.schedule for options in networks.values()]
    if all(name in SCHEDULES for name in chosen):
        used = {name for schedule in chosen for name in SCHEDULES[schedule].uses}
        shared = networks['optim']
        for field in dataclasses.fields(OptimOptions):
            owners = [name for name, row in SCHEDULES.items() if field.name in row.uses]
            value = getattr(shared, field.name)
            given = (tuple(value) if isinstance(value, list) else value) != field.default
            if owners and given and field.name not in used:
                problems.append(
                    f'optim.{field.name}={value}: of use to {", ".join(owners)} only, not to optim.schedule='
                    f'{shared.schedule}; expected {field.default}'
                )
            for key, options in networks.items():
                own = getattr(options, field.name)
                if owners and own != value and field.name not in SCHEDULES[options.schedule].uses:
                    problems.append(
                        f'{key}.{field.name}={own}: of use to {", ".join(owners)} only, not to {key}.schedule='
                        f'{options.schedule}; expected None'
                    )
    return list(dict.fromkeys(problems))


def build_schedule(options: OptimOptions, steps: int, key: str = 'optim') -> optax.Schedule:
    """Returns the learning rate as a function of the step alone.

    In a warm-up of w steps the schedule's rate at step t is multiplied by (t + 1) / (w + 1): the first update is not
    lost, and step w is the first with the full rate.

    Args:
      options: that `find_problems` finds nothing in.
      steps: length of the training.
      key: of the section, for messages.

    Raises:
      UserError: an unknown name.
    """
    schedule = pick(SCHEDULES, options.schedule, f'{key}.schedule').build(options, steps)
    if not options.warmup_steps:
        return schedule
    return lambda step: schedule(step) * jnp.minimum((step + 1) / (options.warmup_steps + 1), 1.0)


def global_norm(tree: PyTree) -> jax.Array:
    """The square root of the sum of the squares of all leaves.

    As dot products: on the CPU XLA writes the squares of optax's down before it adds them.
    """
    return jnp.sqrt(sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)), jnp.float32(0)))


def _moments_and_decay(options: OptimOptions) -> optax.GradientTransformationExtraArgs:
    """Returns Adam (Kingma and Ba 2015), or AdamW (Loshchilov and Hutter 2019, algorithm 2), without the rate.

    AdamW's update adds weight_decay · parameter, for all parameters, to Adam's; the rate, which multiplies both, is
    PyTorch's scaling. Gradients whose global norm is above `clip_norm` are first scaled down to it (Pascanu et al.
    2013, algorithm 1). The state is Adam's whatever the options are, so that a training can go on with others.

    Its `update` takes `fine` besides, a boolean: where False, the state stays as it is and the updates are 0.
    """
    moments = optax.scale_by_adam(b1=options.b1, b2=options.b2)

    def update(
        grads: PyTree, state: PyTree, params: PyTree = None, *, fine: jax.Array | bool = True, **_: Any
    ) -> tuple[PyTree, PyTree]:
        if options.clip_norm:
            # 1 where the norm is smaller, 0 included.
            factor = options.clip_norm / jnp.maximum(global_norm(grads), options.clip_norm)
            grads = jax.tree.map(lambda g: factor * g, grads)
        after = moments.update(grads, state)[1]
        after = jax.tree.map(lambda new, old: jnp.where(fine, new, old), after, state)
        means, squares = after.mu, after.nu
        if jax.default_backend() == 'cpu':
            # The moments are written over the old ones before the update is made of them. In one loop that reads the
            # old ones XLA first copies them: half as much memory again goes by, which is what Adam takes its time for.
            leaves = zip(jax.tree.leaves(means), jax.tree.leaves(squares), strict=True)
            pairs = zip(*map(jax.lax.optimization_barrier, leaves), strict=True)
            means, squares = (jax.tree.unflatten(jax.tree.structure(means), leaves) for leaves in pairs)
            after = after._replace(mu=means, nu=squares)
        means = optax.tree.bias_correction(means, options.b1, after.count)
        squares = optax.tree.bias_correction(squares, options.b2, after.count)

        def direction(mean: jax.Array, square: jax.Array, param: jax.Array | None = None) -> jax.Array:
            step = mean / (jnp.sqrt(square) + 1e-8)
            if options.weight_decay and param is not None:
                step += options.weight_decay * param
            return jnp.where(fine, step, 0)

        decaying = (params,) if options.weight_decay else ()
        return jax.tree.map(direction, means, squares, *decaying), after

    return optax.GradientTransformationExtraArgs(moments.init, update)


class Plateau(flax.struct.PyTreeNode):
    """What a rate that falls at plateaus remembers; of other schedules it stays as it was.

    Attributes:
      scale: of the rate.
      looks: how many there were.
      best: value of them.
      stalled: looks since then without a better one.
      total: of the values since the last evaluation.
      count: of them.
    """

    scale: jax.Array
    looks: jax.Array
    best: jax.Array
    stalled: jax.Array
    total: jax.Array
    count: jax.Array

    @classmethod
    def fresh(cls) -> 'Plateau':
        """Returns the memory at the start; every leaf its own, for a donated buffer must not be in a state twice."""
        return cls(jnp.float32(1), jnp.int32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0), jnp.int32(0))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What updates one network.

    Attributes:
      options: that `find_problems` finds nothing in.
      transformation: of gradients to what is subtracted, rate by rate, from the parameters.
      schedule: the rate as a function of the step alone.
    """

    options: OptimOptions
    transformation: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule

    @property
    def metric(self) -> str | None:
        """What its rate waits for, or None."""
        return self.options.plateau_metric if self.options.schedule == 'plateau' else None

    def rate(self, step: jax.Array, plateau: Plateau) -> jax.Array:
        """Returns the learning rate of the update at a step."""
        return jnp.asarray(self.schedule(step) * plateau.scale)

    def _look(self, plateau: Plateau, value: jax.Array) -> Plateau:
        """PyTorch's ReduceLROnPlateau with a relative threshold, which is here of the value's size, not its sign."""
        options = self.options
        sign = 1 if PLATEAU_METRICS[options.plateau_metric].rises else -1
        least = sign * plateau.best + options.plateau_threshold * jnp.abs(plateau.best)
        better = (plateau.looks == 0) | (sign * value > least)
        stalled = jnp.where(better, 0, plateau.stalled + 1)
        falls = stalled > options.plateau_patience
        lower = jnp.maximum(plateau.scale * options.decay_factor, min(options.final_lr / options.lr, 1.0))
        return plateau.replace(
            scale=jnp.where(falls, lower, plateau.scale),
            looks=plateau.looks + 1,
            best=jnp.where(better, value, plateau.best),
            stalled=jnp.where(falls, 0, stalled),
        )

    def after_step(self, plateau: Plateau, values: dict[str, jax.Array]) -> Plateau:
        """Takes the step's value in: 'loss' is the network's own, 'train_psnr' in dB, both means over the batch."""
        if self.metric is None or not PLATEAU_METRICS[self.metric].of_steps:
            return plateau
        value = values[self.metric]
        if PLATEAU_TIMES[self.options.plateau_every]:
            return self._look(plateau, value)
        return plateau.replace(total=plateau.total + value, count=plateau.count + 1)

    def after_evaluation(self, plateau: Plateau, values: dict[str, float]) -> Plateau:
        """Takes an evaluation in: 'val_psnr' in dB and 'val_ssim', or the mean of the steps since the one before."""
        if self.metric is None or PLATEAU_TIMES[self.options.plateau_every]:
            return plateau
        if not PLATEAU_METRICS[self.metric].of_steps:
            return self._look(plateau, jnp.float32(values[self.metric]))
        looked = self._look(plateau, plateau.total / jnp.maximum(plateau.count, 1))
        # Without a step in between there is nothing to look at: a discriminator that has not begun.
        looked = jax.tree.map(lambda after, before: jnp.where(plateau.count > 0, after, before), looked, plateau)
        return looked.replace(total=jnp.zeros_like(plateau.total), count=jnp.zeros_like(plateau.count))


def build_optimizer(options: OptimOptions, steps: int, key: str = 'optim') -> Optimizer:
    """Returns what updates one network.

    Args:
      options: that `find_problems` finds nothing in.
      steps: length of the training, for the schedule.
      key: of the section, for messages.

    Raises:
      UserError: an unknown name.
    """
    pick(OPTIMIZERS, options.name, f'{key}.name')
    schedule = build_schedule(options, steps, key)
    if options.schedule == 'plateau':
        pick(PLATEAU_METRICS, options.plateau_metric, f'{key}.plateau_metric')
        pick(PLATEAU_TIMES, options.plateau_every, 'optim.plateau_every')
    return Optimizer(options, _moments_and_decay(options), schedule)
