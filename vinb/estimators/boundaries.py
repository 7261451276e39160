"""The reparameterisation gradient where the cost jumps: what plain reparameterisation loses on boundaries.

Design notes. With Gaussian noise ``e`` and a cost ``F`` that jumps by ``J`` where a condition ``g`` changes sign, the gradient of
``E[F]`` is the mean of ``F``'s own gradient (all that plain reparameterisation has) plus, for every condition, the mean of
``delta(g) J dg/dtheta`` (lee2018reparamnondiff, Theorem 1; the derivative of the indicator of ``g > 0``). An affine ``g = c + a.e``
is normal with mean ``c`` and standard deviation ``|a|``, so that factor is its density at 0 times a mean over the noise given
``g = 0``: a draw projected on the hyperplane. The paper instead solves for one coordinate; projecting needs no choice of a
coordinate, and takes correlated guides as they come. Conditions with the same hyperplane jump together: they are recognised by
their distance at the projected draw, to rounding.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from vinb.analysis.branches import Branches
from vinb.estimators.surrogates import first_derivatives_only

_WRAPPERS = (Independent, ExpandedDistribution, MaskedDistribution)


# Draws as functions of Gaussian noise ----------------------------------------------------------------------------------


def is_gaussian(fn: dist.Distribution) -> bool:
    """Whether draws of ``fn`` are a function of standard normal noise that :func:`push` knows."""
    if isinstance(fn, _WRAPPERS) or type(fn) is dist.TransformedDistribution:
        return is_gaussian(fn.base_dist)
    return type(fn) in (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal)


def noise_of(fn: dist.Distribution, key: jax.Array, sample_shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal noise for a draw of ``fn`` by :func:`push`."""
    return _noise(fn, key, tuple(sample_shape) + fn.batch_shape)


def push(fn: dist.Distribution, noise: Float[Array, "..."], sample_shape: tuple[int, ...]) -> Array:
    """The draw, of shape ``sample_shape + fn.batch_shape + fn.event_shape``, that ``noise`` makes."""
    return _push(fn, noise, tuple(sample_shape) + fn.batch_shape)


def _inner(fn, batch_shape):
    if isinstance(fn, Independent):
        batch_shape += fn.event_shape[: fn.reinterpreted_batch_ndims]
    return fn.base_dist, batch_shape


def _noise(fn, key, batch_shape):
    if isinstance(fn, _WRAPPERS):
        base, batch_shape = _inner(fn, batch_shape)
        return _noise(base, key, batch_shape)
    if type(fn) is dist.TransformedDistribution:
        return _noise(fn.base_dist, key, batch_shape)
    size = fn.event_shape
    if type(fn) is dist.LowRankMultivariateNormal:
        size = (fn.cov_factor.shape[-1] + fn.event_shape[0],)
    return jax.random.normal(key, batch_shape + size, jnp.result_type(float))


def _push(fn, noise, batch_shape):
    if isinstance(fn, _WRAPPERS):
        base, batch_shape = _inner(fn, batch_shape)
        return _push(base, noise, batch_shape)
    if type(fn) is dist.TransformedDistribution:
        value = _push(fn.base_dist, noise, batch_shape)
        for transform in fn.transforms:
            value = transform(value)
        return value
    if type(fn) is dist.Normal:
        return fn.loc + fn.scale * noise
    if type(fn) is dist.MultivariateNormal:
        return fn.loc + (fn.scale_tril @ noise[..., None])[..., 0]
    rank = fn.cov_factor.shape[-1]
    low = (fn.cov_factor @ noise[..., :rank, None])[..., 0]
    return fn.loc + low + jnp.sqrt(fn.cov_diag) * noise[..., rank:]


# Surface terms ---------------------------------------------------------------------------------------------------------


