"""Codes of CIFAR-100 by comparing views, at a size for one GPU: meant to take about five minutes.

ResNet-18's widths and blocks, bfloat16, 16 random views of each image. Never run on a GPU so far:
its time, and how good its codes are, are not known, and no value was chosen by a measurement.

    launch/gpu.sh --config=configs/contrastive.py
"""

from air_jax.configs import contrastive_small


def get_config():
    config = contrastive_small.get_config()
    config.model.widths = (64, 128, 256, 512)
    config.model.blocks = (2, 2, 2, 2)
    config.model.residual = True
    config.train.views = 16
    config.train.view_size = 0  # the images' 32 pixels
    config.train.dtype = "bfloat16"
    config.train.epochs = 11
    config.encode.batch = 2048
    config.log.probe_steps = 500
    return config
