"""What a network's weights cost: divergences from posteriors to priors, in nats, and their share of a minibatch's loss."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.special
from jaxtyping import Array, Float, Int, PyTree

from vinb import coding
from vinb.distributions import ImproperLogUniform
from vinb.models.bayesian.posteriors import (
    CorrelatedNormal,
    Delta,
    DiagonalNormal,
    Masked,
    MultiplicativeNormal,
    Posterior,
    is_posterior,
)
from vinb.models.bayesian.priors import Prior
from vinb.tables import Table

LogUniform = Literal["polynomial", "sigmoid"]


class Complexity(eqx.Module):
    """The cost of a network's weights in nats.

    ``nats`` is the total, ``by_path`` holds each posterior's elementwise cost by its path in the network (for
    :class:`CorrelatedNormal` the cost of each input unit), ``counts`` its number of weights without those that were pruned,
    ``methods`` how the cost was computed. Print :meth:`table` for a report.
    """

    nats: Float[Array, ""]
    by_path: dict[str, Float[Array, "..."]]
    counts: dict[str, Int[Array, ""]]
    _methods: tuple[tuple[str, str], ...] = eqx.field(static=True)

    @property
    def methods(self) -> dict[str, str]:
        return dict(self._methods)

    def table(self) -> Table:
        """Weights, nats, bits per weight and method, by posterior."""
        rows = []
        for path, cost in self.by_path.items():
            total, count = float(jnp.sum(cost)), int(self.counts[path])
            per_weight = f"{coding.bits(total / count):.3g}" if count else "-"
            rows.append((path, f"{count:,}", f"{total:.4g}", per_weight, self.methods[path]))
        return Table(
            ("posterior", "weights", "nats", "bits per weight", "computed"), rows, right=frozenset({1, 2, 3})
        )


def complexity(
    network: PyTree,
    prior: Prior | Callable[[str], Prior],
    *,
    key: jax.Array | None = None,
    num_samples: int = 1,
    mixture: Literal["monte-carlo", "bound"] = "monte-carlo",
    log_uniform: LogUniform | None = None,
    closed_form: bool = True,
) -> Complexity:
    """``KL(q(w) || p(w))`` of all posteriors in ``network``: in closed form where there is one, by draws otherwise.

    Args:
        network: a pytree with posteriors in it.
        prior: of all weights, or a function from a posterior's path (``jax.tree_util.keystr``) to its prior; an empirical prior is
            fitted to all posteriors for which the function returns the same object.
        key: for the draws. Those of ``sample_weights(network, key)``, so that complexity and likelihood can share them
            (blundell2015weight, section 3.3).
        num_samples: draws that are averaged; above one they are not those of ``sample_weights``.
        mixture: for mixtures of normals as priors: draws, or the upper bound of hinton1993keeping (equation 17).
        log_uniform: which approximation of the divergence from the log-uniform prior, see :func:`kl_log_uniform`. None takes the
            polynomial for posteriors that keep ``alpha <= 1``, and the other for all else, for which the polynomial is wrong.
        closed_form: False to draw wherever a density is to be had, as blundell2015weight does; ``mixture`` then has no effect.

    Returns:
        :class:`Complexity`. Where a posterior is a point or the prior improper, it is known up to a constant alone.

    Raises:
        ValueError: if draws are needed and ``key`` is None, for an unknown ``mixture`` or ``log_uniform``, the polynomial where
            ``alpha`` may pass 1, or ``num_samples`` below 1.
        TypeError: if ``prior`` is neither a prior nor a function that returns one.
    """
    if mixture not in ("monte-carlo", "bound"):
        raise ValueError(f"mixture must be 'monte-carlo' or 'bound', got {mixture!r}")
    if log_uniform not in (None, "polynomial", "sigmoid"):
        raise ValueError(f"log_uniform must be None, 'polynomial' or 'sigmoid', got {log_uniform!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    # NumPyro's distributions are callable, and so are classes.
    if not isinstance(prior, Prior) and (not callable(prior) or isinstance(prior, type | dist.Distribution)):
        raise TypeError(
            f"prior must be a Prior, such as NormalPrior(), or a function from a path to one; got {prior!r}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(network, is_leaf=is_posterior)
    found = [
        (k, jax.tree_util.keystr(path), leaf) for k, (path, leaf) in enumerate(leaves) if is_posterior(leaf)
    ]
    chosen = {path: prior if isinstance(prior, Prior) else prior(path) for _, path, _ in found}
    for path, one in chosen.items():
        if not isinstance(one, Prior):
            raise TypeError(f"prior({path!r}) must be a Prior, got {one!r}")
    laws = {}
    for one in {id(p): p for p in chosen.values()}.values():
        group = [posterior for _, path, posterior in found if chosen[path] is one]
        laws[id(one)] = one.distribution(group)
    by_path, counts, methods = {}, {}, {}
    for k, path, posterior in found:
        law = laws[id(chosen[path])]
        kept = posterior.kept if isinstance(posterior, Masked) else None
        inner = posterior.posterior if kept is not None else posterior
        result = None
        if closed_form or isinstance(inner, Delta):
            result = _closed_form(inner, law, mixture, log_uniform)
        if result is None:
            if key is None:
                raise ValueError(f"the complexity of {path} has no closed form; pass key= for draws")
            keys = [jax.random.fold_in(key, k)]
            if num_samples > 1:
                keys = jax.random.split(keys[0], num_samples)
            draws = [_by_draw(inner, law, one) for one in keys]
            result = sum(draws) / len(draws), f"{len(draws)} draw(s)"
        cost, methods[path] = result
        by_path[path] = cost if kept is None else jnp.where(kept, cost, 0.0)
        counts[path] = jnp.asarray(inner.mean.size) if kept is None else jnp.sum(kept)
    nats = sum((jnp.sum(c) for c in by_path.values()), start=jnp.zeros(()))
    return Complexity(nats, by_path, counts, tuple(methods.items()))


def _by_draw(posterior, law, key):
    value, log_q = posterior.sample_with_log_prob(key)
    return log_q - law.log_prob(value)


def _closed_form(posterior: Posterior, law: dist.Distribution, mixture: str, log_uniform: str):
    """``(elementwise nats, method)`` or None."""
    if isinstance(posterior, Delta):
        return -law.log_prob(posterior.loc), "minus the log density at the point, up to a constant"
    if isinstance(law, ImproperLogUniform):
        if isinstance(posterior, DiagonalNormal):
            # The derivative of the logarithm of a squared mean must not be infinite at zero, where means may start.
            tiny = jnp.finfo(posterior.loc.dtype).tiny
            log_alpha, bounded = 2 * jnp.log(posterior.scale) - jnp.log(posterior.loc**2 + tiny), False
        elif isinstance(posterior, MultiplicativeNormal | CorrelatedNormal):
            bounded = posterior.largest is not None and posterior.largest <= 0
            if isinstance(posterior, CorrelatedNormal):  # one term for each noise variable
                log_alpha = posterior.unit_log_alpha
            else:
                log_alpha = jnp.broadcast_to(posterior.clamped_log_alpha, posterior.shape)
        else:
            return None
        if log_uniform == "polynomial" and not bounded:
            raise ValueError(
                "log_uniform='polynomial' is for alpha <= 1, which these posteriors may pass: use 'sigmoid', or posteriors "
                "with largest=0.0"
            )
        chosen = log_uniform or ("polynomial" if bounded else "sigmoid")
        return kl_log_uniform(log_alpha, chosen), f"{chosen} approximation, up to a constant"
    if not isinstance(posterior, DiagonalNormal | MultiplicativeNormal):
        return None
    q = posterior.distribution
    if isinstance(law, dist.Normal):
        # NumPyro squares the ratio of the scales, which underflows for small ones.
        squares = (q.scale**2 + (q.loc - law.loc) ** 2) / law.scale**2
        return 0.5 * (squares - 1) + jnp.log(law.scale) - jnp.log(q.scale), "closed form"
    if isinstance(law, dist.Laplace):
        return kl_normal_laplace(q.loc, q.scale, law.loc, law.scale), "closed form"
    if isinstance(law, dist.ImproperUniform):
        return -q.entropy(), "closed form, up to a constant"
    if mixture == "bound" and isinstance(law, dist.MixtureSameFamily):
        return coding.mixture_code(q, law).total, "upper bound"
    return None


def kl_normal_laplace(loc, scale, prior_loc, prior_scale) -> Float[Array, "..."]:
    """``KL(N(loc, scale^2) || Laplace(prior_loc, prior_scale))``, elementwise."""
    d = loc - prior_loc
    # E|w - m| of a folded normal distribution.
    deviation = scale * np.sqrt(2 / np.pi) * jnp.exp(-0.5 * (d / scale) ** 2) + d * jax.lax.erf(
        d / (scale * np.sqrt(2))
    )
    return (
        jnp.log(2 * prior_scale) + deviation / prior_scale - 0.5 * np.log(2 * np.pi * np.e) - jnp.log(scale)
    )


_POLYNOMIAL = (1.16145124, -1.50204118, 0.58629921)
_SIGMOID = (0.63576, 1.87320, 1.48695)


def kl_log_uniform(
    log_alpha: Float[Array, "..."], approximation: LogUniform = "polynomial"
) -> Float[Array, "..."]:
    """``KL(N(m, alpha m^2) || 1/|w|)`` up to a constant, elementwise; it does not depend on ``m``.

    Args:
        log_alpha: logarithm of ``alpha``.
        approximation: ``"polynomial"`` of third degree in alpha (kingma2015variational), for ``alpha <= 1``: within 0.041 of
            the true divergence, its constant such that the two agree as alpha goes to 0. ``"sigmoid"``
            (molchanov2017variational) for all
            alpha: within 0.01, its constant such that it goes to 0 with growing alpha.
    """
    if approximation == "sigmoid":
        k1, k2, k3 = _SIGMOID
        return k1 * (1 - jax.nn.sigmoid(k2 + k3 * log_alpha)) + 0.5 * jax.nn.softplus(-log_alpha)
    alpha = jnp.exp(log_alpha)
    c1, c2, c3 = _POLYNOMIAL
    return -(0.5 * log_alpha + alpha * (c1 + alpha * (c2 + alpha * c3)))


def kl_log_uniform_exact(log_alpha) -> np.ndarray:
    """The divergence that :func:`kl_log_uniform` approximates, in float64 on the host, its constant that of ``"sigmoid"``.

    ``E log|x|`` for ``x ~ N(1 / sqrt(alpha), 1)`` is a Poisson mixture of digamma functions, as ``x^2`` has a noncentral
    chi-squared law. For ``log_alpha`` of at least -12.
    """
    log_alpha = np.asarray(log_alpha, np.float64)
    if np.any(log_alpha < -12):
        raise ValueError(f"log_alpha must be at least -12, got {log_alpha.min()}")
    half = 0.5 * np.exp(-log_alpha)[..., None]  # the Poisson mean
    reach = int(half.max() + 12 * np.sqrt(half.max()) + 60)
    j = np.arange(reach)
    log_weight = scipy.special.xlogy(j, half) - half - scipy.special.gammaln(j + 1)
    mean_log = 0.5 * (np.log(2) + np.sum(np.exp(log_weight) * scipy.special.digamma(j + 0.5), -1))
    limit = 0.5 * (np.log(2) + scipy.special.digamma(0.5))  # as alpha grows
    return mean_log - limit


def kl_weights(
    num_batches: int, scheme: Literal["uniform", "geometric"] = "uniform", *, temperature: float = 1.0
) -> Float[Array, " batches"]:
    """Each minibatch's share of the complexity, summing to ``temperature`` over an epoch.

    Args:
        num_batches: minibatches per epoch, at least one.
        scheme: ``"uniform"``, or ``"geometric"``: ``2^(M - i) / (2^M - 1)`` for the i-th of M (blundell2015weight, section 3.4).
        temperature: what the complexity is multiplied by: one for the evidence bound, less for a "cold" posterior.

    Raises:
        ValueError: for an unknown ``scheme``, ``num_batches`` below one or a negative ``temperature``.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if num_batches < 1:
        raise ValueError(f"num_batches must be at least 1, got {num_batches}")
    if scheme == "uniform":
        return jnp.full(num_batches, temperature / num_batches)
    if scheme == "geometric":
        i = np.arange(1, num_batches + 1)
        shares = np.exp2(-i) / -np.expm1(-num_batches * np.log(2))
        return jnp.asarray(temperature * shares, jnp.result_type(float))
    raise ValueError(f"scheme must be 'uniform' or 'geometric', got {scheme!r}")


def warm_up(step, num_steps: int) -> Float[Array, ""]:
    """A factor of the complexity that rises from 0 to 1 over the first ``num_steps`` steps and stays there."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return jnp.clip(step / num_steps, 0.0, 1.0)
