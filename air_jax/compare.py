"""Which learner is best: every one on its own rounds, and all on one recorded set of marks.

    python -m air_jax.compare --codes=runs/cifar100_small/codes.npz --out=runs/compare

Leaves `compare.json` and `compare.md` in the folder. Stopped, the same command continues.
"""

import sys
from argparse import Namespace
from pathlib import Path

# The flags are read before JAX is imported: what needs JAX is imported where it is used.
from air_jax.runtime import cache, command_line
from air_jax.runtime.arguments import Arguments
from air_jax.runtime.progress import say


def main(arguments: list[str] | None = None) -> int:
    """Compare as the command line says; returns the exit status."""
    parser = Arguments("air_jax.compare", __doc__)
    add = parser.add_argument
    add("--codes", metavar="FILE", type=Path, required=True, help="a run's codes.npz")
    add(
        "--of",
        default="codes",
        help="the run's codes, its untrained net's (untrained), or codes of the same images that "
        "need no net: pixels, pca, kmeans, smt",
    )
    add("--out", metavar="FOLDER", type=Path, required=True, help="folder for what is found")
    parser.number("--queries", 1000, "held-out queries; 0: all", 0)
    parser.number("--validation", 500, "queries to choose constants by", 1)
    parser.number("--rounds", 3, "of feedback", 1)
    parser.number("--marks", 20, "images marked in each round", 1)
    add(
        "--metric",
        default="l2",
        help="of the first retrieval: l2, standardised, cosine, inner_product",
    )
    told = parser.parse_args(arguments)
    return command_line.guard(lambda: _run(told), told.out)


def _run(told: Namespace) -> None:
    say(f"loading JAX and the codes of {told.codes}")
    from air_jax.baselines import baseline_codes
    from air_jax.reproduce import compare_learners
    from air_jax.search import distances

    known = {"of": ("codes", "untrained", *baseline_codes.WITHOUT_NET), "metric": distances.METRICS}
    for flag, values in known.items():
        if getattr(told, flag) not in values:
            found, expected = getattr(told, flag), ", ".join(values)
            raise ValueError(f"--{flag}={found}: expected one of {expected}")
    cache.keep_compilations()
    compare_learners.run(**vars(told))


if __name__ == "__main__":
    sys.exit(main())
