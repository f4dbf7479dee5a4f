"""Label to image: pictures of CIFAR-10's classes from noise and a label.

python -m p2p_jax.main --config=configs/cifar10.py --config.data.dir=/path/to/cifar10

Any form in which the set is published, or class folders, also inside a zip. `:sngan`, the default, is a residual pair
with conditional batch norm and a projection discriminator, five of whose updates go with one of the generator; `:dcgan`
is the student project's kind of pair, whose discriminator is trained alone first. Your own labelled folders are
configs/labelled.py. No score is given here, for none has been trained to the end yet.
"""

from configs import default

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


def _dcgan(config: default.ConfigDict) -> None:
    config.generator.name = 'dcgan'
    config.discriminator.name = 'dcgan'
    config.gan.pretrain_steps = 500
    config.optim.lr = 2e-4


def _sngan(config: default.ConfigDict) -> None:
    config.generator.name = 'sngan'
    config.discriminator.name = 'sngan'
    config.gan.update(mode='hinge', d_steps=5, augment=('color', 'translation', 'cutout'))
    config.optim.update(lr=2e-4, b1=0.0, b2=0.9, schedule='linear_decay', decay_start=0.0)
    config.ema.decay = 0.999


PRESETS = {'sngan': _sngan, 'dcgan': _dcgan}


def get_config(preset: str = 'sngan') -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.update(dir='data/cifar10', classes=CLASSES, crop_size=32, split=(0.98, 0.01, 0.01))
    config.loss.l1.weight = 0.0
    config.train.update(batch_size=64, steps=100_000)
    config.eval.pictures = 10
    default.apply(PRESETS, preset, config)
    return config
