"""Measure-valued (weak) derivatives: the derivative of an expectation as a difference of two expectations.

The derivative of a density ``p(x; theta)`` is ``c (p_plus - p_minus)``, a constant times the difference of two densities, so
that ``d/dtheta E[f(x)] = c (E[f(x_plus)] - E[f(x_minus)])`` for any ``f`` that can be evaluated, differentiable or not
(mohamed2020montecarlo, section 6). Draws of the pair are coupled wherever a coupling is known, which keeps the variance of
the difference small, and one of the pair is the drawn sample itself wherever its law is right, which saves a run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jaxtyping import Array, Float


class Derivative(NamedTuple):
    """One term of the derivative of ``E[f]``, element by element of the sample.

    ``d E[f] / d parameter = E[coefficient (f(positive) - f(negative))]`` for each element, the others held at their sample.

    Attributes:
        parameter: the differentiable parameter, broadcast to the sample's shape.
        coefficient: constant factor, of the sample's shape.
        positive, negative: values of the sample's shape and type; None stands for the drawn sample itself.
    """

    parameter: Float[Array, "*sample"]
    coefficient: Float[Array, "*sample"]
    positive: Any
    negative: Any


def supports(fn: dist.Distribution) -> bool:
    """Whether :func:`derivatives` has a rule for the unwrapped distribution ``fn``; subclasses do not inherit one."""
    return type(fn) in _RULES


def derivatives(fn: dist.Distribution, value: Array, key: jax.Array) -> tuple[Derivative, ...]:
    """The measure-valued derivatives of ``E[f(x)]``, ``x ~ fn``, in every parameter of ``fn``.

    Args:
        fn: a distribution without wrappers (``to_event``, ``expand``, ``mask``); its batch shape broadcasts to ``value``'s.
        value: the drawn sample, each entry an independent draw.
        key: typed PRNG key, independent of the one that drew ``value``.

    Returns:
        One :class:`Derivative` per parameter, or one per category for a categorical distribution. The gradient in whatever
        ``fn`` was made from is the sum of ``coefficient (f(positive) - f(negative)) grad parameter``.

    Raises:
        TypeError: if ``fn`` has no rule.
    """
    if not supports(fn):
        names = ", ".join(sorted({rule.__name__ for rule in _RULES}))
        raise TypeError(
            f"no measure-valued derivative for {type(fn).__name__}; there are rules for {names}. Use Pathwise() for a distribution "
            "with a differentiable sampler, Enumerate() for a finite support, or ScoreFunction()."
        )
    value = stop_gradient(jnp.asarray(value))
    return tuple(
        Derivative(d.parameter, *(None if a is None else stop_gradient(a) for a in d[1:]))
        for d in _RULES[type(fn)](fn, value, key)
    )


def _like(value, *parameters):
    """Parameters as floating arrays of the sample's shape."""
    dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.result_type(float)
    dtype = jnp.result_type(dtype, *parameters)
    return [jnp.broadcast_to(jnp.asarray(p, dtype), value.shape) for p in parameters]


def _bernoulli(fn, value, key):
    (probs,) = _like(value, fn.probs)
    one = value == 1
    sign = jnp.where(one, 1.0, -1.0).astype(probs.dtype)
    flipped = jnp.where(one, 0, 1).astype(value.dtype)
    # f(1) - f(0), whichever of the two was drawn
    return [Derivative(probs, sign, None, flipped)]


def _categorical(fn, value, key):
    probs = jnp.asarray(fn.probs)
    # The sampler divides by the sum, and the derivatives of normalised probabilities sum to zero, which the rule needs.
    probs = probs / probs.sum(-1, keepdims=True)
    probs = jnp.broadcast_to(probs, (*value.shape, probs.shape[-1]))
    one = jnp.ones(value.shape, probs.dtype)
    return [Derivative(probs[..., k], one, jnp.full_like(value, k), None) for k in range(probs.shape[-1])]


def _poisson(fn, value, key):
    (rate,) = _like(value, fn.rate)
    return [Derivative(rate, jnp.ones_like(rate), value + 1, None)]


