"""The whole way from images to feedback: `python -m air_jax.main --config=configs/depth40.py`."""

import json
import sys
from pathlib import Path

import ml_collections

# The flags are read before JAX is imported: what needs JAX is imported where it is used.
from air_jax.run.work_directory import FIGURES_FOLDER, RESULTS_FILE, STAGES, WorkDir, all_needs
from air_jax.runtime import cache, command_line, distributed
from air_jax.runtime.arguments import Arguments, names
from air_jax.runtime.progress import say

DEEP = 40  # layers from which on a CPU is the wrong machine


def main(arguments: list[str] | None = None) -> int:
    """Do the run that the command line tells of; returns the exit status."""
    told, config = command_line.start(parser(), arguments)
    path = Path("runs") / Path(told.config).stem if told.workdir is None else Path(told.workdir)
    return command_line.guard(
        lambda: _run(config, path, told.stages, told.overwrite, told.dry_run), path
    )


def parser() -> Arguments:
    """The flags of the command."""
    made = command_line.arguments_of_run("air_jax.main", __doc__)
    add = made.add_argument
    add("--workdir", help="folder of the run; default: runs/NAME of the config file")
    add(
        "--stages",
        type=names,
        default=",".join(STAGES),
        help="stages to do, comma-separated",
    )
    add("--overwrite", action="store_true", help="start anew; the folder there is kept aside")
    add(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="print the plan, parameters, memory and a time estimate; change nothing",
    )
    return made


def _run(
    config: ml_collections.ConfigDict, path: Path, stages: list[str], anew: bool, plan_only: bool
) -> None:
    wanted = _stages(stages)
    say("loading JAX and the images")
    from air_jax.run import dry_run, jobs, pipeline

    job = jobs.prepare(config)
    workdir = WorkDir(path, config, job.dataset.fingerprint())
    if anew:
        workdir.exists()
    else:
        workdir.check()
    _check_order(wanted, workdir, anew)
    if plan_only:
        say(dry_run.describe(job, workdir, wanted, anew))
        return
    distributed.barrier()  # all have looked before the first one changes the folder
    if anew and distributed.is_first() and (aside := workdir.set_aside()):
        say(f"the earlier run is now in {aside}")
    with workdir.opened():
        cache.keep_compilations()
        _hint(wanted, config.model.depth, workdir)
        for stage in wanted:
            pipeline.do_stage(stage, job, workdir)
        if "report" in wanted:
            _show_report(workdir)


def _stages(asked: list[str]) -> list[str]:
    """The stages asked for, in the order in which they are done."""
    for name in asked:
        if name not in STAGES:
            raise ValueError(f"--stages: {name!r} is not one of {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in asked]


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


def _hint(wanted: list[str], depth: int, workdir: WorkDir) -> None:
    from air_jax.runtime import sharding

    trains = "train" in wanted and workdir.why_redo("train")
    if trains and depth >= DEEP and sharding.on_cpu():
        say(
            f"hint: depth {depth} is for a GPU or TPU, and this is a CPU. --dry-run estimates "
            "the time; configs/cifar100_small.py is made for two cores."
        )


def _show_report(workdir: WorkDir) -> None:
    from air_jax.run import report

    results = json.loads((workdir / RESULTS_FILE).read_text())
    say(f"\n{report.table(results)}\n\n{workdir / RESULTS_FILE}, {workdir / FIGURES_FOLDER}/*.png")


if __name__ == "__main__":
    sys.exit(main())
