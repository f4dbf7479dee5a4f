import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.lookup import UserError
from p2p_jax.optim import build_optimizer, build_schedule


def test_schedules():
    constant, cosine = (build_schedule(name, 0.1, 100) for name in ('constant', 'cosine'))
    assert [float(constant(step)) for step in (0, 50, 100)] == pytest.approx([0.1] * 3)
    assert [float(cosine(step)) for step in (0, 50, 100)] == pytest.approx([0.1, 0.05, 0], abs=1e-7)
    with pytest.raises(UserError, match="optim.schedule='step' is unknown. Available: constant, cosine"):
        build_schedule('step', 0.1, 100)


def test_adam_against_its_equations():
    b1, b2, rate = 0.5, 0.9, 0.01
    optimizer = build_optimizer(build_schedule('constant', rate, 10), b1, b2)
    params, m, v = jnp.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    state, expected = optimizer.init(params), np.array([1.0, -2.0])
    for t, gradient in enumerate(([0.3, -4.0], [1.0, 2.0], [-0.5, 0.1]), 1):
        g = np.array(gradient)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        expected -= rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state)
        params += updates
    np.testing.assert_allclose(params, expected, rtol=1e-5)
