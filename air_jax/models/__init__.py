"""The nets, and images becoming codes.

In: uint8 images [B, S, S, C]. Out: codes [B, D] float32 and, in training, reconstructions.
`architecture` says which net, `autoencoder` holds the encoder and the decoder and builds them from
`convolution`, `net` makes an autoencoder a pytree of parameters, `encode` runs a net over many
images, `net_file` keeps a net in one file. `manifold_transform` describes images without a net, by
their `patches`. Read `architecture`, then `autoencoder` first.
"""
