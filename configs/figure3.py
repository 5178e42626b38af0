"""Figure 3 at the paper's size: five configurations at four depths, three seeds. For a GPU.

    python -m air_jax.reproduce --config=configs/figure3.py

The two symmetric configurations are trained on clean images, by the letter, and on denoising too:
their shortcuts lead around the code. `figure3_small` is the same at a size for two cores. Not run
yet at this size; the rates are those that `figure3_small` was searched for.
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

# Learning rates by net, in the order of DEPTHS.
RATES = {
    "classic": (0.1, 0.1, 0.05, 0.05),
    "symmetric-pool": (0.1, 0.1, 0.1, 0.1),
    "symmetric": (0.1, 0.1, 0.1, 0.1),
    "asymmetric-pool": (0.1, 0.1, 0.1, 0.05),
    "asymmetric": (0.1, 0.1, 0.05, 0.1),
    "symmetric-pool-denoising": (0.1, 0.1, 0.1, 0.1),
    "symmetric-denoising": (0.1, 0.1, 0.1, 0.1),
}


def nets(rates: dict[str, tuple[float, ...]]) -> dict:
    """What each net changes in the config, by name; `rates` as `RATES`."""
    return {
        f"depth{depth}/{name}": {
            "model": {"depth": depth, "pool": pool, "skip": skip},
            "train": {
                "learning_rate": rates[name][place],
                "corruption": corruption,
                "corruption_amount": 0.0 if corruption == "none" else NOISE,
            },
        }
        for place, depth in enumerate(DEPTHS)
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
        "depths": DEPTHS,
        "nets": nets(RATES),
    }
    return config
