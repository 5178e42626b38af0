"""The paper's claims as sums of intervals, and whether they hold.

A claim says that some retrieval is better than another. Each such comparison is the difference of
their average precisions, query by query, with a 95 % bootstrap interval over classes, then queries
within them; several training seeds are pooled by averaging each query's AP over them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from air_jax.search import metrics

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
SEEDS_NEEDED = 3

# By training seed: a value for each query, NaN where it has none. [Q] float64.
Values = Mapping[int, np.ndarray]


def compare(what: str, better: Values, worse: Values, labels: np.ndarray) -> dict[str, Any]:
    """One comparison that a claim consists of, on the seeds that both have.

    Args:
        what: names it: "A - B".
        better: the values that the claim says are higher.
        worse: the others, of the same queries.
        labels: [Q] the queries' classes.

    Returns:
        {"what", "difference", "ci95", "seeds", "by_seed"}; the first two null, with a reason
        beside them, if there is no seed that both have, or no query has a value in both.
    """
    seeds = sorted(better.keys() & worse.keys())
    if not seeds:
        reason = "no seed of both is there"
        nothing = dict.fromkeys(("difference", "ci95")) | {"difference_reason": reason}
        return {"what": what, **nothing, "ci95_reason": reason, "seeds": 0, "by_seed": []}
    differences = np.stack([better[seed] - worse[seed] for seed in seeds])
    found = summary(dict(enumerate(differences)), labels, "difference")
    return {
        "what": what,
        **{key.replace("difference_ci95", "ci95"): value for key, value in found.items()},
        "seeds": len(seeds),
        "by_seed": [metrics.mean(row) for row in differences],
    }


def pool(values: Values) -> np.ndarray:
    """Each query's mean over the seeds in which it has a value; NaN if in none. [Q] float64."""
    rows = np.stack(list(values.values()))
    count = np.count_nonzero(~np.isnan(rows), axis=0)
    return np.divide(
        np.nansum(rows, axis=0), count, where=count > 0, out=np.full(rows.shape[1], np.nan)
    )


def summary(values: Values, labels: np.ndarray, key: str = "map") -> dict[str, Any]:
    """The mean of the pooled values and its interval, as {`key`, "`key`_ci95"}.

    Both are null, with a reason beside them, where no query has a value: only residual AP has none.
    """
    pooled = pool(values)
    mean, interval = metrics.mean(pooled), metrics.bootstrap_interval(pooled, labels)
    found: dict[str, Any] = {key: mean, f"{key}_ci95": interval}
    if mean is None:
        reason = "no query has an unmarked relevant image left"
        found |= {f"{key}_reason": reason, f"{key}_ci95_reason": reason}
    return found


def judge(
    name: str, statement: str, pairs: Iterable[tuple[str, Values, Values]], labels: np.ndarray
) -> dict[str, Any]:
    """A claim with its verdict.

    It holds when every interval lies above zero, with at least three seeds each; it does not hold
    when one lies below; it is undecided otherwise, and always with fewer than three seeds. One
    query has no interval, whatever its seeds say.

    Args:
        name: of the claim: "a".
        statement: what it says.
        pairs: all that it consists of: name, the values that it says are higher, the others.
        labels: [Q] the queries' classes.
    """
    comparisons = [compare(*pair, labels) for pair in pairs]
    seeds = min((c["seeds"] for c in comparisons), default=0)
    decided = [
        c
        for c in comparisons
        if c["seeds"] >= SEEDS_NEEDED and c["ci95"] is not None and len(labels) > 1
    ]
    above = [c for c in decided if c["ci95"][0] > 0]
    below = [c for c in decided if c["ci95"][1] < 0]
    if below:
        verdict = FAILS
    else:
        verdict = HOLDS if comparisons and len(above) == len(comparisons) else UNDECIDED
    open_count = len(comparisons) - len(above) - len(below)
    why = f"of {len(comparisons)} intervals {len(above)} above zero, {len(below)} below"
    if seeds < SEEDS_NEEDED:
        why += f"; {open_count} undecided, some for want of {SEEDS_NEEDED} seeds"
    elif open_count:
        why += f", {open_count} containing it"
    return {
        "claim": name,
        "statement": statement,
        "verdict": verdict,
        "why": why,
        "seeds": seeds,
        "comparisons": comparisons,
    }
