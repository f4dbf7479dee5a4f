"""Learning-rate schedules and optimisers."""

from collections.abc import Callable

import optax

from p2p_jax.lookup import pick

# Each maps (learning rate, number of steps) to a schedule.
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    'constant': lambda rate, steps: optax.constant_schedule(rate),
    'cosine': optax.cosine_decay_schedule,
}


def build_schedule(name: str, rate: float, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      name: key of SCHEDULES.
      rate: the learning rate at the start.
      steps: length of the training.
    """
    return pick(SCHEDULES, name, 'optim.schedule')(rate, steps)


def build_optimizer(schedule: optax.Schedule, b1: float, b2: float) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba 2015) with the given schedule and decay rates of its two moments."""
    return optax.adam(schedule, b1=b1, b2=b2)
