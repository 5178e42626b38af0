"""A net for a folder of your own pictures: a few minutes for 2,000 pictures on two cores.

    launch/cpu.sh --config=configs/folder.py --config.data.dir=FOLDER
    python -m air_jax.index --images=FOLDER --model=runs/folder --out=runs/my_index

Nothing is downloaded, and no labels are needed. If sub-folders sort the pictures by what is in
them, the run also says how well the codes find pictures of the same sub-folder; docs/results.md
explains the rule.

Took 4 min 16 s for the 2,197 small pictures of `python -m air_jax.demo_images`, of which training
took 2 min 11 s, on two cores of an Intel Xeon beside other work, JAX 0.12.0.1.
"""

from air_jax.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "folder"
    # Pixels a side; a multiple of 8. Twice the side is four times the memory and training time.
    config.data.size = 32
    config.data.split = "official"  # a tenth of each class, never trained on
    config.model.depth = 10
    config.model.width = 16
    config.model.norm = "group"
    config.train.epochs = 20
    config.train.batch = 32  # a folder may be small
    config.train.learning_rate = 0.1
    config.train.warmup_steps = 20
    config.retrieval.baselines = ("random", "pixels", "pca", "untrained")
    config.feedback.queries = 0
    return config
