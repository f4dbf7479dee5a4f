import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from p2p_jax.lookup import UserError
from p2p_jax.optim import (
    OPTIMIZERS,
    PLATEAU_METRICS,
    SCHEDULES,
    OptimOptions,
    Plateau,
    build_optimizer,
    build_schedule,
    find_problems,
)

# Each row: the options besides the rate, 0.1; {step: learning rate} of a training of 100 steps.
GOLDEN = [
    ({'schedule': 'constant'}, {0: 0.1, 50: 0.1, 100: 0.1}),
    ({'schedule': 'constant', 'warmup_steps': 4}, {0: 0.02, 1: 0.04, 3: 0.08, 4: 0.1, 99: 0.1}),
    ({'schedule': 'cosine'}, {0: 0.1, 50: 0.05, 100: 0, 120: 0}),
    ({'schedule': 'cosine', 'final_lr': 0.02}, {0: 0.1, 25: 0.0882843, 50: 0.06, 100: 0.02, 120: 0.02}),
    ({'schedule': 'cosine', 'warmup_steps': 20}, {0: 0.1 / 21, 10: 1.1 / 21, 20: 0.1, 60: 0.05, 100: 0}),
    ({'schedule': 'linear_decay'}, {0: 0.1, 50: 0.1, 60: 0.08, 75: 0.05, 100: 0, 110: 0}),
    ({'schedule': 'linear_decay', 'decay_start': 0.0, 'final_lr': 0.05}, {0: 0.1, 50: 0.075, 100: 0.05}),
    (
        {'schedule': 'piecewise', 'boundaries': (0.5, 0.75), 'values': (0.5, 0.1)},
        {49: 0.1, 50: 0.05, 74: 0.05, 75: 0.01},
    ),
    ({'schedule': 'piecewise', 'boundaries': (10, 90), 'values': (2.0, 0.0)}, {9: 0.1, 10: 0.2, 89: 0.2, 90: 0.0}),
    ({'schedule': 'step', 'decay_every': 30}, {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 90: 0.0001}),
    ({'schedule': 'exponential', 'decay_every': 50, 'decay_factor': 0.25}, {0: 0.1, 25: 0.05, 50: 0.025, 100: 0.00625}),
    ({'schedule': 'plateau', 'final_lr': 0.01, 'warmup_steps': 4}, {0: 0.02, 4: 0.1, 100: 0.1}),
]


@pytest.mark.parametrize(('options', 'expected'), GOLDEN, ids=[str(i) for i in range(len(GOLDEN))])
def test_schedules(options, expected):
    options = OptimOptions(lr=0.1, **options)
    assert not find_problems({'optim': options})
    schedule = build_schedule(options, 100)
    assert {step: float(schedule(step)) for step in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    traced = jax.jit(jax.vmap(schedule))(jnp.array(list(expected)))  # as inside a step
    np.testing.assert_allclose(jnp.broadcast_to(traced, len(expected)), list(expected.values()), rtol=1e-5, atol=1e-7)


def test_a_schedule_of_a_rate_of_zero_is_zero():
    for name in ('constant', 'cosine', 'linear_decay'):
        assert float(build_schedule(OptimOptions(lr=0.0, schedule=name), 10)(3)) == 0


def test_every_schedule_has_a_golden_row():
    assert {options['schedule'] for options, _ in GOLDEN} == set(SCHEDULES)


@pytest.mark.parametrize('name', ['cosine', 'linear_decay', 'step', 'exponential', 'piecewise'])
def test_schedules_against_pytorch(name):
    torch = pytest.importorskip('torch')
    scheduler = torch.optim.lr_scheduler
    options, build = {
        'cosine': ({'final_lr': 0.01}, lambda o: scheduler.CosineAnnealingLR(o, 20, eta_min=0.01)),
        'linear_decay': ({'decay_start': 0.5}, lambda o: scheduler.LambdaLR(o, lambda t: 1 - max(0, t - 10) / 10)),
        'step': ({'decay_every': 6}, lambda o: scheduler.StepLR(o, 6, 0.1)),
        'exponential': ({'decay_every': 1, 'decay_factor': 0.9}, lambda o: scheduler.ExponentialLR(o, 0.9)),
        'piecewise': (
            {'boundaries': (4, 12), 'values': (0.1, 0.01)},
            lambda o: scheduler.MultiStepLR(o, [4, 12], 0.1),
        ),
    }[name]
    schedule = build_schedule(OptimOptions(lr=0.1, schedule=name, **options), 20)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = build(optimizer)
    for step in range(20):
        assert float(schedule(step)) == pytest.approx(reference.get_last_lr()[0], rel=1e-5, abs=1e-8), step
        optimizer.step()
        reference.step()


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="optim.schedule='stp' is unknown. Available: .*Did you mean 'step'"):
        build_schedule(OptimOptions(lr=0.1, schedule='stp'), 100)
    with pytest.raises(UserError, match="optim.discriminator.name='sgd' is unknown. Available: adam, adamw"):
        build_optimizer(OptimOptions(lr=0.1, name='sgd'), 100, 'optim.discriminator')
    with pytest.raises(UserError, match="optim.plateau_metric='psnr' is unknown. Available: loss, train_psnr, val_"):
        build_optimizer(plateau_options(plateau_metric='psnr'), 100)
    with pytest.raises(UserError, match="optim.plateau_every='epoch' is unknown. Available: evaluation, step"):
        build_optimizer(plateau_options(plateau_every='epoch'), 100)


