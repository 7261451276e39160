"""The importance-weighted bound of Burda, Grosse and Salakhutdinov."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float
from numpyro.distributions.util import is_identically_one

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

    Raises:
        ValueError: for a ``num_particles`` below one; and, when called, for a guide site without reparameterisation, for sites
            that model and guide do not share, and for a scaled site.
    """
    check_num_particles(num_particles)

    def log_weight(params, key, *args, **kwargs):
        q = simulate(guide, params, key, *args, **kwargs)
        check_reparameterised(q)
        log_p, trace = log_density(model, params, q.values, *args, **kwargs)
        _check_unscaled(q.trace)
        _check_unscaled(trace)
        return log_p - q.log_density

    def objective(params: Params, key: jax.Array, *args, **kwargs) -> Float[Array, ""]:
        keys = jax.random.split(key, num_particles)
        log_weights = jax.vmap(lambda k: log_weight(params, k, *args, **kwargs))(keys)
        return logsumexp(log_weights) - jnp.log(num_particles)

    return objective


def _check_unscaled(trace):
    for name, site in trace.items():
        if site["type"] == "sample" and site["scale"] is not None and not is_identically_one(site["scale"]):
            raise ValueError(
                f"site {name!r} has a scale of {site['scale']}: the logarithm of an average of scaled weights bounds nothing. "
                "Remove numpyro.handlers.scale or the subsampling plate, and scale the bound on the minibatch instead."
            )
