"""The paper's figures: `python -m air_jax.reproduce --config=configs/figure3.py`.

Trains and evaluates the nets of a sweep, and writes `<figure>.json`, `<figure>.png` and
`claims.md`, which says which of the paper's claims hold (a sweep of choices writes `choices.md`).
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections

# The flags are read before JAX is imported: what needs JAX is imported where it is used.
from air_jax.runtime import cache, command_line, distributed
from air_jax.runtime.arguments import Arguments, names
from air_jax.runtime.progress import say

if TYPE_CHECKING:
    from air_jax.reproduce.sweep import Member
    from air_jax.run.jobs import Job

# One seed of each net, a few steps on few small images: no claim can be decided.
_SMOKE_SIZE = {
    "data": {
        "size": 16,
        "keep_database_per_class": 10,
        "keep_queries_per_class": 2,
        "train_images": 0,
    },
    "model": {"width": 8, "pools": 2},
    "train": {"epochs": 2, "dtype": "float32", "warmup_steps": 2},
    "feedback": {"queries": 100},
    "sweep": {"seeds": (0,)},
}
SOME_MEMBERS_FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says of a sweep; returns the exit status."""
    flags = parser()
    told, config = command_line.start(flags, arguments)
    if "sweep" not in config:
        flags.error(
            "this config is no sweep; give configs/figure3.py, or use python -m air_jax.main"
        )
    if told.smoke:
        config.update(_SMOKE_SIZE)
        config.sweep.name += "_smoke"
    path = Path("runs") / config.sweep.name if told.workdir is None else Path(told.workdir)
    failed: list[str] = []
    status = command_line.guard(lambda: failed.extend(_run(told, config, path)), path)
    return status or (SOME_MEMBERS_FAILED if failed else 0)


def parser() -> Arguments:
    """The flags of the command."""
    made = command_line.arguments_of_run("air_jax.reproduce", __doc__)
    add = made.add_argument
    add("--workdir", help="folder of the sweep; default: runs/<sweep.name of the config>")
    add(
        "--only",
        type=names,
        default=[],
        help="do only members whose names begin so, comma-separated: depth40/asymmetric",
    )
    add(
        "--part",
        metavar="I/N",
        default="0/1",
        help="do every Nth of these from the Ith on, from 0; the others are left to others",
    )
    add(
        "--stages",
        type=names,
        default="members,report",
        help="what to do, comma-separated, of members, report",
    )
    add(
        "--overwrite",
        action="store_true",
        help="start the chosen members anew; what was there is kept aside",
    )
    add(
        "--smoke",
        action="store_true",
        help="a size that shows in minutes that everything works, and decides nothing",
    )
    add(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="say what is done, what is left and how long it takes; change nothing",
    )
    return made


def _run(told: Namespace, config: ml_collections.ConfigDict, path: Path) -> list[str]:
    """Returns the names of the members that failed."""
    for stage in told.stages:
        if stage not in ("members", "report"):
            raise ValueError(f"--stages: {stage!r} is not one of members, report")
    say("loading JAX and the images")
    from air_jax.reproduce import sweep
    from air_jax.reproduce.figures import FIGURES
    from air_jax.run import jobs

    job = jobs.load(config)
    figure = FIGURES.get(config.sweep.figure)
    if figure is None:
        known = ", ".join(FIGURES)
        raise ValueError(f"sweep.figure={config.sweep.figure!r}: expected one of {known}")
    members = sweep.make_members(job, path)
    chosen = sweep.part(sweep.select(members, told.only), told.part)
    anew = told.overwrite and "members" in told.stages
    if not anew or not told.dry_run:
        sweep.prepare(chosen, anew)
    if told.dry_run:
        say(sweep.describe(chosen, figure.stages))
        return []
    path.mkdir(parents=True, exist_ok=True)
    cache.keep_compilations()
    failed = []
    if "members" in told.stages:
        failed = sweep.run(chosen, figure.stages)
    if "report" in told.stages:
        _report(job, members, path)
    if distributed.is_first():
        for name in failed:
            say(f"failed: {name} ({sweep.error_of(next(m for m in members if m.name == name))})")
    return failed


def _report(job: "Job", members: "list[Member]", path: Path) -> None:
    """Write what the members that are done show, and say the main of it."""
    from air_jax.reproduce import figures, pages

    baselines = figures.baselines(job, path)
    if not distributed.is_first():
        return
    written = pages.write(job, members, baselines, path)
    summary = (path / written[-1]).read_text().partition(pages.DETAILS)[0].strip()
    say(f"\n{summary}\n")
    say(", ".join(str(path / name) for name in written))


if __name__ == "__main__":
    sys.exit(main())
