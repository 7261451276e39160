"""Functions whose value is a cost and whose reverse-mode gradient is a chosen estimator of the gradient of its expectation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float


def score_function(
    cost: Float[Array, "..."], log_prob: Float[Array, "..."], baseline: Float[Array, "..."] | float = 0.0
) -> Float[Array, "..."]:
    """Score-function (REINFORCE) surrogate of ``E[cost]`` for samples that are not differentiable in the parameters.

    Its value is ``cost``; its gradient is ``grad cost + (cost - baseline) grad log_prob``, unbiased for any ``baseline`` that
    does not depend on the sample (kingma2014aevb, section 2.2, names it and dismisses it for its variance).

    Args:
        cost: cost of each sample; its own dependence on the parameters is differentiated too.
        log_prob: log probability of each sample, as a function of the parameters, same shape as ``cost``. Where it is minus
            infinity the sample cannot have been drawn and contributes no score (a NaN in the derivative of the infinity itself,
            that of ``log(p)`` at 0, still gets through).
        baseline: subtracted from the cost in the score term; of the shape of ``cost``, or broadcast to it.

    Returns:
        An array like ``cost``.

    Raises:
        ValueError: if the shapes do not agree: broadcasting would count a cost several times.
    """
    shapes = jnp.shape(cost), jnp.shape(log_prob)
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"cost and log_prob must have the same shape, one entry per sample; got {shapes[0]} and {shapes[1]}"
        )
    if np.broadcast_shapes(jnp.shape(baseline), shapes[0]) != shapes[0]:
        raise ValueError(
            f"baseline of shape {jnp.shape(baseline)} does not broadcast to the cost's shape {shapes[0]}"
        )
    log_prob = jnp.where(jnp.isneginf(log_prob), 0.0, log_prob)
    return cost + stop_gradient(cost - baseline) * (log_prob - stop_gradient(log_prob))


def straight_through(key: jax.Array, logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """Bernoulli samples through which the gradient passes as if they were their probability. BIASED.

    Args:
        key: typed PRNG key.
        logits: log odds.

    Returns:
        Zeros and ones of the shape and type of ``logits``; the gradient with respect to ``logits`` is that of ``sigmoid(logits)``.
        For ``f(b) = (b - t)^2`` its bias is ``(2p - 1) p (1 - p)`` with ``p = sigmoid(logits)``: zero only at ``p = 1/2``.
    """
    probs = jax.nn.sigmoid(logits)
    sample = jax.random.bernoulli(key, probs).astype(probs.dtype)
    return sample + (probs - stop_gradient(probs))  # in this order: the bracket is exactly zero


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def first_derivatives_only(value: Float[Array, "..."], reason: str) -> Float[Array, "..."]:
    """``value``, whose second derivatives raise NotImplementedError with ``reason`` instead of being wrong."""
    return value


@first_derivatives_only.defjvp
def _(reason, primals, tangents):
    # Of the tangent alone: it has to stay linear.
    return first_derivatives_only(primals[0], reason), _one(primals[0], reason) * tangents[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _one(value, reason):
    return jnp.ones_like(value)


@_one.defjvp
def _(reason, primals, tangents):
    raise NotImplementedError(reason)


def constants(tree):
    """A pytree with its arrays cut from differentiation; other leaves as they are."""
    return jax.tree.map(lambda leaf: stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree)
