"""The wake-sleep family: model and guide are moved by log densities at samples that are held fixed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp
from jaxtyping import Array
from numpyro.handlers import uncondition

from vinb.estimators import Expectation, expectation
from vinb.estimators.checks import check_count
from vinb.estimators.surrogates import constants
from vinb.objectives.elbo import model_values
from vinb.objectives.importance import log_model
from vinb.programs import detached, log_density, replicate, scalar, simulate
from vinb.programs.simulate import check_unscaled


def wake_theta(model: Callable, guide: Callable, *, num_particles: int) -> Expectation:
    """PWake: ``E[sum_i w_i log p(x, z_i)]`` with self-normalised weights of N samples of the guide, to be maximised
    (bornschein2015rws; becker2024programmable).

    Moves the model alone; its gradient tends to that of ``log p(x)`` as N grows, with N = 1 it is that of the wake
    phase of wake-sleep.

    Args:
        model: NumPyro program of ``p(x, z)``.
        guide: NumPyro program of ``q(z)``, the proposal; not differentiated.
        num_particles: N.

    Returns:
        A function ``(params, key, *args)`` to a scalar whose gradient is unbiased for this N.

    Raises:
        ValueError: for a ``num_particles`` below one; and, when called, for sites that model and guide do not share.
    """
    check_count(num_particles)

    def program(*args, **kwargs):
        particles = weighted_particles(model, guide, num_particles, args, kwargs)
        return jnp.sum(particles.shares * scores(model, particles.latents, args, kwargs))

    return expectation(program)


def wake_phi(
    model: Callable, guide: Callable, *, num_particles: int, proposal: Callable | None = None
) -> Expectation:
    """QWake: ``E[sum_i w_i log q(z_i)]`` with self-normalised weights of N samples of a fixed proposal, to be maximised
    (bornschein2015rws; becker2024programmable).

    Moves the guide alone; its gradient tends to that of ``-KL(p(z | x) || q)`` as N grows. With N = 1 and the guide
    itself as the proposal its expectation is zero: that is the score's.

    Args:
        model, guide, num_particles: as in :func:`wake_theta`.
        proposal: NumPyro program with the guide's sites and arguments; the guide itself by default. Not differentiated.

    Returns, Raises: as :func:`wake_theta`.
    """
    check_count(num_particles)

    def program(*args, **kwargs):
        particles = weighted_particles(model, proposal or guide, num_particles, args, kwargs)
        return jnp.sum(particles.shares * scores(guide, particles.values, args, kwargs))

    return expectation(program)


def reweighted_wake_sleep(model: Callable, guide: Callable, *, num_particles: int) -> Expectation:
    """:func:`wake_theta` plus :func:`wake_phi` at the same samples of the guide (bornschein2015rws, without a sleep phase)."""
    check_count(num_particles)

    def program(*args, **kwargs):
        particles = weighted_particles(model, guide, num_particles, args, kwargs)
        log_p = scores(model, particles.latents, args, kwargs)
        return jnp.sum(particles.shares * (log_p + scores(guide, particles.values, args, kwargs)))

    return expectation(program)


def forward_kl(
    model: Callable, guide: Callable, *, num_particles: int, proposal: Callable | None = None
) -> Expectation:
    """``-KL(p(z | x) || q)`` by N self-normalised samples, to be maximised: value consistent, not unbiased, as N grows.

    Its gradient in the guide's parameters is that of :func:`wake_phi`; the model is held fixed. Arguments as there.
    """
    check_count(num_particles)

    def program(*args, **kwargs):
        particles = weighted_particles(model, proposal or guide, num_particles, args, kwargs)
        log_q = scores(guide, particles.values, args, kwargs)
        return jnp.sum(particles.shares * (log_q - particles.log_targets)) + particles.log_evidence

    return expectation(program)


def sleep(model: Callable, guide: Callable, *, observed: str) -> Expectation:
    """``E[log q(z | x)]`` over ``(x, z)`` that the model dreams, to be maximised: ``-KL(p || q)`` averaged over data
    sets, but for a constant.

    Args:
        model: NumPyro program; takes its data as the first argument. Not differentiated.
        guide: NumPyro program with the model's latent sites, conditional on the same first argument.
        observed: name of the model's site whose value is that first argument.

    Returns:
        A function ``(params, key, x, *args)``; only the shape and type of ``x`` matter.

    Raises:
        ValueError: when called, if the model has no site ``observed``.
    """

    def program(x, *args, **kwargs):
        with detached():
            x_dreamt, dream = dream_of(model, observed, x, *args, **kwargs)
        return log_density(guide, dream, x_dreamt, *args, **kwargs)

    return expectation(program)


def wake_sleep(model: Callable, guide: Callable, *, observed: str) -> Expectation:
    """``log p(x, z)`` at ``z ~ q(z|x)`` plus ``log q(z'|x')`` at ``(x', z') ~ p``, with no gradient through the samples.

    The wake phase moves the model, the sleep phase the guide; ascending the sum does both at once. It is not a bound on
    anything (hinton1995wakesleep). Arguments as for :func:`sleep`.
    """

    def program(x, *args, **kwargs):
        with detached():
            wake = constants(model_values(simulate(guide, x, *args, **kwargs)))
            x_dreamt, dream = dream_of(model, observed, x, *args, **kwargs)
        log_p = log_density(model, wake, x, *args, **kwargs)
        return log_p + log_density(guide, dream, x_dreamt, *args, **kwargs)

    return expectation(program)


def dream_of(model: Callable, observed: str, x: Array, *args, **kwargs):
    """Data and latent values drawn from the model, the data of the type of ``x``."""
    x = jnp.asarray(x)
    dream = dict(simulate(uncondition(model), x, *args, **kwargs).values)
    if observed not in dream:
        raise ValueError(
            f"observed={observed!r} is not a sample site of the model; its sites are {sorted(dream)}"
        )
    x_dreamt = dream.pop(observed)
    if jnp.issubdtype(x_dreamt.dtype, jnp.integer) and jnp.issubdtype(x.dtype, jnp.floating):
        x_dreamt = x_dreamt.astype(x.dtype)  # the guide's networks want the data's type
    return x_dreamt, dream


class Particles(NamedTuple):
    """Weighted samples of a proposal, all constants: its values, those of the model's sites, self-normalised weights."""

    values: dict[str, Array]
    latents: dict[str, Array]
    shares: Array
    log_targets: Array
    log_evidence: Array


def weighted_particles(model, proposal, num, args, kwargs) -> Particles:
    def one():
        q = simulate(proposal, *args, **kwargs)
        check_unscaled(q.trace)
        log_target = log_model(model, q, args, kwargs)
        return q.values, model_values(q), log_target - scalar(q.log_density), log_target

    with detached():
        values, latents, log_weights, log_targets = stop_gradient(replicate(one, num)())
    log_evidence = logsumexp(log_weights) - jnp.log(num)
    return Particles(values, latents, jax.nn.softmax(log_weights), log_targets, log_evidence)


def scores(program, values, args, kwargs):
    """Log density of ``program`` at each of the values."""
    return jax.vmap(lambda one: scalar(log_density(program, one, *args, **kwargs)))(values)
