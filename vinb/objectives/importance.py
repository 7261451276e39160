"""Bounds that average importance weights inside a logarithm."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from vinb.estimators import Expectation, Pathwise, expectation, with_baseline
from vinb.estimators.checks import check_count
from vinb.estimators.elements import unwrap
from vinb.estimators.frames import current
from vinb.estimators.pathwise import is_reparameterised
from vinb.estimators.surrogates import constants, first_derivatives_only
from vinb.objectives.elbo import model_values
from vinb.programs import StochasticProgram, detached, latent_sites, log_density, replicate, scalar, simulate
from vinb.programs.simulate import check_unscaled, unscaled_log_density

Gradient = Literal["plain", "vimco", "doubly-reparameterised", "sticking-the-landing"]


def iwelbo(
    model: Callable, guide: Callable, *, num_particles: int, gradient: Gradient = "plain"
) -> Expectation:
    """Importance-weighted bound ``L_K = E[log (1/K) sum_k p(x, z_k) / q(z_k)]``, to be maximised (burda2016iwae, equation 8).

    It does not decrease in K and tends to ``log p(x)``; with K = 1 it is the evidence lower bound.

    Args:
        model, guide: as in :func:`vinb.objectives.elbo`.
        num_particles: K.
        gradient:
            ``"plain"``: every site by its strategy.
            ``"vimco"``: the same, and score-function sites have leave-one-out baselines: the bound with a particle's
            weight replaced by the geometric mean of the others' (mnih2016vimco).
            ``"doubly-reparameterised"``: for reparameterised guides; unbiased, with a signal-to-noise ratio that grows
            with K where the plain one's falls (tucker2019dreg). First derivatives only.
            ``"sticking-the-landing"``: drops the guide's score. BIASED for K > 1.

    Returns:
        A function ``(params, key, *args)`` to an unbiased estimate of the bound on the log evidence of ALL the data in ``args``
        together. For the sum of the bounds on each datum, which is tighter, map it over data: ``jax.vmap`` or ``jax.lax.map`` of
        ``lambda key, x: bound(params, key, x[None])``.

    Raises:
        ValueError: for a ``num_particles`` below one or an unknown ``gradient``; and, when called, for sites that model and guide
            do not share, for a scaled site, and for a strategy other than ``Pathwise`` where the gradient needs it.
    """
    return renyi(model, guide, alpha=0.0, num_particles=num_particles, gradient=gradient)


def renyi(
    model: Callable, guide: Callable, *, alpha: float, num_particles: int, gradient: Gradient = "plain"
) -> Expectation:
    """Variational Renyi bound ``E[log (1/K) sum_k w_k^(1 - alpha)] / (1 - alpha)`` with K particles (li2016renyi, equation 14).

    ``alpha = 0`` is the importance-weighted bound. The estimate is unbiased for this expectation, not for its limit in K.

    Args:
        model, guide, num_particles, gradient: as in :func:`iwelbo`.
        alpha: the order; not 1, which is the evidence lower bound. Below 1 for a lower bound.

    Returns:
        A function ``(params, key, *args)`` to an estimate of the bound, to be maximised.

    Raises:
        ValueError: as in :func:`iwelbo`, and for ``alpha=1``.
    """
    check_count(num_particles)
    power = 1.0 - alpha
    if power == 0:
        raise ValueError("alpha=1 is the evidence lower bound: use vinb.objectives.elbo")
    kinds = ("plain", "vimco", "doubly-reparameterised", "sticking-the-landing")
    if gradient not in kinds:
        raise ValueError(f"gradient must be one of {', '.join(map(repr, kinds))}, got {gradient!r}")

    def bound_of(log_weights):
        return (logsumexp(power * log_weights) - jnp.log(num_particles)) / power

    def program(*args, **kwargs):
        if gradient == "doubly-reparameterised":
            return _doubly_reparameterised(model, guide, num_particles, power, bound_of, args, kwargs)
        if gradient == "sticking-the-landing":
            if num_particles > 1 and current() is not None:
                current().notes["the bound's gradient"] = (
                    "BIASED: sticking the landing drops the guide's score"
                )
            stl = lambda: _split(model, guide, args, kwargs)[2]  # noqa: E731
            return bound_of(replicate(stl, num_particles)())
        log_weights = replicate(lambda: log_weight(model, guide, args, kwargs), num_particles)()
        bound = bound_of(log_weights)
        if gradient == "plain" or num_particles == 1:
            return bound
        return with_baseline(bound, "particles", _without_each(log_weights, bound_of))

    return expectation(program)


def log_weight(model, guide, args, kwargs):
    """``log p(x, z) - log q(z)`` at a ``z`` from the guide, one number."""
    return log_ratio(model, simulate(guide, *args, **kwargs), args, kwargs)


def log_ratio(model, q, args, kwargs):
    """``log p(x, z) - log q(z)`` at what the simulation ``q`` of a guide drew."""
    check_unscaled(q.trace)
    return log_model(model, q, args, kwargs) - scalar(q.log_density)


def log_model(model, q, args, kwargs):
    return scalar(unscaled_log_density(model, model_values(q), *args, **kwargs))


def _without_each(log_weights, bound_of):
    """The bound with each log weight in turn replaced by the mean of the others."""
    num = log_weights.shape[0]
    means = (jnp.sum(log_weights) - log_weights) / (num - 1)
    replaced = jnp.where(jnp.eye(num, dtype=bool), means[:, None], log_weights[None, :])
    return jax.vmap(bound_of)(replaced)


def _split(model, guide, args, kwargs):
    """Three numbers with the value of the log weight: differentiable in nothing but the model's parameters; in nothing but the
    sample; and in all but the guide's own density."""
    if isinstance(model, StochasticProgram) or isinstance(guide, StochasticProgram):
        raise ValueError(
            "this gradient needs known densities: pass gradient='plain' or 'vimco' for marginal and normalize"
        )
    q = simulate(guide, *args, **kwargs)
    check_unscaled(q.trace)
    _check_pathwise(q)
    values = model_values(q)
    fixed_args, fixed_kwargs = constants((args, kwargs))
    with detached():
        log_q = scalar(log_density(guide, q.values, *fixed_args, **fixed_kwargs))
        through_sample = scalar(log_density(model, values, *fixed_args, **fixed_kwargs)) - log_q
    in_model = scalar(log_density(model, constants(values), *args, **kwargs)) - stop_gradient(log_q)
    return in_model, through_sample, scalar(log_density(model, values, *args, **kwargs)) - log_q


def _doubly_reparameterised(model, guide, num, power, bound_of, args, kwargs):
    in_model, through_sample, _ = replicate(lambda: _split(model, guide, args, kwargs), num)()
    log_weights = stop_gradient(in_model)
    shares = jax.nn.softmax(power * log_weights)
    # The guide's score, reparameterised in its turn, takes power * share * (1 - share) from what flows through the sample
    # (tucker2019dreg, section 6, for a power of one).
    factors = (1.0 - power) * shares + power * shares**2
    surrogate = jnp.sum(shares * in_model) + jnp.sum(factors * through_sample)
    return first_derivatives_only(
        bound_of(log_weights) + surrogate - stop_gradient(surrogate),
        "second derivatives with gradient='doubly-reparameterised' are not available; pass gradient='plain' for them",
    )


def _check_pathwise(q):
    for name, site in latent_sites(q.trace).items():
        strategy = site["infer"].get("gradient", Pathwise())
        if not isinstance(strategy, Pathwise) or not is_reparameterised(site["fn"]):
            kind = type(unwrap(site["fn"])).__name__
            raise ValueError(
                f"this gradient reparameterises every site of the guide, and site {name!r} is {kind} with {strategy}; "
                "pass gradient='plain' or 'vimco'"
            )
