"""The train step: what it updates, what it leaves, and that devices agree."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from p2p_jax.job import AXIS, build_job
from p2p_jax.models import DISCRIMINATORS
from p2p_jax.steps import Part, _discriminator_pass, _penalty, after_evaluation, mean_over_devices, train_step
from tests.conftest import noisy, picture, small_config

SIZE = (16, 16, 3)


# Of 1×1 convolutions, which compile fast.
SMALL = {'discriminator__patchgan__strided': 0, 'discriminator__patchgan__unstrided': 2}


def make(**changes):
    """A job of the small configuration with some keys changed; dots in keys are written as __."""
    config = small_config()
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace('__', '.'): value})
    return build_job(config, steps=100)


def batches(count, size=4, seed=0):
    for number in range(count):
        targets = np.stack([picture(seed + number * size + i, 16, 16) for i in range(size)])
        conditions = np.stack([noisy(image, i) for i, image in enumerate(targets)])
        yield {'condition': conditions, 'target': targets, 'index': np.arange(size, dtype=np.int32)}


def run(job, devices, data, phase=None, out_axes=None, state=None):
    """Trains on the batches; returns the state and the metrics of every step."""
    if state is None:
        state = jax.jit(functools.partial(job.create_state, 0, SIZE))()
    step = jax.pmap(
        functools.partial(train_step, job, phase or ('both' if job.adversary else 'generator')),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(out_axes, None),
        devices=jax.devices()[:devices],
    )
    history = []
    for batch in data:
        split = {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}
        state, metrics = step(jax.device_get(state), split)
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def moments(state):
    """Adam's first moments: linear in the gradients of all steps so far."""
    return [network.opt_state.mu for network in (state.generator, state.discriminator)]


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize('norm', ['instance', 'batch'])
def test_two_devices_equal_one_with_the_same_global_batch(norm):
    job = make(
        generator__unet__norm=norm,
        discriminator__patchgan__norm=norm,
        degrade__name='poisson_gaussian',
        optim__lr=1e-4,
        **SMALL,
    )
    (one, history), (two, other) = (run(job, devices, batches(10)) for devices in (1, 2))
    for a, b in zip(history, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), name
    for a, b in zip(moments(one), moments(two), strict=True):
        difference = optax.global_norm(jax.tree.map(np.subtract, a, b))
        assert difference < 1e-5 * optax.global_norm(a)
    assert_close(one.generator.batch_stats, two.generator.batch_stats, rtol=1e-5, atol=1e-6)
    assert_close(one.discriminator.batch_stats, two.discriminator.batch_stats, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('norm', 'sync'), [('batch', True), ('batch', False), ('spectral', True)])
def test_device_copies_of_every_leaf_agree(norm, sync):
    job = make(
        generator__name='resnet_unet',
        generator__resnet_unet__norm=norm,
        generator__resnet_unet__depth=1,
        generator__resnet_unet__width=4,
        generator__resnet_unet__dropout=0.5,
        discriminator__patchgan__norm=norm,
        norm__sync=sync,
        ema__decay=0.9,
        **SMALL,
    )
    state = jax.jit(functools.partial(job.create_state, 0, SIZE))()
    for batch in batches(3):
        copies, _ = run(job, 2, [batch], out_axes=0, state=state)
        for path, leaf in jax.tree_util.tree_leaves_with_path(copies.replace(key=jnp.zeros((2, 1)))):
            np.testing.assert_array_equal(leaf[0], leaf[1], err_msg=jax.tree_util.keystr(path))
        state = jax.tree.map(lambda leaf: leaf[0], copies)


def test_unsynchronised_batch_norm_differs_from_the_global_batch_but_is_averaged():
    def first_norm(sync):
        state, _ = run(
            make(generator__unet__norm='batch', generator__unet__init_std=1.0, norm__sync=sync, **SMALL), 2, batches(1)
        )
        stats = state.generator.batch_stats
        return stats[min(stats)]

    # Its inputs have not been normalised yet: the mean is the same, the mean variance lacks the part between devices.
    synced, local = first_norm(True), first_norm(False)
    np.testing.assert_allclose(local['mean'], synced['mean'], rtol=1e-4, atol=1e-6)
    assert np.all(local['var'] <= synced['var'] + 1e-6)
    assert np.any(local['var'] < synced['var'] - 1e-6)


