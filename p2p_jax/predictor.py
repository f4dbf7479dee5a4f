"""A generator applied to images of any size: in tiles, on all devices, at the scale that it was trained at."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from p2p_jax import tiling
from p2p_jax.data import images
from p2p_jax.inference import Model
from p2p_jax.job import DTYPES, build_job
from p2p_jax.lookup import UserError, pick

# Compiled programs held at a time, one for each image size: on the CPU each takes some hundred memory maps, of which
# Linux gives a process 65,530.
_PROGRAMS = 64
_SAME_SCALE = 0.05  # by how much the scale of training may be off 1


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """How a model is applied to files.

    Attributes:
      tile: side of the tiles, pixels; None: what is likely to fit.
      overlap: of the tiles, 'blend' or 'exact'; see `tiling.Tiling`.
      batch: tiles at a time on each device.
      ensemble: give the mean of the results of all eight orientations.
      dtype: of the computation; None: that of the training.
      resize: resize each image to the size of the training's.
      splits: cut each image into so many rows and columns and resize the parts instead.
      native: apply the model at the image's own scale, also where it was trained at another.
      format: of the results: 'png', 'tif', 'jpg', or 'same' as the input, which is PNG for the other formats.
      overwrite: write over results that exist.
    """

    tile: int | None = None
    overlap: str = 'blend'
    batch: int = 1
    ensemble: bool = False
    dtype: str | None = None
    resize: bool = False
    splits: int | None = None
    native: bool = False
    format: str = 'png'
    overwrite: bool = False


def _check_scale(model: Model, options: PredictOptions) -> None:
    """Finds images that would be shown to the model at another scale than in training, unless that is wanted."""
    given = [f'--{name}' for name in ('resize', 'splits', 'native') if getattr(options, name)]
    if len(given) > 1:
        raise UserError(f'{" and ".join(given)}: give one of them')
    size, scale = model.config.data.resize, model.scale
    is_native = abs(scale - 1) <= _SAME_SCALE
    if is_native and not size and (options.resize or options.splits):
        raise UserError(f"{given[0]}: {model.origin} was trained at the photographs' own scale; leave the flag out")
    if not is_native and not given:
        shown = f'{size}×{size} pixels' if size else f'{scale:.3g} of their size'
        raise UserError(
            f'{model.origin} was trained on photographs resized to {shown} (a scale of {scale:.3g}), and photographs '
            'at full resolution are nothing that it has seen. Give one of --resize (each image is resized as in '
            'training, and so is its result), --splits=N (each is cut into N × N parts, which are resized so) and '
            '--native (at full resolution all the same).'
        )


def _to_planes(image: np.ndarray, channels: int) -> np.ndarray:
    """Returns what a network of 1 or 3 channels takes, (n, h, w, channels), in the image's type.

    A network for grey images takes the three colours one after another.
    """
    colours = image[..., :1] if image.shape[-1] < 3 else image[..., :3]
    if channels == 1:
        return np.moveaxis(colours, -1, 0)[..., None]
    return np.broadcast_to(colours, (*colours.shape[:2], channels))[None]


def _from_planes(result: np.ndarray) -> np.ndarray:
    """Undoes `_to_planes`: (h, w, 1 or 3)."""
    return np.moveaxis(result[..., 0], 0, -1) if result.shape[-1] == 1 else result[0]


class Predictor:
    """A generator ready for images of any size."""

    def __init__(self, model: Model, options: PredictOptions, say: Callable[[str], None] = print) -> None:
        """Compiles nothing yet.

        Args:
          model: what is applied.
          options: how.
          say: receives lines for people.

        Raises:
          UserError: options that do not go together, or not with this model.
        """
        if model.job.classes:
            raise UserError(f'{model.origin} makes images from labels, not from images; see generate')
        for name in ('batch', 'splits'):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise UserError(f'--{name}={value}: expected at least 1')
        _check_scale(model, options)
        if options.dtype:
            pick(DTYPES, options.dtype, '--dtype')
            config = ml_collections.ConfigDict({**model.config.to_dict(), 'dtype': options.dtype})
            model = dataclasses.replace(model, config=config, job=build_job(config, steps=1))
        self.model, self._options, self._say = model, options, say
        generator: Any = model.job.generator
        low, high = model.job.value_range
        self.tiling = tiling.Tiling(
            size=tiling.fitting_size(options.batch) if options.tile is None else options.tile,
            overlap=options.overlap,
            reach=generator.reach,
            multiple=generator.multiple,
            padding=generator.padding,
            fill=-low / (high - low),  # the network's zero
        )
        # The statistics of a batch are to be those of each image by itself.
        self._alone = generator.style.norm == 'batch' and generator.style.statistics == 'batch'
        self._batch = (1 if self._alone else options.batch) * jax.local_device_count()
        self._programs: dict[int, tuple[Any, Any, jax.sharding.NamedSharding]] = {}
        self._sizes: set[tuple[int, ...]] = set()

    def _program(self, devices: int) -> tuple[Any, Any, jax.sharding.NamedSharding]:
        """The compiled generator over the first devices, its variables there, and where its input goes."""
        if devices not in self._programs:
            mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:devices]), ('tiles',))
            job, everywhere, spread = self.model.job, jax.P(), jax.P('tiles')

            def apply(variables: Any, pixels: jax.Array) -> jax.Array:
                return job.apply(variables, pixels.astype(jnp.float32) / tiling.full_scale(pixels.dtype))

            mapped = jax.shard_map(apply, mesh=mesh, in_specs=(everywhere, spread), out_specs=spread, check_vma=False)
            variables = jax.device_put(self.model.variables, jax.sharding.NamedSharding(mesh, everywhere))
            self._programs[devices] = jax.jit(mapped), variables, jax.sharding.NamedSharding(mesh, spread)
        return self._programs[devices]

    def apply(self, pixels: np.ndarray) -> jax.Array:
        """(k, h, w, c) of the image's type to float32 (k or more, h, w, c) in [0, 1], spread over the devices."""
        devices = min(len(pixels), jax.local_device_count())
        program, variables, place = self._program(devices)
        pixels = np.concatenate([pixels, *[pixels[-1:]] * (-len(pixels) % devices)])
        self._sizes.add((devices, *pixels.shape))
        if len(self._sizes) > _PROGRAMS:
            for compiled, _, _ in self._programs.values():
                compiled.clear_cache()
            self._sizes = {(devices, *pixels.shape)}
        return program(variables, jax.device_put(pixels, place))

    def _run(self, pixels: np.ndarray, take: Callable[[int, np.ndarray], None]) -> None:
        height, width = pixels.shape[1:3]
        multiple = self.tiling.multiple
        if self._alone and (height % multiple or width % multiple):
            raise UserError(
                f'an image of {width}×{height} pixels: with batch norm by its own statistics (--statistics=batch) '
                f'sides must be multiples of {multiple}, for what is padded would count. Crop or resize it, or take '
                '--statistics=running.'
            )
        self.tiling = tiling.run(self.apply, pixels, self.tiling, self._batch, take, self._say)

    def whole(self, pixels: np.ndarray) -> np.ndarray:
        """Applies the model to images at its own scale, all at once in memory.

        Args:
          pixels: (n, height, width, c), integers, or float32 in [0, 1].

        Returns:
          float32 of the same shape, in [0, 1].
        """
        result = np.empty(pixels.shape, np.float32)

        def take(top: int, band: np.ndarray) -> None:
            result[:, top : top + band.shape[1]] = band

        self._run(pixels, take)
        return result

    def _ensemble(self, pixels: np.ndarray, progress: Callable[[float], None]) -> np.ndarray:
        """The mean of the results of all eight orientations, each turned back: float32 (n, h, w, c)."""
        total = np.zeros(pixels.shape, np.float32)
        for number in range(8):
            mirrored, turns = divmod(number, 4)
            shown, sum_of_it = (np.rot90(x[:, :, ::-1] if mirrored else x, turns, (1, 2)) for x in (pixels, total))
            sum_of_it += self.whole(shown)  # a view of the total
            progress((number + 1) / 8)
        return total / 8

    def _at_scale(self, image: np.ndarray, progress: Callable[[float], None]) -> np.ndarray:
        """The result of an image that has the scale of the training."""
        pixels = _to_planes(image, self.model.config.data.channels)
        if self._options.ensemble:
            return images.restore_format(_from_planes(self._ensemble(pixels, progress)), image)
        result = np.empty_like(image)

        def take(top: int, band: np.ndarray) -> None:
            rows = slice(top, top + band.shape[1])
            result[rows] = images.restore_format(_from_planes(band), image[rows])
            progress(rows.stop / len(image))

        self._run(pixels, take)
        return result

    def __call__(self, image: np.ndarray, progress: Callable[[float], None] = lambda share: None) -> np.ndarray:
        """Applies the model to one image.

        Args:
          image: uint8 or uint16 (height, width, 1 to 4).
          progress: is told the share of the image that is done.

        Returns:
          The same type and channels, alpha as it was; the same size but where the options resize.

        Raises:
          UserError: the memory does not suffice.
        """
        options = self._options
        if not options.resize and not options.splits:
            return self._at_scale(image, progress)
        splits = options.splits or 1
        if splits > min(image.shape[:2]):
            raise UserError(f'--splits={splits}: more than the image has rows or columns')
        rows = []
        for i, row in enumerate(np.array_split(image, splits)):
            parts = [images.resize(part, self._trained_size(part)) for part in np.array_split(row, splits, axis=1)]
            rows.append(np.concatenate([self._at_scale(part, lambda share: None) for part in parts], axis=1))
            progress((i + 1) / splits)
        return np.concatenate(rows)

    def _trained_size(self, part: np.ndarray) -> tuple[int, int]:
        size, scale = self.model.config.data.resize, self.model.scale
        if size:
            return size, size
        return max(1, round(part.shape[0] * scale)), max(1, round(part.shape[1] * scale))
