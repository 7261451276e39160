"""From grey levels to the zeros and ones of a Bernoulli model: by a fixed threshold, or drawn anew each
time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # annotations only: importing vinb.data must not import jax
    from jaxtyping import Array, Float, Key, UInt8


def binarize(
    images: UInt8[Array, "*shape"], threshold: int | None = None, *, white: int = 255
) -> Float[Array, "*shape"]:
    """Fixed binarisation: 1 where a grey level is above ``threshold``, else 0.

    Args:
        images: NumPy or JAX array of any shape, with grey levels from 0 to ``white``.
        threshold: in 0..white-1; None takes half of full white, white // 2.
        white: the grey level of full white: the field ``white`` of the images' data set (255 for MNIST, 16 for the digits).

    Returns:
        float32 zeros and ones, of the same shape and kind.

    Raises:
        TypeError: if the images are not uint8.
        ValueError: for a threshold with which all pixels would come out alike, a ``white`` outside 1..255, or grey levels
            above it (under ``jit`` these cannot be seen).
    """
    white = _checked_white(images, white)
    if threshold is None:
        threshold = white // 2
    if isinstance(threshold, bool) or not 0 <= threshold < white:
        raise ValueError(
            f"threshold={threshold!r} must be a grey level from 0 to {white - 1}; "
            f"{white // 2} is half of full white"
        )
    return (images > threshold).astype(np.float32)


def binarize_dynamic(
    key: Key[Array, ""], images: UInt8[Array, "*shape pixels"], *, white: int = 255
) -> Float[Array, "*shape pixels"]:
    """Dynamic binarisation: each pixel drawn from Bernoulli(grey level / white), with a fresh key each time it
    is shown. To be called inside ``jit``.

    The draw is in integers: a pixel of grey level x is 1 where a digit d, uniform on 0..white-1, is below x.
    Two digits come from one 32-bit word u by long multiplication, d1 + f1 = white u / 2^32,
    d2 + f2 = white f1, which halves the cost of the random bits. A probability is off by less than 2^-24 (a
    float32 uniform number is no finer), and grey levels 0 and ``white`` give 0 and 1 always. Two digits from one
    word: Brackett-Rozinsky and Lemire 2024, "Batched ranged random integer generation".

    Args:
        key: a typed key.
        images: at least one axis, with grey levels from 0 to ``white``.
        white: the grey level of full white, a Python integer: the field ``white`` of the images' data set (255 for MNIST,
            16 for the digits).

    Returns:
        float32 zeros and ones of the same shape.

    Raises:
        TypeError: if the images are not uint8.
        ValueError: if they have no axis, for a ``white`` outside 1..255, or for grey levels above it (under ``jit`` these
            cannot be seen and give 1).
    """
    import jax
    import jax.numpy as jnp

    white = _checked_white(images, white)
    if np.ndim(images) == 0:
        raise ValueError("images must have at least one axis, not the shape (); pass an array of pixels")
    pixels = images.shape[-1]
    half = (pixels + 1) // 2
    word = jax.random.bits(key, (*images.shape[:-1], half), np.uint32)
    first, fraction = _times(word, white)
    second, _ = _times(fraction, white)
    digit = jnp.concatenate([first, second[..., : pixels - half]], axis=-1)
    return (digit < images).astype(np.float32)


def _checked_white(images, white) -> int:
    """``white`` as an integer, after checking it and the images."""
    if getattr(images, "dtype", None) != np.uint8:
        found = getattr(images, "dtype", type(images).__name__)
        raise TypeError(
            f"images must be uint8 grey levels from 0 to white, not {found}; pass the raw images, unscaled"
        )
    if isinstance(white, bool) or not isinstance(white, int | np.integer) or not 1 <= white <= 255:
        raise ValueError(f"white={white!r} must be an integer from 1 to 255, the images' full white")
    if white < 255 and images.size and not _traced(images) and (brightest := int(images.max())) > white:
        raise ValueError(
            f"images hold the grey level {brightest}, above white={white}; pass the data set's own white"
        )
    return int(white)


def _traced(images) -> bool:
    if isinstance(images, np.ndarray):
        return False
    import jax

    return isinstance(images, jax.core.Tracer)


def _times(word, white: int):
    """The high and the low 32 bits of white * word, for uint32 and white < 2^16."""
    if white == 255:  # 256 * word - word: faster than two products
        shifted = word << 8
        return (word >> 24) - (shifted < word).astype(np.uint32), shifted - word
    high = ((word >> 16) * white + ((word & 0xFFFF) * white >> 16)) >> 16
    return high, word * white
