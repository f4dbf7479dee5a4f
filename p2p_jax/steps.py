"""The train step and the evaluation step: pure functions of state and batch, the same for every job."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from p2p_jax import metrics
from p2p_jax.job import AXIS, Adversary, Job
from p2p_jax.losses import mean_per_example
from p2p_jax.state import Fault, NetworkState, TrainState

Metrics = dict[str, jax.Array]
PyTree = Any


def mean_over_devices(tree: PyTree) -> PyTree:
    """Averages every leaf over the devices in one collective; with one device there is nothing to do."""
    if jax.lax.axis_size(AXIS) == 1:
        return tree
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, AXIS))


def _update(
    network: NetworkState, optimizer: optax.GradientTransformation, grads: PyTree, batch_stats: PyTree
) -> NetworkState:
    updates, opt_state = optimizer.update(grads, network.opt_state, network.params)
    return NetworkState(optax.apply_updates(network.params, updates), batch_stats, opt_state)


def _squared_slope(adversary: Adversary, variables: PyTree, condition: jax.Array, image: jax.Array) -> jax.Array:
    """Squared norm of the gradient of D's score by the image, (n,); the score is the mean of its patches.

    D runs in train mode, but what the pass changes in its statistics is dropped.
    """

    def score(x: jax.Array) -> jax.Array:
        scores, _ = adversary.network.apply(variables, condition, x, train=True, mutable=['batch_stats'])
        return jnp.sum(mean_per_example(scores))

    slope = jax.grad(score)(image)
    return jnp.sum(jnp.square(slope), axis=tuple(range(1, slope.ndim)))


def _penalty(
    adversary: Adversary,
    variables: PyTree,
    condition: jax.Array,
    real: jax.Array,
    generated: jax.Array,
    blend: jax.Array,
) -> jax.Array:
    """The weighted penalties on D's slope, a scalar.

    R1 is γ/2 · mean |slope|² at the real images (Mescheder et al. 2018, equation 9). WGAN-GP's is λ · mean
    (|slope| - 1)² at blends of real and generated ones (Gulrajani et al. 2017, equation 3). Both by the pixels as the
    networks see them, so that their weights depend on the value range.
    """
    total = jnp.float32(0)
    if adversary.r1_weight:
        total += adversary.r1_weight / 2 * jnp.mean(_squared_slope(adversary, variables, condition, real))
    if adversary.gp_weight:
        share = blend[:, None, None, None]
        squared = _squared_slope(adversary, variables, condition, share * real + (1 - share) * generated)
        # The square root has no slope at 0.
        total += adversary.gp_weight * jnp.mean(jnp.square(jnp.sqrt(squared + 1e-12) - 1))
    return total


def _update_discriminator(
    adversary: Adversary,
    d: NetworkState,
    condition: jax.Array,
    real: jax.Array,
    generated: jax.Array,
    blend: jax.Array,
) -> tuple[NetworkState, Metrics]:
    """One update of D: the real pass, then the generated one, their statistics chained.

    The spectral norm's power iteration moves on in the real pass only. `blend` (n,) is each real image's share in the
    blends that WGAN-GP's penalty looks at.
    """

    def loss_fn(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        """D's loss, with its new statistics and what is logged."""

        def judge(image: jax.Array, batch_stats: PyTree, update_spectral: bool) -> tuple[jax.Array, PyTree]:
            scores, changed = adversary.network.apply(
                {'params': params, 'batch_stats': batch_stats},
                condition,
                image,
                train=True,
                update_spectral=update_spectral,
                mutable=['batch_stats'],
            )
            return scores, changed.get('batch_stats', {})

        on_real, batch_stats = judge(real, d.batch_stats, update_spectral=True)
        on_generated, batch_stats = judge(generated, batch_stats, update_spectral=False)
        real_loss, generated_loss = (
            jnp.mean(adversary.loss.real(on_real)),
            jnp.mean(adversary.loss.generated(on_generated)),
        )
        logged = {
            'loss/d_real': real_loss,
            'loss/d_generated': generated_loss,
            'd/real': jnp.mean(on_real),
            'd/generated': jnp.mean(on_generated),
        }
        total = real_loss + generated_loss
        if adversary.penalised:
            variables = {'params': params, 'batch_stats': batch_stats}
            logged['loss/d_penalty'] = _penalty(adversary, variables, condition, real, generated, blend)
            total += logged['loss/d_penalty']
        # Halved, as the reference, which slows D down relative to G; the penalties too, for their share to stay.
        return 0.5 * total, (batch_stats, logged)

    grads, (batch_stats, logged) = jax.grad(loss_fn, has_aux=True)(d.params)
    grads, batch_stats, logged = mean_over_devices((grads, batch_stats, logged))
    logged['grad_norm/discriminator'] = optax.global_norm(grads)
    return _update(d, adversary.optimizer, grads, batch_stats), logged


def _generator_loss(
    job: Job,
    d: NetworkState | None,
    condition: jax.Array,
    generated: jax.Array,
    target: jax.Array,
    frozen: dict[str, PyTree],
) -> tuple[jax.Array, Metrics]:
    """The generator's loss as a function of its image; with D None, without the adversarial term."""
    total, logged = jnp.float32(0), {}
    if job.adversary and d:
        # In train mode, but what the pass changes in D's statistics is dropped.
        scores, _ = job.adversary.network.apply(d.variables, condition, generated, train=True, mutable=['batch_stats'])
        logged['loss/gan'] = jnp.mean(job.adversary.loss.generator(scores))
        total += job.adversary.weight * logged['loss/gan']
    for name, (loss, weight) in job.pixel_losses.items():
        weights = (frozen[name],) if name in frozen else ()
        logged[f'loss/{name}'] = jnp.mean(loss(generated, target, *weights))
        total += weight * logged[f'loss/{name}']
    return total, logged


