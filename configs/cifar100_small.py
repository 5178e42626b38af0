"""The whole of CIFAR-100 with a net that two cores train in under 20 minutes.

A `Sortcut` net of the paper, at 10 layers and half the width; 50,000 database images, the 10,000
official test images as queries, feedback on 1,000 of them.
"""

from air_jax.configs import default


def get_config():
    config = default.get_config()
    config.data.split = "official"
    config.model.depth = 10
    config.model.width = 32
    config.train.epochs = 8
    config.train.learning_rate = 0.1  # by the loss on images of the database that were held out
    return config
