"""Data: what is on disk, and how it becomes batches."""

from p2p_jax.data import labelled, layouts
from p2p_jax.data.prepared import PREPARED
from p2p_jax.data.records import Layout
from p2p_jax.data.sample import SAMPLE

# In the order in which 'auto' tries them: what can be told apart surely comes first.
LAYOUTS: dict[str, Layout] = {
    'prepared': PREPARED,
    'sidd': layouts.SIDD,
    'sidd_blocks': layouts.SIDD_BLOCKS,
    'polyu': layouts.POLYU,
    'polyu_full': layouts.POLYU_FULL,
    'inria': layouts.INRIA,
    'fmd': layouts.FMD,
    'crops': layouts.CROPS,
    'cifar10': labelled.CIFAR10,
    'pairs': layouts.PAIRS,
    'list': layouts.LIST,
    'ffhq': layouts.FFHQ,
    'side_by_side': layouts.SIDE_BY_SIDE,
    'labelled': labelled.LABELLED,
    'clean': layouts.CLEAN,
    'tfds': labelled.TFDS,
    'sample': SAMPLE,
}
