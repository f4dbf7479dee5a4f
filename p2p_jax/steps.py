"""The train step and the evaluation step: pure functions of state and batch, the same for every job."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from p2p_jax import metrics
from p2p_jax.faults import SKIPPED
from p2p_jax.job import AXIS, Adversary, Job
from p2p_jax.losses import feature_matching, mean_per_example, over_scales
from p2p_jax.optim import Optimizer, global_norm
from p2p_jax.state import Fault, NetworkState, TrainState

Metrics = dict[str, jax.Array]
PyTree = Any


class Part(NamedTuple):
    """What one pass works on: the examples of a device, or, where gradients are accumulated, some of them.

    Attributes:
      given: what the generator is given, see `Job.given`.
      condition: (n, h, w, c) in the value range, or int32 (n,).
      target: (n, h, w, c) in the value range.
      blend: (n,), each real image's share in the blends that WGAN-GP's penalty looks at.
      shown: (n,), keys of what D is shown of each image, real or generated.
      key: of the dropout.
    """

    given: PyTree
    condition: jax.Array
    target: jax.Array
    blend: jax.Array
    shown: jax.Array
    key: jax.Array


def mean_over_devices(tree: PyTree) -> PyTree:
    """Averages every leaf over the devices in one collective; with one device there is nothing to do."""
    if jax.lax.axis_size(AXIS) == 1:
        return tree
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, AXIS))


def _update(
    network: NetworkState,
    optimizer: Optimizer,
    grads: PyTree,
    batch_stats: PyTree,
    rate: jax.Array,
    fine: jax.Array | bool = True,
) -> NetworkState:
    """The updated network; with `fine` False its parameters and its optimiser's state are the old ones."""
    updates, opt_state = optimizer.transformation.update(grads, network.opt_state, network.params, fine=fine)
    params = optax.apply_updates(network.params, jax.tree.map(lambda u: -rate * u, updates))
    return network.replace(params=params, batch_stats=batch_stats, opt_state=opt_state)


def _squared_slope(adversary: Adversary, variables: PyTree, condition: jax.Array, image: jax.Array) -> jax.Array:
    """Squared norm of the gradient of D's score by the image, (n,); the score is the mean of its patches.

    D runs in train mode, but what the pass changes in its statistics is dropped.
    """

    def score(x: jax.Array) -> jax.Array:
        scores, _ = adversary.network.apply(variables, condition, x, train=True, mutable=['batch_stats'])
        return jnp.sum(over_scales(mean_per_example, scores))

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


