"""The split of the student project on SIDD: twelve tiles an image, 70/15/15, reduced to 408 and 96 pairs.

python -m p2p_jax.main --config=configs/sidd_tiles.py --config.data.dir=/path/to/sidd

It cut 4000×3000 into tiles of 1000×1000, trained on random crops of 256 and kept every test tile. Here the shares are
by scene, so that no scene is on both sides. No score is given here, for it has not been trained yet.
"""

from configs import default, sidd


def get_config() -> default.ConfigDict:
    """Returns the configuration."""
    config = sidd.get_config()
    config.data.tile_size = None
    config.data.grid = (3, 4)
    config.data.limit = (408, 96, None)
    config.train.update(steps=None, epochs=100)
    config.eval.crop_size = 256
    return config
