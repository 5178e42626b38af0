"""Random views of images: crops, flips and colours, on the device and by key.

What objectives that compare views of an image train on. All of it is elementwise work and two small
matrix products, so it runs inside the train step, on the device that holds the image.
"""

import jax
import jax.numpy as jnp

ASPECTS = (3 / 4, 4 / 3)  # of crops, width to height
JITTERED = 0.8  # share of the views whose colours change
GREY = 0.2  # share of the views without colours
BRIGHTNESS = CONTRAST = SATURATION = 0.4  # changes by a factor from 1 - this to 1 + this
HUE = 0.1  # turns of the colour circle, to either side

# Luminance and two axes of colour from RGB (YIQ).
TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def random_views(
    images: jax.Array, key: jax.Array, *, views: int, size: int, area: tuple[float, float]
) -> jax.Array:
    """Several random views of each image.

    Args:
        images: [B, S, S, C] uint8, C = 3 for colours; others keep theirs but for brightness and
            contrast.
        key: the views are a function of it and of the image's place in the batch.
        views: V of each image.
        size: side of the views in pixels.
        area: the smallest and the largest share of the image that a view shows.

    Returns:
        [B, V, size, size, C] float32, pixels in [0, 1].
    """
    crop_key, colour_key = jax.random.split(key)
    pixels = images.astype(jnp.float32) / 255
    return random_colours(random_crops(pixels, crop_key, views, size, area), colour_key)


def random_crops(
    images: jax.Array, key: jax.Array, views: int, size: int, area: tuple[float, float]
) -> jax.Array:
    """Random rectangles of images [B, S, S, C], resized; half of them mirrored.

    Returns:
        [B, V, size, size, C]. Linear interpolation, averaging where pixels become fewer.
    """
    batch, side = images.shape[:2]
    area_key, aspect_key, place_key, flip_key = jax.random.split(key, 4)
    shape = (batch, views)
    areas = jax.random.uniform(area_key, shape, minval=area[0], maxval=area[1])
    low, high = jnp.log(jnp.array(ASPECTS))
    aspects = jnp.exp(jax.random.uniform(aspect_key, shape, minval=low, maxval=high))
    places = jax.random.uniform(place_key, (2, *shape))
    heights = side * jnp.minimum(jnp.sqrt(areas / aspects), 1)
    widths = side * jnp.minimum(jnp.sqrt(areas * aspects), 1)
    rows = resampling(places[0] * (side - heights), heights, side, size)
    columns = resampling(places[1] * (side - widths), widths, side, size)
    mirrored = jax.random.bernoulli(flip_key, 0.5, (*shape, 1, 1))
    columns = jnp.where(mirrored, columns[:, :, ::-1], columns)
    crops = jnp.einsum("bvoi,bijc->bvojc", rows, images)
    return jnp.einsum("bvpj,bvojc->bvopc", columns, crops)


def resampling(starts: jax.Array, lengths: jax.Array, side: int, size: int) -> jax.Array:
    """Matrices that resample stretches of a row of pixels.

    Args:
        starts: of the stretches [...], in pixels from the row's beginning.
        lengths: of the stretches [...], in pixels.
        side: pixels of the row.
        size: pixels of the result.

    Returns:
        [..., size, side], rows that add up to 1: linear interpolation between the centres of
        pixels, with a triangle as wide as a pixel of the result where pixels become fewer.
    """
    centres = starts[..., None] + (jnp.arange(size) + 0.5) * lengths[..., None] / size - 0.5
    centres = jnp.clip(centres, 0, side - 1)[..., None]
    width = jnp.maximum(lengths / size, 1)[..., None, None]
    weights = jnp.maximum(0, 1 - jnp.abs(centres - jnp.arange(side)) / width)
    return weights / weights.sum(axis=-1, keepdims=True)


def random_colours(views: jax.Array, key: jax.Array) -> jax.Array:
    """Views [B, V, s, s, C] in [0, 1] with other brightness, contrast, saturation and hue; some
    grey."""
    shape, channels = views.shape[:2], views.shape[-1]
    keys = jax.random.split(key, 6)
    jittered = jax.random.bernoulli(keys[0], JITTERED, shape)

    def factor(key: jax.Array, most: float) -> jax.Array:
        drawn = jax.random.uniform(key, shape, minval=1 - most, maxval=1 + most)
        return jnp.where(jittered, drawn, 1.0)

    def spread(factors: jax.Array) -> jax.Array:
        return factors[..., None, None, None]

    views = views * spread(factor(keys[1], BRIGHTNESS))
    means = views.mean(axis=(2, 3, 4), keepdims=True)
    views = (views - means) * spread(factor(keys[2], CONTRAST)) + means
    if channels == 3:
        saturation = factor(keys[3], SATURATION)
        saturation = jnp.where(jax.random.bernoulli(keys[4], GREY, shape), 0.0, saturation)
        turns = jax.random.uniform(keys[5], shape, minval=-HUE, maxval=HUE)
        matrices = colour_matrices(saturation, jnp.where(jittered, turns, 0.0))
        by_channel = (views[..., c, None] * matrices[:, :, None, None, c] for c in range(channels))
        views = sum(by_channel, start=jnp.zeros(()))
    return jnp.clip(views, 0, 1)


def colour_matrices(saturation: jax.Array, turns: jax.Array) -> jax.Array:
    """Matrices [..., 3, 3] for RGB rows: colours `saturation` times as strong, the hue turned.

    Args:
        saturation: [...]; 0 makes grey.
        turns: [...] of the colour circle.
    """
    to_yiq = jnp.array(TO_YIQ)
    angles = 2 * jnp.pi * turns
    cos, sin = saturation * jnp.cos(angles), saturation * jnp.sin(angles)
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    rows = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
    turned = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    highest = jax.lax.Precision.HIGHEST
    matrix = jnp.einsum(
        "ij,...jk,kl->...il", jnp.linalg.inv(to_yiq), turned, to_yiq, precision=highest
    )
    return jnp.swapaxes(matrix, -1, -2)
