"""Which images of a data set are queries and which are the database."""

import numpy as np

from air_jax.data.datasets import Dataset

SPLITS = ("paper", "official", "validation")


def split(
    dataset: Dataset, method: str, seed: int = 0, queries_per_class: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a data set into the database, which is also the training set, and the queries.

    Args:
        dataset: what to divide.
        method: "paper": `queries_per_class` random images of each class are queries (section
            IV.1); "official": the data set's own test part is; "validation": `queries_per_class`
            random images of each class of what "official" leaves as database, to choose by.
        seed: of the paper's random choice.
        queries_per_class: of the paper's random choice.

    Returns:
        Sorted positions in the data set: of the database [N] and of the queries [Q], int64.

    Raises:
        ValueError: unknown method, no official split, no labels to draw by, or a class with too
            few images.
    """
    if method not in SPLITS:
        raise ValueError(f"data.split={method!r}: expected one of {', '.join(SPLITS)}")
    candidates = np.arange(len(dataset.images))
    if method == "official":
        queries = np.flatnonzero(_test_part(dataset, method))
        if len(queries) in (0, len(candidates)):
            raise ValueError(
                f"data.split='official': {dataset.name} marks {len(queries)} of "
                f"{len(candidates)} images as queries; both parts need some"
            )
    else:
        if method == "validation":
            candidates = np.flatnonzero(~_test_part(dataset, method))
        queries = _draw(dataset, candidates, method, seed, queries_per_class)
    database = np.setdiff1d(candidates, queries)
    if dataset.labels is None:
        return database, queries
    orphans = np.setdiff1d(dataset.labels[queries], dataset.labels[database])
    if len(orphans):
        raise ValueError(
            f"class {dataset.class_names[orphans[0]]!r} has queries but no image of that class in "
            "the database: nothing would be relevant to them"
        )
    return database, queries


def _test_part(dataset: Dataset, method: str) -> np.ndarray:
    """[N] bool, the data set's own queries; ValueError if it has none."""
    if dataset.official_queries is None:
        raise ValueError(
            f"data.split={method!r}: {dataset.name} has no test part of its own; "
            "use data.split='paper'"
        )
    return dataset.official_queries


def _draw(
    dataset: Dataset, candidates: np.ndarray, method: str, seed: int, count: int
) -> np.ndarray:
    """`count` random ones of each class of some positions, at least one less than the class has."""
    if count < 1:
        raise ValueError(f"data.queries_per_class={count}: expected at least 1")
    if dataset.labels is None:
        raise ValueError(
            f"data.split={method!r} draws queries of each class, and {dataset.name} has no labels; "
            "use data.split='official'"
        )
    rng = np.random.default_rng(seed)
    drawn = []
    for label, class_name in enumerate(dataset.class_names):
        members = candidates[dataset.labels[candidates] == label]
        if len(members) <= count:
            raise ValueError(
                f"class {class_name!r} has {len(members)} images: the {method!r} split takes "
                f"{count} of each class as queries and needs some for the database as well; lower "
                "data.queries_per_class"
            )
        drawn.append(rng.choice(members, count, replace=False))
    return np.sort(np.concatenate(drawn))


def keep_per_class(labels: np.ndarray, positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` random ones of each class of some positions in a data set; sorted.

    Args:
        labels: [N] of the whole data set.
        positions: [P] of those to choose from.
        count: of each class; classes with fewer keep all.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(positions)
    kept = [shuffled[labels[shuffled] == c][:count] for c in np.unique(labels[positions])]
    return np.sort(np.concatenate(kept))
