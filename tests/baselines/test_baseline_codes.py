"""Codes of patches: k-means against a loop over patches, and their mAP on CIFAR-100."""

import numpy as np
import pytest
from conftest import class_images
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from test_manifold_transform import white_patches

from air_jax.baselines import baseline_codes, kmeans, losses, manifold_transform, patches, pca
from air_jax.data import datasets, splits
from air_jax.search import full_ranking, metrics
from air_jax.search.device_codes import DeviceCodes

CENTROIDS = kmeans.CENTROIDS


def brute_force(dictionary, image):
    """The features of one image, patch by patch, in NumPy."""
    white = white_patches(dictionary.whitening, image)
    half = len(white) // 2
    quadrants = np.zeros((2, 2, len(dictionary.centroids)))
    for i, j in np.ndindex(white.shape[:2]):
        distances = pairwise_distances(white[i, j][None], dictionary.centroids)[0]
        quadrants[int(i >= half), int(j >= half)] += np.maximum(distances.mean() - distances, 0)
    return (quadrants.ravel() / half**2) ** kmeans.POWER


@pytest.fixture(scope="module", autouse=True)
def few_centroids():
    """For small images; CIFAR-100 takes all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "CENTROIDS", 30)
        yield


@pytest.fixture(scope="module")
def images():
    return class_images(40, size=12)[0]


@pytest.fixture(scope="module")
def dictionary(images):
    return kmeans.learn(images)


def test_features_are_those_of_a_loop_over_patches(images, dictionary):
    features = kmeans.describe(dictionary, images, batch=7)
    assert features.shape == (40, 4 * len(dictionary.centroids))
    for index in (0, 39):
        expected = brute_force(dictionary, images[index])
        np.testing.assert_allclose(features[index], expected, rtol=2e-3, atol=2e-3)


def test_whitened_patches_have_unit_variance_but_for_the_floor(dictionary):
    eigenvalues = np.linalg.eigvalsh(dictionary.whitening.matrix)
    assert eigenvalues.min() > 0
    assert eigenvalues.max() <= 1 / np.sqrt(patches.WHITENING_FLOOR) + 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("samples", [200, 30])
def test_principal_components_are_scikit_learns_but_for_their_signs(samples):
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((samples, 50)) * np.linspace(3, 0.1, 50) + 7
    codes = codes.astype(np.float32)
    expected = PCA(8, svd_solver="full").fit(codes.astype(np.float64))
    found = pca.fit(codes, 8)
    np.testing.assert_allclose(found.variances, expected.explained_variance_, rtol=1e-4)
    ours, theirs = pca.reduce(found, codes), expected.transform(codes)
    signs = np.sign(np.sum(ours * theirs, axis=0))
    np.testing.assert_allclose(ours * signs, theirs, atol=2e-3)
    assert pca.fit(codes, 100).axes.shape == (50, min(samples, 50))


def test_the_loss_of_pca_is_scikit_learns_or_none_where_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("AIR_JAX_CACHE", str(tmp_path))
    images, _ = class_images(300)
    std = np.array([0.2, 0.3, 0.25])
    training, held_out = (part / std / 255 for part in (images[:250], images[250:]))
    fitted = PCA(10, svd_solver="full").fit(training.reshape(250, -1))
    flat = held_out.reshape(50, -1)
    lost = flat - fitted.inverse_transform(fitted.transform(flat))
    expected = np.mean(lost**2)
    for _ in range(2):  # made, and kept
        found = losses.kept_pca_loss(images[:250], images[250:], std, 10)
        assert found == pytest.approx(expected, rel=1e-4)
    grey = np.repeat(images[:, :, :, :1], 3, axis=3)
    for _ in range(2):
        assert losses.kept_pca_loss(grey[:250], grey[250:], std, 64) is not None
        assert losses.kept_pca_loss(grey[:250], grey[250:], std, 65) is None
    assert len(list((tmp_path / "baselines").iterdir())) == 3


@pytest.mark.gpu
def test_centroids_are_as_near_to_their_patches_as_scikit_learns(images, monkeypatch):
    rng = np.random.default_rng(0)
    chosen = patches.random_patches(images, rng)
    white = patches.learn_whitening(chosen)
    points = ((chosen - white.mean) @ white.matrix).astype(np.float32)
    monkeypatch.setattr(kmeans, "BLOCK", 300)  # does not divide the patches
    ours = kmeans.find_centroids(points, 30)
    theirs = MiniBatchKMeans(30, batch_size=4096, n_init=1, random_state=0).fit(points)

    def spread(centroids):
        return np.square(pairwise_distances(points, centroids).min(axis=1)).mean()

    assert spread(ours) <= 1.01 * spread(theirs.cluster_centers_)


def test_codes_without_a_net_are_kept_for_later_runs(images, tmp_path, monkeypatch):
    monkeypatch.setenv("AIR_JAX_CACHE", str(tmp_path))
    made = baseline_codes.kept("kmeans", images[:30], images[30:], 8)
    assert len(list((tmp_path / "baselines").iterdir())) == 1
    monkeypatch.setattr(baseline_codes.cache, "write_npz", None)  # nothing is made again
    kept = baseline_codes.kept("kmeans", images[:30], images[30:], 8)
    for ours, theirs in zip(made, kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["kmeans", "smt"])
def test_codes_have_unit_length_so_that_l2_ranks_as_the_cosine(name):
    images, _ = class_images(60, size=12)
    database, queries = baseline_codes.make(name, images[:50], images[50:], code_dim=8)
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
        baseline_codes.make(name, images, images, code_dim=8)


@pytest.mark.long
@pytest.mark.parametrize(("name", "known"), [("kmeans", 0.041), ("smt", 0.054)])
def test_map_on_cifar100_is_the_known_one(cifar100, monkeypatch, name, known):
    monkeypatch.setattr(kmeans, "CENTROIDS", CENTROIDS)
    parts = splits.split(cifar100, "official")
    assert mean_precision(name, cifar100, *parts) == pytest.approx(known, abs=0.002)


def mean_precision(name, dataset, database, queries):
    """mAP of the first retrieval by codes without a net, to 128 dimensions."""
    codes = baseline_codes.make(
        name, dataset.images[database], dataset.images[queries], code_dim=128
    )
    items = full_ranking.relevant_items(dataset.labels[queries], dataset.labels[database])
    ranks = full_ranking.ranks_by_distance(DeviceCodes(codes[0]), codes[1], items)
    return metrics.average_precision(ranks, len(database)).mean()
