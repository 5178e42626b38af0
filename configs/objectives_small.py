"""What a net is trained for, and how long: first retrieval by objective, on the whole of CIFAR-100.

    python -m air_jax.reproduce --config=configs/objectives_small.py

The nets of `contrastive_small` and `cifar100_small`, trained from the start for each length. One
seed, the third of `contrastive_small`: its longest member is that config without feedback, and the
longest by reconstruction is `cifar100_small`.
"""

from air_jax.configs import cifar100_small, contrastive_small

EPOCHS = {"contrastive": (1, 4, 14), "coding_rate": (1, 4), "reconstruction": (1, 8)}


def get_config():
    config = contrastive_small.get_config()
    config.retrieval.baselines = ("random", "untrained")  # the others are made once for the sweep
    config.log.probe_steps = 0
    config.sweep = {
        "figure": "objectives",
        "name": "objectives_small",
        "seeds": (2,),
        "nets": {
            f"{objective}/{epochs} epochs": _changes(objective, epochs)
            for objective, lengths in EPOCHS.items()
            for epochs in lengths
        },
    }
    return config


def _changes(objective: str, epochs: int) -> dict:
    if objective != "reconstruction":
        return {"train": {"objective": objective, "epochs": epochs}}
    paper = cifar100_small.get_config()
    return {
        "model": paper.model.to_dict(),
        "train": paper.train.to_dict() | {"epochs": epochs},
        "encode": paper.encode.to_dict(),
    }