def _averaged(job: Job, ema: PyTree, network: NetworkState, step: jax.Array) -> PyTree:
    """Moves the averages: parameters and batch norm's mean and variance; other statistics are copied.

    Spectral norm keeps no sigma of its own for the averages: it is computed from their kernels when they are applied.
    """
    decay = jnp.minimum(job.ema_decay, (1 + step) / (10 + step))

    def move(path: tuple[Any, ...], average: jax.Array, value: jax.Array) -> jax.Array:
        copied = path[0].key == 'batch_stats' and path[-1].key not in ('mean', 'var')
        return value if copied else decay * average + (1 - decay) * value

    return jax.tree_util.tree_map_with_path(move, ema, network.variables)


def _guarded(job: Job, old: TrainState, new: TrainState, logged: Metrics) -> TrainState:
    """The new state, or the old one with the counters moved on and the fault noted where a term is not finite."""
    bad = jnp.stack([~jnp.isfinite(logged[term]) if term in logged else jnp.bool_(False) for term in job.terms])
    fine = ~jnp.any(bad)
    trained = [(state.generator, state.discriminator, state.ema) for state in (new, old)]
    generator, discriminator, ema = jax.tree.map(lambda after, before: jnp.where(fine, after, before), *trained)
    first = (old.fault.step < 0) & ~fine
    fault = Fault(
        jnp.where(first, new.step, old.fault.step), jnp.where(first, jnp.argmax(bad).astype(jnp.int32), old.fault.term)
    )
    return new.replace(generator=generator, discriminator=discriminator, ema=ema, fault=fault)


def train_step(
    job: Job,
    adversarial: bool,
    state: TrainState,
    batch: dict[str, jax.Array],
    frozen: dict[str, PyTree] | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of D and one of G on this device's part of a batch, under an axis named AXIS.

    Args:
      job: what is trained.
      adversarial: whether D runs; before `gan.start_step` it does not.
      state: equal on all devices.
      batch: 'condition', 'target' (n, h, w, c) in their stored integers; 'index' (n,).
      frozen: what `job.read_frozen` gave, equal on all devices; None where no loss needs it.

    Returns:
      The new state and the step's metrics, both equal on all devices.
    """
    degrade_key, dropout_key, blend_key = jax.random.split(jax.random.fold_in(state.key, state.batch), 3)
    dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))
    condition, target = (job.to_network(image) for image in job.images(batch, degrade_key, training=True))

    def generate(params: PyTree) -> tuple[jax.Array, PyTree]:
        image, changed = job.generator.apply(
            {'params': params, 'batch_stats': state.generator.batch_stats},
            condition,
            train=True,
            rngs={'dropout': dropout_key},
            mutable=['batch_stats'],
        )
        return image, changed.get('batch_stats', {})

    generated, pull_back, g_stats = jax.vjp(generate, state.generator.params, has_aux=True)
    logged: Metrics = {'lr/generator': jnp.asarray(job.schedule(state.step))}

    d = state.discriminator if adversarial else None
    if job.adversary and d:
        blend = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(blend_key, i)))(batch['index'])
        d, d_logged = _update_discriminator(
            job.adversary, d, condition, target, jax.lax.stop_gradient(generated), blend
        )
        rate = job.adversary.schedule(state.step - job.adversary.start_step)
        logged |= d_logged | {'lr/discriminator': jnp.asarray(rate)}

    def loss_of(image: jax.Array) -> tuple[jax.Array, Metrics]:
        return _generator_loss(job, d, condition, image, target, frozen or {})

    slope, g_logged = jax.grad(loss_of, has_aux=True)(generated)
    (grads,) = pull_back(slope)
    grads, g_stats, g_logged = mean_over_devices((grads, g_stats, g_logged))
    logged |= g_logged | {'grad_norm/generator': optax.global_norm(grads)}

    g = _update(state.generator, job.optimizer, grads, g_stats)
    new = state.replace(
        step=state.step + 1,
        batch=state.batch + 1,
        generator=g,
        discriminator=state.discriminator if d is None else d,
        ema=None if state.ema is None else _averaged(job, state.ema, g, state.step),
    )
    return _guarded(job, state, new, logged), logged


def evaluation_step(
    job: Job, variables: PyTree, key: jax.Array, batch: dict[str, jax.Array], frozen: PyTree = None
) -> tuple[metrics.EvaluationMetrics, jax.Array, jax.Array]:
    """Scores the generator on this device's part of a batch, under an axis named AXIS.

    Args:
      job: what was trained.
      variables: of the generator.
      key: of the degradations, together with each example's index.
      batch: 'condition', 'target' (n, h, w, c) in their stored integers; 'mask', 'index' (n,).
      frozen: the weights of `job.lpips`, where there is one.

    Returns:
      The metrics over all devices; condition and output of this device, (n, h, w, c) in [0, 1].
    """
    condition, target = job.images(batch, key)
    output = job.apply(variables, condition)
    lpips = functools.partial(job.lpips, weights=frozen) if job.lpips else None
    scores = metrics.evaluation_metrics(condition, output, target, batch['mask'], AXIS, lpips)
    return scores, condition, output
