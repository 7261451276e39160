"""vinb.data: from grey levels to zeros and ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vinb import data


def test_fixed_binarisation():
    images = np.array([[0, 127, 128, 255]], np.uint8)
    for kind in (np.asarray, jnp.asarray):
        binary = data.binarize(kind(images))
        assert binary.dtype == np.float32
        assert binary.tolist() == [[0, 0, 1, 1]]
        assert data.binarize(kind(images), 0).tolist() == [[0, 1, 1, 1]]
    for wrong in (-1, 255, True):
        with pytest.raises(ValueError, match="threshold"):
            data.binarize(images, wrong)
    with pytest.raises(ValueError, match=r"threshold=16 .* from 0 to 15"):
        data.binarize(images % 16, 16, white=16)


def test_digits_are_binarised_at_half_of_their_own_white():
    digits = data.load_digits()
    images = digits.train_images
    binary = data.binarize(images, white=digits.white)
    assert np.array_equal(binary, images > 8)
    assert np.array_equal(binary, data.binarize(images, 8))
    draw = jax.jit(functools.partial(data.binarize_dynamic, white=digits.white))
    drawn = np.asarray(draw(jax.random.key(0), images))
    # 96,000 pixels: the standard error is below 0.0017, and what is black or white never varies.
    assert abs(drawn.mean() - images.mean() / 16) < 5 * 0.0017
    assert not drawn[images == 0].any()
    assert drawn[images == 16].all()


def test_grey_levels_above_white_are_refused_where_they_can_be_seen():
    images = np.array([[0, 16, 17]], np.uint8)
    for kind in (np.asarray, jnp.asarray):
        with pytest.raises(ValueError, match=r"grey level 17.*white=16"):
            data.binarize(kind(images), white=16)
        with pytest.raises(ValueError, match=r"grey level 17.*white=16"):
            data.binarize_dynamic(jax.random.key(0), kind(images), white=16)
        assert data.binarize(kind(images), white=17).tolist() == [[0, 1, 1]]
    traced = jax.jit(functools.partial(data.binarize_dynamic, white=16))
    assert traced(jax.random.key(0), images).tolist()[0][1:] == [1, 1]


@pytest.mark.parametrize("white", [0, 256, True, 16.0])
def test_white_that_is_no_grey_level(white):
    images = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match=r"white=.* must be an integer from 1 to 255"):
        data.binarize(images, white=white)
    with pytest.raises(ValueError, match=r"white=.* must be an integer from 1 to 255"):
        data.binarize_dynamic(jax.random.key(0), images, white=white)


def test_scaled_images_are_refused():
    scaled = np.zeros((2, 4), np.float32)
    with pytest.raises(TypeError, match="uint8"):
        data.binarize(scaled)
    with pytest.raises(TypeError, match="uint8"):
        data.binarize_dynamic(jax.random.key(0), scaled)


def _z_scores(draw, repetitions=8000):
    """Deviations of the frequencies from x / 255 in standard errors: of all grey levels together, and the
    largest of a single one; in both halves of the last axis (the two use different parts of the words)."""
    images = jnp.tile(jnp.arange(256, dtype=jnp.uint8), (2, 1)).reshape(-1)
    keys = jax.random.split(jax.random.key(0), repetitions)
    draws = jax.jit(jax.vmap(draw, (0, None)))(keys, images)
    mean = np.asarray(draws.mean(0), np.float64).reshape(2, 256)
    p = np.arange(256) / 255
    inner = slice(1, 255)
    assert (mean[:, 0] == 0).all()
    assert (mean[:, 255] == 1).all()
    each = (mean - p)[:, inner] / np.sqrt(p * (1 - p) / repetitions)[inner]
    pooled = (mean - p)[:, inner].sum() / np.sqrt(2 * (p * (1 - p)).sum() / repetitions)
    return pooled, np.abs(each).max()


def test_dynamic_binarisation_has_the_bernoulli_mean():
    """Over seeds (here one is fixed) the z test of all grey levels together gives a false alarm with
    probability 6e-7 (|z| > 5), each of the 508 single ones with 7e-9 (|z| > 5.8), under 5e-6 in all. It finds
    2 % too many ones."""
    pooled, largest = _z_scores(data.binarize_dynamic)
    assert abs(pooled) < 5
    assert largest < 5.8

    def too_many(key, images):
        return (jax.random.uniform(key, images.shape) < images / 255 * 1.02).astype(jnp.float32)

    assert _z_scores(too_many)[0] > 5


@pytest.mark.parametrize("white", [255, 16, 1, 97, 254])
def test_dynamic_binarisation_is_exact_to_2_to_the_minus_24(white):
    """Both steps of the long multiplication in exact integers, with every word at which a digit changes. The
    first digit is below x for ceil(2^32 x / white) words, the second off by at most one word in each of
    `white` intervals, at most 255 / 2^32 < 2^-24 in all."""
    from vinb.data.binarize import _times

    changes = [-(-(level << 32) // white) for level in range(1, white)]
    words = [0, 1, 2**24, 2**31, 2**32 - 1, *changes, *(word - 1 for word in changes)]
    words += np.random.default_rng(0).integers(0, 2**32, 2000).tolist()
    high, low = _times(jnp.asarray(words, jnp.uint32), white)
    assert high.tolist() == [white * word >> 32 for word in words]
    assert low.tolist() == [white * word % 2**32 for word in words]


def test_dynamic_binarisation_pixels_are_independent_and_fresh():
    """Two pixels that share a word must not be correlated: |z| > 5 has probability 6e-7."""
    n = 200_000
    images = jnp.full((n, 2), 128, jnp.uint8)
    draw = jax.jit(data.binarize_dynamic)
    pairs = np.asarray(draw(jax.random.key(1), images))
    assert abs(np.corrcoef(pairs.T)[0, 1]) * np.sqrt(n) < 5
    again = np.asarray(draw(jax.random.key(2), images))
    assert abs(np.corrcoef(pairs[:, 0], again[:, 0])[0, 1]) * np.sqrt(n) < 5
    assert np.array_equal(pairs, np.asarray(draw(jax.random.key(1), images)))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 8, 8), (5, 784), (0, 4)])
def test_dynamic_binarisation_keeps_the_shape(shape):
    images = jnp.full(shape, 100, jnp.uint8)
    binary = jax.jit(data.binarize_dynamic)(jax.random.key(0), images)
    assert binary.shape == shape
    assert binary.dtype == jnp.float32
    assert set(np.unique(binary)) <= {0.0, 1.0}


def test_dynamic_binarisation_needs_an_axis():
    with pytest.raises(ValueError, match="at least one axis"):
        data.binarize_dynamic(jax.random.key(0), jnp.uint8(3))
