"""Which weights can be left out: scores by their noise, masks by rank or threshold, curves of what that costs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

SAFE_THRESHOLD = float(np.sqrt(np.log(2)))
"""``|mu / sigma|`` below which a weight of zero is more probable than an average weight of the posterior (graves2011practical,
equation 20: 0.83): the mean of ``exp(-z^2 / 2)`` over the posterior is ``1 / sqrt(2)``."""


def signal_to_noise(loc: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """``|loc| / scale``; infinite without noise, but 0 for a weight that is exactly zero."""
    size = jnp.abs(loc)
    return jnp.where(size == 0, 0.0, size / scale)


def relative_density(loc: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """The posterior's density at zero over that at its mode, ``exp(-loc^2 / (2 scale^2))`` (graves2011practical, section 7)."""
    return jnp.exp(-0.5 * signal_to_noise(loc, scale) ** 2)


def threshold(density: float) -> float:
    """The signal-to-noise ratio at which :func:`relative_density` is ``density``: ``sqrt(-2 log density)``.

    Raises:
        ValueError: unless ``density`` is in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density}")
    return float(np.sqrt(-2 * np.log(density)))


def decibels(ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """``10 log10(ratio)``: 0 where signal and noise are equal."""
    return 10 * jnp.log10(ratio)


def keep(
    scores: PyTree, *, removed: float | None = None, threshold: float | None = None
) -> PyTree[Bool[Array, "..."]]:
    """Masks of the weights that stay, all arrays of ``scores`` ranked together.

    Args:
        scores: a pytree of arrays, such as signal-to-noise ratios; the lowest go first. None leaves stay None.
        removed: the share to remove: ``round((1 - removed) W)`` of W stay, the first of equals going first. Masks are nested
            as it grows (blundell2015weight, section 5.1).
        threshold: instead, remove scores below it (graves2011practical, section 7); 0 removes nothing.

    Raises:
        ValueError: unless exactly one of them is given, in range, and there are scores, none of them NaN (outside of jit).
    """
    if (removed is None) == (threshold is None):
        raise ValueError(f"give one of removed and threshold, got {removed} and {threshold}")
    leaves, structure = jax.tree.flatten(scores)
    if not leaves:
        raise ValueError("scores has no arrays in it: nothing to remove")
    if any(not isinstance(leaf, jax.core.Tracer) and bool(jnp.isnan(leaf).any()) for leaf in leaves):
        raise ValueError("scores has NaN in it, which has no rank")
    if threshold is not None:
        if not threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {threshold}")
        return jax.tree.map(lambda s: jnp.asarray(s) >= threshold, scores)
    if not 0 <= removed <= 1:
        raise ValueError(f"removed must be between 0 and 1, got {removed}")
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
    gone = flat.size - round((1 - removed) * flat.size)
    kept = jnp.ones(flat.size, bool).at[jnp.argsort(flat, stable=True)[:gone]].set(False)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    masks = [m.reshape(leaf.shape) for m, leaf in zip(jnp.split(kept, ends), leaves, strict=True)]
    return structure.unflatten(masks)


class PruningPoint(NamedTuple):
    """One point of :func:`pruning_curve`: the share asked for, the number of weights left, what ``evaluate`` returned."""

    removed: float
    kept: int
    value: Any


def pruning_curve(
    evaluate: Callable[[PyTree], Any], scores: PyTree, removed: Sequence[float]
) -> list[PruningPoint]:
    """``evaluate(masks)`` for each share of removed weights, see :func:`keep`.

    Args:
        evaluate: from masks to an error rate, say; the masks' shapes never change, so a jitted function is compiled once.
        scores: as in :func:`keep`.
        removed: shares.
    """
    points = []
    for share in removed:
        masks = keep(scores, removed=share)
        kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
        points.append(PruningPoint(share, kept, evaluate(masks)))
    return points
