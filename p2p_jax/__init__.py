"""p2p_jax: one code base for paired-image GANs in JAX and Flax."""

__version__ = '0.1.0'