@pytest.mark.parametrize(
    ('options', 'problem'),
    [
        ({'final_lr': 0.1}, 'optim.final_lr=0.1: of use to cosine, linear_decay, plateau only, not to optim.sch'),
        ({'schedule': 'plateau'}, 'optim.final_lr=0.0: optim.schedule=plateau needs a lowest rate above 0'),
        (
            {'schedule': 'plateau', 'final_lr': 0.01, 'plateau_every': 'step'},
            'optim.plateau_every=step: optim.plateau_metric=val_psnr is known at evaluations only',
        ),
        ({'boundaries': [5]}, 'optim.boundaries=[5]: of use to piecewise only'),
        ({'decay_start': 0.1, 'schedule': 'cosine'}, 'optim.decay_start=0.1: of use to linear_decay only'),
        ({'schedule': 'step'}, 'optim.decay_every=None: optim.schedule=step needs a number of steps'),
        ({'schedule': 'piecewise'}, 'optim.boundaries=() and optim.values=(): optim.schedule=piecewise needs a value'),
        ({'schedule': 'piecewise', 'boundaries': (5,), 'values': (1, 2)}, 'optim.boundaries=(5,) and optim.values=(1,'),
        ({'schedule': 'cosine', 'final_lr': 0.2}, 'optim.final_lr=0.2: expected at most optim.lr=0.1'),
        ({'weight_decay': 0.01}, 'optim.weight_decay=0.01: optim.name=adam has none; take adamw, or 0'),
    ],
)
def test_contradicting_and_unused_options_are_one_problem(options, problem):
    [line] = find_problems({'optim': OptimOptions(lr=0.1, **options)})
    assert line.startswith(problem)


def test_an_option_is_used_where_one_of_the_networks_uses_it():
    one, other = OptimOptions(lr=0.1, final_lr=0.01), OptimOptions(lr=0.1, final_lr=0.01, schedule='cosine')
    assert not find_problems({'optim': one, 'optim.discriminator': other})
    assert len(find_problems({'optim': one, 'optim.discriminator': one})) == 1
    own = dataclasses.replace(OptimOptions(lr=0.1), decay_factor=0.5)
    assert find_problems({'optim': OptimOptions(lr=0.1), 'optim.discriminator': own}) == [
        'optim.discriminator.decay_factor=0.5: of use to step, exponential, plateau only, not to '
        'optim.discriminator.schedule=constant; expected None'
    ]
    slow = dataclasses.replace(other, lr=0.001)
    assert find_problems({'optim': other, 'optim.discriminator': slow}) == [
        'optim.final_lr=0.01: expected at most optim.discriminator.lr=0.001'
    ]


def test_options_are_the_keys_of_the_configuration():
    section = default.get_config().optim.to_dict()
    own = section.pop('discriminator')
    assert set(own) < set(section) and not any(value is not None for value in own.values())
    options = OptimOptions(**section)
    shared = {name for row in SCHEDULES.values() for name in row.uses}
    for field in dataclasses.fields(OptimOptions):
        if field.name in shared:
            assert getattr(options, field.name) == field.default, field.name


GRADIENTS = ([0.3, -4.0], [1.0, 2.0], [-0.5, 0.1])


def optimise(options):
    """Parameters after a step with each of GRADIENTS at a rate of 0.01."""
    optimizer = build_optimizer(options, 10)
    params = {'w': jnp.array([1.0, -2.0])}
    state = optimizer.transformation.init(params)
    for step, gradient in enumerate(GRADIENTS):
        updates, state = optimizer.transformation.update({'w': jnp.asarray(gradient)}, state, params)
        params = {'w': params['w'] - optimizer.rate(step, Plateau.fresh()) * updates['w']}
    return params['w']