def _discriminator_pass(
    job: Job, adversary: Adversary, params: PyTree, batch_stats: PyTree, part: Part, generated: jax.Array
) -> tuple[PyTree, tuple[PyTree, Metrics]]:
    """D's new statistics, gradients and metrics: the real pass, then the generated one, their statistics chained.

    The spectral norm's power iteration moves on in the real pass only.
    """

    def loss_fn(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        """D's loss, with its new statistics and what is logged."""

        def judge(image: jax.Array, batch_stats: PyTree, update_spectral: bool) -> tuple[PyTree, PyTree]:
            scores, changed = adversary.network.apply(
                {'params': params, 'batch_stats': batch_stats},
                part.condition,
                image,
                train=True,
                update_spectral=update_spectral,
                mutable=['batch_stats'],
            )
            return scores, changed.get('batch_stats', {})

        real, made = (adversary.shown(images, part.shown) for images in (part.target, generated))
        on_real, between = judge(real, batch_stats, update_spectral=True)
        on_generated, after = judge(made, between, update_spectral=False)
        logged = {
            'loss/d_real': jnp.mean(over_scales(adversary.loss.real, on_real)),
            'loss/d_generated': jnp.mean(over_scales(adversary.loss.generated, on_generated)),
        }
        total = logged['loss/d_real'] + logged['loss/d_generated']
        if adversary.penalised:
            variables = {'params': params, 'batch_stats': after}
            logged['loss/d_penalty'] = _penalty(adversary, variables, part.condition, real, made, part.blend)
            total += logged['loss/d_penalty']
        for name, scores in (('real', on_real), ('generated', on_generated)):
            logged[f'd/{name}'] = jnp.mean(jnp.stack([jnp.mean(scale) for scale in jax.tree.leaves(scores)]))
        # Halved, as the reference, which slows D down relative to G; the penalties too, for their share to stay.
        logged['d/loss'] = 0.5 * total
        return logged['d/loss'], (after, logged)

    grads, (after, logged) = jax.grad(job.sparing(loss_fn), has_aux=True)(params)
    return after, (grads, logged)


def _generator_loss(
    job: Job, d: NetworkState | None, part: Part, generated: jax.Array, frozen: dict[str, PyTree]
) -> tuple[jax.Array, Metrics]:
    """The generator's loss as a function of its image; with D None, without the adversarial term."""
    total, logged = jnp.float32(0), {}
    if job.adversary and d:
        adversary = job.adversary
        network, weight = adversary.network, adversary.feature_weight

        kept = ['batch_stats', 'features'] if weight else ['batch_stats']

        # In train mode, but what the pass changes in D's statistics is dropped.
        def judge(image: jax.Array) -> tuple[PyTree, PyTree]:
            shown = adversary.shown(image, part.shown)
            return network.apply(d.variables, part.condition, shown, train=True, mutable=kept)

        scores, seen = judge(generated)
        logged['loss/gan'] = jnp.mean(over_scales(adversary.loss.generator, scores))
        total += adversary.weight * logged['loss/gan']
        if weight:
            wanted = judge(part.target)[1]['features']
            matching = feature_matching(seen['features'], wanted, len(jax.tree.leaves(scores)))
            logged['loss/feature_matching'] = jnp.mean(matching)
            total += weight * logged['loss/feature_matching']
    for name, (loss, weight) in job.pixel_losses.items():
        weights = (frozen[name],) if name in frozen else ()
        logged[f'loss/{name}'] = jnp.mean(loss(generated, part.target, *weights))
        total += weight * logged[f'loss/{name}']
    if job.watches_psnr:
        psnr = metrics.psnr(job.from_network(generated), job.from_network(part.target), 1.0)
        logged['train/psnr'] = jnp.mean(psnr)
    return total, logged | {'g/loss': total}


def _with_spectral_of(before: PyTree, after: PyTree) -> PyTree:
    """`after`, but for the vectors of spectral norm, which are those of `before`."""

    def choose(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
        return new if path[-1].key in ('mean', 'var') else old

    return jax.tree_util.tree_map_with_path(choose, before, after)


def _over_parts(
    work: Callable[[PyTree, Part], tuple[PyTree, PyTree]], batch_stats: PyTree, parts: Part
) -> tuple[PyTree, PyTree]:
    """Works on one part after the other, and on the only one directly.

    Batch norm's statistics are chained. Spectral norm's start anew with each part, for its power iteration moves on
    once a step, however many parts there are.

    Args:
      work: maps statistics and a part to new statistics and values.
      batch_stats: before the first.
      parts: with a leading axis.

    Returns:
      The statistics after the last, and the mean of the values.
    """
    count = len(parts.blend)
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    if count == 1:
        return work(batch_stats, first)
    _, shapes = jax.eval_shape(work, batch_stats, first)

    def body(carry: tuple[PyTree, PyTree], part: Part) -> tuple[tuple[PyTree, PyTree], None]:
        stats, sums = carry
        stats, values = work(_with_spectral_of(batch_stats, stats), part)
        return (stats, jax.tree.map(jnp.add, sums, values)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (after, sums), _ = jax.lax.scan(body, (batch_stats, zeros), parts)
    return after, jax.tree.map(lambda total: total / count, sums)


def parts_of(job: Job, batch: dict[str, jax.Array], key: jax.Array) -> Part:
    """Scales, degrades and divides a device's part of a batch; the leaves have a leading axis of `job.accumulate`."""
    degrade_key, dropout_key, blend_key = jax.random.split(key, 3)
    dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))
    condition, target = job.images(batch, degrade_key, training=True)
    condition, target = condition if job.classes else job.to_network(condition), job.to_network(target)
    blend = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(blend_key, i)))(batch['index'])

    def own(number: int) -> jax.Array:
        # Not 0, 1 or 2, which would be the keys above.
        shared = jax.random.fold_in(key, number)
        return jax.vmap(lambda i: jax.random.fold_in(shared, i))(batch['index'])

    whole = (job.given(condition, own(3)), condition, target, blend, own(4))
    given, condition, target, blend, shown = jax.tree.map(lambda x: x.reshape(job.accumulate, -1, *x.shape[1:]), whole)
    return Part(given, condition, target, blend, shown, jax.random.split(dropout_key, job.accumulate))


