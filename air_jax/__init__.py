"""Image codes from very deep convolutional autoencoders, retrieval, and relevance feedback."""

from air_jax.runtime import cpu

cpu.prefer_fast_convolutions()  # XLA reads its flags once, when JAX first computes
cpu.share_one_heap()

__version__ = "0.1.0"