@pytest.mark.parametrize('decay', [0.0, 0.1])
@pytest.mark.parametrize('clip', [0.0, 1.5])
def test_optimisers_against_their_equations(decay, clip):
    b1, b2, rate = 0.5, 0.9, 0.01
    m, v, expected = np.zeros(2), np.zeros(2), np.array([1.0, -2.0])
    for t, gradient in enumerate(GRADIENTS, 1):
        g = np.array(gradient)
        norm = np.sqrt(np.sum(g**2))  # the first two are above the limit, the last is not
        if clip and norm > clip:
            g *= clip / norm
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        expected -= rate * ((m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * expected)
    name = 'adamw' if decay else 'adam'
    options = OptimOptions(lr=rate, name=name, b1=b1, b2=b2, weight_decay=decay, clip_norm=clip)
    np.testing.assert_allclose(optimise(options), expected, rtol=1e-5)


def test_adamw_against_pytorch():
    torch = pytest.importorskip('torch')
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=0.01, betas=(0.5, 0.9), weight_decay=0.1)
    for gradient in GRADIENTS:
        w.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([w], 1.5)
        optimizer.step()
    options = OptimOptions(lr=0.01, name='adamw', b1=0.5, b2=0.9, weight_decay=0.1, clip_norm=1.5)
    np.testing.assert_allclose(optimise(options), w.detach().numpy(), rtol=1e-5)


def test_clipping_is_by_the_global_norm_and_leaves_zeros_alone():
    """After one step the first moment is (1 - b1) times the clipped gradient."""
    optimizer = build_optimizer(OptimOptions(lr=0.1, b1=0.0, clip_norm=1.0), 10).transformation
    params = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
    for a, b, factor in (([3.0, 0.0], [4.0], 0.2), ([0.3, 0.0], [0.4], 1.0), ([0.0, 0.0], [0.0], 1.0)):
        _, state = optimizer.update({'a': jnp.array(a), 'b': jnp.array(b)}, optimizer.init(params), params)
        np.testing.assert_allclose(state.mu['a'], factor * np.array(a), rtol=1e-6)
        np.testing.assert_allclose(state.mu['b'], factor * np.array(b), rtol=1e-6)


def test_the_state_is_that_of_adam_whatever_the_options_are():
    params = {'w': jnp.zeros(3)}
    adam = jax.tree.structure(optax.scale_by_adam().init(params))
    for name in OPTIMIZERS:
        for clip in (0.0, 1.0):
            options = OptimOptions(lr=0.1, name=name, clip_norm=clip, schedule='cosine', warmup_steps=3)
            assert jax.tree.structure(build_optimizer(options, 10).transformation.init(params)) == adam


def plateau_options(**changes):
    """A rate of 0.1 that is halved when four looks in a row, one a step, find the network's loss no lower."""
    options = {'schedule': 'plateau', 'plateau_metric': 'loss', 'plateau_every': 'step', 'plateau_patience': 3}
    return OptimOptions(**({'lr': 0.1, 'final_lr': 0.01, 'decay_factor': 0.5} | options | changes))


def rates(options, losses):
    """The rate after each step with each of the losses."""
    optimizer = build_optimizer(options, 1000)
    look = jax.jit(optimizer.after_step)
    plateau, found = Plateau.fresh(), []
    for loss in losses:
        plateau = look(plateau, {'loss': jnp.float32(loss)})
        found.append(float(optimizer.rate(0, plateau)))
    return found


def test_a_plateau_halves_the_rate_down_to_the_lowest():
    # The best at the second step; then the four that do not improve, again and again.
    assert rates(plateau_options(), [3, 2, *[2.5] * 20]) == pytest.approx(
        [0.1] * 5 + [0.05] * 4 + [0.025] * 4 + [0.0125] * 4 + [0.01] * 5
    )
    # Improvements smaller than the threshold are none.
    assert rates(plateau_options(), [2 - 1e-5 * i for i in range(5)])[-1] == pytest.approx(0.05)
    assert rates(plateau_options(plateau_threshold=0.0), [2 - 1e-5 * i for i in range(5)])[-1] == pytest.approx(0.1)
    # Of a negative loss, as PSNR's is, smaller is better too.
    assert rates(plateau_options(), [-30 - 0.1 * i for i in range(8)])[-1] == pytest.approx(0.1)
    assert rates(plateau_options(), [-30 + 1e-4 * i for i in range(5)])[-1] == pytest.approx(0.05)


