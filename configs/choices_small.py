"""What the code of AIR's net should be: one factor changed at a time, on validation queries.

    python -m air_jax.reproduce --config=configs/choices_small.py

The net and size of `figure3_small` at 40 layers; queries are drawn from the database part of the
official split, so nothing is chosen on test queries. Greedy training and many steps on each batch
are compared at 10 layers, where a pair of layers gets enough steps.
"""

from air_jax.configs import figure3, figure3_small

BASE, SHALLOW = "base", "10 layers"
CHANGES: dict[str, dict] = {
    "code pooled": {"model": {"code": "pooled"}},
    "code conv": {"model": {"code": "conv"}},
    "shortcuts into decoder too": {"model": {"skip_into": "both"}},
    "masked input": {"train": {"corruption": "mask", "corruption_amount": 0.4}},
    "noisy input": {"train": {"corruption": "noise", "corruption_amount": figure3.NOISE}},
    "batch norm": {"model": {"norm": "batch"}},
    "group norm": {"model": {"norm": "group"}},
    "a third of the steps": {"train": {"epochs": 1}},
    "twice the steps": {"train": {"epochs": 6}},
    # What was found better, together.
    "group norm, noisy input": {
        "model": {"norm": "group"},
        "train": {"corruption": "noise", "corruption_amount": figure3.NOISE},
    },
    "group norm, shortcuts into decoder too": {"model": {"norm": "group", "skip_into": "both"}},
}
# 600 steps each; 20 on each batch need fewer images for that.
SHALLOW_CHANGES: dict[str, dict] = {
    SHALLOW: {},
    "10 layers, greedy": {"train": {"schedule": "greedy"}},
    "10 layers, 20 steps on each batch": {
        "data": {"train_images": 4800},
        "train": {"epochs": 1, "steps_per_batch": 20},
    },
}


def get_config():
    config = figure3_small.get_config()
    config.data.split = "validation"
    config.data.queries_per_class = 20
    base = figure3.nets()["depth40/asymmetric-pool"]
    shallow = figure3.nets()["depth10/asymmetric-pool"]
    shallow["train"]["epochs"] = 12
    nets = {BASE: base}
    nets |= {name: _changed(base, change) for name, change in CHANGES.items()}
    nets |= {name: _changed(shallow, change) for name, change in SHALLOW_CHANGES.items()}
    config.sweep = {
        "figure": "choices",
        "name": "choices_small",
        "seeds": (0, 1, 2),
        "nets": nets,
        # What each is compared with, in the order of the table.
        "compared_with": tuple((name, BASE) for name in (BASE, *CHANGES))
        + tuple((name, SHALLOW) for name in SHALLOW_CHANGES),
    }
    return config


def _changed(net: dict, change: dict) -> dict:
    """A net's changes to the config, and some more."""
    return {section: net.get(section, {}) | change.get(section, {}) for section in {*net, *change}}
