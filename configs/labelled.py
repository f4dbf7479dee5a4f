"""Label to image on your own pictures: a folder (or .zip) with one folder of pictures for each class.

python -m p2p_jax.main --config=configs/labelled.py --config.data.dir=/path/to/flowers

The folders' names are the labels; pictures may have any sizes, of each the central square is taken. The classes are
seen equally often, however many pictures each has, and what D is shown is augmented, for such sets are small. The size
of the results is that of data.crop_size and data.resize together, 32, 64 or 128. `prepare` with the same flags stores
the squares once, where reading and resizing are slow.
"""

from configs import cifar10, default


def get_config() -> default.ConfigDict:
    """Returns the configuration."""
    config = cifar10.get_config()
    config.data.update(dir='data/labelled', classes=(), crop_size=64, square=True, resize=64, balanced=True)
    config.data.split = (0.8, 0.1, 0.1)
    config.train.steps = 50_000
    return config
