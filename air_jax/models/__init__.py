"""The nets, and images becoming codes.

In: uint8 images [B, S, S, C]. Out: codes [B, D] float32 and, in training, reconstructions.
`autoencoder` builds the paper's nets from `convolution`; `encode` runs them over many images.
Read `autoencoder` first.
"""
