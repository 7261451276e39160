"""The wake-sleep algorithm of Hinton, Dayan, Frey and Neal as one objective: the baseline of kingma2014aevb, section 5."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro.handlers import uncondition

from vinb.estimators import Params
from vinb.objectives.elbo import Objective
from vinb.programs import log_density, simulate


def wake_sleep(model: Callable, guide: Callable, *, observed: str) -> Objective:
    """``log p(x, z)`` at ``z ~ q(z|x)`` plus ``log q(z'|x')`` at ``(x', z') ~ p``, with no gradient through the samples.

    The wake phase moves the model, the sleep phase the guide; ascending the sum does both at once. It is not a bound on
    anything (hinton1995wakesleep).

    Args:
        model: NumPyro program; takes its data as the first argument.
        guide: NumPyro program with the model's latent sites, conditional on the same first argument.
        observed: name of the model's site whose value is that first argument.

    Returns:
        A function ``(params, key, x, *args)`` to the sum of both phases' log densities.

    Raises:
        ValueError: when called, if the model has no site ``observed``.
    """

    def objective(params: Params, key: jax.Array, x: Array, *args) -> Float[Array, ""]:
        x = jnp.asarray(x)
        frozen = jax.tree.map(stop_gradient, params)
        wake_key, sleep_key = jax.random.split(key)
        wake = simulate(guide, frozen, wake_key, x, *args)
        log_p, _ = log_density(model, params, wake.values, x, *args)

        dream = dict(simulate(uncondition(model), frozen, sleep_key, x, *args).values)
        if observed not in dream:
            raise ValueError(
                f"observed={observed!r} is not a sample site of the model; its sites are {sorted(dream)}"
            )
        x_dreamt = dream.pop(observed)
        if jnp.issubdtype(x_dreamt.dtype, jnp.integer) and jnp.issubdtype(x.dtype, jnp.floating):
            x_dreamt = x_dreamt.astype(x.dtype)  # the guide's networks want the data's type
        log_q, _ = log_density(guide, params, dream, x_dreamt, *args)
        # Samples of reparameterised sites still depend on nothing trainable: `frozen` went in.
        return log_p + log_q

    return objective
