"""Description lengths: of misfits, of values, of noisy weights under a mixture, and of both together."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import kl_divergence


def bits(nats):
    """``nats / log 2``."""
    return nats / np.log(2)


def misfit_length(
    squared_error: Float[Array, "cases ..."], *, scale=None, tolerance: float | None = None
) -> Float[Array, ""]:
    """Nats to send the misfits of all cases, quantised and coded by a normal distribution of mean zero for each output
    (hinton1993keeping, equations 1 to 3).

    Args:
        squared_error: squared misfits, cases along the first axis, outputs along the others. For noisy weights their expectations.
        scale: the normal distribution's standard deviation, for each output; None for the best one, the root mean square
            misfit of the output, whose own length is not counted.
        tolerance: width of the quantisation. None leaves out what does not depend on misfits or scale, so that with the best
            scale ``(cases / 2) log mean(squared_error)`` is left for each output.

    Raises:
        ValueError: for a ``tolerance`` that is not positive, or a ``scale`` of another shape than one output's.
    """
    squared_error = jnp.asarray(squared_error)
    cases = squared_error.shape[0]
    outputs = squared_error.size // cases
    mean = jnp.mean(squared_error, 0)
    if scale is None:
        length = 0.5 * cases * jnp.sum(jnp.log(mean))
    else:
        if jnp.shape(scale) not in ((), mean.shape):
            raise ValueError(
                f"scale must be one number or one for each output, {mean.shape}, got shape {jnp.shape(scale)}"
            )
        variance = jnp.broadcast_to(jnp.asarray(scale) ** 2, mean.shape)
        length = 0.5 * cases * jnp.sum(jnp.log(variance) + mean / variance - 1)
    return length + cases * outputs * (
        0.0 if tolerance is None else 0.5 * np.log(2 * np.pi * np.e) - _log(tolerance)
    )


def value_length(
    values: Float[Array, "..."], prior: dist.Distribution, *, tolerance: float = 1.0
) -> Float[Array, "..."]:
    """Nats of each value, sent to the precision ``tolerance`` under ``prior`` (hinton1993keeping, equation 6).

    With a normal prior and a fixed tolerance the sum is weight decay plus a constant (equation 4).

    Raises:
        ValueError: for a ``tolerance`` that is not positive.
    """
    return -prior.log_prob(values) - _log(tolerance)


def _log(tolerance):
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    return np.log(tolerance)


class MixtureCode(NamedTuple):
    """The parts of :func:`mixture_code`, in nats: ``total = choice + value - returned``."""

    total: Float[Array, "..."]
    choice: Float[Array, "..."]
    value: Float[Array, "..."]
    returned: Float[Array, "..."]
    responsibilities: Float[Array, "... components"]


def mixture_code(q: dist.Normal, prior: dist.MixtureSameFamily) -> MixtureCode:
    """The code for noisy weights under a mixture of normal distributions (hinton1993keeping, equations 17 to 25).

    The sender picks a component with probability ``responsibilities`` and sends the choice by the mixing proportions (equation
    19), then the value by that component, whose noise comes back (equation 20); the bits of the choice come back too (equation
    22). The total, ``-log sum_i pi_i exp(-KL(q || p_i))``, is the least that such a code can reach, and an upper bound of
    ``KL(q || prior)``, equal to it for one component.

    Args:
        q: the laws of the weights.
        prior: a mixture with normal components, for all of them.
    """
    log_shares = jax.nn.log_softmax(prior.mixing_distribution.logits)
    loc, scale = jnp.broadcast_arrays(q.loc, q.scale)
    each = kl_divergence(dist.Normal(loc[..., None], scale[..., None]), prior.component_distribution)
    joint = log_shares - each
    total = -jax.nn.logsumexp(joint, -1)
    log_r = jax.nn.log_softmax(joint, -1)
    r = jnp.exp(log_r)
    expected = lambda x: jnp.sum(jnp.where(r > 0, r * x, 0.0), -1)  # noqa: E731
    return MixtureCode(total, expected(-log_shares), expected(each), expected(-log_r), r)


class DescriptionLength(NamedTuple):
    """What :func:`description_length` returns. ``ratio`` is None without a code to compare with."""

    error_bits: Float[Array, ""]
    complexity_bits: Float[Array, ""]
    total_bits: Float[Array, ""]
    bits_per_weight: Float[Array, ""]
    ratio: Float[Array, ""] | None


def description_length(
    error, complexity, *, num_weights: int, num_labels: int | None = None, alphabet: int | None = None
) -> DescriptionLength:
    """Bits of targets and weights together (graves2011practical, section 4).

    Args:
        error: nats of the targets given the network, its weights drawn from the posterior.
        complexity: nats of the weights.
        num_weights: how many weights the complexity is of.
        num_labels, alphabet: for the ratio to the uniform code, ``num_labels log2(alphabet)`` bits. Below one the network
            compresses the targets.

    Raises:
        ValueError: for counts below one, an ``alphabet`` below two, or one of ``num_labels`` and ``alphabet`` alone.
    """
    if (num_labels is None) != (alphabet is None):
        raise ValueError(f"give both num_labels and alphabet or neither, got {num_labels} and {alphabet}")
    if num_weights < 1 or (num_labels is not None and (num_labels < 1 or alphabet < 2)):
        raise ValueError(
            f"num_weights and num_labels must be at least 1 and alphabet at least 2, got {num_weights}, {num_labels}, {alphabet}"
        )
    total = bits(error + complexity)
    ratio = None if num_labels is None else total / (num_labels * np.log2(alphabet))
    return DescriptionLength(bits(error), bits(complexity), total, bits(complexity) / num_weights, ratio)


class BayesFactor(NamedTuple):
    """What :func:`bayes_factor` returns: logarithm of the factor in nats, its standard error, the evidence in words."""

    nats: float
    standard_error: float
    words: str

    def __str__(self) -> str:
        return f"{self.nats:.3g} nats (standard error {self.standard_error:.2g}): {self.words}"


def bayes_factor(free_energy, other, *, standard_errors: tuple[float, float] = (0.0, 0.0)) -> BayesFactor:
    """The logarithm of the Bayes factor of a model against another, estimated by the difference of their free energies.

    A free energy bounds minus the log evidence from above, and the difference of two bounds bounds nothing: it is off by the
    difference of the two divergences from approximate to exact posterior. Where both are small against it, it is evidence. The
    words are those of kass1995bayes (section 3.2), for twice the logarithm.

    Args:
        free_energy: of the model in favour of which a positive result speaks, in nats.
        other: of the model that it is compared with, for the same data.
        standard_errors: of the two, where they are estimates.

    Raises:
        ValueError: for free energies that are not finite.
    """
    if not np.isfinite([free_energy, other]).all():
        raise ValueError(f"free_energy and other must be finite, got {free_energy} and {other}")
    nats = float(other) - float(free_energy)
    error = float(np.hypot(*standard_errors))
    if abs(nats) <= 2 * error:
        return BayesFactor(nats, error, "within two standard errors of none")
    sizes = (
        (1, "not worth more than a bare mention"),
        (3, "positive"),
        (5, "strong"),
        (np.inf, "very strong"),
    )
    word = next(word for limit, word in sizes if abs(nats) < limit)
    return BayesFactor(nats, error, f"{word}, {'for the first' if nats > 0 else 'for the second'}")