def _averaged(job: Job, ema: PyTree, network: NetworkState, step: jax.Array) -> PyTree:
    """Moves the averages: parameters and batch norm's mean and variance; other statistics are copied.

    Spectral norm keeps no sigma of its own for the averages: it is computed from their kernels when they are applied.
    """
    decay = jnp.minimum(job.ema_decay, (1 + step) / (10 + step))

    def move(path: tuple[Any, ...], average: jax.Array, value: jax.Array) -> jax.Array:
        copied = path[0].key == 'batch_stats' and path[-1].key not in ('mean', 'var')
        return value if copied else decay * average + (1 - decay) * value

    return jax.tree_util.tree_map_with_path(move, ema, network.variables)


def _judge(job: Job, old: TrainState, logged: Metrics) -> tuple[jax.Array, Fault, Metrics]:
    """Whether the update counts: all terms are finite, and training was not stopped before.

    Returns:
      That, a scalar; what is remembered of faults; the metrics, which say where updates are skipped which were.
    """
    bad = jnp.stack([~jnp.isfinite(logged[term]) if term in logged else jnp.bool_(False) for term in job.terms])
    running, met = old.fault.step < 0, jnp.any(bad)
    row = jnp.where(met, old.fault.row + 1, 0)
    stops = running & (row >= job.faults.limit)
    fault = Fault(
        jnp.where(stops, old.step + 1, old.fault.step),
        jnp.where(stops, jnp.argmax(bad).astype(jnp.int32), old.fault.term),
        jnp.where(stops, old.batch, old.fault.batch),
        old.fault.skipped + met,
        row,
        old.fault.rollbacks,
    )
    if job.faults.on_nonfinite == 'skip':
        logged = logged | {SKIPPED: met.astype(jnp.float32)}
    return running & ~met, fault, logged


