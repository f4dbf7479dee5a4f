"""Scores of single images: what the verb `evaluate` puts together, for any models on the same inputs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from p2p_jax.data.pipeline import Shard, evaluation_batches
from p2p_jax.data.records import Record
from p2p_jax.job import Job
from p2p_jax.metrics import Protocol

# Sizes of images after which compiled programs are dropped: on the CPU each takes some hundred memory maps, of which
# Linux gives a process 65,530.
_SIZES = 32
Scores = Mapping[str, float]
# Image and target, float32 (h, w, c) in [0, 1], to scores.
Score = Callable[[np.ndarray, np.ndarray], Scores]


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is scored: a trained model or a baseline.

    Attributes:
      name: in tables; unique among those that are compared.
      restore: maps an input, float32 (h, w, c) in [0, 1], to an output of the same shape and range.
      facts: what there is to say about it, for JSON.
    """

    name: str
    restore: Callable[[np.ndarray], np.ndarray]
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """One image of a split and what a model made of it.

    Attributes:
      name: of the record.
      scene: images that share it are not independent.
      attributes: what the layout knows besides.
      size: (height, width) in pixels, as it was scored.
      scores: 'input' and 'output', each to metric to value.
      pictures: makes 'input', 'output' and 'target' anew, uint8 (h, w, 1 or 3): nothing is kept.
    """

    name: str
    scene: str
    attributes: Mapping[str, str]
    size: tuple[int, int]
    scores: Mapping[str, Scores]
    pictures: Callable[[], dict[str, np.ndarray]] = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """All images of a split under one model, in the order of the records."""

    name: str
    facts: dict[str, Any]
    images: tuple[ImageResult, ...]


@dataclasses.dataclass(frozen=True)
class Examples:
    """The records of a split as pairs of float images; degradations are those of validation during training.

    Attributes:
      job: makes inputs where they are made of the targets.
      config: whose sections `data`, `degrade` and `eval`, and the seed, say how.
      records: of the split, with sizes.
    """

    job: Job
    config: ml_collections.ConfigDict
    records: Sequence[Record]

    def load(self, places: Sequence[int], crop_size: int | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields the place of a record, its input and its target, float32 (h, w, c) in [0, 1]; by size, then in order.

        Args:
          places: of the records that are wanted.
          crop_size: of a central crop; None: `eval.crop_size`.
        """
        images = jax.jit(self.job.images)
        key = jax.random.key(self.config.seed)
        batches = evaluation_batches(
            [self.records[place] for place in places],
            batch_size=1,
            crop_size=crop_size or self.config.eval.crop_size,
            channels=self.config.data.channels,
            shard=Shard(),
            threads=self.config.data.threads,
        )
        for batch in batches:
            place = places[int(batch['index'][0])]
            # What is drawn depends on the place among all.
            condition, target = images({**batch, 'index': np.array([place], np.int32)}, key)
            yield place, np.asarray(condition[0]), np.asarray(target[0])


def build_score(
    protocols: Sequence[Protocol],
    *,
    y_channel: bool = False,
    lpips: Callable[..., Any] | None = None,
    frozen: Any = None,
) -> Score:
    """Returns a function of an image and its target to all scores.

    Args:
      protocols: what is computed; a metric that two of them share is one number.
      y_channel: the same of the Y channel as well.
      lpips: that score as well.
      frozen: its weights.
    """

    @jax.jit
    def score(image: jax.Array, target: jax.Array, frozen: Any) -> dict[str, jax.Array]:
        values: dict[str, jax.Array] = {}
        # An accelerator would take TF32 or bfloat16 for convolutions; a score should not depend on that.
        with jax.default_matmul_precision('highest'):
            for kind in (False, True) if y_channel else (False,):
                for protocol in protocols:
                    values |= protocol(image, target, y_channel=kind)
            if lpips:
                values['lpips'] = lpips(image, target, frozen)
        return {name: value[0] for name, value in values.items()}

    return lambda image, target: {
        name: float(value) for name, value in jax.device_get(score(image[None], target[None], frozen)).items()
    }


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _pictures(examples: Examples, place: int, restore: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    _, condition, target = next(examples.load([place]))
    pictures = {'input': condition, 'output': restore(condition), 'target': target}
    return {side: _to_bytes(image) for side, image in pictures.items()}


def score_models(
    examples: Examples, contenders: Sequence[Contender], score: Score, look: Callable[[], object] = lambda: None
) -> tuple[ModelResult, ...]:
    """Scores every image under every contender; all are given the very same inputs.

    Args:
      examples: of one split.
      contenders: what is compared.
      score: from `build_score`.
      look: called after each image.
    """
    sizes: set[tuple[int, ...]] = set()
    found: dict[int, list[ImageResult]] = {}
    for place, condition, target in examples.load(range(len(examples.records))):
        sizes.add(target.shape)
        if len(sizes) > _SIZES:
            jax.clear_caches()
            sizes = {target.shape}
        record = examples.records[place]
        of_input = score(condition, target)
        found[place] = [
            ImageResult(
                name=record.name,
                scene=record.scene or record.name,
                attributes=record.attributes,
                size=target.shape[:2],
                scores={'input': of_input, 'output': score(contender.restore(condition), target)},
                pictures=functools.partial(_pictures, examples, place, contender.restore),
            )
            for contender in contenders
        ]
        look()
    columns = zip(*(found[place] for place in sorted(found)), strict=True)
    return tuple(
        ModelResult(contender.name, contender.facts, images)
        for contender, images in zip(contenders, columns, strict=True)
    )
