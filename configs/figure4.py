"""Figure 4 at the paper's size: four methods over three rounds of feedback, three seeds. For a GPU.

    python -m air_jax.reproduce --config=configs/figure4.py

AIR is the `Sortcut` net of 40 layers, which `figure3` trains as well; EDSSCIR is RED-Net at the
same depth and width, trained on denoising; SSCAIR is a plain pooled autoencoder of 10 layers. The
same learners work on each method's own codes; Baseline is AIR's codes, no learning. Not run yet at
this size.
"""

from air_jax.configs import figure3

AIR, EDSSCIR, SSCAIR = "depth40/asymmetric-pool", "depth40/edsscir", "depth10/classic"


def get_config():
    return methods(figure3.get_config())


def methods(config):
    """Turn a config of Figure 3 into one of Figure 4."""
    of_figure3 = figure3.nets()
    denoising = of_figure3["depth40/symmetric-denoising"]
    edsscir = denoising | {"model": denoising["model"] | {"input_residual": True}}
    config.feedback.learners = ("svc", "svc_pseudo", "rocchio")
    config.sweep.figure = "figure4"
    config.sweep.nets = {
        AIR: of_figure3[AIR],
        EDSSCIR: edsscir,
        SSCAIR: of_figure3[SSCAIR],
    }
    config.sweep.methods = {"AIR": AIR, "EDSSCIR": EDSSCIR, "SSCAIR": SSCAIR}
    return config
