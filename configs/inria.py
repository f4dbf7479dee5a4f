"""Masks of buildings to aerial photographs: Inria's tiles cut 2×2, each resized to 286, random crops of 256.

python -m p2p_jax.main prepare --config=configs/inria.py --config.data.dir=/path/to/inria --output=/path/to/tiles
python -m p2p_jax.main --config=configs/inria.py --config.data.dir=/path/to/tiles

The images that the set holds out, 1 to 5 of each city, are the test; --config.data.own_split=False and
--config.data.split='(0.75, 0.0833, 0.1667)' give 135, 15 and 30 images of any numbers: 540, 60 and 120 parts.
No score is given here, for it has not been trained yet.
"""

from configs import default


def get_config() -> default.ConfigDict:
    """Returns the configuration."""
    config = default.get_config()
    config.data.layout = 'inria'
    config.data.dir = 'data/AerialImageDataset'
    config.data.mask_values = (0, 255)
    config.data.grid = (2, 2)
    config.data.resize = 286
    config.data.rotate = True
    config.eval.names = ('mask', 'generated')
    config.train.update(steps=None, epochs=900)
    config.eval.update(every_steps=None, every_epochs=50)
    return config
