"""The symmetric divergence ``KL(p || q) + KL(q || p)``."""

from collections.abc import Callable

import jax.numpy as jnp

from vinb.estimators import Expectation, expectation
from vinb.estimators.checks import check_count
from vinb.objectives.elbo import model_values
from vinb.objectives.wake import dream_of, scores, weighted_particles
from vinb.programs import log_density, simulate


def symmetric_kl(
    model: Callable, guide: Callable, *, num_particles: int, proposal: Callable | None = None
) -> Expectation:
    """Minus ``KL(p(z | x) || q) + KL(q || p(z | x))`` at fixed data, to be maximised (becker2024programmable).

    The first divergence is estimated as by ``forward_kl``, the second without bias but for the evidence, which the
    particles estimate:
    ``E_q[log p(x, z) - log q(z)] - log Z``. The model is differentiated through the lower bound alone.

    Args:
        model: NumPyro program of ``p(x, z)``.
        guide: NumPyro program of ``q(z)``.
        num_particles: N, self-normalised samples that stand for the posterior.
        proposal: what they are drawn from; the guide by default. Not differentiated.

    Returns:
        A function ``(params, key, *args)`` to an estimate, consistent as N grows.

    Raises:
        ValueError: for a ``num_particles`` below one; and, when called, for sites that model and guide do not share.
    """
    check_count(num_particles)

    def program(*args, **kwargs):
        q = simulate(guide, *args, **kwargs)
        reverse = log_density(model, model_values(q), *args, **kwargs) - q.log_density
        particles = weighted_particles(model, proposal or guide, num_particles, args, kwargs)
        log_q = scores(guide, particles.values, args, kwargs)
        forward = jnp.sum(particles.shares * (log_q - particles.log_targets))
        # The two estimates of the log evidence, one in each divergence, cancel.
        return reverse + forward

    return expectation(program)


def symmetric_kl_over_data(model: Callable, guide: Callable, *, observed: str) -> Expectation:
    """Minus ``E_x[KL(p(z | x) || q(z | x)) + KL(q || p)]`` over data sets that the model dreams, to be maximised
    (domke2021symmetric).

    The evidence cancels, so that its value is an unbiased estimate and not only up to a constant: zero for a perfect
    guide.

    Args:
        model: NumPyro program; takes its data as the first argument.
        guide: NumPyro program with the model's latent sites, conditional on the same first argument.
        observed: name of the model's site whose value is that first argument.

    Returns:
        A function ``(params, key, x, *args)``; only the shape and type of ``x`` matter.

    Raises:
        ValueError: when called, if the model has no site ``observed``.
    """

    def program(x, *args, **kwargs):
        x_dreamt, dream = dream_of(model, observed, x, *args, **kwargs)
        q = simulate(guide, x_dreamt, *args, **kwargs)

        def log_ratio(values):
            log_p = log_density(model, values, x_dreamt, *args, **kwargs)
            return log_p - log_density(guide, values, x_dreamt, *args, **kwargs)

        return log_ratio(model_values(q)) - log_ratio(dream)

    return expectation(program)