def _geometric(fn, value, key):
    # x counts failures before the first success; x + x' + 1 those before the second, plus one.
    (probs,) = _like(value, fn.probs)
    failures = type(fn)(*_like(value, *fn.get_args().values())).sample(key)
    return [Derivative(probs, 1 / probs, None, value + failures.astype(value.dtype) + 1)]


def _exponential(fn, value, key):
    (rate,) = _like(value, fn.rate)
    other = jax.random.exponential(key, value.shape, rate.dtype) / rate
    return [Derivative(rate, 1 / rate, None, value + other)]


def _gamma(fn, value, key):
    concentration, rate = _like(value, fn.concentration, fn.rate)
    key_rate, key_concentration = jax.random.split(key)
    other = jax.random.exponential(key_rate, value.shape, rate.dtype) / rate
    return [
        Derivative(rate, concentration / rate, None, value + other),
        _gamma_concentration(concentration, value, key_concentration),
    ]


def _chi2(fn, value, key):
    (concentration,) = _like(value, fn.concentration)  # df / 2; the rate is a constant
    return [_gamma_concentration(concentration, value, key)]


def _gamma_concentration(a, value, key):
    """One term, drawn at random, of the derivative in the concentration ``a``.

    The logarithm of a gamma variable is, up to a constant, a sum over i = 0, 1, ... of independent ``-E_i / (a + i)``, ``E_i``
    standard exponential. The weak derivative of each exponential's rate gives
    ``d/da E[f(X)] = sum_i E[f(X) - f(X U^(1 / (a + i)))] / (a + i)``. The term is drawn with ``P(I >= i) = sqrt(a / (a + i))``:
    the variance is finite for smooth ``f``, whose i-th difference falls like 1/i, and for jumps.
    """
    key_term, key_factor = jax.random.split(key)
    tiny = jnp.finfo(a.dtype).tiny
    # Terms past 1e8 a, a part below 1e-8 of the sum, are counted at that one: a huge factor would only magnify rounding.
    u = jnp.maximum(jax.random.uniform(key_term, value.shape, a.dtype), 1e-4)
    rate = a + jnp.floor(a / u**2 - a)
    # 1 / (rate * probability), the difference of the two square roots multiplied out
    root, next_root, root_a = jnp.sqrt(rate), jnp.sqrt(rate + 1), jnp.sqrt(a)
    coefficient = next_root * (root + next_root) / (root_a * root)
    factor = jax.random.uniform(key_factor, value.shape, a.dtype, minval=tiny) ** (1 / rate)
    return Derivative(a, coefficient, None, (value * factor).astype(value.dtype))


def _normal(fn, value, key):
    loc, scale = _like(value, fn.loc, fn.scale)
    key_loc, key_norm, key_sign, key_factor = jax.random.split(key, 4)
    # Location: the two halves of the derivative of the density are Weibull(2, sqrt 2) to either side. One draw serves both,
    # so that the part of f that is even about the mean cancels.
    weibull = jnp.sqrt(2 * jax.random.exponential(key_loc, value.shape, loc.dtype))
    # Scale: double-sided Maxwell against normal, which is a Maxwell times a uniform.
    maxwell = jnp.sqrt(2 * jax.random.gamma(key_norm, jnp.full(value.shape, 1.5, loc.dtype)))
    maxwell = maxwell * jax.random.rademacher(key_sign, value.shape, loc.dtype)
    uniform = jax.random.uniform(key_factor, value.shape, loc.dtype)
    return [
        Derivative(loc, 1 / (scale * jnp.sqrt(2 * jnp.pi)), loc + scale * weibull, loc - scale * weibull),
        Derivative(scale, 1 / scale, loc + scale * maxwell, loc + scale * maxwell * uniform),
    ]


_RULES: dict[type, Callable] = {
    dist.BernoulliProbs: _bernoulli,
    dist.BernoulliLogits: _bernoulli,
    dist.CategoricalProbs: _categorical,
    dist.CategoricalLogits: _categorical,
    dist.Poisson: _poisson,
    dist.GeometricProbs: _geometric,
    dist.GeometricLogits: _geometric,
    dist.Exponential: _exponential,
    dist.Gamma: _gamma,
    dist.Chi2: _chi2,
    dist.Normal: _normal,
}
