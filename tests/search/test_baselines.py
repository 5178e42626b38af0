"""k-means codes: against a loop over patches, and their known mAP on CIFAR-100."""

import numpy as np
import pytest
from conftest import class_images
from sklearn.metrics import pairwise_distances

from air_jax.data import splits
from air_jax.search import baselines, full_ranking, metrics
from air_jax.search.device_codes import DeviceCodes

CENTROIDS = baselines.CENTROIDS


def brute_force(dictionary, image):
    """The features of one image, patch by patch, in NumPy."""
    places = range(0, len(image) - baselines.PATCH + 1, baselines.STRIDE)
    half = len(places) // 2
    quadrants = np.zeros((2, 2, len(dictionary.centroids)))
    for i, row in enumerate(places):
        for j, column in enumerate(places):
            patch = image[row : row + baselines.PATCH, column : column + baselines.PATCH].ravel()
            patch = patch.astype(np.float64)
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + baselines.CONTRAST_FLOOR)
            white = (patch - dictionary.mean) @ dictionary.whitening
            distances = pairwise_distances(white[None], dictionary.centroids)[0]
            quadrants[int(i >= half), int(j >= half)] += np.maximum(distances.mean() - distances, 0)
    return quadrants.ravel() ** baselines.POWER


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
    eigenvalues = np.linalg.eigvalsh(dictionary.whitening)
    assert eigenvalues.min() > 0
    assert eigenvalues.max() <= 1 / np.sqrt(baselines.WHITENING_FLOOR) + 1e-4


def test_codes_have_unit_length_so_that_l2_ranks_as_the_cosine():
    images, _ = class_images(60, size=12)
    database, queries = baselines.codes("kmeans", images[:50], images[50:], code_dim=8)
    assert database.shape == (50, 8)
    assert queries.shape == (10, 8)
    np.testing.assert_allclose(np.linalg.norm(database, axis=1), 1, rtol=1e-5)


@pytest.mark.long
def test_map_of_kmeans_codes_on_cifar100_is_the_known_one(cifar100, monkeypatch):
    monkeypatch.setattr(baselines, "CENTROIDS", CENTROIDS)
    database, queries = splits.split(cifar100, "official")
    images = cifar100.images
    codes = baselines.codes("kmeans", images[database], images[queries], code_dim=128)
    items = full_ranking.relevant_items(cifar100.labels[queries], cifar100.labels[database])
    ranks = full_ranking.ranks_by_distance(DeviceCodes(codes[0]), codes[1], items)
    found = metrics.average_precision(ranks, len(database)).mean()
    assert found == pytest.approx(0.041, abs=0.002)
