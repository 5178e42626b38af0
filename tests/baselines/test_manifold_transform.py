"""The sparse manifold transform: against its formula, patch by patch, in NumPy and float64."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from conftest import class_images

from air_jax.baselines import manifold_transform, patches
from air_jax.baselines.manifold_transform import GRID


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifold_transform, "ATOMS", 24)
        patch.setattr(manifold_transform, "DIMENSIONS", 8)
        patch.setattr(manifold_transform, "THRESHOLD", 0.1)  # the images are noise: no two alike
        yield


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def images(request):
    return class_images(30, size=16)[0][..., : request.param]


@pytest.fixture(scope="module")
def transform(images):
    return manifold_transform.learn(images)


def white_patches(whitening, image):
    """Whitened patches of one image, [W, W, P] float64, patch by patch, in NumPy."""
    places = range(0, len(image) - patches.SIDE + 1, patches.STRIDE)
    found = np.empty((len(places), len(places), len(whitening.mean)))
    for i, row in enumerate(places):
        for j, column in enumerate(places):
            patch = image[row : row + patches.SIDE, column : column + patches.SIDE].ravel()
            patch = patch.astype(np.float64)
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + patches.CONTRAST_FLOOR)
            found[i, j] = (patch - whitening.mean) @ whitening.matrix
    return found


def sparse_codes(transform, image):
    """A of one image, [W, W, K]."""
    white = white_patches(transform.whitening, image)
    atoms = transform.atoms.astype(np.float64)
    lengths = np.linalg.norm(white, axis=-1, keepdims=True) * np.linalg.norm(atoms, axis=1)
    return np.maximum(white @ atoms.T / lengths - manifold_transform.THRESHOLD, 0)


def equations(transform, images):
    """The mean of the sparse codes, (A D)(A D)^T / n and V, both with the ridge."""
    a, ad = [], []
    for image in images:
        codes = sparse_codes(transform, image).reshape(-1, len(transform.atoms))
        a.append(codes)
        ad.append(codes - codes.mean(axis=0))
    a, ad = np.concatenate(a), np.concatenate(ad)
    v = np.cov(a, rowvar=False, bias=True)
    ridge = manifold_transform.RIDGE * np.trace(v) / len(v) * np.eye(len(v))
    return a.mean(axis=0), ad.T @ ad / len(ad) + ridge, v + ridge


def test_the_embedding_solves_the_papers_problem(images, transform):
    mean, roughness, v = equations(transform, images)
    p = transform.embedding.T.astype(np.float64)
    np.testing.assert_allclose(transform.mean, mean, atol=1e-5)
    np.testing.assert_allclose(p @ v @ p.T, np.eye(len(p)), atol=2e-3)  # P V P^T = I
    # |P A D|^2 is the least that this allows: the sum of the smallest eigenvalues.
    least = scipy.linalg.eigvalsh(roughness, v)[: len(p)].sum()
    assert np.trace(p @ roughness @ p.T) == pytest.approx(least, rel=1e-3)


def test_descriptions_are_the_embedded_means_of_cells_in_unit_length(images, transform):
    found = manifold_transform.describe(transform, images)
    assert found.shape == (30, GRID * GRID * 8)
    assert found.dtype == np.float32
    for index in (0, 29):
        codes = sparse_codes(transform, images[index])
        edges = [i * len(codes) // GRID for i in range(GRID + 1)]
        expected = []
        for top, bottom in itertools.pairwise(edges):
            for left, right in itertools.pairwise(edges):
                # Embedded patch by patch, as the paper has it, and then pooled.
                inside = codes[top:bottom, left:right] - transform.mean
                cell = (inside @ transform.embedding).mean(axis=(0, 1))
                expected.append(cell / np.linalg.norm(cell))
        np.testing.assert_allclose(found[index], np.concatenate(expected), atol=2e-3)


def test_descriptions_depend_on_no_other_image_nor_on_batches(images, transform, monkeypatch):
    order = np.random.default_rng(1).permutation(len(images))
    found = manifold_transform.describe(transform, images)
    shuffled = manifold_transform.describe(transform, images[order])
    np.testing.assert_allclose(shuffled, found[order], atol=1e-5)
    monkeypatch.setattr(manifold_transform, "BATCH", 7)
    np.testing.assert_allclose(manifold_transform.describe(transform, images), found, atol=1e-5)


def test_moments_count_each_image_once_in_any_order_and_batches(images, transform, monkeypatch):
    whitening, atoms = transform.whitening, transform.atoms
    found = manifold_transform.moments(whitening, atoms, images)
    assert found.patches == len(images) * 36
    monkeypatch.setattr(manifold_transform, "BATCH", 7)
    for again in (images, images[::-1]):
        other = manifold_transform.moments(whitening, atoms, again)
        for one, two in zip(found, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-4)


def test_what_is_learnt_depends_on_the_seed_only(images, transform):
    again = manifold_transform.learn(images)
    np.testing.assert_array_equal(again.embedding, transform.embedding)
    other = manifold_transform.learn(images, seed=1)
    assert not np.array_equal(other.atoms, transform.atoms)


@pytest.mark.parametrize("value", [0, 255])
def test_images_without_contrast_have_finite_descriptions(value):
    plain = np.full((5, 16, 16, 3), value, np.uint8)
    found = manifold_transform.describe(manifold_transform.learn(plain), plain)
    assert np.isfinite(found).all()


def test_the_smallest_images_have_a_patch_for_each_cell(images):
    side = patches.smallest_side(GRID)
    assert side == 12
    smallest = images[:, :side, :side]
    found = manifold_transform.describe(manifold_transform.learn(smallest), smallest)
    assert np.isfinite(found).all()