def surface_terms(
    cost: Callable[[dict[str, Array]], Float[Array, ""]],
    noise: dict[str, Array],
    key: jax.Array,
    num_boundaries: int | None = None,
) -> Float[Array, ""]:
    """Zero, with a gradient whose mean is what the mean of ``cost``'s own gradient lacks.

    Args:
        cost: a function of standard normal noise by site that may jump where comparisons of values affine in the noise change
            over; what it closes over may be differentiated.
        noise: noise of the right shapes; the terms draw their own.
        key: for the terms' noise.
        num_boundaries: conditions drawn uniformly with replacement; all of them if None.

    Raises:
        vinb.analysis.branches.NotAffine: see there.
    """
    branches = Branches(cost, noise)
    if branches.num == 0:
        return jnp.zeros(())
    flat, unravel = ravel_pytree(noise)
    key, chosen_key = jax.random.split(key)
    flat = jax.random.normal(key, flat.shape, flat.dtype)
    if num_boundaries is None or num_boundaries >= branches.num:
        chosen, factor = jnp.arange(branches.num), 1.0
    else:
        chosen = jax.random.randint(chosen_key, (num_boundaries,), 0, branches.num)
        factor = branches.num / num_boundaries

    # Weights and draws are constants of the gradient.
    gaps, slopes = jax.linearize(lambda flat: branches.gaps(unravel(flat), frozen=True), flat)
    pull_back = jax.linear_transpose(slopes, flat)
    normals = jax.vmap(lambda c: pull_back(jax.nn.one_hot(c, branches.num, dtype=flat.dtype))[0])(chosen)
    square = jnp.sum(normals**2, 1)
    moves = (square > 0) & jnp.isfinite(gaps[chosen])  # an edge at infinity is never met
    gap = jnp.where(moves, gaps[chosen], 0.0)
    length = jnp.sqrt(jnp.where(moves, square, 1.0))
    on_plane = flat - normals * (gap / length**2)[:, None]
    mean = gap - normals @ flat
    together, upward = jax.vmap(_same_plane)(
        gaps + jax.vmap(slopes)(on_plane - flat),
        jax.vmap(slopes)(normals / length[:, None]),
        on_plane,
        chosen,
    )
    # Conditions of one hyperplane change over one after the other, in order, all in the direction in which the first becomes
    # true: then their jumps add up to that of the group, also where they coincide for these parameters only and move apart.
    number, here = jnp.arange(branches.num), jnp.arange(branches.num) == chosen[:, None]
    first = jnp.take_along_axis(upward, jnp.argmax(together, 1)[:, None], 1)
    at_upward = (number < chosen[:, None]) == first
    truths = jnp.stack(
        [jnp.where(at_upward | here, upward, ~upward), jnp.where(at_upward & ~here, upward, ~upward)], 1
    )
    value = lambda flat, mask, truth: branches.value(unravel(flat), mask, truth, frozen=True)  # noqa: E731
    up, down = jax.vmap(jax.vmap(value, (None, None, 0)))(on_plane, together, truths).T
    density = jnp.exp(-0.5 * (mean / length) ** 2) / (math.sqrt(2 * math.pi) * length)
    weights = jnp.where(moves, density * (up - down), 0.0)

    on_plane, weights = stop_gradient((on_plane, factor * weights))
    moving = jax.vmap(lambda flat, c: branches.gaps(unravel(flat))[c])(on_plane, chosen)
    moving = jnp.where(jnp.isfinite(moving), moving, 0.0)
    return first_derivatives_only(
        weights @ (moving - stop_gradient(moving)),
        "second derivatives with PathwiseWithBoundaries() are not available; use ScoreFunction() for them",
    )


def _same_plane(gaps, slopes, on_plane, chosen):
    """Which conditions change over at a point of the hyperplane of ``chosen``, and which of them become true upward.

    ``slopes`` are the changes of the conditions' ``gaps`` over a step of length one along its normal.
    """
    distance = jnp.where(slopes == 0, jnp.inf, jnp.abs(gaps / jnp.where(slopes == 0, 1.0, slopes)))
    rounding = jnp.finfo(on_plane.dtype).eps * (1.0 + jnp.abs(on_plane).max())
    together = distance <= 4 * distance[chosen] + 64 * rounding
    return together.at[chosen].set(True), slopes > 0
