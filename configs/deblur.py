"""Deblurring of faces: FFHQ at 256², blurred by a lens on the fly, L1×100 + GAN.

python -m p2p_jax.main prepare --config=configs/deblur.py --config.data.dir=/path/to/ffhq --output=/path/to/faces
python -m p2p_jax.main --config=configs/deblur.py --config.data.dir=/path/to/faces

The student project took n of the images, 8:2: --config.data.own_split=False --config.data.split='(0.8, 0.1, 0.1)'
--config.data.limit='(800, 100, 100)' for n = 1000. No score is given here, for it has not been trained yet.
"""

from configs import default


def get_config() -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.layout = 'ffhq'
    config.data.dir = 'data/ffhq'
    config.data.resize = 256
    config.degrade.name = 'lens_blur'
    config.eval.names = ('blurred', 'deblurred')
    return config