def test_mean_over_devices_averages_every_leaf():
    tree = {'a': jnp.arange(6.0).reshape(2, 3), 'b': {'c': jnp.array([1.0, 3.0])}}
    mean = jax.pmap(mean_over_devices, axis_name=AXIS, out_axes=0)(tree)
    np.testing.assert_allclose(mean['a'], [[1.5, 2.5, 3.5]] * 2)
    np.testing.assert_allclose(mean['b']['c'], [2, 2])


def test_power_iteration_advances_once_a_step():
    job = make(discriminator__patchgan__norm='spectral')
    batch = next(batches(1))
    initial = jax.jit(functools.partial(job.create_state, 0, SIZE))()
    state, _ = run(job, 1, [batch])
    images = [job.to_network(jnp.asarray(batch[name], jnp.float32) / 255) for name in ('condition', 'target')]
    _, once = job.adversary.network.apply(
        initial.discriminator.variables, *images, train=True, update_spectral=True, mutable=['batch_stats']
    )
    assert_close(state.discriminator.batch_stats, once['batch_stats'], rtol=1e-5, atol=1e-6)


def test_discriminator_statistics_chain_both_passes_and_skip_the_generators():
    """With batch norm after its second layer D's running mean moves twice a step: on real, then on generated images."""
    job = make(discriminator__patchgan__norm='batch', norm__sync=False)
    batch = next(batches(1))
    initial = jax.jit(functools.partial(job.create_state, 0, SIZE))()
    state, _ = run(job, 1, [batch])
    condition, target = (job.to_network(jnp.asarray(batch[n], jnp.float32) / 255) for n in ('condition', 'target'))
    generated, _ = job.generator.apply(
        initial.generator.variables, condition, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}
    )
    d = initial.discriminator
    stats = d.batch_stats
    for image in (target, generated):
        _, changed = job.adversary.network.apply(
            {'params': d.params, 'batch_stats': stats}, condition, image, train=True, mutable=['batch_stats']
        )
        stats = changed['batch_stats']
    assert_close(state.discriminator.batch_stats, stats, rtol=1e-4, atol=1e-6)


class Bowl(nn.Module):
    """Judges each pixel by half its square, so that the slope of the mean is the image over its number of pixels."""

    @nn.compact
    def __call__(self, condition, image, *, train, update_spectral=False):
        return 0.5 * jnp.sum(image**2, axis=-1, keepdims=True)


def test_penalties_against_their_equations():
    adversary = dataclasses.replace(make().adversary, network=Bowl())
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(2, 3, 4, 5, 2)).astype(np.float32) * 40
    blend = np.array([0.0, 0.25, 1.0], np.float32)

    def penalty(**weights):
        return _penalty(dataclasses.replace(adversary, **weights), {}, real, real, generated, jnp.asarray(blend))

    def slopes(images):
        return np.sqrt(np.sum((images / 20) ** 2, axis=(1, 2, 3)))

    r1 = 3 / 2 * np.mean(slopes(real) ** 2)
    share = blend[:, None, None, None]
    gp = 10 * np.mean((slopes(share * real + (1 - share) * generated) - 1) ** 2)
    assert penalty(r1_weight=3.0) == pytest.approx(r1, rel=1e-5)
    assert penalty(gp_weight=10.0) == pytest.approx(gp, rel=1e-5)
    assert penalty(r1_weight=3.0, gp_weight=10.0) == pytest.approx(r1 + gp, rel=1e-5)
    flat = jax.grad(lambda x: _penalty(dataclasses.replace(adversary, gp_weight=1.0), {}, x, x, x, jnp.asarray(blend)))
    assert np.isfinite(flat(jnp.zeros((3, 4, 5, 2)))).all()  # where D has no slope at all


