"""20 layers, pooled, asymmetric shortcuts: a `Sortcut` net of Figure 3. The paper's size."""

from air_jax.configs import default


def get_config():
    config = default.get_config()
    config.model.depth = 20
    return config
