"""A classifier of images, in one file: to say how often generated images show what was asked for."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax import __version__, modelfile
from p2p_jax.features import in_batches
from p2p_jax.lookup import UserError
from p2p_jax.models import classifier as networks

KIND = 'classifier'
_MADE = 'A classifier is made by `python -m experiments.cifar_classifier`.'


@dataclasses.dataclass(frozen=True)
class Description:
    """What a classifier's file says about itself.

    Attributes:
      classes: their names, in the order of the scores.
      size: height and width of its images in pixels.
      width: of the network.
      accuracy: share of the test images that it recognises.
      test_images: on which that was measured; none of them was trained on.
      steps: of the training.
      p2p_jax: the version that wrote the file.
    """

    classes: tuple[str, ...]
    size: int
    width: int
    accuracy: float
    test_images: int
    steps: int
    p2p_jax: str = __version__

    def network(self) -> networks.Classifier:
        """Returns the network that is described."""
        return networks.Classifier(len(self.classes), self.size, self.width)


@functools.partial(jax.jit, static_argnums=0)
def _recognise(network: networks.Classifier, variables: Any, images: jax.Array) -> jax.Array:
    """Labels of images, (n, h, w, 3) in [0, 1] to int32 (n,)."""
    shape = (len(images), network.size, network.size, 3)
    resized = images if images.shape == shape else jax.image.resize(images, shape, 'cubic')
    scores: Any = network.apply(variables, 2 * resized - 1, train=False)
    return jnp.argmax(scores, axis=-1)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
      description: of what it is.
      variables: of its network.
    """

    description: Description
    variables: Any

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self.description.classes

    @property
    def accuracy(self) -> float:
        """The share of real images that it recognises: what a perfect generator would reach."""
        return self.description.accuracy

    def predict(self, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
        """Recognises images.

        Args:
          images: (n, h, w, 3), float in [0, 1]; other sizes than the classifier's are resized to it, bicubic with
            antialiasing.
          batch_size: images that are looked at at a time; it does not change the result.

        Returns:
          int32 (n,), places in `classes`.
        """
        recognise = functools.partial(_recognise, self.description.network(), self.variables)
        return in_batches(recognise, images, batch_size)


def save(path: Path, classifier: Classifier) -> None:
    """Writes a classifier to one file."""
    content = {'kind': KIND, **dataclasses.asdict(classifier.description)}
    modelfile.write_described(path, classifier.variables, content)


def load(path: Path, flag: str = '--classifier') -> Classifier:
    """Reads a classifier from its file.

    Args:
      path: of the file.
      flag: that named it, for messages.

    Raises:
      UserError: the file is missing, truncated, of another kind, or its weights do not fit its network.
    """
    variables, content = modelfile.read_described(path, flag, _MADE)
    kind = content.pop('kind', None)
    if kind != KIND:
        raise UserError(f'{flag}={path}: it holds a {kind or content.get("network")}, not a classifier. {_MADE}')
    missing = sorted({field.name for field in dataclasses.fields(Description)} - set(content))
    if missing:
        raise UserError(f'{flag}={path}: its header lacks {", ".join(missing)}. {_MADE}')
    description = Description(**content | {'classes': tuple(content['classes'])})
    image = jnp.zeros((1, description.size, description.size, 3))
    network = description.network()
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))
    modelfile.check_fit(variables, shapes, f'{flag}={path}')
    return Classifier(description, jax.device_put(variables))