@pytest.mark.parametrize('norm', ['batch', 'spectral'])
def test_penalties_leave_the_discriminator_s_statistics(norm):
    job = make(discriminator__patchgan__norm=norm, norm__sync=False, **SMALL)
    condition, real, generated = np.random.default_rng(0).uniform(-1, 1, (3, 2, *SIZE)).astype(np.float32)
    variables = jax.jit(functools.partial(job.adversary.network.init, train=False))(jax.random.key(0), condition, real)
    keys = jax.random.split(jax.random.key(0))
    part = Part(condition, condition, real, np.array([0.3, 0.6], np.float32), keys, keys[0])

    @functools.partial(jax.jit, static_argnums=0)
    def look(weights):
        adversary = dataclasses.replace(job.adversary, **dict(weights))
        return _discriminator_pass(job, adversary, variables['params'], variables['batch_stats'], part, generated)

    (plain, (grads, logged)), (stats, (slopes, more)) = look(()), look((('r1_weight', 10.0), ('gp_weight', 10.0)))
    assert_close(plain, stats, rtol=1e-6)
    assert not equal(grads, slopes)
    assert set(more) - set(logged) == {'loss/d_penalty'} and more['loss/d_penalty'] > 0


def test_penalties_do_not_depend_on_the_devices():
    job = make(gan__mode='wgan_gp', gan__r1_weight=5.0, discriminator__patchgan__norm='batch', **SMALL)
    assert 'loss/d_penalty' in job.terms
    (one, [a, b]), (two, [c, d]) = (run(job, devices, batches(2)) for devices in (1, 2))
    for left, right in ((a, c), (b, d)):
        assert jax.tree.map(float, left) == pytest.approx(jax.tree.map(float, right), rel=1e-4, abs=1e-5)
    for left, right in zip(moments(one), moments(two), strict=True):
        assert optax.global_norm(jax.tree.map(np.subtract, left, right)) < 1e-4 * optax.global_norm(left)


def test_generator_is_updated_through_the_updated_discriminator():
    batch = next(batches(1))
    slow, fast = (make(optim__discriminator__lr=rate, loss__l1__weight=0.0) for rate in (0.0, 0.05))
    (_, [a]), (_, [b]) = run(slow, 1, [batch]), run(fast, 1, [batch])
    assert a['loss/d_real'] == pytest.approx(b['loss/d_real'])  # before D's update
    assert b['loss/gan'] > a['loss/gan'] + 0.01  # after it: a better D costs G more


def test_generator_alone_has_no_discriminator_and_learns():
    job = make(gan__weight=0.0, optim__lr=5e-3)
    state, history = run(job, 1, list(batches(1)) * 30)
    assert state.discriminator is None
    assert set(history[0]) == {'loss/l1', 'g/loss', 'grad_norm/generator', 'lr/generator'}
    assert history[-1]['loss/l1'] < 0.8 * history[0]['loss/l1']


def test_discriminator_is_in_the_state_but_rests_before_its_start():
    job = make(gan__start_step=5)
    initial = jax.device_get(jax.jit(functools.partial(job.create_state, 0, SIZE))())
    state, history = run(job, 1, batches(2), phase='generator')
    assert equal(state.discriminator, initial.discriminator)
    assert 'loss/gan' not in history[0]
    assert jax.tree.structure(state) == jax.tree.structure(run(job, 1, batches(1))[0])


def test_phases_of_a_training():
    def phases(first, last, **changes):
        return list(make(**changes).phases(first, last))

    assert phases(0, 2) == [(1, 'both'), (2, 'both')]
    assert phases(3, 5, gan__weight=0.0) == [(4, 'generator'), (5, 'generator')]
    late = {'gan__start_step': 1, 'gan__pretrain_steps': 2, 'gan__d_steps': 2}
    alone, both = 'discriminator', 'both'
    whole = phases(0, 3, **late)
    assert whole == [(1, 'generator'), (2, alone), (2, alone), (2, alone), (2, both), (3, alone), (3, both)]
    for done in (1, 2):
        assert phases(0, done, **late) + phases(done, 3, **late) == whole


def test_a_further_update_of_the_discriminator_leaves_all_else():
    job = make(generator__unet__norm='batch', ema__decay=0.5, gan__d_steps=2)
    start = jax.device_get(jax.jit(functools.partial(job.create_state, 0, SIZE))())
    state, [metrics] = run(job, 1, batches(1), phase='discriminator')
    assert (state.step, state.batch) == (0, 1)
    assert equal(state.generator, start.generator) and equal(state.ema, start.ema)
    assert not equal(state.discriminator.params, start.discriminator.params)
    assert 'loss/gan' not in metrics and metrics['loss/d_real'] > 0
    # D learns the same from a batch, whether G is updated on it or not.
    both, _ = run(job, 1, batches(1))
    assert_close(state.discriminator.params, both.discriminator.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('norm', 'mode'), [('instance', 'vanilla'), ('spectral', 'wgan_gp')])
