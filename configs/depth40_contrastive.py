"""The paper's encoder of `depth40` by comparing views, without its decoder. Needs a GPU; never run.

Two things differ from `depth40`, because the objective asks for them: batch normalisation, and a
code that is the mean of the last maps, so that small views and whole images have one.

    launch/gpu.sh --config=configs/depth40_contrastive.py
"""

from air_jax.configs import contrastive_small


def get_config():
    config = contrastive_small.get_config()
    config.model.encoder = "paper"
    config.model.depth = 40
    config.model.norm = "batch"
    config.model.code = "pooled"
    config.train.dtype = "bfloat16"
    config.encode.batch = 2048
    return config
