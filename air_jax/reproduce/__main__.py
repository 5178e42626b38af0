"""The paper's figures: `python -m air_jax.reproduce --config=configs/figure3.py`.

Trains and evaluates the nets of a sweep, and writes `<figure>.json`, `<figure>.png` and
`claims.md`: which of the paper's claims hold.
"""

from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from air_jax.reproduce import figures, report, sweep
from air_jax.reproduce.figures import FIGURES
from air_jax.run import jobs
from air_jax.runtime import cache, command_line, distributed
from air_jax.runtime.progress import say

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file with a sweep, or the name of one of air_jax's own; --config.KEY=VALUE changes it.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the sweep. Default: runs/<sweep.name of the config>."
)
_ONLY = flags.DEFINE_list(
    "only", [], "Do only members whose names begin so, comma-separated: depth40/asymmetric"
)
_PART = flags.DEFINE_string(
    "part", "0/1", "I/N: of these every Nth from the Ith on, from 0; the others are left to others."
)
_STAGES = flags.DEFINE_list(
    "stages", ["members", "report"], "What to do, comma-separated, of members, report."
)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite", False, "Start the chosen members anew; what was there is kept aside."
)
_SMOKE = flags.DEFINE_boolean(
    "smoke", False, "A size that shows in minutes that everything works, and decides nothing."
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "Say what is done, what is left and how long it takes; change nothing."
)
flags.DEFINE_alias("dry-run", "dry_run")

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


def main(argv: list[str]) -> int:
    config = _CONFIG.value
    if "sweep" not in config:
        command_line.fail(
            "this config is no sweep; give configs/figure3.py, or use python -m air_jax.main"
        )
    if _SMOKE.value:
        config.update(_SMOKE_SIZE)
        config.sweep.name += "_smoke"
    path = Path("runs") / config.sweep.name if _WORKDIR.value is None else Path(_WORKDIR.value)
    failed: list[str] = []
    status = command_line.guard(lambda: failed.extend(_run(config, path)), path)
    return status or (SOME_MEMBERS_FAILED if failed else 0)


def _run(config: ml_collections.ConfigDict, path: Path) -> list[str]:
    """Returns the names of the members that failed."""
    job = jobs.load(config)
    for stage in _STAGES.value or [""]:
        if stage not in ("members", "report"):
            raise ValueError(f"--stages: {stage!r} is not one of members, report")
    figure = FIGURES.get(config.sweep.figure)
    if figure is None:
        known = ", ".join(FIGURES)
        raise ValueError(f"sweep.figure={config.sweep.figure!r}: expected one of {known}")
    members = sweep.make_members(job, path)
    chosen = sweep.part(sweep.select(members, _ONLY.value), _PART.value)
    anew = _OVERWRITE.value and "members" in _STAGES.value
    if not anew or not _DRY_RUN.value:
        sweep.prepare(chosen, anew)
    if _DRY_RUN.value:
        say(sweep.describe(chosen, figure.stages))
        return []
    path.mkdir(parents=True, exist_ok=True)
    cache.keep_compilations()
    failed = []
    if "members" in _STAGES.value:
        failed = sweep.run(chosen, figure.stages)
    if "report" in _STAGES.value:
        _report(job, members, path)
    if distributed.is_first():
        for name in failed:
            say(f"failed: {name} ({sweep.error_of(next(m for m in members if m.name == name))})")
    return failed


def _report(job: jobs.Job, members: list[sweep.Member], path: Path) -> None:
    """Write what the members that are done show, and say the main of it."""
    baselines = figures.baselines(job, path)
    if not distributed.is_first():
        return
    written = report.write(job, members, baselines, path)
    summary = (path / written[-1]).read_text().partition(report.DETAILS)[0].strip()
    say(f"\n{summary}\n")
    say(", ".join(str(path / name) for name in written))


if __name__ == "__main__":
    command_line.run(main)
