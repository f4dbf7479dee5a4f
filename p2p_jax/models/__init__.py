"""Networks, by name. A generator maps a condition to an image, a discriminator judges the two together."""

from flax import linen as nn

from p2p_jax.models.patchgan import PatchGAN
from p2p_jax.models.unet import UNet

GENERATORS: dict[str, type[nn.Module]] = {'unet': UNet}
DISCRIMINATORS: dict[str, type[nn.Module]] = {'patchgan': PatchGAN}