def test_the_collapse_of_the_satellite_project():
    """ReduceLROnPlateau with PyTorch's defaults, on the losses of a GAN, once an epoch: G's rises as D's falls.

    "The result was a disaster: the LR fell down to 0 in few epochs." With a lowest rate it stays there and trains on.
    """
    game = np.abs(np.random.default_rng(0).normal(0.7, 0.1, 100)) + np.linspace(0, 0.5, 100)
    collapsing = plateau_options(lr=2e-4, final_lr=1e-12, decay_factor=0.1, plateau_patience=10)
    found = rates(collapsing, game)
    assert found[50] < 1e-6 and found[-1] < 1e-10
    assert rates(dataclasses.replace(collapsing, final_lr=1e-5), game)[-1] == pytest.approx(1e-5)


@pytest.mark.parametrize('metric', ['loss', 'train_psnr'])
def test_plateaus_against_pytorch(metric):
    torch = pytest.importorskip('torch')
    values = np.random.default_rng(1).normal(20, 1, 300) + np.sin(np.arange(300) / 20)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, 'max' if metric == 'train_psnr' else 'min', factor=0.8, patience=7, min_lr=0.01
    )
    expected = []
    for value in np.float32(values):
        optimizer.step()
        reference.step(float(value))
        expected.append(optimizer.param_groups[0]['lr'])
    assert len(set(expected)) > 5
    options = plateau_options(plateau_metric=metric, decay_factor=0.8, plateau_patience=7)
    ours, plateau = build_optimizer(options, 300), Plateau.fresh()
    look = jax.jit(ours.after_step)
    for value, rate in zip(values, expected, strict=True):
        plateau = look(plateau, {metric: jnp.float32(value)})
        assert float(ours.rate(0, plateau)) == pytest.approx(rate, rel=1e-5)


def test_evaluations_look_at_the_mean_of_the_steps_or_at_their_own_scores():
    by_loss = build_optimizer(plateau_options(plateau_every='evaluation', plateau_patience=0), 10)
    plateau = Plateau.fresh()
    for losses in ([4.0, 2.0], [1.0, 5.0], [2.0]):  # means of 3, 3 and 2
        before = plateau
        for loss in losses:
            plateau = by_loss.after_step(plateau, {'loss': jnp.float32(loss)})
            assert plateau.scale == before.scale
        plateau = by_loss.after_evaluation(plateau, {'val_psnr': 99.0, 'val_ssim': 0.0})
        assert plateau.count == 0
    assert (plateau.looks, plateau.best, plateau.scale) == (3, 2, 0.5)
    assert by_loss.after_evaluation(plateau, {}).looks == 3  # no step in between

    by_ssim = build_optimizer(
        plateau_options(plateau_metric='val_ssim', plateau_every='evaluation', plateau_patience=0), 10
    )
    plateau = Plateau.fresh()
    for score in (0.5, 0.6, 0.55):
        plateau = by_ssim.after_step(plateau, {'loss': jnp.float32(1)})
        plateau = by_ssim.after_evaluation(plateau, {'val_psnr': 1.0, 'val_ssim': score})
    assert (plateau.looks, float(plateau.best), plateau.scale) == (3, pytest.approx(0.6), 0.5)


def test_other_schedules_have_no_memory():
    optimizer = build_optimizer(OptimOptions(lr=0.1), 10)
    plateau = optimizer.after_evaluation(optimizer.after_step(Plateau.fresh(), {}), {})
    assert jax.tree.leaves(plateau) == jax.tree.leaves(Plateau.fresh())
    assert {name for name, metric in PLATEAU_METRICS.items() if metric.of_steps} == {'loss', 'train_psnr'}


def test_default_adam_is_optax_s_bit_for_bit():
    params = {'w': jnp.linspace(-1, 1, 7)}
    ours = build_optimizer(OptimOptions(lr=2e-4, b1=0.5), 10)
    theirs = optax.adam(2e-4, b1=0.5)
    state, other = ours.transformation.init(params), theirs.init(params)
    for i in range(3):
        grads = {'w': jnp.sin(jnp.arange(7.0) + i)}
        updates, state = ours.transformation.update(grads, state, params)
        expected, other = theirs.update(grads, other, params)
        np.testing.assert_array_equal(-ours.rate(i, Plateau.fresh()) * updates['w'], expected['w'])
