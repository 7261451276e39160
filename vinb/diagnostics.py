"""How good a fitted guide is: Pareto k-hat of its importance weights, the gap that more particles would close, samples
for ArviZ."""

from collections.abc import Callable
from typing import NamedTuple

import arviz
import jax
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from vinb.estimators import Params
from vinb.estimators.checks import check_count
from vinb.objectives.elbo import model_values
from vinb.objectives.importance import log_ratio, log_weight
from vinb.programs import evaluate, simulate


class ParetoK(NamedTuple):
    """Shape ``k`` of the generalised Pareto distribution fitted to the tail of the weights, and what it means."""

    k: float
    num_samples: int

    @property
    def meaning(self) -> str:
        """In words, by the thresholds of vehtari2024psis and yao2018evaluating."""
        limit = min(1 - 1 / np.log10(self.num_samples), 0.7)
        if not np.isfinite(self.k):
            return "the tail could not be fitted: the weights are constant, or not finite"
        if self.k <= 0.5:
            return "the weights have finite variance: the guide is close to the posterior, and importance sampling works well"
        if self.k <= limit:
            return "usable: importance sampling from the guide corrects it, at a slower rate"
        if self.k <= 0.7:
            return f"with {self.num_samples:,} samples not reliable (above {limit:.2f}); draw more"
        if self.k <= 1:
            return (
                "unreliable: the weights have no variance, so the guide misses mass of the posterior, most likely in its "
                "tails, and averages over its samples converge too slowly to be trusted. Use a wider or more flexible guide"
            )
        return (
            "the weights have no mean as far as can be seen: guide and posterior hardly overlap somewhere; "
            "do not use this guide as an approximation of the posterior"
        )

    def __str__(self):
        return f"Pareto k-hat {self.k:.2f} from {self.num_samples:,} samples: {self.meaning}"

    __repr__ = __str__


class Gap(NamedTuple):
    """Difference of the importance-weighted and the evidence lower bound in nats, with standard errors.

    The gap is at most the divergence of the guide from the posterior, and tends to it as ``num_particles`` grows.
    """

    gap: float
    standard_error: float
    elbo: float
    elbo_error: float
    iwelbo: float
    iwelbo_error: float
    num_particles: int

    def __str__(self):
        return (
            f"IWELBO({self.num_particles}) - ELBO = {self.gap:.4g} +- {self.standard_error:.2g} nats "
            f"(ELBO {self.elbo:.5g} +- {self.elbo_error:.2g}, IWELBO {self.iwelbo:.5g} +- {self.iwelbo_error:.2g})"
        )

    __repr__ = __str__


def log_weights(
    model: Callable, guide: Callable, params: Params, key: jax.Array, *args, num_samples: int, **kwargs
) -> Float[Array, " num_samples"]:
    """``log p(x, z) - log q(z)`` at independent samples of the guide.

    Args:
        model, guide: NumPyro programs, or ``marginal`` and ``normalize`` of such.
        params: unconstrained parameters of both.
        key: typed PRNG key.
        args, kwargs: the programs' arguments.
        num_samples: how many.
    """
    check_count(num_samples, "num_samples")
    draw = evaluate(lambda: log_weight(model, guide, args, kwargs))
    return jax.jit(jax.vmap(lambda k: draw(params, k)))(jax.random.split(key, num_samples))


def pareto_k(
    model: Callable, guide: Callable, params: Params, key: jax.Array, *args, num_samples: int = 4000, **kwargs
) -> ParetoK:
    """Pareto k-hat of the guide's importance weights, by ArviZ (yao2018evaluating; vehtari2024psis).

    Args: as for :func:`log_weights`; ``num_samples`` at least 100.

    Returns:
        :class:`ParetoK`; print it for its meaning in words.

    Raises:
        ValueError: for fewer than 100 samples, or where a weight is NaN or the guide draws what the model forbids everywhere.
    """
    check_count(num_samples, "num_samples")
    if num_samples < 100:
        raise ValueError(f"num_samples must be at least 100 for a tail to be fitted, got {num_samples}")
    weights = np.asarray(
        log_weights(model, guide, params, key, *args, num_samples=num_samples, **kwargs), float
    )
    if np.isnan(weights).any():
        raise ValueError(
            f"{np.isnan(weights).sum()} of {num_samples} log weights are NaN; check model and guide at these params"
        )
    if np.isneginf(weights).all():
        raise ValueError(
            "the model's density is zero at every sample of the guide: their supports do not match"
        )
    _, k = arviz.psislw(weights)
    return ParetoK(float(k), num_samples)


def gap(
    model: Callable,
    guide: Callable,
    params: Params,
    key: jax.Array,
    *args,
    num_particles: int = 100,
    num_draws: int = 200,
    **kwargs,
) -> Gap:
    """How much the bound rises from one particle to ``num_particles``: little if the guide is close to the posterior.

    Args:
        model, guide, params, key, args, kwargs: as for :func:`log_weights`.
        num_particles: K.
        num_draws: independent estimates of both bounds, at least 2; the same samples serve both, which makes the gap precise.

    Returns:
        :class:`Gap`.

    Raises:
        ValueError: for fewer than two draws or particles.
    """
    for name, number in (("num_particles", num_particles), ("num_draws", num_draws)):
        check_count(number, name)
        if number < 2:
            raise ValueError(f"{name} must be at least 2, got {number}")
    weights = log_weights(model, guide, params, key, *args, num_samples=num_particles * num_draws, **kwargs)
    weights = weights.reshape(num_draws, num_particles)
    elbos = np.asarray(weights.mean(1), float)
    iwelbos = np.asarray(logsumexp(weights, 1), float) - np.log(num_particles)
    error = lambda x: float(np.std(x, ddof=1) / np.sqrt(num_draws))  # noqa: E731
    return Gap(
        float(np.mean(iwelbos - elbos)),
        error(iwelbos - elbos),
        float(np.mean(elbos)),
        error(elbos),
        float(np.mean(iwelbos)),
        error(iwelbos),
        num_particles,
    )


def posterior(
    model: Callable, guide: Callable, params: Params, key: jax.Array, *args, num_samples: int = 1000, **kwargs
) -> arviz.InferenceData:
    """Samples of a fitted guide as ArviZ's InferenceData: group ``posterior`` with one chain, ``sample_stats`` with
    their ``log_weight``.

    Args: as for :func:`log_weights`. ``arviz.summary``, ``plot_posterior`` and the like take the result.
    """
    check_count(num_samples, "num_samples")

    def one():
        q = simulate(guide, *args, **kwargs)
        return model_values(q), log_ratio(model, q, args, kwargs)

    draw = evaluate(one)
    values, weights = jax.jit(jax.vmap(lambda k: draw(params, k)))(jax.random.split(key, num_samples))
    chains = {name: np.asarray(value)[None] for name, value in values.items()}
    return arviz.from_dict(posterior=chains, sample_stats={"log_weight": np.asarray(weights)[None]})
