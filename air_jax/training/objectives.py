"""What a net is trained for, without labels: one function for each value of `train.objective`.

An objective takes the net's module, the net (for its standardisation), a batch of images and a key,
and returns a loss to descend and what the log shows beside the loss. The train step is the same for
all. An objective that compares views of images embeds them (`embedded_views`) and is a function of
the embeddings z [B, V, D], of unit length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from air_jax.data.augmentation import random_views
from air_jax.models.net import Net

CORRUPTIONS = ("none", "mask", "noise")
MASK_BLOCK = 4  # pixels

Metrics = dict[str, jax.Array]
# objective(module, net, images [B, S, S, C] uint8, key) -> the loss float32 [] and more of it.
Objective = Callable[[Any, Net, jax.Array, jax.Array], tuple[jax.Array, Metrics]]


def reconstruction(
    model: Any,
    net: Net,
    images: jax.Array,
    key: jax.Array,
    *,
    corruption: str = "none",
    corruption_amount: float = 0.0,
    pair: int | None = None,
) -> tuple[jax.Array, Metrics]:
    """The mean squared error of the reconstruction (eq 4, 5), the paper's objective.

    Args:
        model: an `Autoencoder`.
        net: for its standardisation.
        images: [B, S, S, C] uint8.
        key: of the corruption.
        corruption: what is done to the encoder's input; the target is the clean image.
        corruption_amount: see `corrupt`.
        pair: train this pair of layers alone, on the maps that it reads; see
            `Autoencoder.undo_pair`.
    """
    target = net.standardise(images)
    source = corrupt(target, corruption, corruption_amount, key)
    if pair is None:
        output, wanted = model(source), target
    else:
        output, wanted = model.undo_pair(source, pair)
        wanted = target if pair == 1 else jax.lax.stop_gradient(wanted)
    error = output.astype(jnp.float32) - wanted.astype(jnp.float32)
    return jnp.mean(jnp.square(error)), {}


def corrupt(images: jax.Array, kind: str, amount: float, key: jax.Array) -> jax.Array:
    """What the encoder sees instead of standardised images [B, S, S, C]; same shape.

    "mask" sets `amount` of the 4x4 blocks to zero (the mean), "noise" adds Gaussian noise of
    standard deviation `amount`.
    """
    if kind == "noise":
        return images + amount * jax.random.normal(key, images.shape)
    if kind == "mask":
        batch, size = images.shape[:2]
        blocks = -(-size // MASK_BLOCK)
        kept = jax.random.bernoulli(key, 1 - amount, (batch, blocks, blocks))
        kept = kept.repeat(MASK_BLOCK, axis=1).repeat(MASK_BLOCK, axis=2)[:, :size, :size]
        return images * kept[..., None]
    return images


def contrastive(z: jax.Array, temperature: float = 0.2) -> jax.Array:
    """Views of an image alike, views of different images apart: the decoupled contrastive loss.

    The logarithm of the sum over other images' views of exp(z z' / temperature), minus the mean of
    z z' / temperature over the other views of the image (Yeh et al., "Decoupled Contrastive
    Learning", 2022, eq 6), averaged over all views.

    Args:
        z: unit vectors [B, V, D] float32 of V views of each of B images; B and V at least 2.
        temperature: of the similarities.
    """
    images, views, _ = z.shape
    flat = z.reshape(images * views, -1)
    similarities = flat @ flat.T / temperature
    image = jnp.repeat(jnp.arange(images), views)
    same = image[:, None] == image[None, :]
    other_view = same & ~jnp.eye(len(image), dtype=bool)
    positive = jnp.where(other_view, similarities, 0).sum(axis=1) / (views - 1)
    negative = jax.nn.logsumexp(similarities, axis=1, where=~same)
    return jnp.mean(negative - positive)


def coding_rate(z: jax.Array, invariance: float = 200.0, distortion: float = 0.04) -> jax.Array:
    """Views of an image alike, all images spread out: EMP-SSL's total coding rate.

    Minus `invariance` times the mean cosine of a view and its image's mean view, minus the mean
    over views of ½ log det(I + D / (B distortion) Zᵥᵀ Zᵥ) (Tong et al., "EMP-SSL", 2023, eq 5).

    Args:
        z: unit vectors [B, V, D] float32 of V views of each of B images.
        invariance: weight of the first part.
        distortion: ε², what the rate counts as the same.
    """
    images, _, dimensions = z.shape
    centres = z.mean(axis=1, keepdims=True)
    cosines = (z * centres).sum(axis=-1) / (_lengths(centres)[..., 0] + 1e-9)
    products = jnp.einsum("bvd,bve->vde", z, z, precision="highest")
    matrices = jnp.eye(dimensions) + dimensions / (images * distortion) * products
    # One by one: on several CPU devices, JAX 0.10's batch of them waits for ever for its threads.
    factors = jnp.stack([jnp.linalg.cholesky(matrix) for matrix in matrices])
    rates = jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
    return -invariance * cosines.mean() - rates.mean()


# Losses of embedded views, by the value of `train.objective`.
OF_VIEWS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "contrastive": contrastive,
    "coding_rate": coding_rate,
}
OBJECTIVES = ("reconstruction", *OF_VIEWS)


def embedded_views(
    model: Any,
    net: Net,
    images: jax.Array,
    key: jax.Array,
    *,
    loss: Callable[[jax.Array], jax.Array],
    views: int,
    size: int,
    area: tuple[float, float],
) -> tuple[jax.Array, Metrics]:
    """A loss of the embeddings of random views of the images.

    Args:
        model: an `Embedder`.
        net: for its standardisation.
        images: [B, S, S, C] uint8.
        key: of the views.
        loss: one of `OF_VIEWS`.
        views: V of each image; they lie next to each other, so that a device that holds an image
            holds its views.
        size: side of the views in pixels.
        area: smallest and largest share of the image that a view shows.

    Returns:
        The loss; and the metrics of `spread`.
    """
    made = random_views(images, key, views=views, size=size, area=area)
    pixels = net.standardise_pixels(made.reshape(-1, *made.shape[2:]))
    codes, embeddings = model(pixels)
    embeddings = embeddings.astype(jnp.float32)
    z = embeddings / (_lengths(embeddings) + 1e-9)
    z = z.reshape(*made.shape[:2], -1)
    return loss(z), spread(codes.astype(jnp.float32), z)


def spread(codes: jax.Array, z: jax.Array) -> Metrics:
    """How codes and embeddings lie, which needs no labels. No gradient flows through it.

    Args:
        codes: [B V, F] float32.
        z: unit vectors [B, V, D] float32.

    Returns:
        `effective_rank`: of the codes, (Σλ)² / Σλ² of their covariance's eigenvalues: 1 on a line,
        F if all directions vary alike. `embedding_rank`: of z, not centred, 1 / Σλ²: 1 where all
        embeddings are the same. `alignment`: the mean squared distance of two views of an image.
        `uniformity`: log of the mean of exp(-2 d²) over pairs of images, 0 where all are the same
        (both of Wang and Isola, 2020).
    """
    codes, z = jax.lax.stop_gradient((codes, z))
    views = z.shape[1]
    centred = codes - codes.mean(axis=0)
    covariance = centred.T @ centred
    first = z[:, 0]
    squared = jnp.square(first @ first.T)
    pairs = ~jnp.eye(len(first), dtype=bool)
    # Of V unit vectors the squared pairwise distances add up to V² (1 - |mean|²).
    differ = 1 - jnp.square(z.mean(axis=1)).sum(axis=-1)
    distances = 2 - 2 * first @ first.T
    tiny = jnp.finfo(jnp.float32).tiny
    return {
        "effective_rank": jnp.square(jnp.trace(covariance)) / (jnp.square(covariance).sum() + tiny),
        "embedding_rank": 1 / squared.mean(),
        "alignment": 2 * views / (views - 1) * differ.mean(),
        "uniformity": jnp.log(jnp.mean(jnp.exp(-2 * distances), where=pairs)),
    }


def _lengths(vectors: jax.Array) -> jax.Array:
    """Lengths [..., 1], with a gradient of zero at zero."""
    return jnp.sqrt(jnp.square(vectors).sum(axis=-1, keepdims=True) + 1e-18)


def make_objective(
    train: ml_collections.ConfigDict, image_size: int, pair: int | None = None
) -> Objective:
    """The objective that `config.train` names, with its settings.

    Args:
        train: `config.train`.
        image_size: side of the images, which views have unless `train.view_size` says otherwise.
        pair: of a phase of greedy training.
    """
    if train.objective == "reconstruction":
        return partial(
            reconstruction,
            corruption=train.corruption,
            corruption_amount=train.corruption_amount,
            pair=pair,
        )
    return partial(
        embedded_views,
        loss=OF_VIEWS[train.objective],
        views=train.views,
        size=train.view_size or image_size,
        area=tuple(train.view_area),
    )
