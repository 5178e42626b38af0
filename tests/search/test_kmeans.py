"""k-means codes: against a loop over patches, and their known mAP on CIFAR-100."""

import numpy as np
import pytest
from conftest import class_images
from sklearn.metrics import pairwise_distances

from air_jax.data import splits
from air_jax.search import baselines, exact_search, kmeans, metrics


def brute_force(dictionary, image):
    """The features of one image, patch by patch, in NumPy."""
    places = range(0, len(image) - kmeans.PATCH + 1, kmeans.STRIDE)
    half = len(places) // 2
    quadrants = np.zeros((2, 2, len(dictionary.centroids)))
    for i, row in enumerate(places):
        for j, column in enumerate(places):
            patch = image[row : row + kmeans.PATCH, column : column + kmeans.PATCH].ravel()
            patch = patch.astype(np.float64)
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + kmeans.CONTRAST_FLOOR)
            white = (patch - dictionary.mean) @ dictionary.whitening
            distances = pairwise_distances(white[None], dictionary.centroids)[0]
            quadrants[int(i >= half), int(j >= half)] += np.maximum(distances.mean() - distances, 0)
    return quadrants.ravel() ** kmeans.POWER


def test_features_are_those_of_a_loop_over_patches():
    images, _ = class_images(40, size=12)
    dictionary = kmeans.learn(images)
    features = kmeans.describe(dictionary, images, batch=7)
    assert features.shape == (40, 4 * len(dictionary.centroids))
    for index in (0, 39):
        expected = brute_force(dictionary, images[index])
        np.testing.assert_allclose(features[index], expected, rtol=2e-3, atol=2e-3)


def test_whitened_patches_have_unit_variance_but_for_the_floor():
    images, _ = class_images(200, size=12)
    dictionary = kmeans.learn(images)
    eigenvalues = np.linalg.eigvalsh(dictionary.whitening)
    assert eigenvalues.min() > 0
    assert eigenvalues.max() <= 1 / np.sqrt(kmeans.WHITENING_FLOOR) + 1e-4


def test_codes_have_unit_length_so_that_l2_ranks_as_the_cosine():
    images, _ = class_images(60, size=12)
    database, queries = baselines.codes("kmeans", images[:50], images[50:], code_dim=8)
    assert database.shape == (50, 8)
    assert queries.shape == (10, 8)
    np.testing.assert_allclose(np.linalg.norm(database, axis=1), 1, rtol=1e-5)


@pytest.mark.long
def test_map_of_kmeans_codes_on_cifar100_is_the_known_one(cifar100):
    database, queries = splits.split(cifar100, "official")
    images = cifar100.images
    codes = baselines.codes("kmeans", images[database], images[queries], code_dim=128)
    items = exact_search.relevant_items(cifar100.labels[queries], cifar100.labels[database])
    ranks = exact_search.ranks_by_distance(exact_search.make_database(codes[0]), codes[1], items)
    found = metrics.average_precision(ranks, len(database)).mean()
    assert found == pytest.approx(0.041, abs=0.002)
