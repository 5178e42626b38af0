"""Codes of patches: k-means against a loop over patches, and their mAP on CIFAR-100."""

import numpy as np
import pytest
from conftest import class_images
from sklearn.metrics import pairwise_distances

from air_jax.data import datasets, splits
from air_jax.models import manifold_transform, patches
from air_jax.search import baselines, full_ranking, metrics
from air_jax.search.device_codes import DeviceCodes

CENTROIDS = baselines.CENTROIDS


def brute_force(dictionary, image):
    """The features of one image, patch by patch, in NumPy."""
    places = range(0, len(image) - patches.SIDE + 1, patches.STRIDE)
    half = len(places) // 2
    quadrants = np.zeros((2, 2, len(dictionary.centroids)))
    for i, row in enumerate(places):
        for j, column in enumerate(places):
            patch = image[row : row + patches.SIDE, column : column + patches.SIDE].ravel()
            patch = patch.astype(np.float64)
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + patches.CONTRAST_FLOOR)
            white = (patch - dictionary.whitening.mean) @ dictionary.whitening.matrix
            distances = pairwise_distances(white[None], dictionary.centroids)[0]
            quadrants[int(i >= half), int(j >= half)] += np.maximum(distances.mean() - distances, 0)
    return (quadrants.ravel() / half**2) ** baselines.POWER


@pytest.fixture(scope="module", autouse=True)
def few_centroids():
    """For small images; CIFAR-100 takes all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "CENTROIDS", 30)
        yield


@pytest.fixture(scope="module")
def images():
    return class_images(40, size=12)[0]


@pytest.fixture(scope="module")
def dictionary(images):
    return baselines.learn_patches(images)


def test_features_are_those_of_a_loop_over_patches(images, dictionary):
    features = baselines.describe_by_patches(dictionary, images, batch=7)
    assert features.shape == (40, 4 * len(dictionary.centroids))
    for index in (0, 39):
        expected = brute_force(dictionary, images[index])
        np.testing.assert_allclose(features[index], expected, rtol=2e-3, atol=2e-3)


def test_whitened_patches_have_unit_variance_but_for_the_floor(dictionary):
    eigenvalues = np.linalg.eigvalsh(dictionary.whitening.matrix)
    assert eigenvalues.min() > 0
    assert eigenvalues.max() <= 1 / np.sqrt(patches.WHITENING_FLOOR) + 1e-4


@pytest.mark.parametrize("name", ["kmeans", "smt"])
def test_codes_have_unit_length_so_that_l2_ranks_as_the_cosine(name):
    images, _ = class_images(60, size=12)
    database, queries = baselines.codes(name, images[:50], images[50:], code_dim=8)
    assert database.shape == (50, 8)
    assert queries.shape == (10, 8)
    assert database.dtype == queries.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(database, axis=1), 1, rtol=1e-5)


def test_codes_of_the_sparse_manifold_transform_find_digits_better_than_pixels(monkeypatch):
    monkeypatch.setattr(manifold_transform, "ATOMS", 256)
    digits = datasets.shrink(datasets.load("digits"), 16)
    database, queries = splits.split(digits, "paper", queries_per_class=20)
    found = {name: mean_precision(name, digits, database, queries) for name in ("pixels", "smt")}
    assert found["smt"] > found["pixels"]


@pytest.mark.parametrize("name", ["kmeans", "smt"])
def test_images_too_small_for_patches_are_refused(name):
    images = np.zeros((4, 7, 7, 3), np.uint8)
    with pytest.raises(ValueError, match=f"'{name}' needs images of side .*, these have 7"):
        baselines.codes(name, images, images, code_dim=8)


@pytest.mark.long
@pytest.mark.parametrize(("name", "known"), [("kmeans", 0.041), ("smt", 0.054)])
def test_map_on_cifar100_is_the_known_one(cifar100, monkeypatch, name, known):
    monkeypatch.setattr(baselines, "CENTROIDS", CENTROIDS)
    parts = splits.split(cifar100, "official")
    assert mean_precision(name, cifar100, *parts) == pytest.approx(known, abs=0.002)


def mean_precision(name, dataset, database, queries):
    """mAP of the first retrieval by codes without a net, to 128 dimensions."""
    codes = baselines.codes(name, dataset.images[database], dataset.images[queries], code_dim=128)
    items = full_ranking.relevant_items(dataset.labels[queries], dataset.labels[database])
    ranks = full_ranking.ranks_by_distance(DeviceCodes(codes[0]), codes[1], items)
    return metrics.average_precision(ranks, len(database)).mean()
