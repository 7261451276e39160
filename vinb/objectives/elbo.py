"""The evidence lower bound of a NumPyro model and guide, with the gradient estimators of Auto-Encoding Variational Bayes."""

from collections.abc import Callable
from numbers import Integral
from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro.distributions import kl_divergence

from vinb.estimators import Params
from vinb.programs import Simulation, latent_sites, log_density, simulate, site_log_density

Objective = Callable[..., Float[Array, ""]]


def elbo(
    model: Callable,
    guide: Callable,
    *,
    kl: Literal["analytic", "monte-carlo", "sticking-the-landing"] = "analytic",
    num_particles: int = 1,
) -> Objective:
    """Evidence lower bound ``E_q[log p(x, z) - log q(z)]``, to be maximised (kingma2014aevb, equations 2 and 3).

    Args:
        model: NumPyro program of ``p(x, z)``; its observed sites must be given by its arguments.
        guide: NumPyro program of ``q(z)``, reparameterised, with the model's latent site names and arguments.
        kl: how the divergence from the prior is estimated.
            ``"analytic"``: in closed form (estimator B, equation 7); for a single latent site.
            ``"monte-carlo"``: by the same samples as the rest (estimator A, equation 6).
            ``"sticking-the-landing"``: value as ``"monte-carlo"``, gradient without the score of ``q``, whose expectation is
            zero (roeder2017stl); zero variance where ``q`` is the exact posterior.
        num_particles: samples of ``z`` that are averaged (the paper's L).

    Returns:
        A function ``(params, key, *args)`` to an unbiased estimate of the bound, summed over the data in ``args``; its
        gradient is an unbiased estimate of the bound's gradient. ``params`` holds the unconstrained parameters of both
        programs (``vinb.estimators.init((model, guide), key, *args)``).

    Raises:
        ValueError: for an unknown ``kl`` or a ``num_particles`` below one; and, when called, for a guide site without
            reparameterisation, for sites that model and guide do not share, and under ``"analytic"`` for several latent sites.
    """
    estimators = {
        "analytic": _analytic,
        "monte-carlo": _monte_carlo,
        "sticking-the-landing": _sticking_the_landing,
    }
    if kl not in estimators:
        raise ValueError(f"kl must be one of {sorted(estimators)}, got {kl!r}")
    check_num_particles(num_particles)

    def one_particle(params, key, *args, **kwargs):
        q = simulate(guide, params, key, *args, **kwargs)
        check_reparameterised(q)
        return estimators[kl](model, guide, params, q, args, kwargs)

    def objective(params: Params, key: jax.Array, *args, **kwargs) -> Float[Array, ""]:
        if num_particles == 1:
            return one_particle(params, key, *args, **kwargs)
        keys = jax.random.split(key, num_particles)
        return jnp.mean(jax.vmap(lambda k: one_particle(params, k, *args, **kwargs))(keys))

    return objective


def _monte_carlo(model, guide, params, q: Simulation, args, kwargs):
    log_p, _ = log_density(model, params, q.values, *args, **kwargs)
    return log_p - q.log_density


def _sticking_the_landing(model, guide, params, q: Simulation, args, kwargs):
    log_p, _ = log_density(model, params, q.values, *args, **kwargs)
    log_q, _ = log_density(guide, jax.tree.map(stop_gradient, params), q.values, *args, **kwargs)
    return log_p - log_q


def _analytic(model, guide, params, q: Simulation, args, kwargs):
    if len(q.values) != 1:
        raise ValueError(
            f"kl='analytic' takes a guide with one latent site, and this one has {sorted(q.values)}: the divergences "
            "of several sites add up only if the guide factorises along the model. Pass kl='monte-carlo', or put "
            "the latents into one site."
        )
    (name,) = q.values
    _, trace = log_density(model, params, q.values, *args, **kwargs)
    prior = trace.pop(name)
    try:
        divergence = kl_divergence(q.trace[name]["fn"], prior["fn"])
    except NotImplementedError as error:
        kinds = (type(site["fn"]).__name__ for site in (q.trace[name], prior))
        raise ValueError(
            f"NumPyro has no closed-form divergence from {' to '.join(kinds)} at site {name!r}; "
            "pass kl='monte-carlo', or register one with numpyro.distributions.kl.kl_divergence"
        ) from error
    log_likelihood = sum((site_log_density(s) for s in trace.values() if s["type"] == "sample"), start=0.0)
    return log_likelihood - jnp.sum(divergence if prior["scale"] is None else prior["scale"] * divergence)


def check_num_particles(num_particles):
    if isinstance(num_particles, bool) or not isinstance(num_particles, Integral) or num_particles < 1:
        raise ValueError(f"num_particles must be a positive integer, got {num_particles!r}")


def check_reparameterised(q: Simulation):
    for name, site in latent_sites(q.trace).items():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"guide site {name!r} is {type(site['fn']).__name__}, which has no reparameterised sampler: the gradient of this "
                "objective would silently miss a term. Use a reparameterised distribution, or vinb.estimators.score_function."
            )
