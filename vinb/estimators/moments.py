"""Mean and variance of a gradient estimator, measured over independent draws."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """Sample moments of a random array or pytree over ``count`` independent draws.

    ``standard_error`` is that of ``mean``. ``variance_error`` is that of ``variance``, from the fourth central moment.
    """

    mean: Any
    variance: Any
    standard_error: Any
    variance_error: Any
    count: int


def moments(
    draw: Callable[[jax.Array], Any], key: jax.Array, num_draws: int, *, batch_size: int | None = None
) -> Moments:
    """Mean and variance per component of ``draw(key)`` over ``num_draws`` independent keys.

    For a gradient estimator pass ``draw = lambda key: jax.grad(objective)(params, key, *args)``.

    Args:
        draw: a function from a PRNG key to a number, an array or a pytree of them; it is vectorised with ``jax.vmap``.
        key: typed PRNG key.
        num_draws: number of draws, at least 2; rounded up to a whole number of batches.
        batch_size: draws that are held in memory at the same time; by default as many as make four million numbers, at most
            100,000. What ``draw`` needs on the way counts too, and only you can know that.

    Returns:
        :class:`Moments`, each field of the structure of ``draw``'s result, integers as floats.

    Raises:
        ValueError: if ``num_draws`` is below 2 or ``batch_size`` below 1.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws must be at least 2 to have a variance, got {num_draws}")

    @jax.jit  # traced once, for its shapes and for the loop's body
    def draw_floats(key):
        return jax.tree.map(lambda d: d * jnp.ones((), jnp.result_type(float)), draw(key))

    shapes = jax.eval_shape(draw_floats, key)
    if batch_size is None:
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        batch_size = min(max(4_000_000 // max(size, 1), 1), 100_000)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    batch_size = min(batch_size, num_draws)
    num_batches = -(-num_draws // batch_size)
    count = num_batches * batch_size

    @jax.jit
    def run(key):
        def add(sums, index):
            draws = jax.vmap(draw_floats)(jax.random.split(jax.random.fold_in(key, index), batch_size))
            return jax.tree.map(lambda s, d: _merge(s, _central(d), index, batch_size), sums, draws), None

        zeros = jax.tree.map(lambda d: jnp.zeros((4, *d.shape), d.dtype), shapes)
        sums, _ = jax.lax.scan(add, zeros, jnp.arange(num_batches))
        leaves, structure = jax.tree.flatten(sums)
        return tuple(structure.unflatten(f) for f in zip(*(_finish(s, count) for s in leaves), strict=True))

    return Moments(*run(key), count)


def _central(draws):
    """Mean over the first axis, and sums of the second to fourth powers of the deviations from it; of equal draws exactly."""
    offsets = draws - draws[0]
    deviations = offsets - offsets.mean(0)
    return jnp.stack([draws[0] + offsets.mean(0), *((deviations**power).sum(0) for power in (2, 3, 4))])


def _merge(first, second, num_batches, size):
    """``_central`` of ``num_batches`` batches of ``size`` draws and one more (pebay2008formulas)."""
    mean, m2, m3, m4 = first
    mean_b, m2_b, m3_b, m4_b = second
    a = num_batches / (num_batches + 1)  # shares of the draws
    b = 1 - a
    number, delta = size * (num_batches + 1), mean_b - mean
    merged = jnp.stack(
        [
            mean + b * delta,
            m2 + m2_b + number * a * b * delta**2,
            m3 + m3_b + number * a * b * (a - b) * delta**3 + 3 * delta * (a * m2_b - b * m2),
            m4
            + m4_b
            + number * a * b * (a**2 - a * b + b**2) * delta**4
            + 6 * delta**2 * (a**2 * m2_b + b**2 * m2)
            + 4 * delta * (a * m3_b - b * m3),
        ]
    )
    return jnp.where(num_batches == 0, second, merged)


def _finish(sums, count):
    mean, m2, _, m4 = sums
    variance = m2 / (count - 1)
    variance_error = jnp.sqrt(jnp.maximum(m4 / count - variance**2, 0) / count)
    return mean, variance, jnp.sqrt(variance / count), variance_error
