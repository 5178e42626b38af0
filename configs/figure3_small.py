"""Figure 3 at a size for two cores: the same nets, narrow, on small images; three seeds.

    python -m air_jax.reproduce --config=configs/figure3_small.py

Images at 16x16 pixels, width 8; 10,000 images in the database, of which 8,000 are trained on, and
2,000 queries, all of the official split. Two poolings where the paper's size has three: maps end
at 4x4 in both.
"""

from air_jax.configs import figure3


def get_config():
    config = figure3.get_config()
    config.data.split = "official"
    config.data.size = 16
    config.data.keep_database_per_class = 100
    config.data.keep_queries_per_class = 20
    config.model.width = 8
    config.model.pools = 2
    config.data.train_images = 8000
    config.train.epochs = 3
    config.train.warmup_steps = 20
    config.train.dtype = "float32"
    config.log.every_steps = 5
    config.feedback.queries = 500
    config.sweep.name = "reproduction_small"
    return config
