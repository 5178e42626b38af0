"""The paper's AIR encoder: 40 layers, pooled, asymmetric shortcuts (`Sortcut` in Figure 3).

The paper's size, for a GPU. `cifar100_small` is the same kind of net at a size for two cores.
"""

from air_jax.configs import default, figure3


def get_config():
    config = default.get_config()
    config.update(figure3.nets()["depth40/asymmetric-pool"])
    return config
