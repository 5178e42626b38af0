"""Figure 4 at a size for two cores: the nets of `figure3_small`, and RED-Net beside them.

python -m air_jax.reproduce --config=configs/figure4_small.py
"""

from air_jax.configs import figure3_small, figure4


def get_config():
    return figure4.methods(figure3_small.get_config())
