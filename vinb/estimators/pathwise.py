"""Samples that are differentiable in every parameter of their distribution.

NumPyro's samplers serve where they are differentiable in all parameters. Beside those, implicit reparameterisation
(figurnov2018implicit, section 3): a draw ``x`` of a distribution with distribution function ``F`` keeps ``F(x; theta)`` fixed
while ``theta`` moves, hence ``dx/dtheta = -(dF/dtheta) / p(x)``. The rules below write that quotient in a form that does not
cancel in the tails, evaluate it at their own output, and so are differentiable again.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from vinb.estimators.elements import unwrap


def is_reparameterised(fn: dist.Distribution) -> bool:
    """Whether :func:`sample` can draw from ``fn`` differentiably in all of its parameters.

    Args:
        fn: a NumPyro distribution, possibly wrapped by ``to_event``, ``expand`` or ``mask``.

    Returns:
        False for discrete distributions, for those whose sampler ignores some parameter's derivative, and for a class of your
        own that declares no ``arg_constraints`` (nothing then says whether its sampler is differentiable).
    """
    if isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        return is_reparameterised(fn.base_dist)
    if type(fn) is dist.TransformedDistribution:
        return is_reparameterised(fn.base_dist)
    if type(fn) is dist.VonMises or _normal_components(fn) is not None:
        return True
    if fn.support is None or fn.is_discrete:
        return False
    # With nothing declared, NumPyro compares two empty lists of parameters and finds them equal.
    undeclared = type(fn).has_rsample is dist.Distribution.has_rsample and not fn.arg_constraints
    return fn.has_rsample and not undeclared


def sample(fn: dist.Distribution, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> Array:
    """Draw from ``fn`` so that the draw is differentiable in all parameters of ``fn``.

    Second derivatives are right too. Where a gamma variable is involved (Gamma, Beta, Dirichlet, StudentT and their kin) jax has
    them in forward mode over either mode (``jax.hessian``), and refuses reverse over reverse.

    A mixture's draw moves from one component to another through what lies between them. Where that has next to no mass, the
    derivative in the weights rests on a few draws in the gap and its variance is without bound: then draw the component at a
    site of its own, with ``Enumerate()``.

    A ``VonMises`` draw moves along the circle, also across the seam at pi: the derivative of ``E[f]`` is right for functions
    ``f`` of the angle that agree at -pi and pi (densities on the circle do), as NumPyro's own for ``loc``.

    Args:
        fn: a distribution for which :func:`is_reparameterised` is true.
        key: typed PRNG key.
        sample_shape: as in ``fn.sample``.

    Returns:
        An array of shape ``sample_shape + fn.batch_shape + fn.event_shape``.

    Raises:
        TypeError: if ``fn`` has no differentiable sampler.
    """
    if not is_reparameterised(fn):
        raise TypeError(
            f"{type(unwrap(fn)).__name__} has no sampler that is differentiable in all its parameters. Use ScoreFunction(), "
            "MeasureValued() where it has a rule, or Enumerate() for a finite support."
        )
    return _draw(fn, key, tuple(sample_shape) + fn.batch_shape)


def _draw(fn, key, batch_shape):
    """A draw whose batch shape is that of ``fn`` broadcast to ``batch_shape``, each element with noise of its own."""
    if isinstance(fn, Independent):
        batch_shape += fn.event_shape[: fn.reinterpreted_batch_ndims]
        return _draw(fn.base_dist, key, batch_shape)
    if isinstance(fn, (ExpandedDistribution, MaskedDistribution)):
        return _draw(fn.base_dist, key, batch_shape)
    if type(fn) is dist.VonMises:
        return _von_mises(fn, key, batch_shape)
    if (components := _normal_components(fn)) is not None:
        return _mixture(fn, components, key, batch_shape)
    if type(fn) is dist.TransformedDistribution:
        value = _draw(fn.base_dist, key, batch_shape)
        for transform in fn.transforms:
            value = transform(value)
        return value
    return (fn if fn.batch_shape == batch_shape else fn.expand(batch_shape)).rsample(key)


# Mixtures of normals -------------------------------------------------------------------------------------------------


def _normal_components(fn):
    """``(loc, scale)`` of shape ``[*batch, components, *event]`` if ``fn`` is a mixture of (diagonal) normals, else None."""
    if type(fn) is dist.MixtureSameFamily:
        return _normal_parameters(fn.component_distribution)
    if type(fn) is dist.MixtureGeneral:
        parameters = [_normal_parameters(component) for component in fn.component_distributions]
        if all(p is not None for p in parameters):
            shape = fn.batch_shape + fn.event_shape
            axis = len(fn.batch_shape)
            return tuple(
                jnp.stack([jnp.broadcast_to(p, shape) for p in arrays], axis)
                for arrays in zip(*parameters, strict=True)
            )
    return None


def _normal_parameters(fn):
    shape = fn.batch_shape + fn.event_shape
    while isinstance(fn, (Independent, ExpandedDistribution)):
        fn = fn.base_dist
    if type(fn) is not dist.Normal:
        return None
    return jnp.broadcast_to(fn.loc, shape), jnp.broadcast_to(fn.scale, shape)


def _mixture(fn, components, key, batch_shape):
    size, logits = fn.mixture_size, fn.mixing_distribution.logits
    dtype = jnp.result_type(float, logits, *components)
    loc, scale = (
        jnp.broadcast_to(c, (*batch_shape, size, *fn.event_shape))
        .reshape(*batch_shape, size, -1)
        .astype(dtype)
        for c in components
    )
    log_weights = jax.nn.log_softmax(jnp.asarray(logits, dtype))
    log_weights = jnp.broadcast_to(log_weights, (*batch_shape, size))
    key_component, key_noise = jax.random.split(key)
    component = jax.random.categorical(key_component, log_weights)[..., None, None]
    chosen_loc, chosen_scale = (jnp.take_along_axis(c, component, -2)[..., 0, :] for c in (loc, scale))
    noise = jax.random.normal(key_noise, chosen_loc.shape, chosen_loc.dtype)
    draw = stop_gradient(chosen_loc + chosen_scale * noise)
    return _mixture_draw(draw, log_weights, loc, scale).reshape(*batch_shape, *fn.event_shape)


@jax.custom_jvp
def _mixture_draw(
    draw: Float[Array, "*batch event"],
    log_weights: Float[Array, "*batch components"],
    loc: Float[Array, "*batch components event"],
    scale: Float[Array, "*batch components event"],
) -> Float[Array, "*batch event"]:
    return draw


@_mixture_draw.defjvp
def _(primals, tangents):
    """The distributional transform: coordinate d keeps ``F(x_d | x_1..x_{d-1})``, the mixture under posterior weights, fixed.

    The conditional distribution functions are triangular in the coordinates, so their tangents follow one after the other.
    """
    draw = _mixture_draw(*primals)
    _, log_weights, loc, scale = primals
    _, log_weights_dot, loc_dot, scale_dot = tangents

    def coordinate(carry, inputs):
        log_joint, log_joint_dot = carry  # of component and earlier coordinates, up to a constant
        x, loc, scale, loc_dot, scale_dot = inputs
        log_w = jax.nn.log_softmax(log_joint)
        log_w_dot = log_joint_dot - (jnp.exp(log_w) * log_joint_dot).sum(-1, keepdims=True)
        z = (x[..., None] - loc) / scale
        log_joint = log_w - 0.5 * z**2 - jnp.log(scale)
        log_p = jax.nn.logsumexp(log_joint, axis=-1, keepdims=True)
        # The tangents of the weights sum to zero, so Phi(z) may be exchanged for -Phi(-z): the smaller tail does not cancel.
        lower, upper = (jax.nn.logsumexp(log_w + jax.scipy.special.log_ndtr(t), axis=-1) for t in (z, -z))
        side = jnp.where(lower < upper, 1.0, -1.0).astype(z.dtype)[..., None]
        ratio = side * jnp.exp(log_w + jax.scipy.special.log_ndtr(side * z) - log_p + 0.5 * np.log(2 * np.pi))
        posterior = jnp.exp(log_joint - log_p)
        x_dot = (posterior * (loc_dot + z * scale_dot) - ratio * log_w_dot).sum(-1)
        z_dot = (x_dot[..., None] - loc_dot - z * scale_dot) / scale
        return (log_joint, log_w_dot - z * z_dot - scale_dot / scale), x_dot

    inputs = [jnp.moveaxis(a, -1, 0) for a in (draw, loc, scale, loc_dot, scale_dot)]
    _, draw_dot = jax.lax.scan(coordinate, (log_weights, log_weights_dot), inputs)
    return draw, jnp.moveaxis(draw_dot, 0, -1)


# von Mises -----------------------------------------------------------------------------------------------------------


def _von_mises(fn, key, shape):
    concentration = jnp.broadcast_to(fn.concentration, shape)
    centred = stop_gradient(dist.VonMises(0.0, stop_gradient(concentration)).sample(key))
    value = _von_mises_draw(centred, concentration.astype(centred.dtype)) + fn.loc
    return (value + jnp.pi) % (2 * jnp.pi) - jnp.pi


@jax.custom_jvp
def _von_mises_draw(
    draw: Float[Array, "*batch"], concentration: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    return draw


@_von_mises_draw.defjvp
def _(primals, tangents):
    draw = _von_mises_draw(*primals)
    return draw, _von_mises_velocity(draw, primals[1]) * tangents[1]


_CUTOFF = 24.0  # the integrand is dropped where it has fallen to exp(-24)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def _von_mises_velocity(x, concentration):
    """``dx/dk = -int_0^x (cos t - A) exp(k (cos t - cos x)) dt`` with ``A = I_1(k) / I_0(k)``, the mean of ``cos t``.

    The integral to pi is zero, so beyond the angle where ``cos x = A`` it is taken from ``x`` to pi instead: then the integrand
    keeps one sign and its exponent never exceeds k (1 - A) < 2. Differences of cosines are written as products of sines.
    """
    angle = jnp.abs(x)[..., None]
    k = concentration[..., None]
    one_minus_a = _one_minus_mean_cosine(k)
    inside = 2 * jnp.sin(angle / 2) ** 2 < one_minus_a
    end = 2 * jnp.arcsin(jnp.minimum(jnp.sqrt(jnp.sin(angle / 2) ** 2 + _CUTOFF / (2 * k)), 1.0))
    # Moving the far end changes the integral by exp(-24), and nothing at pi; its derivative would be infinite there.
    low, high = jnp.where(inside, 0.0, angle), jnp.where(inside, angle, stop_gradient(end))
    t = low + (high - low) * (_NODES.astype(x.dtype) + 1) / 2
    exponent = 2 * k * jnp.sin((angle + t) / 2) * jnp.sin((angle - t) / 2)
    integrand = (one_minus_a - 2 * jnp.sin(t / 2) ** 2) * jnp.exp(exponent)
    integral = ((high - low) / 2 * _WEIGHTS.astype(x.dtype) * integrand).sum(-1)
    return -jnp.sign(x) * jnp.where(inside[..., 0], integral, -integral)


def _one_minus_mean_cosine(k):
    large = jnp.maximum(
        k, 30.0
    )  # where the difference from 1 would cancel; the next term is below 1e-8 of the sum
    series = (((13 / 32 / large + 25 / 128) / large + 1 / 8) / large + 1 / 8) / large + 1 / 2
    ratio = jax.scipy.special.i1e(k) / jax.scipy.special.i0e(k)
    return jnp.where(k < 30.0, 1 - ratio, series / large)
