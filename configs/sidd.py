"""Denoising of smartphone photographs: SIDD-Medium or SIDD-Small sRGB as they unpack, split by scene, in tiles.

python -m p2p_jax.main prepare --config=configs/sidd.py --config.data.dir=/path/to/sidd --output=/path/to/tiles
python -m p2p_jax.main --config=configs/sidd.py --config.data.dir=/path/to/tiles

For a GPU or TPU. Without `prepare` it trains from the photographs themselves, as fast as they can be decoded.
No score is given here, for it has not been trained to the end yet.
"""

from configs import default


def get_config() -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.layout = 'sidd'
    config.data.dir = 'data/SIDD_Medium_Srgb'
    config.data.tile_size = 512
    config.data.limit = (None, 480, None)
    config.data.rotate = True
    config.value_range = (0.0, 1.0)
    config.generator.unet.update(depth=5, norm='none', dropout=0.0, last_activation='none', residual=True)
    config.discriminator.patchgan.norm = 'spectral'
    config.gan.update(mode='lsgan', weight=0.02)
    config.optim.update(schedule='cosine', b1=0.9)
    config.ema.decay = 0.999
    config.train.update(batch_size=16, steps=200_000)
    config.eval.batch_size = 8
    config.eval.names = ('noisy', 'denoised')
    return config
