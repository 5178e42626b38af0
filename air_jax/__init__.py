"""Image codes from very deep convolutional autoencoders, retrieval, and relevance feedback."""

from air_jax.runtime import cpu_flags

cpu_flags.prefer_fast_convolutions()  # XLA reads its flags once, when JAX first computes

__version__ = "0.1.0"
