"""Scores of images that were made from labels: what networks see in them, against what they see in real ones."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p2p_jax import classifier, fidelity
from p2p_jax.classifier import Classifier
from p2p_jax.features import FEATURES, Features
from p2p_jax.fidelity import Agreement, Moments, Spread, class_agreement
from p2p_jax.intervals import Interval
from p2p_jax.lookup import UserError

# Metric to its value, with the ends of its interval where it has one.
Row = dict[str, Interval]
# Key of FEATURES to the metric that is the Fréchet distance of them.
FRECHET = {'inception': 'fid', 'vgg16': 'frechet_vgg16'}
_FLAGS = {'inception': '--inception', 'vgg16': '--vgg'}
_SUBSET = 1000  # images, as KID is published; of fewer images all


@dataclasses.dataclass
class Seen:
    """What trained networks see in a set of images.

    Attributes:
      labels: that the images have, or were made of, int (n,).
      features: key of FEATURES to those, float32 (n, d).
      probabilities: of Inception's classes, float32 (n, 1008), where it looked.
      recognised: labels that the classifier gives, int (n,), where there is one.
    """

    labels: np.ndarray
    features: dict[str, np.ndarray]
    probabilities: np.ndarray | None = None
    recognised: np.ndarray | None = None

    def moments(self, label: int | None = None) -> dict[str, Moments]:
        """Returns the moments of the features of all images, or of those of one label."""
        chosen = slice(None) if label is None else self.labels == label
        return {name: Moments.of(found[chosen]) for name, found in self.features.items()}

    def agreement(self, classes: Sequence[str]) -> Agreement | None:
        """Returns how often the classifier sees the label."""
        return None if self.recognised is None else class_agreement(self.labels, self.recognised, classes)


@dataclasses.dataclass(frozen=True)
class Eyes:
    """The trained networks that look at images.

    Attributes:
      features: by the keys of FEATURES.
      judge: recognises classes; None where there is no classifier.
      names: of the classes, in the order of the labels.
    """

    features: Mapping[str, Features]
    judge: Classifier | None
    names: tuple[str, ...]

    @classmethod
    def build(cls, weights: Mapping[str, str], judge: Path | None, names: tuple[str, ...]) -> 'Eyes':
        """Reads weights.

        Args:
          weights: key of FEATURES to where its weights are.
          judge: a classifier's file, or None.
          names: of the classes.

        Raises:
          UserError: a file is missing or wrong, or the classifier knows other classes.
        """
        found = classifier.load(judge) if judge else None
        if found and set(found.classes) != set(names):
            raise UserError(f'--classifier={judge}: it knows {", ".join(found.classes)}; expected {", ".join(names)}')
        return cls({name: FEATURES[name](source, _FLAGS[name]) for name, source in weights.items()}, found, names)

    def look(
        self, batches: Iterable[tuple[np.ndarray, np.ndarray]], batch_size: int, update: Callable[[int], object]
    ) -> Seen:
        """Looks at images.

        Args:
          batches: labels int (n,) with images uint8 (n, h, w, 1 or 3), all of one h and w.
          batch_size: images that are looked at at a time.
          update: is told how many images have been seen since it was last told.
        """
        labels: list[np.ndarray] = []
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.features}
        probabilities: list[np.ndarray] = []
        recognised: list[np.ndarray] = []
        for kinds, pixels in batches:
            batch = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).astype(np.float32) / 255
            labels.append(kinds)
            for name, describe in self.features.items():
                described, classes = describe(batch, batch_size=batch_size)
                found[name].append(described)
                if classes is not None:
                    probabilities.append(classes)
            if self.judge:
                place = np.array([self.names.index(name) for name in self.judge.classes])
                recognised.append(place[self.judge.predict(batch, batch_size=batch_size)])
            update(len(kinds))
        return Seen(
            np.concatenate(labels),
            {name: np.concatenate(rows) for name, rows in found.items()},
            np.concatenate(probabilities) if probabilities else None,
            np.concatenate(recognised) if recognised else None,
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """The scores of one generator.

    Attributes:
      name: of the model.
      scores: of all its images; keys of `html.METRICS`.
      by_class: class to those of its images alone.
      confusion: see `Agreement`; None without a classifier.
    """

    name: str
    scores: Row
    by_class: dict[str, Row]
    confusion: np.ndarray | None


def alone(value: float) -> Interval:
    """Returns a value without an interval."""
    return Interval(value, math.nan, math.nan)


def _spread(spread: Spread) -> Interval:
    return Interval(spread.mean, spread.mean - spread.std, spread.mean + spread.std)


def _distances(made: Seen, real: Seen, label: int | None = None) -> Row:
    of_real = real.moments(label)
    return {
        FRECHET[name]: alone(fidelity.frechet_distance(moments, of_real[name]))
        for name, moments in made.moments(label).items()
    }


def score(name: str, made: Seen, real: Seen, classes: Sequence[str]) -> Result:
    """Scores what was seen in generated images against what was seen in real ones.

    Args:
      name: of the model.
      made: at least two of each class.
      real: likewise.
      classes: their names.
    """
    scores = _distances(made, real)
    by_class = {kind: _distances(made, real, label) for label, kind in enumerate(classes)}
    if made.probabilities is not None:
        pair = made.features['inception'], real.features['inception']
        size = min(_SUBSET, *map(len, pair))
        scores['kid'] = _spread(fidelity.kernel_distance(*pair, seed=0, subset_size=size))
        scores['inception_score'] = _spread(fidelity.inception_score(made.probabilities, seed=0))
    found = made.agreement(classes)
    if found:
        scores['agreement'] = alone(found.overall)
        for kind, share in found.per_class.items():
            by_class[kind]['agreement'] = alone(share)
    return Result(name, scores, by_class, found.confusion if found else None)
