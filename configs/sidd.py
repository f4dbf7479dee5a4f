"""Denoising of smartphone photographs: SIDD-Medium or SIDD-Small sRGB as they unpack, split by scene, in tiles.

python -m p2p_jax.main prepare --config=configs/sidd.py --config.data.dir=/path/to/sidd --output=/path/to/tiles
python -m p2p_jax.main --config=configs/sidd.py --config.data.dir=/path/to/tiles

For a GPU or TPU. `:unet`, the default, is a residual U-Net with a GAN. `:nafnet` is NAFNet-32 as in its paper, without
a GAN. `:seed` is the best row of a student project: twelve tiles an image, 408 and 96 pairs of them, a classical U-Net,
rates that fall at plateaus of the steps (to a lowest one, which that project did not have). No score is given here, for
none has been trained to the end yet.
"""

from configs import default


def _nafnet(config: default.ConfigDict) -> None:
    config.generator.name = 'nafnet'
    config.gan.weight = 0.0
    config.loss.l1.weight = 0.0
    config.loss.psnr.weight = 1.0
    config.optim.update(name='adamw', lr=1e-3, b1=0.9, b2=0.9, schedule='cosine', final_lr=1e-7)
    config.train.update(batch_size=64, steps=400_000)


def _seed(config: default.ConfigDict) -> None:
    config.data.update(tile_size=None, grid=(3, 4), limit=(408, 96, None), rotate=False)
    config.generator.name = 'classical_unet'
    config.generator.classical_unet.norm = 'spectral'
    config.discriminator.patchgan.update(strided=4, unstrided=1, last_activation='sigmoid')
    config.gan.mode = 'lsgan'
    config.loss.l1.weight = 40.0
    config.optim.update(lr=1e-4, schedule='plateau', final_lr=1e-7, plateau_every='step')
    config.optim.update(plateau_metric='train_psnr', plateau_patience=1000, decay_factor=0.65)
    config.optim.discriminator.update(plateau_metric='loss', plateau_patience=1200, decay_factor=0.9)
    config.train.update(batch_size=4, steps=None, epochs=100)
    config.eval.crop_size = 256


def _unet(config: default.ConfigDict) -> None:
    config.generator.unet.update(depth=5, norm='none', dropout=0.0, last_activation='none', residual=True)
    config.discriminator.patchgan.norm = 'spectral'
    config.gan.update(mode='lsgan', weight=0.02)
    config.optim.update(schedule='cosine', b1=0.9)
    config.ema.decay = 0.999
    config.train.update(batch_size=16, steps=200_000)


PRESETS = {'unet': _unet, 'nafnet': _nafnet, 'seed': _seed}


def get_config(preset: str = 'unet') -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.update(layout='sidd', dir='data/SIDD_Medium_Srgb', tile_size=512, limit=(None, 480, None), rotate=True)
    config.value_range = (0.0, 1.0)
    config.eval.batch_size = 8
    config.eval.names = ('noisy', 'denoised')
    default.apply(PRESETS, preset, config)
    return config
