"""What the tests of all generators share. Nothing is initialised: parameters are drawn by numpy, without compiling."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def image(height: int, width: int, n: int = 1, channels: int = 3) -> jax.Array:
    """A random image (n, height, width, channels)."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, height, width, channels)), jnp.float32)


def shapes_of(network: nn.Module, x: Any) -> Any:
    """The shapes of the network's variables."""
    return jax.eval_shape(lambda: network.init(jax.random.key(0), x, train=False))


def count_parameters(network: nn.Module) -> int:
    """Number of parameters on three channels."""
    shapes = shapes_of(network, jnp.zeros((1, 32, 32, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


def draw(network: nn.Module, x: Any) -> dict[str, Any]:
    """Variables of which none is 0: kernels keep the size of a signal, scales and variances lie around 1."""
    random = np.random.default_rng(1)

    def one(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        if path[-1].key == 'kernel':
            return random.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        if path[-1].key in ('scale', 'var'):
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return random.normal(0, 0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes_of(network, x))


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(network: nn.Module, variables: Any, x: Any, train: bool = False, seed: int = 0) -> jax.Array:
    """The network's output, compiled as a whole; `seed` is that of dropout."""
    y, _ = network.apply(variables, x, train=train, rngs={'dropout': jax.random.key(seed)}, mutable=['batch_stats'])
    return y


def check_any_size(make: Callable[..., nn.Module], norms: tuple[str, ...]) -> None:
    """Shapes come back for every size, norm and number of channels; values are finite for the smallest."""
    for norm in norms:
        for *size, channels in ((1, 1, 3), (3, 17, 1)):
            network, x = make(norm, out_channels=channels), jnp.zeros((2, *size, channels))
            y, _ = jax.eval_shape(lambda n=network, x=x: n.init_with_output(jax.random.key(0), x, train=False))
            assert (y.shape, y.dtype) == (x.shape, jnp.float32)
    network, x = make(norms[0]), image(1, 1)
    assert bool(jnp.isfinite(run(network, draw(network, x), x)).all())


def check_gradients(network: nn.Module, x: jax.Array) -> None:
    """In training, gradients are finite and reach every parameter."""
    variables = draw(network, x)

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            y, _ = network.apply(variables | {'params': params}, x, train=True, mutable=['batch_stats'])
            return jnp.sum((y - 1) ** 2)

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables['params'])):
        assert bool(jnp.isfinite(leaf).all()) and float(jnp.abs(leaf).max()) > 0, path


def check_batch_independence(network: nn.Module, size: tuple[int, int]) -> None:
    """Outside training, an image's result does not depend on what else is in the batch."""
    x = image(*size, n=4)
    variables = draw(network, x)
    results = [run(network, variables, x[jnp.array(rows)], seed=seed) for seed, rows in enumerate(((0, 1), (2, 1)))]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def check_dropout(network: nn.Module, x: jax.Array) -> None:
    """In training, the result depends on dropout's key."""
    variables = draw(network, x)
    results = [run(network, variables, x, True, seed) for seed in (0, 1)]
    assert float(jnp.abs(results[0] - results[1]).max()) > 1e-3


def check_bfloat16(full: nn.Module, half: nn.Module, x: Any) -> None:
    """In bfloat16 the network gives nearly the same, and its parameters stay float32."""
    variables = draw(full, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half, x))} == {np.dtype('float32')}
    expected = run(full, variables, x)
    difference = run(half, variables, x) - expected
    assert 0 < float(jnp.abs(difference).max()) < 0.05 * float(jnp.abs(expected).max())


def from_torch(network: Any) -> dict[str, Any]:
    """The variables of a PyTorch network whose layers have our names."""
    import torch  # noqa: PLC0415

    variables: dict[str, Any] = {'params': {}, 'batch_stats': {}}
    modules = dict(network.named_modules())
    for path, value in network.state_dict().items():
        module, leaf = path.rpartition('.')[::2]
        array = value.numpy()
        if isinstance(modules[module], torch.nn.ConvTranspose2d) and array.ndim == 4:
            array = array.transpose(2, 3, 0, 1)[::-1, ::-1]
        elif array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif isinstance(modules[module], torch.nn.Linear):
            array = array.T
        if leaf == 'num_batches_tracked':
            continue
        kind = 'batch_stats' if leaf.startswith('running_') else 'params'
        leaf = {'running_mean': 'mean', 'running_var': 'var'}.get(leaf, leaf)
        if leaf == 'weight':
            leaf = 'kernel' if array.ndim > 1 else 'scale'
        if isinstance(modules[module], torch.nn.Embedding):
            leaf = 'embedding'
        node = variables[kind]
        for name in module.split('.'):
            node = node.setdefault(name, {}) if name else node
        node[leaf] = array
    return variables


def check_equals_torch(network: nn.Module, reference: Any, x: Any) -> float:
    """Outside training, outputs agree to 1e-4 on the reference's weights; returns the largest error.

    `x` may be a tuple, which the reference takes as one as well, images as PyTorch has them.
    """
    import torch  # noqa: PLC0415

    def to_torch(leaf: jax.Array) -> Any:
        array = np.asarray(leaf)
        return torch.tensor(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)

    random = torch.Generator().manual_seed(0)
    for name, value in reference.state_dict().items():
        if value.ndim > 1:
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=random) * fan_in**-0.5)
        elif value.ndim:
            positive = name.endswith(('running_var', 'scale')) or name.endswith('weight')
            value.copy_(
                torch.rand(value.shape, generator=random) + 0.5 if positive else value.normal_(generator=random)
            )
    variables = from_torch(reference)
    shapes = shapes_of(network, x)
    for kind in variables:
        assert jax.tree.map(np.shape, variables[kind]) == jax.tree.map(lambda leaf: leaf.shape, shapes.get(kind, {}))
    with torch.no_grad():
        expected = reference.eval()(jax.tree.map(to_torch, x)).numpy().transpose(0, 2, 3, 1)
    y = run(network, variables, x)
    assert float(expected.std()) > 0.05  # the image is not all of one value
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    return float(np.abs(y - expected).max())


def check_forms(function: Callable[[jax.Array, jax.Array, str], jax.Array], x: jax.Array, kernel: jax.Array) -> None:
    """All forms of a convolution give the same values and the same gradients."""

    @functools.partial(jax.jit, static_argnums=2)
    def value_and_gradients(x: jax.Array, kernel: jax.Array, form: str) -> Any:
        y, pull = jax.vjp(lambda x, kernel: function(x, kernel, form), x, kernel)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    native = value_and_gradients(x, kernel, 'native')
    for form in ('cpu', 'portable'):
        for a, b in zip(value_and_gradients(x, kernel, form), native, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def check_reach(network: nn.Module, size: int) -> None:
    """A change of one pixel changes results up to `reach` from it, for some place on the grid, and none beyond."""
    x = np.array(image(size, size))
    variables = draw(network, x)
    before, far = np.asarray(run(network, variables, x)), 0
    for place in range(network.multiple):
        middle = size // 2 + place
        changed = x.copy()
        changed[0, middle, middle] += 100
        rows, columns = np.nonzero(np.abs(np.asarray(run(network, variables, changed)) - before).max((0, 3)))
        far = max(far, *(np.abs(found - middle).max() for found in (rows, columns)))
    assert far == network.reach
