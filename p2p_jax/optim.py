"""Learning-rate schedules and optimisers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2p_jax.lookup import pick

PyTree = Any


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """The keys of the section `optim`, for one network; the defaults of the last seven change nothing.

    Attributes:
      lr: learning rate at the start, after the warm-up.
      name: key of OPTIMIZERS.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      weight_decay: adamw's λ.
      clip_norm: largest global norm of the gradients; 0: any.
      schedule: key of SCHEDULES.
      warmup_steps: steps in which the rate rises to the schedule's.
      final_lr: learning rate at the last step.
      decay_start: share of the steps before the decay.
      decay_every: steps that multiply the rate by `decay_factor` once.
      decay_factor: see there.
      boundaries: where the rate changes; shares of the steps where all are below 1, otherwise steps.
      values: factors of `lr`, each from its boundary on.
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
      build: maps (options, number of steps) to the learning rate as a function of the step, without warm-up.
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
}
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
                    f'optim.{field.name}={value}: of use to {" and ".join(owners)} only, not to optim.schedule='
                    f'{shared.schedule}; expected {field.default}'
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


def build_optimizer(
    options: OptimOptions, schedule: optax.Schedule, key: str = 'optim'
) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba 2015), or AdamW (Loshchilov and Hutter 2019, algorithm 2, scaled as PyTorch's).

    AdamW's update subtracts rate · weight_decay · parameter, for all parameters, besides Adam's. Gradients whose
    global norm is above `clip_norm` are first scaled down to it (Pascanu et al. 2013, algorithm 1). The state is that
    of `optax.adam` whatever the options are, so that a training can go on with others.

    Args:
      options: that `find_problems` finds nothing in.
      schedule: the learning rate.
      key: of the section, for messages.

    Raises:
      UserError: an unknown name.
    """
    pick(OPTIMIZERS, options.name, f'{key}.name')
    moments = optax.scale_by_adam(b1=options.b1, b2=options.b2)
    descent = optax.scale_by_learning_rate(schedule)

    def init(params: PyTree) -> tuple[PyTree, PyTree]:
        return moments.init(params), descent.init(params)

    def update(grads: PyTree, state: tuple[PyTree, PyTree], params: PyTree = None) -> tuple[PyTree, PyTree]:
        if options.clip_norm:
            # 1 where the norm is smaller, 0 included.
            factor = options.clip_norm / jnp.maximum(optax.global_norm(grads), options.clip_norm)
            grads = jax.tree.map(lambda g: factor * g, grads)
        updates, first = moments.update(grads, state[0], params)
        if options.weight_decay:
            updates = jax.tree.map(lambda u, p: u + options.weight_decay * p, updates, params)
        updates, second = descent.update(updates, state[1], params)
        return updates, (first, second)

    return optax.GradientTransformation(init, update)
