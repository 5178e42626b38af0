"""A net for a folder of your own pictures: a few minutes for 2,000 pictures on two cores.

    launch/cpu.sh --config=configs/folder.py --config.data.dir=FOLDER
    python -m air_jax.index --images=FOLDER --model=runs/folder --out=runs/my_index

Nothing is downloaded, and no labels are needed. If sub-folders sort the pictures by what is in
them, the run also says how well the codes find pictures of the same sub-folder; docs/results.md
explains the rule.

Took 2 min 57 s for the 2,197 small pictures of `python -m air_jax.demo_images`, on two cores of an
Intel Xeon, JAX 0.10.2: mAP 0.992 for telling digits from shapes (pixels 0.910). The rate and the
number of epochs were not tuned.
"""

from air_jax.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "folder"
    # Pixels a side; a multiple of 8. Twice the side is four times the memory and training time.
    config.data.size = 32
    config.data.split = "official"  # a tenth of each class, never trained on
    config.model.encoder = "conv"
    config.train.objective = "contrastive"
    config.train.view_size = 16
    config.train.epochs = 60
    config.train.batch = 32  # a folder may be small
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 5e-3
    config.train.clip_norm = 5.0
    config.encode.readout = "whitened"
    config.retrieval.baselines = ("random", "pixels", "pca", "untrained")
    config.feedback.queries = 0
    return config
