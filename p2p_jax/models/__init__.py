"""Networks, by name. A generator maps a condition to an image, a discriminator judges the two together."""

from flax import linen as nn

from p2p_jax.models.classical_unet import ClassicalUNet
from p2p_jax.models.conditional import DCGANDiscriminator, DCGANGenerator, SNGANDiscriminator, SNGANGenerator
from p2p_jax.models.multiscale import MultiScale
from p2p_jax.models.nafnet import NAFNet
from p2p_jax.models.patchgan import PatchGAN
from p2p_jax.models.resnet import ResNetGenerator
from p2p_jax.models.resnet_unet import ResNetUNet
from p2p_jax.models.unet import UNet

GENERATORS: dict[str, type[nn.Module]] = {
    'unet': UNet,
    'classical_unet': ClassicalUNet,
    'nafnet': NAFNet,
    'resnet': ResNetGenerator,
    'resnet_unet': ResNetUNet,
    'dcgan': DCGANGenerator,
    'sngan': SNGANGenerator,
}
DISCRIMINATORS: dict[str, type[nn.Module]] = {
    'patchgan': PatchGAN,
    'multiscale': MultiScale,
    'dcgan': DCGANDiscriminator,
    'sngan': SNGANDiscriminator,
}
FROM_LABELS = frozenset({'dcgan', 'sngan'})  # in either table: the condition is a label, not an image
