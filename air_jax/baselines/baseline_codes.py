"""Codes that need no net, which a net's codes have to beat.

They are pixels, their principal components, and two descriptions of an image by its patches,
reduced by PCA: k-means (Coates, Lee and Ng, 2011) and the sparse manifold transform (Chen and
others, 2022). Two cores make them in minutes: a deep code that loses to them needs a look.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from air_jax.baselines import kmeans, manifold_transform, patches, pca
from air_jax.runtime import cache
from air_jax.runtime.checksums import hash_of_array, hash_of_code

NAMES = ("random", "pixels", "pca", "kmeans", "smt", "untrained")  # reported beside the codes' mAP
WITHOUT_NET = ("pixels", "pca", "kmeans", "smt")
SMALLEST_SIDE = {  # of images, by name
    "kmeans": patches.smallest_side(kmeans.GRID),
    "smt": patches.smallest_side(manifold_transform.GRID),
}


def make(
    name: str, database: np.ndarray, queries: np.ndarray, code_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes that need no net, to be compared by Euclidean distance.

    Args:
        name: one of `WITHOUT_NET`: the pixels themselves, their first `code_dim` principal
            components, or those of k-means features or of the sparse manifold transform, of unit
            length (so L2 ranks as the cosine).
        database: [N, S, S, C] uint8; what is learnt is learnt on these.
        queries: [Q, S, S, C] uint8.
        code_dim: dimensions of the codes, but for the pixels.

    Returns:
        [N, D] and [Q, D] float32.

    Raises:
        ValueError: the images are smaller than `SMALLEST_SIDE` says.
    """
    check_side(name, database.shape[1])
    describe = pixel_codes
    if name == "kmeans":
        describe = partial(kmeans.describe, kmeans.learn(database))
    elif name == "smt":
        describe = partial(manifold_transform.describe, manifold_transform.learn(database))
    of_database, of_queries = describe(database), describe(queries)
    if name == "pixels":
        return of_database, of_queries
    axes = pca.fit(jnp.asarray(of_database), code_dim)

    def reduced(codes: np.ndarray) -> np.ndarray:
        codes = np.array(pca.reduce(axes, jnp.asarray(codes)))
        if name != "pca":
            codes /= np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
        return codes

    return reduced(of_database), reduced(of_queries)


def kept(
    name: str, database: np.ndarray, queries: np.ndarray, code_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """`make`, kept in the cache: once for a data set and a split. Pixels are not kept."""
    if name == "pixels":
        return make(name, database, queries, code_dim)
    made_from = [name, code_dim, hash_of_code(make), *map(hash_of_array, (database, queries))]
    found = cache.kept(
        "baselines",
        made_from,
        lambda: dict(
            zip(("database", "query"), make(name, database, queries, code_dim), strict=True)
        ),
    )
    return found["database"], found["query"]


def check_side(name: str, side: int) -> None:
    """Raise ValueError if images of this side are too small for codes of this name."""
    smallest = SMALLEST_SIDE.get(name, 1)
    if side < smallest:
        raise ValueError(
            f"{name!r} needs images of side {smallest} or more, these have {side} (data.size)"
        )


def pixel_codes(images: np.ndarray) -> np.ndarray:
    """Images [N, S, S, C] uint8 as they are: [N, S*S*C] float32 in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255
