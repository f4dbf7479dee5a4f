"""Label maps to façades: the CMP images as prepared for pix2pix, photograph left, labels right.

python -m p2p_jax.main --config=configs/facades.py --config.data.dir=/path/to/facades

No score is given here, for it has not been trained to the end yet.
"""

from configs import default


def get_config() -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.layout = 'side_by_side'
    config.data.dir = 'data/facades'
    config.data.direction = 'BtoA'
    config.data.resize = 286
    config.eval.names = ('labels', 'generated')
    config.train.update(steps=None, epochs=200)
    config.eval.update(every_steps=None, every_epochs=20)
    return config
