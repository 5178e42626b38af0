"""Random views: resampling against closed forms and Pillow, colours against colorsys, keys."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import class_images
from PIL import Image

from air_jax.data import augmentation

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def views(images=IMAGES, seed=0, count=3, size=16, area=(0.2, 0.55)):
    key = jax.random.key(seed)
    return np.asarray(augmentation.random_views(images, key, views=count, size=size, area=area))


def test_views_are_pixels_of_the_size_asked_for():
    made = views()
    assert made.shape == (6, 3, 16, 16, 3)
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1


def test_views_are_a_function_of_the_key_and_differ_from_each_other():
    np.testing.assert_array_equal(views(), views())
    assert (views() != views(seed=1)).any()
    made = views(np.repeat(IMAGES[:1], 2, axis=0))
    assert len({one.tobytes() for one in made.reshape(6, -1)}) == 6


def test_an_image_of_one_grey_stays_one_grey():
    flat = np.full((40, 8, 8, 3), 100, np.uint8)
    made = views(flat, size=8)
    np.testing.assert_allclose(made, np.broadcast_to(made[:, :, :1, :1, :1], made.shape), atol=1e-5)


def test_images_without_colours_have_views_without_colours():
    digits, _ = class_images(20)
    assert views(digits[..., :1], size=8).shape == (20, 3, 8, 8, 1)


@pytest.mark.parametrize(("size", "length"), [(8, 8), (16, 16), (4, 16), (5, 11), (16, 8)])
def test_resampling_a_ramp_gives_the_ramp(size, length):
    """A linear function is its own interpolation; a triangle between pixels is not quite even."""
    tolerance = 1e-3 if size >= length or length % size == 0 else 0.1
    start = 5.0
    matrix = np.asarray(augmentation.resampling(jnp.float32(start), jnp.float32(length), 32, size))
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-5)
    centres = start + (np.arange(size) + 0.5) * length / size - 0.5
    np.testing.assert_allclose(matrix @ np.arange(32), centres, atol=tolerance)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_view_of_the_whole_image_is_pillows(size):
    rows = augmentation.resampling(jnp.float32(0), jnp.float32(32), 32, size)
    ours = jnp.einsum("oi,bijc,pj->bopc", rows, jnp.float32(IMAGES), rows)
    theirs = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        for image in IMAGES
    ]
    np.testing.assert_allclose(ours, theirs, atol=1.01)  # Pillow rounds twice


def test_crops_show_the_share_of_the_image_that_was_asked_for():
    """On a ramp from left to right the range of a crop is its width, of one upwards its height."""
    ramp = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32)[:, None], (300, 32, 32))
    both = np.stack([ramp, ramp.transpose(0, 2, 1)], axis=-1)
    made = np.asarray(
        augmentation.random_crops(jnp.asarray(both), jax.random.key(0), 2, 16, (0.2, 0.55))
    )
    # 16 samples span 15/16 of a crop; the ramp goes over 31 of 32 pixels.
    extent = (made.max(axis=(2, 3)) - made.min(axis=(2, 3))) * 31 / 32 * 16 / 15
    areas = extent.prod(axis=-1)
    assert 0.17 < areas.min() < 0.25
    assert 0.5 < areas.max() < 0.58
    assert areas.mean() == pytest.approx(0.375, abs=0.02)
    mirrored = made[..., 1][:, :, 0, 0] > made[..., 1][:, :, 0, -1]
    assert mirrored.mean() == pytest.approx(0.5, abs=0.06)


def test_saturation_and_hue_keep_luminance_and_the_hue_turns():
    colours = np.random.default_rng(3).uniform(0.3, 0.7, (20, 3))
    luminance = colours @ (0.299, 0.587, 0.114)

    def changed(saturation, turns):
        matrix = augmentation.colour_matrices(jnp.float32(saturation), jnp.float32(turns))
        return colours @ np.asarray(matrix)

    np.testing.assert_allclose(changed(1.0, 0.0), colours, atol=1e-4)
    np.testing.assert_allclose(changed(0.0, 0.1), np.repeat(luminance[:, None], 3, 1), atol=1e-4)
    np.testing.assert_allclose(changed(1.0, 1.0), colours, atol=1e-4)
    np.testing.assert_allclose(changed(1.4, 0.05) @ (0.299, 0.587, 0.114), luminance, atol=1e-4)
    # A third of a turn takes red's hue about a third of the circle on, one way or the other.
    red = np.array([[0.6, 0.4, 0.4]])
    turned = red @ np.asarray(augmentation.colour_matrices(jnp.float32(1), jnp.float32(1 / 3)))
    hue = colorsys.rgb_to_hsv(*turned[0])[0]
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.08


def test_about_a_fifth_of_the_views_is_grey():
    made = views(np.repeat(IMAGES, 40, axis=0), size=4)
    grey = np.ptp(made, axis=-1).max(axis=(2, 3)) < 1e-3
    assert grey.mean() == pytest.approx(augmentation.GREY, abs=0.05)
