"""Codes of the whole of CIFAR-100 by comparing views, in at most 20 minutes on two cores.

A plain convolutional net (278,000 parameters with its projector) learns, without labels, to give
random crops of one image the same embedding and to spread the images out.
"""

from air_jax.configs import default


def get_config():
    config = default.get_config()
    config.data.split = "official"
    config.retrieval.baselines += ("smt",)
    config.model.encoder = "conv"
    config.train.objective = "coding_rate"
    config.train.view_size = 16
    config.train.epochs = 12
    config.train.batch = 256
    config.train.optimizer = "adamw"
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 5e-3
    config.train.clip_norm = 5.0
    config.encode.readout = "whitened"
    config.log.probe_steps = 500
    return config
