"""20 layers, pooled, asymmetric shortcuts: a `Sortcut` net of Figure 3. The paper's size."""

from air_jax.configs import default, figure3


def get_config():
    config = default.get_config()
    config.update(figure3.nets()["depth20/asymmetric-pool"])
    return config