def test_accumulated_gradients_equal_those_of_the_whole_batch(norm, mode):
    shared = dict(generator__unet__norm=norm, discriminator__patchgan__norm=norm, gan__mode=mode, **SMALL)
    (whole, [logged]), (parts, [other]) = (run(make(train__accumulate=k, **shared), 1, batches(1)) for k in (1, 4))
    assert jax.tree.map(float, logged) == pytest.approx(jax.tree.map(float, other), rel=1e-4, abs=1e-5)
    for a, b in zip(moments(whole), moments(parts), strict=True):
        assert optax.global_norm(jax.tree.map(np.subtract, a, b)) < 1e-4 * optax.global_norm(a)
    for network in ('generator', 'discriminator'):  # the power iteration moves on once, however many the parts
        assert_close(getattr(whole, network).batch_stats, getattr(parts, network).batch_stats, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('norm', ['batch', 'spectral'])
def test_what_is_computed_again_is_the_same(norm):
    shared = {'generator__unet__norm': 'batch', 'discriminator__patchgan__norm': norm, 'generator__unet__depth': 2}
    (kept, [logged]), (again, [other]) = (run(make(train__remat=r, **shared), 1, batches(1)) for r in (False, True))
    for name, value in logged.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(again.generator), jax.tree.leaves(kept.generator), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_accumulation_chains_the_statistics_of_batch_norm():
    job = make(train__accumulate=4, generator__unet__norm='batch', gan__weight=0.0)
    batch = next(batches(1))
    state, _ = run(job, 1, [batch])
    variables = jax.jit(functools.partial(job.create_state, 0, SIZE))().generator.variables
    apply = jax.jit(
        functools.partial(
            job.generator.clone(style=job.generator.style.__class__('batch', 0.02)).apply,
            train=True,
            mutable=['batch_stats'],
        )
    )
    for i in range(4):
        one = job.to_network(jnp.asarray(batch['condition'][i : i + 1], jnp.float32) / 255)
        variables = variables | apply(variables, one)[1]
    assert_close(state.generator.batch_stats, variables['batch_stats'], rtol=1e-4, atol=1e-6)


MULTISCALE = {'discriminator__name': 'multiscale', 'generator__unet__depth': 1, 'generator__unet__width': 4}
MULTISCALE |= {
    f'discriminator__multiscale__{key}': value
    for key, value in {'scales': 2, 'strided': 1, 'unstrided': 1, 'width': 4, 'norm': 'none', 'init_std': 0.3}.items()
}


def test_adversarial_terms_are_summed_over_scales_and_features_are_matched():
    """Both losses of the generator, from the definitions, at a rate of 0 for the discriminator."""
    job = make(gan__mode='lsgan', gan__feature_weight=10.0, optim__discriminator__lr=0.0, **MULTISCALE)
    batch = next(batches(1))
    _, [logged] = run(job, 1, [batch])
    start = jax.jit(functools.partial(job.create_state, 0, SIZE))()
    condition, target = (job.to_network(jnp.asarray(batch[n], jnp.float32) / 255) for n in ('condition', 'target'))
    generated = job.generator.apply(start.generator.variables, condition, train=True)
    judge = functools.partial(
        job.adversary.network.apply, start.discriminator.variables, condition, train=True, mutable=['features']
    )
    (scores, seen), (on_real, wanted) = judge(generated), judge(target)
    assert logged['loss/gan'] == pytest.approx(sum(float(jnp.mean((s - 1) ** 2)) for s in scores), rel=1e-4)
    assert logged['loss/d_real'] == pytest.approx(sum(float(jnp.mean((s - 1) ** 2)) for s in on_real), rel=1e-4)
    layers = [
        float(jnp.mean(jnp.abs(seen['features'][scale][layer][0] - wanted['features'][scale][layer][0])))
        for scale in ('scale_0', 'scale_1')
        for layer in ('layer_0', 'layer_1')
    ]
    assert len(jax.tree.leaves(seen)) == 4
    assert logged['loss/feature_matching'] == pytest.approx(sum(layers) / 2, rel=1e-4)
    total = logged['loss/gan'] + 10 * logged['loss/feature_matching'] + 100 * logged['loss/l1']
    assert logged['g/loss'] == pytest.approx(float(total), rel=1e-5)
    assert 'loss/feature_matching' in job.terms


def test_rates_fall_at_plateaus_of_the_step_and_of_the_evaluation():
    options = {'schedule': 'plateau', 'final_lr': 1e-6, 'plateau_patience': 0, 'decay_factor': 0.5}
    options |= {'plateau_metric': 'train_psnr', 'plateau_every': 'step', 'lr': 0.0002}
    changes = {f'optim__{key}': value for key, value in options.items()}
    job = make(optim__discriminator__plateau_metric='loss', **changes, **SMALL)
    rows = list(batches(1)) * 2 + list(batches(3, seed=9))
    state, history = run(job, 1, rows)
    for network, metric, sign in (('generator', 'train/psnr', 1), ('discriminator', 'd/loss', -1)):
        values = [float(step[metric]) for step in history]
        rate, best = 0.0002, -np.inf
        for step, value in zip(history, values, strict=True):
            assert step[f'lr/{network}'] == pytest.approx(rate, rel=1e-5)
            rate = rate if sign * value > best + 1e-4 * abs(best) or best == -np.inf else rate / 2
            best = max(best, sign * value)
        assert getattr(state, network).plateau.scale == pytest.approx(rate / 0.0002, rel=1e-5)


def test_evaluations_count_for_plateaus_and_patience():
    changes = {'schedule': 'plateau', 'final_lr': 1e-6, 'plateau_patience': 0, 'decay_factor': 0.5}
    job = make(**{f'optim__{key}': value for key, value in changes.items()}, gan__start_step=5, **SMALL)
    state = jax.jit(functools.partial(job.create_state, 0, SIZE))()
    for number, psnr in enumerate((20.0, 19.0, 21.0, 21.0)):
        state = after_evaluation(job, state.replace(step=jnp.int32(3 * number)), {'psnr': psnr, 'ssim': 0.5})
    assert (state.best_psnr, state.stalled) == (21, 1)
    assert state.generator.plateau.scale == 0.25
    # Of the two evaluations since D began the first is its first, and the second is no better.
    assert (state.discriminator.plateau.looks, state.discriminator.plateau.scale) == (2, 0.5)


# Images of 16² from three labels, through the same step.
FROM_LABELS = {'generator__name': 'dcgan', 'discriminator__name': 'dcgan', 'loss__l1__weight': 0.0}
FROM_LABELS |= {'generator__dcgan__width': 4, 'discriminator__dcgan__width': 4, 'data__classes': ('a', 'b', 'c')}


def test_labels_go_through_the_same_step_on_any_number_of_devices():
    job = make(
        generator__dcgan__norm='instance', discriminator__dcgan__norm='none', gan__augment=('color',), **FROM_LABELS
    )
    data = [batch | {'condition': np.array([0, 2, 1, 1], np.int32)} for batch in batches(2)]
    (one, history), (two, other) = (run(job, devices, data) for devices in (1, 2))
    for left, right in zip(history, other, strict=True):
        assert jax.tree.map(float, left) == pytest.approx(jax.tree.map(float, right), rel=1e-4, abs=1e-5)
    for left, right in zip(moments(one), moments(two), strict=True):
        assert optax.global_norm(jax.tree.map(np.subtract, left, right)) < 1e-4 * optax.global_norm(left)
    noise = job.given(jnp.arange(3), jax.random.split(jax.random.key(0), 3))[1]
    assert noise.shape == (3, 100) and len(np.unique(noise)) == 300


def test_the_discriminator_is_shown_augmented_images_alone():
    """With cutout of everything but the generator's slope stays that of what is left."""
    job = make(gan__augment=('cutout',), **FROM_LABELS)
    images = jnp.ones((5, 16, 16, 3))
    keys = jax.random.split(jax.random.key(1), 5)
    shown = job.adversary.shown(images, keys)
    assert 0 < np.mean(shown == 0) < 0.3 and set(np.unique(shown)) == {0, 1}
    slope = jax.grad(lambda x: jnp.sum(job.adversary.shown(x, keys)))(images)
    np.testing.assert_array_equal(slope, shown)
    assert make(**FROM_LABELS).adversary.shown(images, keys) is images


def test_ema_follows_its_warm_up_and_copies_other_statistics():
    job = make(ema__decay=0.5, generator__unet__norm='batch')
    initial = jax.device_get(jax.jit(functools.partial(job.create_state, 0, SIZE))())
    data = list(batches(2))
    first, _ = run(job, 1, data[:1])
    second, _ = run(job, 1, data)
    for decay, before, after in ((0.1, initial, first), (2 / 11, first, second)):
        expected = jax.tree.map(lambda a, v, d=decay: d * a + (1 - d) * v, before.ema, after.generator.variables)
        assert_close(after.ema, expected, rtol=1e-5, atol=1e-7)
    spectral = run(make(ema__decay=0.5, generator__unet__norm='spectral'), 1, data)[0]
    assert equal(spectral.ema['batch_stats'], spectral.generator.batch_stats)


def test_evaluated_variables_are_the_averages_where_there_are_any():
    state, _ = run(make(ema__decay=0.5), 1, batches(1))
    assert state.evaluated is state.ema
    state, _ = run(make(), 1, batches(1))
    assert state.evaluated == state.generator.variables


def test_bfloat16_trains_float32_parameters():
    state, history = run(make(dtype='bfloat16', discriminator__patchgan__norm='spectral'), 1, batches(2))
    assert state.fault.step == -1
    for network in (state.generator, state.discriminator):
        assert {leaf.dtype for leaf in jax.tree.leaves(network.variables)} == {np.dtype('float32')}
    _, exact = run(make(discriminator__patchgan__norm='spectral'), 1, batches(2))
    assert history[1]['loss/l1'] == pytest.approx(exact[1]['loss/l1'], rel=0.02)


@pytest.mark.parametrize('devices', [1, 2])
def test_a_non_finite_term_leaves_the_old_state_and_is_named(devices):
    job = make(ema__decay=0.9, generator__unet__norm='batch', generator__unet__last_activation='none')
    good, _ = run(job, devices, batches(2))
    kernel = good.generator.params['up_0']['kernel']
    broken = good.replace(
        generator=good.generator.replace(
            params=good.generator.params | {'up_0': good.generator.params['up_0'] | {'kernel': kernel * np.nan}}
        )
    )
    bad, _ = run(job, devices, batches(1), state=broken)
    for name in ('generator', 'discriminator', 'ema'):
        for a, b in zip(jax.tree.leaves(getattr(bad, name)), jax.tree.leaves(getattr(broken, name)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (bad.step, bad.batch) == (3, 3)
    assert bad.fault.step == 3
    assert job.terms[bad.fault.term] == 'loss/d_generated'  # the generated image is the first thing that went bad
    later, _ = run(job, devices, batches(1), state=bad)
    assert later.fault.step == 3 and later.step == 4  # the first fault is kept


def test_degradation_depends_on_batch_number_and_place_only():
    job = make(degrade__name='poisson_gaussian')
    batch = next(batches(1))
    key = jax.random.key(0)
    whole, _ = job.images({k: jnp.asarray(v) for k, v in batch.items()}, key)
    half, _ = job.images({k: jnp.asarray(v[2:]) for k, v in batch.items()}, key)
    np.testing.assert_array_equal(whole[2:], half)
    other, _ = job.images({k: jnp.asarray(v) for k, v in batch.items()}, jax.random.key(1))
    assert not np.array_equal(whole, other)


def test_value_range_maps_there_and_back_and_clamps():
    job = make(value_range=(-1.0, 1.0))
    x = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(job.to_network(x), [-1, -0.5, 1])
    np.testing.assert_allclose(job.from_network(job.to_network(x)), x)
    np.testing.assert_allclose(job.from_network(jnp.array([-2.0, 2.0])), [0, 1])


def test_all_discriminators_have_a_section():
    assert set(DISCRIMINATORS) <= set(small_config().discriminator)
