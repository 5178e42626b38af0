"""Which learner is best: every one on its own rounds, and all on one recorded set of marks.

    python -m air_jax.compare --codes=runs/cifar100_small/codes.npz --out=runs/compare

Leaves `compare.json` and `compare.md` in the folder. Stopped, the same command continues.
"""

import sys
from pathlib import Path

from air_jax.reproduce import compare_learners
from air_jax.runtime import cache, command_line
from air_jax.runtime.arguments import Arguments
from air_jax.search import baselines, distances


def main(arguments: list[str] | None = None) -> int:
    """Compare as the command line says; returns the exit status."""
    parser = Arguments("air_jax.compare", __doc__)
    add = parser.add_argument
    add("--codes", metavar="FILE", type=Path, required=True, help="a run's codes.npz")
    add(
        "--of",
        choices=["codes", "untrained", *baselines.WITHOUT_NET],
        default="codes",
        help="the run's, its untrained net's, or some of the same images that need no net",
    )
    add("--out", metavar="FOLDER", type=Path, required=True, help="folder for what is found")
    parser.number("--queries", 1000, "held-out queries; 0: all", 0)
    parser.number("--validation", 500, "queries to choose constants by", 1)
    parser.number("--rounds", 3, "of feedback", 1)
    parser.number("--marks", 20, "images marked in each round", 1)
    add("--metric", choices=distances.METRICS, default="l2", help="of the first retrieval")
    told = parser.parse_args(arguments)
    cache.keep_compilations()
    return command_line.guard(lambda: compare_learners.run(**vars(told)), told.out)


if __name__ == "__main__":
    sys.exit(main())
