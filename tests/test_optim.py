import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from p2p_jax.lookup import UserError
from p2p_jax.optim import OPTIMIZERS, SCHEDULES, OptimOptions, build_optimizer, build_schedule, find_problems

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
        build_optimizer(OptimOptions(lr=0.1, name='sgd'), optax.constant_schedule(0.1), 'optim.discriminator')


@pytest.mark.parametrize(
    ('options', 'problem'),
    [
        ({'final_lr': 0.1}, 'optim.final_lr=0.1: of use to cosine and linear_decay only, not to optim.sch'),
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
    optimizer = build_optimizer(options, optax.constant_schedule(options.lr))
    params = {'w': jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        updates, state = optimizer.update({'w': jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
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
    optimizer = build_optimizer(OptimOptions(lr=0.1, b1=0.0, clip_norm=1.0), optax.constant_schedule(0.1))
    params = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
    for a, b, factor in (([3.0, 0.0], [4.0], 0.2), ([0.3, 0.0], [0.4], 1.0), ([0.0, 0.0], [0.0], 1.0)):
        _, state = optimizer.update({'a': jnp.array(a), 'b': jnp.array(b)}, optimizer.init(params), params)
        np.testing.assert_allclose(state[0].mu['a'], factor * np.array(a), rtol=1e-6)
        np.testing.assert_allclose(state[0].mu['b'], factor * np.array(b), rtol=1e-6)


def test_the_state_is_that_of_adam_whatever_the_options_are():
    params = {'w': jnp.zeros(3)}
    adam = jax.tree.structure(optax.adam(optax.constant_schedule(0.1)).init(params))
    for name in OPTIMIZERS:
        for clip in (0.0, 1.0):
            options = OptimOptions(lr=0.1, name=name, clip_norm=clip, schedule='cosine', warmup_steps=3)
            optimizer = build_optimizer(options, build_schedule(options, 10))
            assert jax.tree.structure(optimizer.init(params)) == adam


def test_default_adam_is_optax_s_bit_for_bit():
    """Trainings from before these options go on as they were."""
    params = {'w': jnp.linspace(-1, 1, 7)}
    ours = build_optimizer(OptimOptions(lr=2e-4, b1=0.5), optax.constant_schedule(2e-4))
    theirs = optax.adam(optax.constant_schedule(2e-4), b1=0.5)
    states = [optimizer.init(params) for optimizer in (ours, theirs)]
    for i in range(3):
        grads = {'w': jnp.sin(jnp.arange(7.0) + i)}
        results = [o.update(grads, s, params) for o, s in zip((ours, theirs), states, strict=True)]
        states = [state for _, state in results]
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
            np.testing.assert_array_equal(a, b)
