"""The training state: one struct for every job."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from p2p_jax.optim import Optimizer, Plateau

PyTree = Any


class NetworkState(flax.struct.PyTreeNode):
    """One network in training: parameters, batch statistics ({} without), optimiser state, memory of plateaus."""

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    plateau: Plateau

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `apply` takes."""
        return {'params': self.params, 'batch_stats': self.batch_stats}


class Fault(flax.struct.PyTreeNode):
    """What was not finite so far, int32 each. From the update that must stop training on, the networks stay frozen.

    Attributes:
      step: of that update (a count of updates), or -1.
      term: the place in the job's list of the first of its terms that was not finite, or -1.
      batch: the number of its batch, or -1.
      skipped: updates that were left out, on one batch each.
      row: how many of them were the last ones.
      rollbacks: how often training went back to a checkpoint.
    """

    step: jax.Array
    term: jax.Array
    batch: jax.Array
    skipped: jax.Array
    row: jax.Array
    rollbacks: jax.Array

    @classmethod
    def none(cls, rollbacks: int = 0) -> 'Fault':
        """Returns that nothing was met; every leaf its own, for a donated buffer must not be in a state twice."""
        return cls(*(jnp.int32(value) for value in (-1, -1, -1, 0, 0, rollbacks)))


class TrainState(flax.struct.PyTreeNode):
    """All that training carries from step to step.

    Attributes:
      step: int32, generator updates so far.
      batch: int32, batches consumed so far, which is the number of the next one.
      key: root of all randomness on the device.
      generator: the generator.
      discriminator: None where the generator trains alone.
      ema: moving averages of the generator's params and batch_stats, or None.
      fault: what was not finite.
      best_psnr: of the validations so far, dB; 0 before the first.
      stalled: validations since then without a better one.
    """

    step: jax.Array
    batch: jax.Array
    key: jax.Array
    generator: NetworkState
    discriminator: NetworkState | None
    ema: dict[str, PyTree] | None
    fault: Fault
    best_psnr: jax.Array
    stalled: jax.Array

    @property
    def evaluated(self) -> dict[str, PyTree]:
        """The generator's variables to evaluate and apply: the averages where there are any."""
        return self.generator.variables if self.ema is None else self.ema


def _init(network: nn.Module, optimizer: Optimizer, key: jax.Array, *inputs: PyTree) -> NetworkState:
    variables = network.init({'params': key}, *inputs, train=False)
    params = variables['params']
    opt_state = optimizer.transformation.init(params)
    return NetworkState(params, variables.get('batch_stats', {}), opt_state, Plateau.fresh())


def create_state(
    seed: int,
    inputs: tuple[PyTree, PyTree, jax.Array],
    generator: tuple[nn.Module, Optimizer],
    discriminator: tuple[nn.Module, Optimizer] | None,
    with_ema: bool,
) -> TrainState:
    """Returns the state at step 0; a pure function, so `jax.eval_shape` gives its shapes.

    Args:
      seed: of the initial parameters and of all that the device draws.
      inputs: what the generator is given for one example, its condition, its image; only shapes and types count.
      generator: the network and its optimiser.
      discriminator: likewise, or None.
      with_ema: whether averages are kept.
    """
    key, generator_key, discriminator_key = jax.random.split(jax.random.key(seed), 3)
    given, condition, image = inputs
    g = _init(*generator, generator_key, given)
    d = _init(*discriminator, discriminator_key, condition, image) if discriminator else None
    # jnp.copy, for a donated buffer must not be in the state twice.
    ema = jax.tree.map(jnp.copy, g.variables) if with_ema else None
    return TrainState(jnp.int32(0), jnp.int32(0), key, g, d, ema, Fault.none(), jnp.float32(0), jnp.int32(0))
