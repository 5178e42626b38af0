"""The nets, and images becoming codes.

In: uint8 images [B, S, S, C]. Out: codes [B, D] float32 and, in training, reconstructions.
`architecture` says which of the paper's nets, `autoencoder` holds its encoder and decoder and
builds them from `convolution`; `conv_net` holds the plain encoder and the projector of views. `net`
makes a module a pytree of parameters, `readout` is what is done to codes before they are compared,
`encode` runs a net over many images, `net_file` keeps a net in one file. On a CPU,
`winograd` is the convolution. Read `architecture`, then `autoencoder` first.
"""
