"""The whole of CIFAR-100 with a net that two cores train in under 20 minutes."""

from air_jax.configs import default


def get_config():
    config = default.get_config()
    config.data.split = "official"
    config.model.depth = 10
    config.model.width = 32
    config.train.epochs = 10
    return config
