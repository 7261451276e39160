"""From grey levels to the zeros and ones of a Bernoulli model: by a fixed threshold, or drawn anew each
time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # annotations only: importing vinb.data must not import jax
    from jaxtyping import Array, Float, Key, UInt8


def _require_grey_levels(images) -> None:
    if getattr(images, "dtype", None) != np.uint8:
        found = getattr(images, "dtype", type(images).__name__)
        raise TypeError(
            f"images must be uint8 grey levels from 0 to 255, not {found}; pass the raw images, unscaled"
        )


def binarize(images: UInt8[Array, "*shape"], threshold: int = 127) -> Float[Array, "*shape"]:
    """Fixed binarisation: 1 where a grey level is above `threshold`, else 0.

    Arguments: `images`, uint8 NumPy or JAX array of any shape; `threshold` in 0..254 (127: half of full
    white). Returns float32 of the same shape and kind. Raises TypeError for images that are not uint8 and
    ValueError for another threshold (with it all pixels would come out alike).
    """
    _require_grey_levels(images)
    if isinstance(threshold, bool) or not 0 <= threshold <= 254:
        raise ValueError(
            f"threshold={threshold!r} must be a grey level from 0 to 254; 127 is half of full white"
        )
    return (images > threshold).astype(np.float32)


def binarize_dynamic(
    key: Key[Array, ""], images: UInt8[Array, "*shape pixels"]
) -> Float[Array, "*shape pixels"]:
    """Dynamic binarisation: each pixel drawn from Bernoulli(grey level / 255), with a fresh key each time it
    is shown.

    The draw is in integers: a pixel of grey level x is 1 where a digit d, uniform on 0..254, is below x. Two
    digits come from one 32-bit word u by long multiplication, d1 + f1 = 255 u / 2^32, d2 + f2 = 255 f1, which
    halves the cost of the random bits. A probability is off by less than 2^-24 (a float32 uniform number is
    no finer), and grey levels 0 and 255 give 0 and 1 always. Two digits from one word: Brackett-Rozinsky and
    Lemire 2024, "Batched ranged random integer generation".

    Arguments: `key`, a typed key; `images`, uint8 with at least one axis. To be called inside `jit`.
    Returns float32 zeros and ones of the same shape. Raises TypeError for images that are not uint8.
    """
    import jax
    import jax.numpy as jnp

    _require_grey_levels(images)
    if np.ndim(images) == 0:
        raise ValueError("images must have at least one axis, not the shape (); pass an array of pixels")
    pixels = images.shape[-1]
    half = (pixels + 1) // 2
    word = jax.random.bits(key, (*images.shape[:-1], half), np.uint32)
    first, fraction = _times_255(word)
    second, _ = _times_255(fraction)
    digit = jnp.concatenate([first, second[..., : pixels - half]], axis=-1)
    return (digit < images).astype(np.float32)


def _times_255(word):
    """The high and the low 32 bits of 255 * word = 256 * word - word, for uint32."""
    shifted = word << 8
    return (word >> 24) - (shifted < word).astype(np.uint32), shifted - word
