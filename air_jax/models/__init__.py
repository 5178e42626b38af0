"""The nets, and images becoming codes.

In: uint8 images [B, S, S, C]. Out: codes [B, D] float32 and, in training, reconstructions.
`architecture` says which net, `autoencoder` builds it from `convolution`, `net` makes it a pytree
of parameters, `encode` runs it over many images, `net_file` keeps it in one file.
Read `architecture` and `autoencoder` first.
"""
