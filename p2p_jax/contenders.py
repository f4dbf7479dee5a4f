"""What `evaluate` compares: trained models and baselines, each as a function of one image."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from p2p_jax import baselines, report
from p2p_jax.baselines import BASELINES, Choice
from p2p_jax.inference import Model
from p2p_jax.lookup import UserError, pick
from p2p_jax.predictor import PredictOptions, Predictor
from p2p_jax.scoring import Contender, Examples

# Of the validation split, on which a baseline's strength is chosen: images, and the side of their central crop.
_TRIED_IMAGES, _TRIED_CROP = 16, 128


def _channels(model: Model, channels: int) -> int:
    """The channels of a model's network, which images of so many can be given to."""
    own = model.config.data.channels
    if own > channels:
        raise UserError(
            f'{model.origin}: its network takes {own} channels, the images that are scored have data.channels='
            f'{channels}; with --config.data.channels={own} grey images have equal channels'
        )
    return own


def build_restore(model: Model, channels: int, options: PredictOptions) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a trained model as a function of one image, in tiles where it is large, as in `predict`.

    A network for grey images takes the colours one after another.

    Args:
      model: what is applied.
      channels: of the images that are scored.
      options: of the tiles.

    Raises:
      UserError: a network for colour, and grey images; options that do not fit the network.
    """
    own = _channels(model, channels)
    # What is scored has the scale of the training already.
    predictor = Predictor(model, dataclasses.replace(options, native=True))

    def restore(image: np.ndarray) -> np.ndarray:
        if own == channels:
            return predictor.whole(image[None])[0]
        return np.moveaxis(predictor.whole(np.moveaxis(image, -1, 0)[..., None])[..., 0], 0, -1)

    return restore


def _trained(name: str, model: Model, channels: int, options: PredictOptions) -> Contender:
    count = sum(leaf.size for leaf in jax.tree.leaves(model.variables['params']))
    facts = {'origin': str(model.origin), 'step': model.step, 'parameters': count, 'config': model.config.to_dict()}
    return Contender(name, build_restore(model, channels, options), facts)


def _choose(name: str, denoise: baselines.Filter, validation: Examples) -> Choice:
    row, count = BASELINES[name], min(_TRIED_IMAGES, len(validation.records))
    places = [i * len(validation.records) // count for i in range(count)]
    with report.progress_bar(count * len(row.strengths), f'strength of {name}') as bar:
        pairs = ((condition, target) for _, condition, target in validation.load(places, _TRIED_CROP))
        return baselines.choose(row, denoise, pairs, bar.update)


def _baseline(name: str, validation: Examples | None) -> Contender:
    """Builds a baseline, with its best strength, and says how that was found."""
    row, denoise = BASELINES[name], BASELINES[name].build()
    facts: dict[str, Any] = {'text': row.text}
    print(f'{name}: {row.text}')
    choice = _choose(name, denoise, validation) if row.strengths and validation else Choice(row.default, {})
    if choice.tried:
        count = min(_TRIED_IMAGES, len(validation.records)) if validation else 0
        how = f'the best on the central {_TRIED_CROP}×{_TRIED_CROP} of {count} validation images, by mean PSNR'
        print('  ' + ', '.join(f'{strength:g}: {psnr:.2f} dB' for strength, psnr in choice.tried.items()))
        if choice.strength in (row.strengths[0], row.strengths[-1]):
            how += '; at the end of what was tried'
    else:
        how = 'the default, for there is no validation split to choose it on'
    if row.strengths:
        print(f'  strength {choice.strength:g}: {how}')
        facts |= {'strength': choice.strength, 'chosen': how, 'tried': choice.tried}
    return Contender(name, functools.partial(baselines.apply, denoise, strength=choice.strength), facts)


def names(models: Sequence[Model | str]) -> list[str]:
    """Returns short names, or whole paths where short ones are not unique.

    Raises:
      UserError: a model is given twice.
    """
    short = [model if isinstance(model, str) else model.origin.name.removesuffix('.safetensors') for model in models]
    found = [
        name if isinstance(model, str) or short.count(name) == 1 else str(model.origin)
        for name, model in zip(short, models, strict=True)
    ]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise UserError(f'{", ".join(twice)}: given twice')
    return found


def check(models: Sequence[Model | str], channels: int) -> None:
    """Looks for all that `build` would stop at.

    Raises:
      UserError: an unknown baseline, a missing package, a model given twice or of another number of channels.
    """
    names(models)
    for model in models:
        if isinstance(model, str):
            pick(BASELINES, model, '--model').build()
        else:
            _channels(model, channels)


def build(
    models: Sequence[Model | str], channels: int, validation: Examples | None, options: PredictOptions
) -> list[Contender]:
    """Makes comparable what shall be compared.

    Args:
      models: trained ones, and keys of BASELINES.
      channels: of the images that are scored.
      validation: what the baselines' strengths are chosen on; None: their defaults.
      options: how trained models are applied to large images.

    Raises:
      UserError: as `check`; options that do not fit a network.
    """
    check(models, channels)
    return [
        _baseline(model, validation) if isinstance(model, str) else _trained(name, model, channels, options)
        for name, model in zip(names(models), models, strict=True)
    ]
