"""Means and variances through a network of noisy weights, without draws (hinton1993keeping, section 5.3).

Exact where the outputs are linear in units that are independent given the input: one hidden layer whose units have weights of their
own, and linear outputs. Deeper networks make the units dependent, and it is an approximation.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from vinb.models.bayesian.layers import BayesianDense
from vinb.models.bayesian.posteriors import is_posterior, mean_weights

Moments = tuple[Float[Array, "..."], Float[Array, "..."]]


def dense_moments(
    layer: BayesianDense, mean: Float[Array, "batch inputs"], variance: Float[Array, "batch inputs"]
) -> Moments:
    """Mean and variance of a dense layer's outputs, from those of its independent inputs (hinton1993keeping, equations 10 and
    11)."""
    plain = mean_weights(layer)
    out = variance @ plain.weight**2
    if is_posterior(layer.weight):
        out = out + (mean**2 + variance) @ layer.weight.variance
    if is_posterior(layer.bias):
        out = out + layer.bias.variance
    return plain(mean, mode="mean"), out


def relu_moments(mean: Float[Array, "..."], variance: Float[Array, "..."]) -> Moments:
    """Of ``max(x, 0)`` for a normal ``x``."""
    scale = jnp.sqrt(variance + 1e-12)
    z = mean / scale
    density, above, below = jnp.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), ndtr(z), ndtr(-z)
    # Not as a difference of second moments, of which nothing is left where the mean is far from zero.
    share = above + z**2 * above * below + z * density * (below - above) - density**2
    return scale * (z * above + density), scale**2 * jnp.maximum(share, 0.0)


def threshold_moments(mean: Float[Array, "..."], variance: Float[Array, "..."]) -> Moments:
    """Of the step function ``x > 0`` for a normal ``x``: smooth in both, so that a network of such units can be trained."""
    first = ndtr(mean / jnp.sqrt(variance + 1e-12))
    return first, first * (1 - first)


def quadrature_moments(activation: Callable, num_nodes: int = 32) -> Callable[[Array, Array], Moments]:
    """Of any elementwise activation, by Gauss-Hermite quadrature inside the graph.

    For the logistic function 32 nodes give the variance to 1e-6 up to a standard deviation of 2 and to 2e-3 at 5; beyond, use
    :class:`MomentTable`.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    weights = weights / weights.sum()

    def moments(mean, variance):
        mean = jnp.asarray(mean, jnp.result_type(mean, float))
        x = mean[..., None] + jnp.sqrt(variance + 1e-12)[..., None] * nodes.astype(mean.dtype)
        y = activation(x)
        first = y @ weights.astype(mean.dtype)
        return first, (y - first[..., None]) ** 2 @ weights.astype(mean.dtype)

    return moments


class _Constant:
    """Numbers that are part of a program and no parameter: compared by identity, and so fit for a static field."""

    def __init__(self, array: np.ndarray):
        self.array = array


class MomentTable(eqx.Module):
    """Moments of an activation by linear interpolation in a table over mean and standard deviation (hinton1993keeping, section 8).

    Tabulated over equally spaced standard deviations and interpolated in the variance, in which the moments are smooth at zero.
    With the default 300 x 300 cells the logistic
    function's moments are right to 4e-5 (mean) and 1e-5 (variance) inside the table; outside of it the nearest edge is used.
    """

    table: _Constant = eqx.field(static=True)  # [means, scales, 2]
    mean_range: tuple[float, float] = eqx.field(static=True)
    largest_scale: float = eqx.field(static=True)

    @classmethod
    def make(
        cls,
        activation: Callable,
        *,
        mean_range: tuple[float, float] = (-8.0, 8.0),
        largest_scale: float = 5.0,
        size: int = 300,
    ) -> "MomentTable":
        """Fill the table by the trapezium rule with 1,201 nodes over 12 standard deviations, in float64 on the host.

        Args:
            activation: an elementwise function of numpy arrays.
            mean_range: smallest and largest mean.
            largest_scale: largest standard deviation; the smallest is 0.
            size: entries along each side.
        """
        if size < 2 or not largest_scale > 0 or not mean_range[0] < mean_range[1]:
            raise ValueError(
                "the table needs size >= 2, largest_scale > 0 and an increasing mean_range; got "
                f"{size}, {largest_scale}, {mean_range}"
            )
        noise = np.linspace(-12, 12, 1201)
        weights = np.exp(-0.5 * noise**2)
        weights /= weights.sum()
        means, scales = np.linspace(*mean_range, size), np.linspace(0, largest_scale, size)
        table = np.empty((size, size, 2))
        for j, scale in enumerate(scales):
            y = np.asarray(activation(means[:, None] + scale * noise), np.float64)
            table[:, j, 0] = y @ weights
            table[:, j, 1] = (y - table[:, j, :1]) ** 2 @ weights
        return cls(_Constant(table), tuple(mean_range), float(largest_scale))

    def __call__(self, mean: Float[Array, "..."], variance: Float[Array, "..."]) -> Moments:
        """Mean and variance of the activation; their derivatives are those of the interpolation."""
        table, (low, high) = jnp.asarray(self.table.array, jnp.result_type(float)), self.mean_range
        rows, columns = table.shape[:2]
        step = self.largest_scale / (columns - 1)
        variance = jnp.minimum(variance, self.largest_scale**2)
        i = jnp.clip((mean - low) / (high - low), 0.0, 1.0) * (rows - 1)
        j = jnp.sqrt(jax.lax.stop_gradient(variance)) / step
        row = jnp.clip(jnp.floor(i), 0, rows - 2).astype(int)
        column = jnp.clip(jnp.floor(j), 0, columns - 2).astype(int)
        u = (i - row)[..., None]
        v = ((variance / step**2 - column**2) / (2 * column + 1))[..., None]
        corner = lambda a, b: table[row + a, column + b]  # noqa: E731
        left = (1 - u) * corner(0, 0) + u * corner(1, 0)
        right = (1 - u) * corner(0, 1) + u * corner(1, 1)
        both = (1 - v) * left + v * right
        return both[..., 0], both[..., 1]
