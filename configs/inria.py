"""Masks of buildings to aerial photographs: Inria's tiles cut 2×2, each resized to 286, random crops of 256.

python -m p2p_jax.main prepare --config=configs/inria.py --config.data.dir=/path/to/inria --output=/path/to/tiles
python -m p2p_jax.main --config=configs/inria.py --config.data.dir=/path/to/tiles

A U-Net of ResNet blocks with `:l1`; in its place `:vgg` wants the same features of VGG16, `:vgg_scores` the same class
scores (--config.loss.vgg_scores.weights=FILE). `:instance` is L1 with instance norm.
The images that the set holds out, 1 to 5 of each city, are the test; --config.data.own_split=False and
--config.data.split='(0.75, 0.0833, 0.1667)' give 135, 15 and 30 images of any numbers: 540, 60 and 120 parts.
No score is given here, for it has not been trained yet.
"""

from configs import default


def _instance(config: default.ConfigDict) -> None:
    config.generator.resnet_unet.norm = 'instance'
    config.discriminator.patchgan.norm = 'instance'


def _vgg(config: default.ConfigDict) -> None:
    config.loss.l1.weight = 0.0
    config.loss.vgg.weight = 10.0


def _vgg_scores(config: default.ConfigDict) -> None:
    config.loss.l1.weight = 0.0
    config.loss.vgg_scores.update(weight=10.0, weights='vgg16-397923af.pth')


PRESETS = {'l1': lambda config: None, 'vgg': _vgg, 'vgg_scores': _vgg_scores, 'instance': _instance}


def get_config(preset: str = 'l1') -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.update(layout='inria', dir='data/AerialImageDataset', mask_values=(0, 255), rotate=True)
    config.data.update(grid=(2, 2), resize=286)
    config.generator.name = 'resnet_unet'
    config.eval.names = ('mask', 'generated')
    config.train.update(steps=None, epochs=900)
    config.eval.update(every_steps=None, every_epochs=50)
    default.apply(PRESETS, preset, config)
    return config