def _kept(fine: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The new one, or the old one where the update does not count."""
    return jax.tree.map(lambda after, before: jnp.where(fine, after, before), new, old)


def _lowered(job: Job, rate: jax.Array, state: TrainState) -> jax.Array:
    """The rate after as many rollbacks as there were."""
    if job.faults.on_nonfinite != 'rollback':
        return rate
    return rate * jnp.float32(job.faults.rollback_lr_factor) ** state.fault.rollbacks


def _norms(network: str, grads: PyTree, detailed: bool) -> Metrics:
    """The norm of the gradients, and with `detailed` those of each group of parameters."""
    norms = {f'grad_norm/{network}': global_norm(grads)}
    groups = grads.items() if detailed else ()
    return norms | {f'grad_norm/{network}/{name}': global_norm(group) for name, group in groups}


def train_step(
    job: Job,
    phase: str,
    state: TrainState,
    batch: dict[str, jax.Array],
    frozen: dict[str, PyTree] | None = None,
    *,
    detailed: bool = False,
) -> tuple[TrainState, Metrics]:
    """Works on this device's part of a batch, under an axis named AXIS.

    Args:
      job: what is trained.
      phase: what is updated: 'generator' alone, before `gan.start_step`; 'discriminator' alone, in its further
        updates, which do not count as steps; or 'both', D first.
      state: equal on all devices.
      batch: 'condition', 'target' (n, h, w, c) in their stored integers, or the condition int32 (n,); 'index' (n,).
      frozen: what `job.read_frozen` gave, equal on all devices; None where no loss needs it.
      detailed: the metrics have the norm of each parameter group's gradients as well.

    Returns:
      The new state and the step's metrics, both equal on all devices.
    """
    g, d = state.generator, None if phase == 'generator' else state.discriminator
    parts = parts_of(job, batch, jax.random.fold_in(state.key, state.batch))

    def generate(params: PyTree, batch_stats: PyTree, part: Part) -> tuple[jax.Array, PyTree]:
        image, changed = job.generator.apply(
            {'params': params, 'batch_stats': batch_stats},
            part.given,
            train=True,
            rngs={'dropout': part.key},
            mutable=['batch_stats'],
        )
        return image, changed.get('batch_stats', {})

    def forward(batch_stats: PyTree, part: Part) -> tuple[jax.Array, Callable[..., Any], PyTree]:
        return jax.vjp(job.sparing(lambda params: generate(params, batch_stats, part)), g.params, has_aux=True)

    # One part runs forward once; of several, each runs again for its gradient, so that only one is in memory.
    shared = forward(g.batch_stats, jax.tree.map(lambda leaf: leaf[0], parts)) if job.accumulate == 1 else None
    logged: Metrics = {}
    if job.adversary and d:
        adversary, before = job.adversary, d

        def discriminate(stats: PyTree, part: Part) -> tuple[PyTree, tuple[PyTree, Metrics]]:
            image = shared[0] if shared else generate(g.params, g.batch_stats, part)[0]
            return _discriminator_pass(job, adversary, before.params, stats, part, jax.lax.stop_gradient(image))

        d_stats, (d_grads, d_logged) = mean_over_devices(_over_parts(discriminate, d.batch_stats, parts))
        rate = _lowered(job, adversary.optimizer.rate(state.step - adversary.start_step, d.plateau), state)
        logged |= d_logged | _norms('discriminator', d_grads, detailed) | {'lr/discriminator': rate}
        d = _update(d, adversary.optimizer, d_grads, d_stats, rate)
    new = state.replace(batch=state.batch + 1)
    if phase == 'discriminator':
        fine, fault, logged = _judge(job, state, logged)
        return new.replace(discriminator=_kept(fine, d, state.discriminator), fault=fault), logged

    def work(stats: PyTree, part: Part) -> tuple[PyTree, tuple[PyTree, Metrics]]:
        image, pull_back, after = shared or forward(stats, part)
        slope, values = jax.grad(job.sparing(lambda x: _generator_loss(job, d, part, x, frozen or {})), has_aux=True)(
            image
        )
        return after, (pull_back(slope)[0], values)

    g_stats, (grads, g_logged) = mean_over_devices(_over_parts(work, g.batch_stats, parts))
    rate = _lowered(job, job.optimizer.rate(state.step, g.plateau), state)
    logged |= g_logged | _norms('generator', grads, detailed) | {'lr/generator': rate}
    fine, fault, logged = _judge(job, state, logged)
    new = new.replace(step=state.step + 1, fault=fault)
    seen = {'train_psnr': logged['train/psnr']} if job.watches_psnr else {}
    if job.adversary and d:
        plateau = job.adversary.optimizer.after_step(d.plateau, seen | {'loss': logged['d/loss']})
        new = new.replace(discriminator=_kept(fine, d.replace(plateau=plateau), state.discriminator))
    plateau = job.optimizer.after_step(g.plateau, seen | {'loss': logged['g/loss']})
    # The largest of the states is guarded where it is written.
    g = _update(g, job.optimizer, grads, _kept(fine, g_stats, g.batch_stats), rate, fine)
    g = g.replace(plateau=_kept(fine, plateau, g.plateau))
    ema = None if state.ema is None else _kept(fine, _averaged(job, state.ema, g, state.step), state.ema)
    return new.replace(generator=g, ema=ema), logged


def after_evaluation(job: Job, state: TrainState, scores: dict[str, float] | None) -> TrainState:
    """Takes a validation into account: learning rates that fall at plateaus, and the count for early stopping.

    Args:
      job: what is trained.
      state: that was scored.
      scores: 'psnr' in dB and 'ssim' of the output; None for images from labels.
    """
    values = {f'val_{name}': scores[name] for name in ('psnr', 'ssim')} if scores else {}
    g, d = state.generator, state.discriminator
    g = g.replace(plateau=job.optimizer.after_evaluation(g.plateau, values))
    if job.adversary and d:
        looked = job.adversary.optimizer.after_evaluation(d.plateau, values)
        running = state.step > job.adversary.start_step
        d = d.replace(plateau=jax.tree.map(lambda new, old: jnp.where(running, new, old), looked, d.plateau))
    state = state.replace(generator=g, discriminator=d)
    if not scores:
        return state
    better = scores['psnr'] > state.best_psnr
    return state.replace(
        best_psnr=jnp.where(better, scores['psnr'], state.best_psnr),
        stalled=jnp.where(better, 0, state.stalled + 1),
    )


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
