"""Figure 3 at a size for two cores, by comparing views: do depth, pooling and shortcuts matter?

    python -m air_jax.reproduce --config=configs/figure3_views_small.py

The encoders of `figure3_small` without their decoders, so without the symmetric configurations,
whose shortcuts lead into one. What else differs, the objective asks for: batch normalisation, a
code that is the mean of the last maps, so that views of 8x8 pixels and whole images have one, and
whitened codes.
"""

from air_jax.configs import contrastive_small, figure3, figure3_small


def get_config():
    config = figure3_small.get_config()
    views = contrastive_small.get_config()
    config.train = views.train
    config.train.view_size = 8
    config.train.batch = 160
    config.train.epochs = 6
    config.train.warmup_steps = 20
    config.encode = views.encode
    config.model.norm = "batch"
    config.model.code = "pooled"
    config.sweep.name = "figure3_views_small"
    config.sweep.nets = {
        name: {"model": changes["model"]}
        for name, changes in figure3.nets().items()
        if changes["model"]["skip"] != "symmetric"
    }
    return config
