"""Straight-through and Gumbel-softmax draws: a gradient through a discrete choice that is BIASED.

Both let the gradient of the rest of the program with respect to the choice pass into the parameters as if the choice were
continuous. They are cheap and often of low variance; nothing makes their expectation the gradient of the expectation, unless
the rest of the program is linear in the choice.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vinb.distributions import OneHotCategorical
from vinb.estimators.elements import unwrap

_BERNOULLI = (dist.BernoulliProbs, dist.BernoulliLogits)


def supports(fn: dist.Distribution) -> bool:
    """Whether ``fn`` is a Bernoulli or :class:`~vinb.distributions.OneHotCategorical`, possibly wrapped."""
    return type(unwrap(fn)) in (*_BERNOULLI, OneHotCategorical)


def straight_through(
    fn: dist.Distribution, key: jax.Array, sample_shape: tuple[int, ...] = ()
) -> Float[Array, "..."]:
    """A discrete draw through which the gradient passes as if it were its probabilities (bengio2013estimating). BIASED.

    For a Bernoulli with log odds ``l`` and ``f(b) = (b - t)^2`` the bias in ``l`` is ``(2p - 1) p (1 - p)``, zero only at
    ``p = 1/2``.

    Args:
        fn: a Bernoulli or :class:`~vinb.distributions.OneHotCategorical`, possibly wrapped by ``to_event``, ``expand`` or ``mask``.
        key: typed PRNG key.
        sample_shape: as in ``fn.sample``.

    Returns:
        Zeros and ones, floating, of shape ``sample_shape + fn.batch_shape + fn.event_shape``; the gradient is that of ``probs``.

    Raises:
        TypeError: for any other distribution.
    """
    base, shape = _base_and_shape(fn, sample_shape, "StraightThrough")
    probs = jnp.broadcast_to(jnp.asarray(base.probs, jnp.result_type(float, base.probs)), shape)
    if isinstance(base, OneHotCategorical):
        logits = jnp.broadcast_to(base.logits, shape)
        draw = jax.nn.one_hot(jax.random.categorical(key, logits), shape[-1], dtype=probs.dtype)
    else:
        draw = jnp.where(jax.random.bernoulli(key, probs), 1.0, 0.0).astype(probs.dtype)
    return stop_gradient(draw) + (probs - stop_gradient(probs))  # in this order: the bracket is exactly zero


def gumbel_softmax(
    fn: dist.Distribution, key: jax.Array, sample_shape: tuple[int, ...], temperature: float
) -> Float[Array, "..."]:
    """A continuous draw that tends to the discrete one with ``temperature`` (jang2017gumbel, maddison2017concrete). BIASED.

    Value and gradient are those of the relaxed program. The bias falls with the temperature, while the variance of the
    gradient grows like its inverse.

    Args:
        fn: as for :func:`straight_through`.
        key: typed PRNG key.
        sample_shape: as in ``fn.sample``.
        temperature: positive.

    Returns:
        Numbers between 0 and 1 of shape ``sample_shape + fn.batch_shape + fn.event_shape``; vectors that sum to one for one-hot
        categories.

    Raises:
        TypeError: for any other distribution.
        ValueError: if ``temperature`` is a number that is not positive.
    """
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    base, shape = _base_and_shape(fn, sample_shape, "GumbelSoftmax")
    logits = jnp.broadcast_to(jnp.asarray(base.logits, jnp.result_type(float, base.logits)), shape)
    if isinstance(base, OneHotCategorical):
        return jax.nn.softmax((logits + jax.random.gumbel(key, shape, logits.dtype)) / temperature)
    return jax.nn.sigmoid((logits + jax.random.logistic(key, shape, logits.dtype)) / temperature)


def _base_and_shape(fn, sample_shape, strategy):
    base = unwrap(fn)
    if not supports(fn):
        hint = ""
        if isinstance(base, (dist.CategoricalProbs, dist.CategoricalLogits)):
            hint = " An integer cannot be relaxed: use vinb.distributions.OneHotCategorical, whose values are vectors."
        raise TypeError(
            f"{strategy} relaxes Bernoulli and OneHotCategorical sites, not {type(base).__name__}.{hint}"
        )
    return base, tuple(sample_shape) + fn.batch_shape + fn.event_shape
