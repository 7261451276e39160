"""Layers whose weights and biases are one parameter site, with fixed initial values: the analyses never look at values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro


def draws(*shape: int) -> jax.Array:
    """The same numbers at each call, with the standard deviation of weights that have ``shape[0]`` inputs."""
    return jnp.asarray(np.random.default_rng(0).normal(0.0, shape[0] ** -0.5, shape))


def dense(name: str, inputs: int, outputs: int) -> Callable:
    """An affine map of the last axis."""
    layer = numpyro.param(name, lambda _: {"weight": draws(inputs, outputs), "bias": jnp.zeros(outputs)})
    return lambda x: x @ layer["weight"] + layer["bias"]


def recurrent(name: str, inputs: int, units: int, outputs: int) -> Callable:
    """An affine map of an input and of the hidden units before it."""
    layer = numpyro.param(
        name,
        lambda _: {
            "input": draws(inputs, outputs),
            "hidden": draws(units, outputs),
            "bias": jnp.zeros(outputs),
        },
    )
    return lambda x, hidden: x @ layer["input"] + hidden @ layer["hidden"] + layer["bias"]


def lstm(name: str, inputs: int, units: int) -> Callable:
    """An LSTM cell: from an input and the state ``(hidden, cell)`` to the next state."""
    affine = recurrent(name, inputs, units, 4 * units)

    def step(x, state):
        hidden, cell = state
        enter, forget, candidate, leave = jnp.split(affine(x, hidden), 4, axis=-1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        return jax.nn.sigmoid(leave) * jnp.tanh(cell), cell

    return step


def standardize(x: jax.Array) -> jax.Array:
    """Subtract the mean over the batch, the first axis, and divide by the standard deviation."""
    centred = x - jnp.mean(x, 0)
    return centred / jnp.sqrt(jnp.mean(centred**2, 0) + 1e-5)


def batch_norm(name: str, units: int) -> Callable:
    """Batch normalisation with a learned scale and shift, as in training."""
    layer = numpyro.param(name, lambda _: {"weight": jnp.ones(units), "bias": jnp.zeros(units)})
    return lambda x: layer["weight"] * standardize(x) + layer["bias"]
