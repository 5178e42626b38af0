"""The whole way from images to feedback: `python -m air_jax.main --config=configs/depth40.py`."""

import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from air_jax import pipeline, plan
from air_jax.progress import say
from air_jax.training_log import NonFiniteError
from air_jax.workdir import STAGES, WorkDir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; its keys can be changed by --config.KEY=VALUE."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. Default: runs/<name of the config file>."
)
_STAGES = flags.DEFINE_list(
    "stages", list(STAGES), f"Stages to do, comma-separated, of {', '.join(STAGES)}."
)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite", False, "Start anew; the folder that was there is kept aside."
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "Print the plan, parameters, memory and a time estimate; change nothing."
)
flags.DEFINE_alias("dry-run", "dry_run")

INTERRUPTED = 130  # the shell's code for Ctrl-C
DEEP = 40  # layers from which on a CPU is the wrong machine


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is not a flag; did you mean --{argv[1]}?")
    if _CONFIG.value is None:
        raise app.UsageError(
            "--config=FILE is missing; --config=configs/quickstart.py needs no data"
        )
    config = _CONFIG.value
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    path = Path(_WORKDIR.value or Path("runs") / Path(config_file).stem)
    try:
        wanted = _stages(_STAGES.value)
        job = plan.prepare(config)
        workdir = WorkDir(path, config, job.dataset.fingerprint())
        if not _OVERWRITE.value:
            workdir.check()
        if _DRY_RUN.value:
            print(plan.describe(job, workdir))
            return 0
        if _OVERWRITE.value and (aside := workdir.set_aside()):
            say(f"the earlier run is now in {aside}")
        workdir.create()
    except (ValueError, OSError) as error:
        return _fail(error)
    if jax.default_backend() == "cpu" and config.model.depth >= DEEP:
        say(
            f"hint: depth {config.model.depth} is for a GPU or TPU, and this is a CPU. "
            "--dry-run estimates the time; configs/cifar100_small.py is made for two cores."
        )
    try:
        for stage in wanted:
            _do(stage, job, workdir)
    except (NonFiniteError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        say(f"\ninterrupted; the same command continues in {path}")
        return INTERRUPTED
    return 0


def _stages(names: list[str]) -> list[str]:
    """The stages asked for, in the order in which they are done."""
    for name in names:
        if name not in STAGES:
            raise ValueError(f"--stages: {name!r} is not one of {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in names]


def _do(stage: str, job: plan.Job, workdir: WorkDir) -> None:
    """Do a stage unless it is done and current, saying which and why."""
    missing = [s for s in pipeline.NEEDS[stage] if workdir.why_redo(s)]
    if missing:
        raise FileNotFoundError(
            f"stage {stage} needs stage {missing[0]}, which in {workdir.path} is to be done "
            f"({workdir.why_redo(missing[0])}): --stages={missing[0]},{stage}"
        )
    reason = workdir.why_redo(stage)
    if reason is None:
        say(f"{stage}: done before")
        return
    say(f"{stage}: {reason}" if reason != "not done yet" else f"{stage}:")
    pipeline.run_stage(stage, job, workdir)


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse flags; a config key or file that does not exist is an error in one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = error.args[0] if error.args else error
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)


def run() -> None:
    """Entry point of `python -m air_jax.main`."""
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
