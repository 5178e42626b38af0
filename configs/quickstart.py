"""Embedded handwritten digits: nothing to download, about a minute on two cores."""

from air_jax.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "digits"
    config.data.queries_per_class = 20
    config.model.depth = 10
    config.model.width = 16
    config.train.epochs = 10
    config.feedback.queries = 0
    return config
