"""Which learner is best: every one on its own rounds, and all on one recorded set of marks.

    python -m air_jax.compare --codes=runs/cifar100_small/codes.npz --out=runs/compare

Leaves `compare.json` and `compare.md` in the folder. Stopped, the same command continues.
"""

import sys
from pathlib import Path

from air_jax.reproduce import compare_learners
from air_jax.runtime import cache, command_line
from air_jax.runtime.arguments import Arguments, whole_number
from air_jax.search import baselines, exact_search


def main(arguments: list[str] | None = None) -> int:
    """Compare as the command line says; returns the exit status."""
    parser = Arguments("air_jax.compare", __doc__)
    add, above_zero = parser.add_argument, whole_number(1)
    add("--codes", metavar="FILE", type=Path, required=True, help="a run's codes.npz")
    add(
        "--of", choices=["codes", "untrained", *baselines.WITHOUT_NET], default="codes",
        help="which codes: the run's, its untrained net's, or some of the same images that need "
        "no net",
    )  # fmt: skip
    add("--out", metavar="FOLDER", type=Path, required=True, help="folder for what is found")
    add(
        "--queries", metavar="N", type=whole_number(0), default=1000,
        help="held-out queries; 0: all",
    )  # fmt: skip
    add(
        "--validation", metavar="N", type=above_zero, default=500,
        help="queries to choose constants by",
    )  # fmt: skip
    add("--rounds", metavar="N", type=above_zero, default=3, help="of feedback")
    add("--marks", metavar="N", type=above_zero, default=20, help="images marked in each round")
    add("--metric", choices=exact_search.METRICS, default="l2", help="of the first retrieval")
    told = parser.parse_args(arguments)
    cache.keep_compilations()
    return command_line.guard(
        lambda: compare_learners.run(
            told.codes,
            told.of,
            told.out,
            queries=told.queries,
            validation=told.validation,
            rounds=told.rounds,
            marks=told.marks,
            metric=told.metric,
        ),
        told.out,
    )


if __name__ == "__main__":
    sys.exit(main())
