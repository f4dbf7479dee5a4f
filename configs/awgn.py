"""Gaussian denoising of grey photographs at one noise level, σ = 25 of 255, made on the fly.

python -m p2p_jax.main --config=configs/awgn.py --config.data.dir=/path/to/photographs

`:15`, `:25`, `:50`, or any other σ. The folder holds clean images; colour ones become grey, and with
--config.data.channels=3 stay as they are. A small NAFNet without a GAN.
"""

from configs import default


def get_config(sigma: str = '25') -> default.ConfigDict:
    """Returns the configuration for a standard deviation of `sigma` / 255."""
    std = default.number(sigma) / 255
    config = default.get_config()
    config.data.update(layout='clean', dir='data/photographs', channels=1, crop_size=64, rotate=True)
    config.degrade.name = 'awgn'
    config.degrade.awgn.std = (std, std)
    config.value_range = (0.0, 1.0)
    config.generator.name = 'nafnet'
    config.generator.nafnet.update(width=24, encoder_blocks=(1, 1, 1), middle_blocks=1, decoder_blocks=(1, 1, 1))
    config.gan.weight = 0.0
    config.loss.l1.weight = 0.0
    config.loss.psnr.weight = 1.0
    config.optim.update(name='adamw', lr=1e-3, b1=0.9, schedule='cosine', final_lr=1e-6)
    config.ema.decay = 0.999
    config.train.update(batch_size=16, steps=4000)
    config.eval.every_steps = 1000
    config.eval.names = ('noisy', 'denoised')
    return config
