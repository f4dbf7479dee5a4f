"""Data: what is on disk, and how it becomes batches."""

from p2p_jax.data.records import PAIRS, POLYU, SIDD, Layout
from p2p_jax.data.sample import SAMPLE

LAYOUTS: dict[str, Layout] = {'pairs': PAIRS, 'polyu': POLYU, 'sample': SAMPLE, 'sidd': SIDD}
