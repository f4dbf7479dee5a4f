"""Denoising of the PolyU photographs: 512² crops of real noisy / averaged pairs, split by scene.

python -m p2p_jax.main --config=configs/polyu.py --config.data.dir=/path/to/polyu

Validation PSNR 38.38 dB, noisy 36.94 dB (69 of the 100 crops, nine minutes on two CPU cores).
"""

from configs import default


def get_config() -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.layout = 'polyu'
    config.data.dir = 'data/polyu'
    config.data.crop_size = 96
    config.data.rotate = True
    config.value_range = (0.0, 1.0)
    config.generator.unet.update(depth=3, width=48, norm='none', dropout=0.0, last_activation='none', residual=True)
    config.generator.unet.init_std = 0.05  # without a norm, kernels of 0.02 make a signal too faint to learn from soon
    config.discriminator.patchgan.update(width=32, norm='spectral')
    config.gan.update(mode='lsgan', weight=0.02)
    config.optim.update(lr=1e-3, schedule='cosine', b1=0.9)
    config.optim.discriminator.lr = 2e-4
    config.ema.decay = 0.999
    config.train.update(batch_size=8, steps=3000)
    config.eval.every_steps = 1000
    config.eval.names = ('noisy', 'denoised')
    return config
