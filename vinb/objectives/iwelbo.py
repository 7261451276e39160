"""The importance-weighted bound of Burda, Grosse and Salakhutdinov."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from vinb.estimators import Params
from vinb.objectives.elbo import Objective, check_num_particles, check_reparameterised
from vinb.programs import log_density, simulate


def iwelbo(model: Callable, guide: Callable, *, num_particles: int) -> Objective:
    """Importance-weighted bound ``L_K = E[log (1/K) sum_k p(x, z_k) / q(z_k)]``, to be maximised (burda2016iwae, equation 8).

    It does not decrease in K and tends to ``log p(x)``; with K = 1 it is the evidence lower bound.

    Args:
        model, guide: as in :func:`vinb.objectives.elbo`.
        num_particles: K.

    Returns:
        A function ``(params, key, *args)`` to an estimate of the bound on the log evidence of ALL the data in ``args`` together.
        For the sum of the bounds on each datum, which is tighter, map it over data: ``jax.vmap`` or ``jax.lax.map`` of
        ``lambda key, x: bound(params, key, x[None])``.
    """
    check_num_particles(num_particles)

    def log_weight(params, key, *args, **kwargs):
        q = simulate(guide, params, key, *args, **kwargs)
        check_reparameterised(q)
        log_p, _ = log_density(model, params, q.values, *args, **kwargs)
        return log_p - q.log_density

    def objective(params: Params, key: jax.Array, *args, **kwargs) -> Float[Array, ""]:
        keys = jax.random.split(key, num_particles)
        log_weights = jax.vmap(lambda k: log_weight(params, k, *args, **kwargs))(keys)
        return logsumexp(log_weights) - jnp.log(num_particles)

    return objective
