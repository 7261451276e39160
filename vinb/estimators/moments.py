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
    if batch_size is None:
        size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(draw, key)))
        batch_size = min(max(4_000_000 // max(size, 1), 1), 100_000)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    batch_size = min(batch_size, num_draws)
    num_batches = -(-num_draws // batch_size)
    count = num_batches * batch_size

    def draw_floats(key):
        return jax.tree.map(lambda d: d * jnp.ones((), jnp.result_type(float)), draw(key))

    @jax.jit
    def run(key):
        # Powers are taken around one draw: around zero they would cancel when the mean is large beside the spread.
        centre = draw_floats(jax.random.fold_in(key, num_batches))

        def add(sums, index):
            draws = jax.vmap(draw_floats)(jax.random.split(jax.random.fold_in(key, index), batch_size))
            return jax.tree.map(lambda s, d, c: s + _powers(d - c), sums, draws, centre), None

        zeros = jax.tree.map(lambda c: jnp.zeros((4, *c.shape), c.dtype), centre)
        sums, _ = jax.lax.scan(add, zeros, jnp.arange(num_batches))
        fields = [
            _finish(c, s / num_batches, count)
            for c, s in zip(*map(jax.tree.leaves, (centre, sums)), strict=True)
        ]
        return tuple(jax.tree.structure(centre).unflatten(field) for field in zip(*fields, strict=True))

    return Moments(*run(key), count)


def _powers(deviations):
    return jnp.stack([(deviations**power).mean(0) for power in (1, 2, 3, 4)])


def _finish(centre, powers, count):
    m1, m2, m3, m4 = powers
    variance = (m2 - m1**2) * count / (count - 1)
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    variance_error = jnp.sqrt(jnp.maximum(fourth - variance**2, 0) / count)
    return centre + m1, variance, jnp.sqrt(jnp.maximum(variance, 0) / count), variance_error
