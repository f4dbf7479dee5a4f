"""PSNR and SSIM, and the collections that average scores over a split."""

from collections.abc import Callable
from typing import Any

import dm_pix
import flax
import jax
import jax.numpy as jnp
from clu import metrics

SSIM_WINDOW = 11  # pixels; smaller images have no SSIM
PSNR_CEILING = 100.0  # dB given to equal images, so that a mean over examples stays a number


def psnr(image: jax.Array, target: jax.Array, max_value: float) -> jax.Array:
    """Peak signal-to-noise ratio of each example in dB, at most PSNR_CEILING.

    Args:
      image: (n, h, w, c).
      target: of the same shape.
      max_value: the peak: the largest value less the smallest that the images can have.

    Returns:
      (n,).
    """
    return jnp.minimum(dm_pix.psnr(image / max_value, target / max_value), PSNR_CEILING)


def ssim(image: jax.Array, target: jax.Array, max_value: float) -> jax.Array:
    """Structural similarity of each example (Wang et al. 2004): mean over pixels and channels.

    Each channel by itself, Gaussian window of 11×11 with σ 1.5, windows that lie wholly inside the image.

    Args:
      image: (n, h, w, c), sides of at least SSIM_WINDOW.
      target: of the same shape.
      max_value: the largest value less the smallest that the images can have.

    Returns:
      (n,).
    """
    return dm_pix.ssim(image, target, max_val=max_value, filter_size=SSIM_WINDOW)


@flax.struct.dataclass
class EvaluationMetrics(metrics.Collection):
    """Means over examples; a `mask` of 0 leaves an example out."""

    input_psnr: metrics.Average.from_output('input_psnr')  # type: ignore[valid-type]
    input_ssim: metrics.Average.from_output('input_ssim')  # type: ignore[valid-type]
    output_psnr: metrics.Average.from_output('output_psnr')  # type: ignore[valid-type]
    output_ssim: metrics.Average.from_output('output_ssim')  # type: ignore[valid-type]


_WITH_LPIPS = metrics.Collection.create(
    **EvaluationMetrics.__annotations__,
    **{name: metrics.Average.from_output(name) for name in ('input_lpips', 'output_lpips')},
)


def evaluation_metrics(
    condition: jax.Array,
    output: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    axis_name: str,
    lpips: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> EvaluationMetrics:
    """Scores inputs and outputs against the targets and gathers them from all devices.

    Args:
      condition: (n, h, w, c) in [0, 1].
      output: likewise.
      target: likewise.
      mask: (n,), 0 for examples that do not count.
      axis_name: of the mapped axis.
      lpips: a third score, (n,) of two images; None leaves it out.
    """
    kind: Any = EvaluationMetrics
    more = {}
    if lpips:
        kind = _WITH_LPIPS
        # An accelerator would take TF32 or bfloat16 for the convolutions; a score should not depend on that.
        with jax.default_matmul_precision('highest'):
            more = {'input_lpips': lpips(condition, target), 'output_lpips': lpips(output, target)}
    return kind.gather_from_model_output(
        axis_name=axis_name,
        mask=mask,
        input_psnr=psnr(condition, target, 1.0),
        input_ssim=ssim(condition, target, 1.0),
        output_psnr=psnr(output, target, 1.0),
        output_ssim=ssim(output, target, 1.0),
        **more,
    )
