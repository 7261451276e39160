"""Timing steps in a process that has JAX: ours, and genjax's."""

import handwritten
import harness
import jax
import jax.numpy as jnp
import numpy as np


def system(name, gradient, case, options, direction):
    """A `harness.System` whose run is `options["steps"]` steps, with `check` [draws, parameters] beside it."""
    params = jax.tree.map(jnp.asarray, case.params)
    keys = jax.random.split(jax.random.key(1), options["steps"])
    data = (jnp.asarray(case.data),)
    run_steps = lambda params, keys, *data: handwritten.train(gradient, params, keys, *data)  # noqa: E731
    program = harness.compiled(run_steps, params, keys, *data, donate=(0,))

    def run():
        _, losses = program.call(jax.tree.map(jnp.copy, params), keys, *data)
        return np.asarray(losses)

    check = handwritten.checked(gradient, params, data, direction, options["draws"], seed=2)
    made = harness.System(
        name, run, options["steps"], program.compile_seconds, program.flops, program.temp_bytes
    )
    return made, check


def by_hand(case):
    return jax.value_and_grad(case.loss)


def direction(case, draws=200):
    """The mean of gradients that nobody else draws."""
    gradient = jax.value_and_grad(case.precise or case.loss)
    params, x = jax.tree.map(jnp.asarray, case.params), jnp.asarray(case.data)
    keys = jax.random.split(jax.random.key(99), draws)

    def add(total, key):
        return jax.tree.map(jnp.add, total, gradient(params, key, x)[1]), None

    total = jax.jit(lambda keys: jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), keys)[0])(keys)
    return {name: np.asarray(value) / draws for name, value in total.items()}
