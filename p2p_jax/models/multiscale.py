"""The multi-scale discriminator of pix2pixHD (Wang et al. 2018, section 3.2)."""

import jax
from flax import linen as nn

from p2p_jax.models.layers import Style
from p2p_jax.models.patchgan import PatchGAN


def halve(images: jax.Array) -> jax.Array:
    """Averages over squares of 3×3 with stride 2; (n, h, w, c) to (n, ⌈h/2⌉, ⌈w/2⌉, c).

    At the border only pixels of the image count, as in the paper's code.
    """
    return nn.avg_pool(images, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False)


class MultiScale(nn.Module):
    """Several PatchGANs of one form and of their own weights, each on images of half the size of the one before.

    With 3 scales, 3 + 1 layers, width 64 and instance norm it has the parameters of pix2pixHD's (8,303,427 on six
    channels); that one's code pads its convolutions by 2, these by 1, as pix2pix's.

    Attributes:
      scales: how many.
      strided: of each; see PatchGAN, as for all that follow.
      unstrided: likewise.
      width: likewise.
      activation: likewise.
      last_activation: likewise.
      style: how the layers convolve and normalise.
    """

    scales: int
    strided: int
    unstrided: int
    width: int
    activation: str
    last_activation: str
    style: Style

    @nn.compact
    def __call__(
        self, condition: jax.Array, image: jax.Array, *, train: bool, update_spectral: bool = False
    ) -> tuple[jax.Array, ...]:
        """Judges whether `image` belongs to `condition`; the arguments are those of PatchGAN.

        Returns:
          float32 (n, rows, columns, 1) of each scale, the finest first.

        Raises:
          UserError: an image too small for the layers of the last scale.
        """
        scores = []
        for i in range(self.scales):
            if i:
                condition, image = halve(condition), halve(image)
            judge = PatchGAN(
                self.strided,
                self.unstrided,
                self.width,
                self.activation,
                self.last_activation,
                self.style,
                section='discriminator.multiscale',
                name=f'scale_{i}',
            )
            scores.append(judge(condition, image, train=train, update_spectral=update_spectral))
        return tuple(scores)
