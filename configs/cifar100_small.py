"""The whole of CIFAR-100 with a net that two cores train in 13 minutes.

A `Sortcut` net of the paper, at 10 layers and half the width; 50,000 database images, the 10,000
official test images as queries, feedback on 1,000 of them.

Reached (one seed): mAP 0.0253 (PCA 0.0244, pixels 0.0238); `svc` 0.0509 after three rounds.
Took 12 min 46 s of training and 6 min 15 s for the rest (without the codes of patches) on two cores
of an Intel Xeon as two JAX devices, JAX 0.12.0.1. Command, from the repository's root, which makes
a device of each core:
    launch/cpu.sh --config=configs/cifar100_small.py
"""

from air_jax.configs import default


def get_config():
    config = default.get_config()
    config.data.split = "official"
    config.retrieval.baselines += ("smt",)
    config.model.depth = 10
    config.model.width = 32
    config.train.epochs = 8
    config.train.learning_rate = 0.1  # by the loss on images of the database that were held out
    return config
