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
from p2p_jax.state import NetworkState
from p2p_jax.steps import _penalty, _update_discriminator, mean_over_devices, train_step
from tests.conftest import noisy, picture, small_config

SIZE = (16, 16, 3)
pytestmark = pytest.mark.usefixtures('fresh_caches')


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


def run(job, devices, data, adversarial=True, out_axes=None, state=None):
    """Trains on the batches; returns the state and the metrics of every step."""
    if state is None:
        state = jax.jit(functools.partial(job.create_state, 0, SIZE))()
    step = jax.pmap(
        functools.partial(train_step, job, adversarial),
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
    return [network.opt_state[0].mu for network in (state.generator, state.discriminator)]


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize('norm', ['instance', 'batch'])
def test_two_devices_equal_one_with_the_same_global_batch(norm):
    job = make(
        generator__unet__norm=norm, discriminator__patchgan__norm=norm, degrade__name='poisson_gaussian', optim__lr=1e-4
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
        generator__unet__norm=norm,
        discriminator__patchgan__norm=norm,
        norm__sync=sync,
        ema__decay=0.9,
        generator__unet__depth=6,
        generator__unet__width=4,
        generator__unet__dropout=0.5,
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
            make(generator__unet__norm='batch', generator__unet__init_std=1.0, norm__sync=sync), 2, batches(1)
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


# Of 1×1 convolutions, which compile fast.
SMALL = {'discriminator__patchgan__strided': 0, 'discriminator__patchgan__unstrided': 2}


@pytest.mark.parametrize('norm', ['batch', 'spectral'])
def test_penalties_leave_the_discriminator_s_statistics(norm):
    job = make(discriminator__patchgan__norm=norm, **SMALL)
    condition, real, generated = np.random.default_rng(0).uniform(-1, 1, (3, 2, *SIZE)).astype(np.float32)
    variables = jax.jit(functools.partial(job.adversary.network.init, train=False))(jax.random.key(0), condition, real)
    opt_state = jax.jit(job.adversary.optimizer.init)(variables['params'])
    d = NetworkState(variables['params'], variables['batch_stats'], opt_state)

    def update(**weights):
        adversary = dataclasses.replace(job.adversary, **weights)
        step = functools.partial(_update_discriminator, adversary, d)
        inputs = [x[None] for x in (condition, real, generated, np.array([0.3, 0.6], np.float32))]
        return jax.jit(jax.vmap(step, axis_name=AXIS))(*inputs)

    (plain, logged), (penalised, more) = update(), update(r1_weight=10.0, gp_weight=10.0)
    assert_close(plain.batch_stats, penalised.batch_stats, rtol=1e-6)
    assert not equal(plain.params, penalised.params)
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
    assert set(history[0]) == {'loss/l1', 'grad_norm/generator', 'lr/generator'}
    assert history[-1]['loss/l1'] < 0.8 * history[0]['loss/l1']


def test_discriminator_is_in_the_state_but_rests_before_its_start():
    job = make(gan__start_step=5)
    initial = jax.device_get(jax.jit(functools.partial(job.create_state, 0, SIZE))())
    state, history = run(job, 1, batches(2), adversarial=False)
    assert equal(state.discriminator, initial.discriminator)
    assert 'loss/gan' not in history[0]
    assert jax.tree.structure(state) == jax.tree.structure(run(job, 1, batches(1))[0])


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
