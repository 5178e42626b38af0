"""Image codes from very deep convolutional autoencoders, retrieval, and relevance feedback."""

__version__ = "0.1.0"
