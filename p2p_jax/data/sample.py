"""The photographs inside the scikit-image and scikit-learn wheels, as records: data without a download."""

import importlib.util
from pathlib import Path

from p2p_jax.data.records import Found, Layout, Record, Selection
from p2p_jax.data.sources import Source
from p2p_jax.lookup import UserError

# One of the stereo pair only: its other half shows the same scene. Split by photograph. china.jpg is for training: its
# sharpened foliage is as rough as the noise, so that as a target it measures little.
_PHOTOGRAPHS = {
    'train': (
        'skimage/data/hubble_deep_field.jpg',
        'skimage/data/ihc.png',
        'skimage/data/motorcycle_left.png',
        'skimage/data/retina.jpg',
        'sklearn/datasets/images/china.jpg',
        'sklearn/datasets/images/flower.jpg',
    ),
    'val': ('skimage/data/chelsea.png', 'skimage/data/rocket.jpg'),
    'test': ('skimage/data/astronaut.png', 'skimage/data/coffee.png'),
}


def _package_folder(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'the sample photographs come with {package}, which is not installed: run `make train`')
    return Path(spec.submodule_search_locations[0]).parent


def _find_sample(root: Path, _: Selection) -> Found:
    """Clean photographs only: a degradation makes the condition."""
    return Found(
        [
            Record(path.stem, Source(path), scene=path.stem, split=split)
            for split, names in _PHOTOGRAPHS.items()
            for path in (root / name for name in names)
        ]
    )


def _sample_root() -> Path:
    """The folder that holds both packages' photographs."""
    roots = {_package_folder('skimage'), _package_folder('sklearn')}
    if len(roots) > 1:
        raise UserError(f'skimage and sklearn are installed in different places ({", ".join(map(str, roots))})')
    return roots.pop()


SAMPLE = Layout(
    _find_sample,
    ', '.join(name for names in _PHOTOGRAPHS.values() for name in names),
    'the scikit-image and scikit-learn wheels',
    _sample_root,
)
