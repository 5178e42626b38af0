"""Figure 3 at the paper's size: five configurations at four depths, three seeds. For a GPU.

    python -m air_jax.reproduce --config=configs/figure3.py

The two symmetric configurations are trained on clean images, by the letter, and on denoising too:
their shortcuts lead around the code. `figure3_small` is the same at a size for two cores. Not run
yet at this size; rate and clipping are those found at the small one (docs/paper.md, "Depth that
trains").
"""

from air_jax.configs import default

DEPTHS = (10, 20, 40, 60)
NETS = {  # pool, skip, corruption: the paper's configurations, named by --only
    "classic": (True, "none", "none"),
    "symmetric-pool": (True, "symmetric", "none"),  # Sortcut (con-decon)
    "symmetric": (False, "symmetric", "none"),  # NoP_sortcut (con-decon)
    "asymmetric-pool": (True, "asymmetric", "none"),  # Sortcut
    "asymmetric": (False, "asymmetric", "none"),  # NoP_sortcut
    "symmetric-pool-denoising": (True, "symmetric", "noise"),
    "symmetric-denoising": (False, "symmetric", "noise"),
}
NOISE = 0.5  # standard deviations of a pixel: RED-Net's middle levels

RATE = 0.1
# Of the gradient's norm. With 1.0 the deep classic and asymmetric nets stay at the mean image.
CLIP = {10: 1.0, 20: 1.0, 40: 0.2, 60: 0.2}
CLIP_SYMMETRIC = 1.0


def nets() -> dict:
    """What each net changes in the config, by name."""
    return {
        f"depth{depth}/{name}": {
            "model": {"depth": depth, "pool": pool, "skip": skip},
            "train": {
                "learning_rate": RATE,
                "clip_norm": CLIP_SYMMETRIC if skip == "symmetric" else CLIP[depth],
                "corruption": corruption,
                "corruption_amount": 0.0 if corruption == "none" else NOISE,
            },
        }
        for depth in DEPTHS
        for name, (pool, skip, corruption) in NETS.items()
    }


def get_config():
    config = default.get_config()
    config.train.dtype = "bfloat16"
    # Codes that need no net are evaluated once for the whole sweep.
    config.retrieval.baselines = ("random", "untrained")
    config.sweep = {
        "figure": "figure3",
        "name": "reproduction",  # its folder under runs/, shared with figure4
        "seeds": (0, 1, 2),
        "nets": nets(),
    }
    return config
