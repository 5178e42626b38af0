"""The whole way from images to feedback: `python -m air_jax.main --config=configs/depth40.py`."""

import json
from pathlib import Path

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from air_jax.run import dry_run, jobs, pipeline, report
from air_jax.run.work_directory import FIGURES_FOLDER, RESULTS_FILE, STAGES, WorkDir, all_needs
from air_jax.runtime import cache, command_line, distributed
from air_jax.runtime.progress import say

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, or the name of one of air_jax's own; --config.KEY=VALUE changes a key.",
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

DEEP = 40  # layers from which on a CPU is the wrong machine


def main(argv: list[str]) -> int:
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    default_path = Path("runs") / Path(config_file).stem
    path = default_path if _WORKDIR.value is None else Path(_WORKDIR.value)
    return command_line.guard(lambda: _run(_CONFIG.value, path), path)


def _run(config: ml_collections.ConfigDict, path: Path) -> None:
    wanted = _stages(_STAGES.value)
    anew = _OVERWRITE.value
    job = jobs.prepare(config)
    workdir = WorkDir(path, config, job.dataset.fingerprint())
    if anew:
        workdir.exists()
    else:
        workdir.check()
    _check_order(wanted, workdir, anew)
    if _DRY_RUN.value:
        say(dry_run.describe(job, workdir, wanted, anew))
        return
    distributed.barrier()  # all have looked before the first one changes the folder
    if anew and distributed.is_first() and (aside := workdir.set_aside()):
        say(f"the earlier run is now in {aside}")
    with workdir.opened():
        cache.keep_compilations()
        _hint(wanted, job, workdir)
        for stage in wanted:
            pipeline.do_stage(stage, job, workdir)
        if "report" in wanted:
            _show_report(workdir)


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


def _hint(wanted: list[str], job: jobs.Job, workdir: WorkDir) -> None:
    depth = job.config.model.depth
    trains = "train" in wanted and workdir.why_redo("train")
    if trains and depth >= DEEP and jax.default_backend() == "cpu":
        say(
            f"hint: depth {depth} is for a GPU or TPU, and this is a CPU. --dry-run estimates "
            "the time; configs/cifar100_small.py is made for two cores."
        )


def _show_report(workdir: WorkDir) -> None:
    results = json.loads((workdir / RESULTS_FILE).read_text())
    say(f"\n{report.table(results)}\n\n{workdir / RESULTS_FILE}, {workdir / FIGURES_FOLDER}/*.png")


if __name__ == "__main__":
    command_line.run(main)
