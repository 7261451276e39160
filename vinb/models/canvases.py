"""Canvases with a few digits pasted at random places: the images that attend-infer-repeat learns to count."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8


class Canvases(NamedTuple):
    """Images, and how many digits each of them shows."""

    images: UInt8[np.ndarray, "canvases size size"]
    counts: Int[np.ndarray, " canvases"]


def multi_mnist(
    key: jax.Array,
    images: UInt8[np.ndarray, "images side side"],
    num_canvases: int,
    *,
    canvas_size: int = 50,
    max_digits: int = 2,
    scale: tuple[float, float] = (1.3, 0.1),
    max_tries: int = 1000,
) -> Canvases:
    """Draw canvases of 0 to ``max_digits`` digits, as eslami2016air does; the defaults are the setting of
    becker2024programmable, and ``canvas_size=28, scale=(2.0, 0.1)`` is the one of ``AIR.lite`` (MNIST's digits fill 20 of their
    28 pixels, so they are about 10 pixels high here).

    The number of digits is uniform. Each digit is a random image resized to ``int(side / s)`` pixels with
    ``s ~ scale[0] + scale[1] N(0, 1)``, by anti-aliased cubic interpolation as Pillow does, at a uniform place where all of it is
    on the canvas. A canvas is drawn again, with as many digits, until no pixel's sum exceeds 255.

    Args:
        key: typed PRNG key, which fixes the result.
        images: uint8 grey levels 0 to 255 of square images, say ``vinb.data.load_mnist().train_images``.
        num_canvases: how many to draw.
        canvas_size: side of a canvas in pixels.
        max_digits: largest number of digits.
        scale: mean and standard deviation of the factor ``s`` that digits are reduced by. Sizes below 1 or above
            ``canvas_size`` are drawn again.
        max_tries: times that one canvas is drawn.

    Raises:
        TypeError: if ``images`` are not uint8.
        ValueError: for images that are not square, sizes that are not positive, or if some canvas could not be filled within
            ``max_tries``.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8 grey levels 0 to 255, not {images.dtype}; pass them unscaled")
    if images.ndim != 3 or images.shape[1] != images.shape[2] or not images.size:
        raise ValueError(f"images must have the shape [images, side, side], got {list(images.shape)}")
    for name, number in (
        ("num_canvases", num_canvases),
        ("canvas_size", canvas_size),
        ("max_digits", max_digits),
        ("max_tries", max_tries),
    ):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    mean, deviation = scale
    if not (0 < mean < math.inf and 0 <= deviation < math.inf):
        raise ValueError(
            f"scale must be a positive mean and a standard deviation that is not negative, got {scale}"
        )

    count_key, digit_key = jax.random.split(key)
    counts = np.asarray(jax.random.randint(count_key, (num_canvases,), 0, max_digits + 1))
    canvases = np.zeros((num_canvases, canvas_size, canvas_size), np.uint8)
    pending = np.flatnonzero(counts)
    for attempt in range(max_tries):
        if not pending.size:
            break
        draws = _draws(digit_key, attempt, (num_canvases, max_digits), len(images))
        which, noise, place = (np.asarray(draw) for draw in draws)
        factor = mean + deviation * noise.astype(np.float64)
        size = np.where(factor > 0, images.shape[1] / np.where(factor > 0, factor, 1.0), 0.0)
        size = np.minimum(size, canvas_size + 1).astype(int)
        corner = (place.astype(np.float64) * (canvas_size + 1 - size)[..., None]).astype(int)
        failed = []
        for n in pending:
            canvas = _paste(images, canvas_size, which[n], size[n], corner[n], counts[n])
            if canvas is None:
                failed.append(n)
            else:
                canvases[n] = canvas
        pending = np.asarray(failed, int)
    if pending.size:
        raise ValueError(
            f"{pending.size} of {num_canvases} canvases could not be filled within max_tries={max_tries}: up to "
            f"{max_digits} digits of about {images.shape[1] / mean:.0f} pixels overlap, or do not fit, on {canvas_size} x "
            f"{canvas_size} pixels; pass a larger canvas_size or scale[0], or fewer max_digits"
        )
    return Canvases(canvases, counts)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _draws(key, attempt, shape, num_images):
    """One attempt's randomness for all canvases: an image, a normal number and a place in [0, 1)^2 for each of their digits."""
    which, noise, place = jax.random.split(jax.random.fold_in(key, attempt), 3)
    return (
        jax.random.randint(which, shape, 0, num_images),
        jax.random.normal(noise, shape),
        jax.random.uniform(place, (*shape, 2)),
    )


def _paste(images, canvas_size, which, sizes, corners, count):
    """The canvas with the first ``count`` digits on it, or None if one does not fit or two add up to more than white."""
    canvas = np.zeros((canvas_size, canvas_size), np.int32)
    for image, size, (row, column) in zip(which[:count], sizes[:count], corners[:count], strict=True):
        if not 1 <= size <= canvas_size:
            return None
        resize = _resize_matrix(images.shape[1], int(size))
        digit = np.rint(np.clip(resize @ images[image] @ resize.T, 0, 255)).astype(np.int32)
        canvas[row : row + size, column : column + size] += digit
    return canvas if canvas.max() <= 255 else None


@functools.cache
def _resize_matrix(side: int, size: int) -> np.ndarray:
    """[size, side]: each new pixel's weights of the old ones: cubic convolution (a = -1/2), stretched when the image shrinks."""
    ratio = side / size
    centres = (np.arange(size) + 0.5) * ratio
    d = np.abs(np.arange(side) + 0.5 - centres[:, None]) / max(ratio, 1.0)
    near, far = (1.5 * d - 2.5) * d**2 + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
