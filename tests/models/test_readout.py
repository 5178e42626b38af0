"""The read-out of codes, against scikit-learn's PCA and by its own definition."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import class_images
from flax import nnx
from sklearn.decomposition import PCA

from air_jax.models import encode, readout
from air_jax.training import loop

CODES = (
    np.random.default_rng(0).standard_normal((500, 6)) @ np.diag([9, 5, 3, 1, 0.5, 0.1]) + 4
).astype(np.float32)


def test_power_zero_is_principal_components():
    ours = np.asarray(readout.fit_whitened(CODES, 4, 0.0, unit_length=False)(jnp.asarray(CODES)))
    theirs = PCA(4).fit_transform(CODES)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-3, atol=1e-3)


def test_power_one_half_makes_all_variances_one():
    made = readout.fit_whitened(CODES, 6, 0.5, unit_length=False)(jnp.asarray(CODES))
    np.testing.assert_allclose(np.cov(np.asarray(made).T, bias=True), np.eye(6), atol=1e-3)


def test_unit_length_is_that_and_a_code_at_the_mean_stays_zero():
    fitted = readout.fit_whitened(CODES, 3, 0.25, unit_length=True)
    lengths = np.linalg.norm(np.asarray(fitted(jnp.asarray(CODES))), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert not np.asarray(fitted(fitted.mean[None])).any()


def test_directions_that_do_not_vary_are_left_out_and_none_is_an_error():
    flat = np.hstack([CODES[:, :2], np.ones((500, 2), np.float32)])
    assert readout.fit_whitened(flat, 4, 0.5, unit_length=False).projection.shape == (4, 2)
    with pytest.raises(ValueError, match="500 codes are all the same"):
        readout.fit_whitened(np.ones((500, 3), np.float32), 2, 0.25, unit_length=True)


def test_statistics_of_images_normalise_these_images(small_config, mesh):
    images, _ = class_images(64)
    small_config.model.update(encoder="conv", widths=(4, 8), blocks=(1, 1))
    small_config.train.objective = "contrastive"
    net = loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(images), mesh)
    made = encode.with_statistics_of(net, jnp.asarray(images))
    trained = nnx.merge(net.graphdef, net.params, net.stats)
    trained.train()
    by_batch = trained.encode(net.standardise(jnp.asarray(images)))
    np.testing.assert_allclose(encode.encode_batch(made, images), by_batch, atol=1e-4)
    assert np.abs(encode.encode_batch(net, images) - by_batch).max() > 0.01
