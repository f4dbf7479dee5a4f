"""Your own image pairs, with the settings of pix2pix: two folders, images side by side, or a list of pairs.

python -m p2p_jax.main --config=configs/pairs.py --config.data.dir=/path/to/pairs
"""

from configs import default


def get_config() -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.train.update(steps=None, epochs=200)
    config.eval.update(every_steps=None, every_epochs=10)
    return config
