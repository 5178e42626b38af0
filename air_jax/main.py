"""The whole way from images to feedback: `python -m air_jax.main --config=configs/depth40.py`."""

import json
import sys
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from air_jax import dry_run, pipeline, plan, report
from air_jax.progress import say
from air_jax.training_log import NonFiniteError
from air_jax.workdir import FIGURES_FOLDER, RESULTS_FILE, STAGES, WorkDir, all_needs

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

FAILED = 2
INTERRUPTED = 130  # the shell's code for Ctrl-C
DEEP = 40  # layers from which on a CPU is the wrong machine


def main(argv: list[str]) -> int:
    config = _CONFIG.value
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    default_path = Path("runs") / Path(config_file).stem
    path = default_path if _WORKDIR.value is None else Path(_WORKDIR.value)
    anew = _OVERWRITE.value
    try:
        wanted = _stages(_STAGES.value)
        job = plan.prepare(config)
        workdir = WorkDir(path, config, job.dataset.fingerprint())
        if anew:
            workdir.exists()
        else:
            workdir.check()
        _check_order(wanted, workdir, anew)
        if _DRY_RUN.value:
            print(dry_run.describe(job, workdir, wanted, anew))
            return 0
        if anew and (aside := workdir.set_aside()):
            say(f"the earlier run is now in {aside}")
        workdir.create()
        _hint(wanted, job, workdir)
        for stage in wanted:
            _do(stage, job, workdir)
    except KeyboardInterrupt:
        say(f"\ninterrupted; the same command continues in {path}")
        return INTERRUPTED
    except (ValueError, OSError, NonFiniteError) as error:
        if logging.level_debug():  # --verbosity=1
            raise
        _exit(str(error))
    if "report" in wanted:
        _show_report(workdir)
    return 0


def _stages(names: list[str]) -> list[str]:
    """The stages asked for, in the order in which they are done."""
    for name in names or [""]:
        if name not in STAGES:
            raise ValueError(f"--stages: {name!r} is not one of {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in names]


def _check_order(wanted: list[str], workdir: WorkDir, anew: bool) -> None:
    """Raise ValueError if a stage reads one that is neither done nor asked for."""
    to_do = [s for s in STAGES if s not in wanted and (anew or workdir.why_redo(s))]
    for stage in wanted:
        missing = [s for s in to_do if s in all_needs(stage)]
        if missing:
            reason = "not done yet" if anew else workdir.why_redo(missing[0])
            raise ValueError(
                f"stage {stage} needs {' and '.join(missing)}, to be done in {workdir.path} "
                f"({missing[0]}: {reason}): --stages={','.join([*missing, stage])}"
            )
    if wanted == ["report"] and len(to_do) == len(STAGES) - 1:
        raise ValueError(f"stage report: there is nothing to report in {workdir.path}")


def _hint(wanted: list[str], job: plan.Job, workdir: WorkDir) -> None:
    depth = job.config.model.depth
    trains = "train" in wanted and workdir.why_redo("train")
    if trains and depth >= DEEP and jax.default_backend() == "cpu":
        say(
            f"hint: depth {depth} is for a GPU or TPU, and this is a CPU. --dry-run estimates "
            "the time; configs/cifar100_small.py is made for two cores."
        )


def _do(stage: str, job: plan.Job, workdir: WorkDir) -> None:
    """Do a stage unless it is done and current, saying which and why."""
    reason = workdir.why_redo(stage)
    if reason is None:
        say(f"{stage}: done before")
        return
    say(f"{stage}: {reason}" if reason != "not done yet" else f"{stage}:")
    pipeline.run_stage(stage, job, workdir)


def _show_report(workdir: WorkDir) -> None:
    results = json.loads((workdir / RESULTS_FILE).read_text())
    say(f"\n{report.table(results)}\n\n{workdir / RESULTS_FILE}, {workdir / FIGURES_FOLDER}/*.png")


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse flags; a config file or key that does not exist is an error in one line."""
    files = [arg.partition("=")[2] for arg in argv if arg.startswith(("--config=", "-config="))]
    for file in files:
        if not Path(file.partition(":")[0]).is_file():
            _exit(f"--config={file}: there is no such file")
    try:
        others = app.parse_flags_with_usage(argv)[1:]
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections puts one exception into another; the innermost says what is wrong.
        while error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        text = str(error.args[0] if error.args else error).replace("\n", ". ")
        _exit(f"{', '.join(files)}: {text}")
    except (SyntaxError, ImportError, NameError) as error:
        _exit(f"{', '.join(files)} cannot be loaded: {type(error).__name__}: {error}")
    if others:
        _exit(f"unexpected argument {others[0]!r}; flags begin with --")
    if _CONFIG.value is None:
        _exit("--config=FILE is missing; --config=configs/quickstart.py needs no data")
    return argv[:1]


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(FAILED)


def run() -> None:
    """Entry point of `python -m air_jax.main`."""
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
