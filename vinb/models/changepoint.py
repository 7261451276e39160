"""Series whose law changes at an unknown set of times, the changepoints summed out.

A series of n steps is cut into m + 1 segments, none of them empty, and step t has the density ``F[t, k]`` if it lies in segment k.
Summing over all placements of the m changepoints takes ``O(m n)`` time and memory (lim2020changepoints): going from step t - 1 to
t, the segment stays or the next one begins. That is the forward recursion of a left-to-right hidden Markov model
(chib1998changepoint), and everything here is in log space, normalised at each step, so that long series and float32 do no harm.

Conventions: steps and segments count from 0; changepoint i (of m, from 0) is *at* t, from 1 to n - 1, if segment i + 1 begins at
step t. Row t - 1 of ``log_weights`` and of posteriors is about t. A density may depend on all earlier steps, but not on when its
segment began.

Design notes. States that cannot be reached have the log weight ``-1e30``, not ``-inf``, because the derivative of
``logaddexp(-inf, -inf)`` is NaN. Functions take one series; ``jax.vmap`` over more. :class:`ChangepointSeries` has batches. The
functions are jitted, or each call would compile its scan anew.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import scipy.special
from jaxtyping import Array, Float, Int
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

_NEVER = -1e30


class ChangepointPosterior(NamedTuple):
    """What :func:`posterior` returns: ``segments[t, k]``, the probability that step t lies in segment k, rows adding up to one;
    ``changepoints[t - 1, i]``, that of changepoint i being at t, columns adding up to one."""

    segments: Float[Array, "steps segments"]
    changepoints: Float[Array, "steps-1 changepoints"]


class _Terms(NamedTuple):
    density: Array  # [n, m + 1]
    move: Array  # [n - 1, m]: the weight of the next segment beginning, without the density
    stay: Array  # [n - 1, m + 1]


def _terms(log_densities, log_weights, log_stay) -> _Terms:
    density = jnp.asarray(log_densities)
    if density.ndim != 2 or density.shape[1] < 1 or density.shape[0] < 1:
        raise ValueError(f"log_densities must be of shape [steps, segments], got {density.shape}")
    steps, segments = density.shape
    if segments > steps:
        raise ValueError(
            f"log_densities has {segments} segments for {steps} steps: pass at most one for each step"
        )
    dtype = jnp.result_type(density, float)
    shapes = {"log_weights": (steps - 1, segments - 1), "log_stay": (steps - 1, segments)}
    given = {"log_weights": log_weights, "log_stay": log_stay}
    for name, shape in shapes.items():
        if given[name] is None:
            given[name] = jnp.zeros(shape, dtype)
        elif jnp.shape(given[name]) != shape:
            raise ValueError(
                f"{name} must be of shape {list(shape)} for {steps} steps and {segments} segments, got {jnp.shape(given[name])}"
            )
    return _Terms(
        *(_finite(jnp.asarray(x, dtype)) for x in (density, given["log_weights"], given["log_stay"]))
    )


def _finite(x):
    return jnp.where(x == -jnp.inf, _NEVER, x)


def _possible(log_sum):
    return jnp.where(log_sum < 0.5 * _NEVER, -jnp.inf, log_sum)


def _only(terms, segment):
    """The log message of a step that must lie in ``segment``."""
    return jnp.full(terms.density.shape[1], _NEVER, terms.density.dtype).at[segment].set(0.0)


def _forward(terms: _Terms, combine=jnp.logaddexp):
    """Normalised log messages ``[n, m + 1]`` and the logarithms of their norms ``[n]``, which add up to the log sum."""

    def step(alpha, inputs):
        density, move, stay = inputs
        moved = jnp.concatenate([jnp.full(1, _NEVER, alpha.dtype), alpha[:-1] + move])
        alpha = combine(alpha + stay, moved) + density
        norm = jax.nn.logsumexp(alpha)
        return alpha - norm, (alpha - norm, norm)

    start = _only(terms, 0)
    _, (alpha, norms) = jax.lax.scan(step, start, (terms.density[1:], terms.move, terms.stay))
    return jnp.concatenate([start[None], alpha]), jnp.concatenate([terms.density[:1, 0], norms])


@functools.partial(jax.jit, static_argnames=("every_count",))
def log_marginal(
    log_densities: Float[Array, "steps segments"],
    log_weights: Float[Array, "steps-1 changepoints"] | None = None,
    *,
    log_stay: Float[Array, "steps-1 segments"] | None = None,
    every_count: bool = False,
) -> Float[Array, ""] | Float[Array, " segments"]:
    """The logarithm of the sum, over all placements of the changepoints, of the product of densities and weights.

    Differentiable in all arguments; its gradients are what :func:`posterior` returns. For a probability subtract
    :func:`log_normalizer`.

    Args:
        log_densities: ``log F[t, k]``; ``-inf`` where a step cannot lie in a segment.
        log_weights: row t - 1, column i: of changepoint i being at t; None for zeros.
        log_stay: row t - 1, column k: of step t staying in segment k, as hazards have it; None for zeros.
        every_count: return the sums for 0, 1, ..., m changepoints, which use the first segments.

    Returns:
        the log sum, ``-inf`` if no placement is possible; with ``every_count`` of shape ``[m + 1]``.

    Raises:
        ValueError: for shapes that do not fit together, or more segments than steps.
    """
    alpha, norms = _forward(_terms(log_densities, log_weights, log_stay))
    return _possible(jnp.sum(norms) + (alpha[-1] if every_count else alpha[-1, -1]))


def log_normalizer(
    steps: int,
    changepoints: int,
    log_weights: Float[Array, "steps-1 changepoints"] | None = None,
    *,
    log_stay: Float[Array, "steps-1 segments"] | None = None,
) -> Float[Array, ""]:
    """The logarithm of the sum of the placements' weights: ``log binom(n - 1, m)`` if there are none.

    Raises:
        ValueError: for a number of changepoints that has no placement, or as :func:`log_marginal` does.
    """
    if not 0 <= changepoints < steps:
        raise ValueError(f"changepoints must be from 0 to {steps - 1} for {steps} steps, got {changepoints}")
    if log_weights is None and log_stay is None:
        # In float64 on the host: differences of log factorials.
        count = scipy.special.gammaln([steps, changepoints + 1, steps - changepoints])
        return jnp.asarray(count[0] - count[1] - count[2], jnp.result_type(float))
    return log_marginal(jnp.zeros((steps, changepoints + 1)), log_weights, log_stay=log_stay)


@jax.jit
def posterior(
    log_densities: Float[Array, "steps segments"],
    log_weights: Float[Array, "steps-1 changepoints"] | None = None,
    *,
    log_stay: Float[Array, "steps-1 segments"] | None = None,
) -> ChangepointPosterior:
    """Probabilities of segments and changepoints given the series, by the forward and the backward recursion.

    They equal the gradients of :func:`log_marginal` in ``log_densities`` and ``log_weights`` (Fisher's identity).

    Args: and Raises: as in :func:`log_marginal`.
    """
    terms = _terms(log_densities, log_weights, log_stay)
    alpha, _ = _forward(terms)

    def step(beta, inputs):
        density, move, stay = inputs
        ahead = density + beta
        moved = jnp.concatenate([move + ahead[1:], jnp.full(1, _NEVER, beta.dtype)])
        before = jnp.logaddexp(stay + ahead, moved)
        before = before - jax.nn.logsumexp(before)
        return before, before

    end = _only(terms, -1)
    _, beta = jax.lax.scan(step, end, (terms.density[1:], terms.move, terms.stay), reverse=True)
    beta = jnp.concatenate([beta, end[None]])
    inside = jax.nn.softmax(alpha + beta, -1)
    ahead = terms.density[1:] + beta[1:]
    moves = alpha[:-1, :-1] + terms.move + ahead[:, 1:]
    stays = alpha[:-1] + terms.stay + ahead
    total = jax.nn.logsumexp(jnp.concatenate([moves, stays], -1), -1, keepdims=True)
    return ChangepointPosterior(inside, jnp.exp(moves - total))


@functools.partial(jax.jit, static_argnames=("num_samples",))
def sample(
    key: jax.Array,
    log_densities: Float[Array, "steps segments"],
    log_weights: Float[Array, "steps-1 changepoints"] | None = None,
    *,
    log_stay: Float[Array, "steps-1 segments"] | None = None,
    num_samples: int = 1,
) -> Int[Array, "num_samples changepoints"]:
    """Independent draws of the changepoints from their exact posterior: forward filtering, backward sampling.

    Args:
        key: typed PRNG key.
        num_samples: how many draws; the others as in :func:`log_marginal`.

    Returns:
        the first step of each segment but the first, increasing.
    """
    terms = _terms(log_densities, log_weights, log_stay)
    alpha, _ = _forward(terms)
    log_odds = _log_odds(terms, alpha)
    uniform = jax.random.uniform(key, (num_samples, len(log_odds)), log_odds.dtype)
    begun = jax.vmap(lambda u: _backwards(jnp.log(u) - jnp.log1p(-u), log_odds))(uniform)
    return jax.vmap(lambda b: _times(b, terms.move.shape[1]))(begun)


@jax.jit
def most_probable(
    log_densities: Float[Array, "steps segments"],
    log_weights: Float[Array, "steps-1 changepoints"] | None = None,
    *,
    log_stay: Float[Array, "steps-1 segments"] | None = None,
) -> tuple[Int[Array, " changepoints"], Float[Array, ""]]:
    """The placement with the largest product of densities and weights, and its logarithm (Viterbi); staying wins ties.

    Args: and Raises: as in :func:`log_marginal`.
    """
    terms = _terms(log_densities, log_weights, log_stay)
    alpha, norms = _forward(terms, jnp.maximum)
    gain = _log_odds(terms, alpha)
    begun = _backwards(jnp.zeros(len(gain)), gain)
    return _times(begun, terms.move.shape[1]), _possible(jnp.sum(norms) + alpha[-1, -1])


def _log_odds(terms, alpha):
    """Of having moved into segment k at step t rather than having been in it, ``[n - 1, m + 1]``."""
    moved, stayed = alpha[:-1, :-1] + terms.move, alpha[:-1, 1:] + terms.stay[:, 1:]
    return jnp.concatenate([jnp.full((len(moved), 1), -jnp.inf), moved - stayed], -1)


def _backwards(threshold, gain):
    """From the last segment back: whether each step from 1 begins segment k, where ``gain[t - 1, k]`` is above the threshold."""

    def step(segment, inputs):
        threshold, gain = inputs
        begins = gain[segment] > threshold
        return segment - begins, begins

    return jax.lax.scan(step, jnp.int32(gain.shape[1] - 1), (threshold, gain), reverse=True)[1]


def _times(begun, changepoints):
    return 1 + jnp.nonzero(begun, size=changepoints)[0]


class ChangepointSeries(dist.Distribution):
    """The law of a series with m changepoints at unknown times, which are summed out, for ``numpyro.sample``.

    Placements have probabilities in proportion to their weights, so all are equally likely if none are given::

        level = numpyro.sample("level", dist.Normal(0, 5).expand([4]).to_event(1))
        numpyro.sample("x", ChangepointSeries(dist.Normal(level, 1.0), 200), obs=x)  # three changes

    Args:
        components: the law of a step in each segment: its batch's last axis is that of the segments, the one before, of size
            ``steps`` or 1, that of the steps (it may be left out), all others are this distribution's batch. Parameters may depend
            on earlier observations (autoregression) where the series is observed; draws then make no sense.
        steps: n.
        log_weights, log_stay: of the placements, as in :func:`log_marginal`; the same for a whole batch. For hazards
            ``h[t, k]`` of leaving segment k pass ``log h`` without its last column and ``log(1 - h)``; the law is that given
            exactly m changes.

    Raises:
        ValueError: if ``components`` has no axis of segments or another number of steps, or as :func:`log_marginal` does.
    """

    arg_constraints = {}  # noqa: RUF012
    pytree_data_fields = ("components", "log_weights", "log_stay")
    pytree_aux_fields = ("steps",)

    def __init__(self, components, steps, log_weights=None, *, log_stay=None, validate_args=None):
        batch = components.batch_shape
        if not batch:
            raise ValueError("components must have a batch axis of segments, got batch shape ()")
        if len(batch) > 1 and batch[-2] not in (1, steps):
            raise ValueError(
                f"components must have 1 or {steps} steps along the last but one batch axis, got batch shape {batch}"
            )
        self.components = components.expand((*batch[:-2], steps, batch[-1]))
        self.steps, self.log_weights, self.log_stay = steps, log_weights, log_stay
        _terms(jnp.zeros((steps, batch[-1])), log_weights, log_stay)
        super().__init__(batch[:-2], (steps, *components.event_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self):
        return constraints.independent(self.components.support, 1)

    def log_densities(self, value) -> Float[Array, "... steps segments"]:
        """``log F[t, k]`` of a series."""
        value = jnp.asarray(value)
        return self.components.log_prob(jnp.expand_dims(value, value.ndim - len(self.components.event_shape)))

    @property
    def _weights(self):
        return {"log_weights": self.log_weights, "log_stay": self.log_stay}

    def _log_normalizer(self):
        return log_normalizer(self.steps, self.components.batch_shape[-1] - 1, **self._weights)

    def _each(self, function, value, *more):
        """``function(densities, *more, **weights)`` of each series of a batch; ``more`` has a row for each."""
        densities = self.log_densities(value)
        lead = densities.shape[:-2]
        flat = densities.reshape(-1, *densities.shape[-2:])
        results = jax.vmap(lambda *arguments: function(*arguments, **self._weights))(flat, *more)
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), results)

    @validate_sample
    def log_prob(self, value):
        return self._each(log_marginal, value) - self._log_normalizer()

    def posterior(self, value) -> ChangepointPosterior:
        """Probabilities of segments and changepoints given a series, see :func:`posterior`; batches lead."""
        return self._each(posterior, value)

    def most_probable(self, value):
        """The most probable placement given a series, ``[..., m]``, and its log probability joint with the series."""
        placement, score = self._each(most_probable, value)
        return placement, score - self._log_normalizer()

    def sample_changepoints(
        self, key, value, num_samples: int = 1
    ) -> Int[Array, "... num_samples changepoints"]:
        """Exact draws of the changepoints given a series, see :func:`sample`."""
        lead = jnp.shape(value)[: jnp.ndim(value) - len(self.event_shape)]
        keys = jax.random.split(key, math.prod(jnp.broadcast_shapes(lead, self.batch_shape)))
        draw = lambda d, k, **weights: sample(k, d, num_samples=num_samples, **weights)  # noqa: E731
        return self._each(draw, value, keys)

    def sample(self, key, sample_shape=()):
        placement_key, value_key = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        segments = self.components.batch_shape[-1]
        free = jnp.zeros((self.steps, segments))
        times = sample(placement_key, free, num_samples=math.prod(shape), **self._weights)
        segment = jnp.sum(jnp.arange(self.steps)[:, None] >= times[:, None, :], -1).reshape(
            *shape, self.steps
        )
        values = self.components.sample(value_key, sample_shape)  # [..., steps, segments, *event]
        events = len(self.components.event_shape)
        index = jnp.expand_dims(segment, tuple(range(segment.ndim, segment.ndim + 1 + events)))
        return jnp.take_along_axis(values, index, segment.ndim).squeeze(segment.ndim)
