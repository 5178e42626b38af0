"""What cannot work is refused by the name of its key; `test_configs` tries configs at random."""

import pytest

from air_jax.run import config_checks


def check(config, mesh, images=80):
    config_checks.check_keys(config)
    config_checks.check_values(config)
    config_checks.check_fit(config, (8, 8, 3), images, 16, mesh)


@pytest.fixture
def config(small_config):
    small_config.retrieval.baselines = ("random", "pixels", "kmeans")
    return small_config


def test_the_small_config_is_let_pass(config, mesh4):
    check(config, mesh4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"data.size": -1}, "data.size=-1: expected 0 or more"),
        ({"data.loader": "grain"}, "data.loader='grain'"),
        ({"data.train_images": 81}, "data.train_images=81: expected from 0 .all. to the 80"),
        ({"model.depth": 7}, "model.depth=7"),
        ({"train.batch": 15}, "train.batch=15 does not divide over 4 devices.*is 16"),
        ({"train.batch": 84}, "train.batch=84 is larger than the training set of 80"),
        ({"train.batch": 0}, "train.batch=0"),
        ({"train.epochs": 0}, "train.epochs=0"),
        ({"train.epochs": 2**31 - 1}, "steps; expected 2,147,483,647 at most"),
        ({"train.steps_per_batch": 0}, "train.steps_per_batch=0"),
        ({"train.steps_per_call": -1}, "train.steps_per_call=-1"),
        ({"log.checkpoint_minutes": 0.0}, "log.checkpoint_minutes=0.0: expected a positive"),
        ({"train.schedule": "greedy", "train.epochs": 1}, "2 steps .* too few for the 3 pairs"),
        ({"train.greedy_share": 1.0}, "train.greedy_share=1.0"),
        ({"train.learning_rate": 0.0}, "train.learning_rate=0.0"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate=nan"),
        ({"train.momentum": 1.0}, "train.momentum=1.0"),
        ({"train.clip_norm": -1.0}, "train.clip_norm=-1.0"),
        ({"train.dtype": "float16"}, "train.dtype='float16'"),
        ({"train.lr_schedule": "step"}, "train.lr_schedule='step'"),
        ({"train.corruption": "blur"}, "train.corruption='blur'"),
        ({"train.corruption": "mask", "train.corruption_amount": 1.0}, "below 1"),
        ({"train.corruption": "mask"}, "both or neither"),
        ({"train.corruption_amount": 0.5}, "both or neither"),
        ({"encode.batch": 30}, "encode.batch=30: expected a multiple of the 4 devices"),
        ({"encode.batch": -4}, "encode.batch=-4"),
        ({"encode.batch": 2**32 - 4}, "encode.batch=4294967292: takes .* GiB at least"),
        ({"model.width": 2**20}, "model.width=1048576.*: takes .* GiB at least"),
        ({"model.encoder": "vit"}, "model.encoder='vit': expected one of paper, conv"),
        ({"train.objective": "jepa"}, "train.objective='jepa'"),
        ({"train.optimizer": "lion"}, "train.optimizer='lion'"),
        ({"encode.readout": "pca"}, "encode.readout='pca'"),
        ({"encode.readout_power": 2.0}, "encode.readout_power=2.0: expected from 0 to 1"),
        ({"encode.readout_dim": 0}, "encode.readout_dim=0"),
        ({"train.views": 1}, "train.views=1: expected at least 2"),
        ({"train.view_area": (0.6, 0.5)}, "train.view_area=.0.6, 0.5.: expected the smallest"),
        ({"train.view_area": (0.0, 0.5)}, "train.view_area"),
        ({"train.view_area": ("a", "b")}, "train.view_area=.*: expected numbers in a tuple"),
        ({"model.widths": (0.5,)}, "model.widths=.*: expected whole numbers in a tuple"),
        ({"model.encoder": "conv"}, "with model.encoder='conv': the decoder mirrors"),
        (
            {"train.objective": "contrastive", "model.skip": "symmetric"},
            "model.skip='symmetric' with train.objective='contrastive': there is no decoder",
        ),
        (
            {"train.objective": "contrastive", "model.skip_into": "both"},
            "model.skip_into='both' with train.objective",
        ),
        (
            {"train.objective": "contrastive", "model.input_residual": True},
            "model.input_residual=True with train.objective",
        ),
        (
            {"train.objective": "contrastive", "train.schedule": "greedy"},
            "train.schedule='greedy' with train.objective",
        ),
        (
            {"train.objective": "contrastive", "train.view_size": 4},
            "train.view_size=4 with model.code='dense'",
        ),
        (
            {
                **{"train.objective": "contrastive", "model.encoder": "conv"},
                **{"model.widths": (4, 8, 8), "model.blocks": (1, 1, 1), "train.view_size": 6},
            },
            "images of 6x6 pixels",
        ),
        (
            {
                **{"train.objective": "contrastive", "model.encoder": "conv"},
                **{"model.widths": (2**18, 2**18), "model.blocks": (1, 1)},
            },
            "model.widths=.262144, 262144.*: takes .* GiB at least",
        ),
        ({"retrieval.metric": "l1"}, "retrieval.metric='l1'"),
        ({"retrieval.precision": "float8"}, "retrieval.precision='float8'"),
        ({"retrieval.baselines": ("sift",)}, "retrieval.baselines: 'sift' is not one of random"),
        ({"feedback.learners": ("svc", "svn")}, "'svn' is not one of none, svc"),
        ({"feedback.learners": ()}, "feedback.learners is empty"),
        ({"feedback.show": "worst"}, "feedback.show='worst'"),
        ({"feedback.solver": "svm"}, "feedback.solver='svm': expected one of smo, sklearn"),
        ({"feedback.queries": -5}, "feedback.queries=-5"),
        ({"feedback.seed": -1}, "feedback.seed=-1"),
        ({"feedback.rounds": 0}, "feedback.rounds=0"),
        ({"feedback.marks_per_round": 0}, "feedback.marks_per_round=0"),
        ({"feedback.rounds": 6, "feedback.marks_per_round": 20}, "more images than the 80"),
        ({"report.learner": "lda"}, "report.learner='lda' is not one of feedback.learners"),
        ({"report.queries": 0}, "report.queries=0"),
        ({"report.queries": 16, "feedback.rounds": 12}, "208 rows of images; expected 200"),
        ({"log.every_steps": 0}, "log.every_steps=0"),
    ],
)
def test_what_cannot_work_is_an_error_that_names_the_key(config, mesh4, change, message):
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        check(config, mesh4)


@pytest.mark.parametrize(("name", "smallest"), [("kmeans", 8), ("smt", 12)])
def test_images_too_small_for_patches_are_an_error_that_names_the_side(
    config, mesh, name, smallest
):
    config.model.pool = False
    config.retrieval.baselines = ("random", name)
    config_checks.check_fit(config, (smallest, smallest, 3), 80, 16, mesh)
    side = smallest - 2
    message = f"'{name}' needs images of side {smallest} or more, these have {side}"
    with pytest.raises(ValueError, match=message):
        config_checks.check_fit(config, (side, side, 3), 80, 16, mesh)
