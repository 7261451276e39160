"""Posteriors of weights: the laws of a network's arrays, element by element.

Design notes. A posterior stands in a network where the array of weights would. ``sample_weights`` puts a draw into its
place, which gives an ordinary network: what a layer does with one draw need not know of posteriors, and drawing once per
sequence, per batch or per example is a matter of where ``sample_weights`` is called. Layers that can do better than draw
(``layers``) look at the posterior itself.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float, PyTree

from vinb import coding
from vinb.models.bayesian.checks import check_shapes_broadcast, inverse_softplus


class Posterior(eqx.Module):
    """The law of an array of weights. Subclasses have ``distribution``, of the array's shape as its batch, if the elements are
    independent."""

    @property
    def distribution(self) -> dist.Distribution:
        raise NotImplementedError

    @property
    def mean(self) -> Float[Array, "..."]:
        return self.distribution.mean

    @property
    def variance(self) -> Float[Array, "..."]:
        return self.distribution.variance

    @property
    def shape(self) -> tuple[int, ...]:
        return self.distribution.batch_shape

    def sample(self, key: jax.Array) -> Float[Array, "..."]:
        """A draw, differentiable in the parameters."""
        return self.sample_with_log_prob(key)[0]

    def sample_with_log_prob(self, key: jax.Array) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The draw of :meth:`sample` and its log density, element by element."""
        value = self.distribution.rsample(key)
        return value, self.distribution.log_prob(value)


class Delta(Posterior):
    """A point: with it a Bayesian network is a penalised one (graves2011practical, section 5.1)."""

    loc: Float[Array, "..."]

    @property
    def distribution(self):
        return dist.Delta(self.loc)

    def sample_with_log_prob(self, key):
        return self.loc, jnp.zeros_like(self.loc)  # but for the constant of its quantisation


class DiagonalNormal(Posterior):
    """Independent normal weights (graves2011practical, section 5.2; blundell2015weight, section 3.2).

    Args:
        loc: means.
        raw_scale: unconstrained scales, of the same shape.
        log_scale: whether the scale is ``exp(raw_scale)``; ``softplus(raw_scale)`` otherwise.
    """

    loc: Float[Array, "..."]
    raw_scale: Float[Array, "..."]
    log_scale: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if jnp.shape(self.loc) != jnp.shape(self.raw_scale):
            raise ValueError(
                f"raw_scale must have loc's shape, {jnp.shape(self.loc)}, got {jnp.shape(self.raw_scale)}"
            )

    @classmethod
    def init(
        cls,
        key: jax.Array,
        shape: tuple[int, ...],
        *,
        loc_scale: float,
        scale: float,
        log_scale: bool = False,
    ) -> "DiagonalNormal":
        """Means drawn from ``N(0, loc_scale^2)``, all scales ``scale``.

        Raises:
            ValueError: for a ``scale`` that is not positive or a negative ``loc_scale``.
        """
        if not scale > 0 or not loc_scale >= 0:
            raise ValueError(
                f"scale must be positive and loc_scale not negative, got {scale} and {loc_scale}"
            )
        raw = jnp.log(scale) if log_scale else inverse_softplus(scale)
        return cls(loc_scale * jax.random.normal(key, shape), jnp.full(shape, raw, float), log_scale)

    @property
    def scale(self) -> Float[Array, "..."]:
        return jnp.exp(self.raw_scale) if self.log_scale else jax.nn.softplus(self.raw_scale)

    @property
    def distribution(self):
        return dist.Normal(self.loc, self.scale)

    def sample_with_log_prob(self, key):
        noise = jax.random.normal(key, jnp.shape(self.loc), jnp.result_type(self.loc))
        # From the noise: (w - loc) / scale has lost it where the scale is far below the mean.
        return self.loc + self.scale * noise, -0.5 * noise**2 - jnp.log(self.scale) - 0.5 * np.log(2 * np.pi)


class _Dropout(Posterior):
    """What the two kinds of variational dropout share."""

    loc: Float[Array, "..."]
    log_alpha: Float[Array, "..."] = eqx.field(converter=jnp.asarray)
    largest: float | None = eqx.field(static=True, default=0.0)

    @property
    def clamped_log_alpha(self) -> Float[Array, "..."]:
        """``log_alpha``, at most ``largest``; at the limit its derivative is one."""
        if self.largest is None:
            return self.log_alpha
        return jnp.where(self.log_alpha > self.largest, self.largest, self.log_alpha)

    @property
    def mean(self):
        return self.loc

    @property
    def variance(self):
        return jnp.exp(self.clamped_log_alpha) * self.loc**2

    @property
    def shape(self):
        return jnp.shape(self.loc)


class MultiplicativeNormal(_Dropout):
    """Normal weights whose standard deviation is proportional to their mean, ``N(loc, alpha loc^2)``, independently: variational
    dropout of type B (kingma2015variational, section 3.2). With ``mode="local"`` its noise comes after the linear map.

    Args:
        loc: means.
        log_alpha: logarithm of the noise's variance relative to the squared mean, of a shape that broadcasts to ``loc``: of size
            one for a whole layer, one per unit, or one per weight.
        largest: ``log_alpha`` counts as at most this; 0 keeps ``alpha <= 1``, beyond which gradients are too noisy to learn
            from. None for no limit. Project ``log_alpha`` after a step (:func:`projected`), or it has no gradient beyond.
    """

    def __check_init__(self):
        check_shapes_broadcast("log_alpha", jnp.shape(self.log_alpha), "loc", jnp.shape(self.loc))

    @property
    def distribution(self):
        return dist.Normal(self.loc, jnp.exp(0.5 * self.clamped_log_alpha) * jnp.abs(self.loc))

    def sample_with_log_prob(self, key):
        noise = jax.random.normal(key, self.shape, jnp.result_type(self.loc))
        log_scale = 0.5 * self.clamped_log_alpha + jnp.log(jnp.abs(self.loc))
        # Not through |loc|, whose derivative at zero would be lost.
        value = self.loc * (1 + jnp.exp(0.5 * self.clamped_log_alpha) * noise)
        return value, -0.5 * noise**2 - log_scale - 0.5 * np.log(2 * np.pi)


class CorrelatedNormal(_Dropout):
    """Weights ``s_i loc_ij`` with ``s_i ~ N(1, alpha_i)`` for each input unit i: variational dropout of type A
    (kingma2015variational, section 3.1; srivastava2014dropout's noise on a layer's inputs). Type A2 is type A with a third of
    its complexity.

    Args:
        loc: means, ``[..., inputs, outputs]``.
        log_alpha: as in :class:`MultiplicativeNormal`, but of size one for a whole layer or ``[inputs, 1]``.
        largest: as there.
    """

    def __check_init__(self):
        if jnp.ndim(self.loc) < 2:
            raise ValueError(f"loc must be of shape [..., inputs, outputs], got {jnp.shape(self.loc)}")
        inputs = jnp.shape(self.loc)[-2:-1]
        check_shapes_broadcast("log_alpha", jnp.shape(self.log_alpha), "the input units", (*inputs, 1))

    @property
    def unit_log_alpha(self) -> Float[Array, "inputs 1"]:
        """The clamped ``log_alpha`` of each input unit."""
        return jnp.broadcast_to(self.clamped_log_alpha, (self.shape[-2], 1))

    @property
    def distribution(self):
        raise TypeError(
            "the weights of CorrelatedNormal share their noise and have no density of their own: measure them against "
            "LogUniformPrior(), or use MultiplicativeNormal"
        )

    def scales(self, key: jax.Array, *batch: int) -> Float[Array, "*batch inputs"]:
        """Draws of ``s``."""
        alpha = jnp.exp(0.5 * self.unit_log_alpha[:, 0])
        return 1 + alpha * jax.random.normal(key, (*batch, len(alpha)), alpha.dtype)

    def sample(self, key):
        return self.scales(key)[:, None] * self.loc


class Masked(Posterior):
    """A posterior some of whose weights are exactly zero, in mean and in every draw: what is left after pruning.

    Args:
        posterior: the law of the weights that are kept.
        kept: boolean array of its shape.
    """

    posterior: Posterior
    kept: Any  # boolean: not trained

    def __check_init__(self):
        if isinstance(self.posterior, CorrelatedNormal | Masked):
            raise TypeError(
                f"posterior must have independent weights and no mask of its own, got {type(self.posterior).__name__}"
            )
        if jnp.shape(self.kept) != self.posterior.shape or jnp.result_type(self.kept) != jnp.bool_:
            raise ValueError(
                f"kept must be a boolean array of shape {self.posterior.shape}, got {jnp.result_type(self.kept)} of "
                f"shape {jnp.shape(self.kept)}"
            )

    @property
    def distribution(self):
        raise TypeError(
            "weights that are exactly zero have no density: take that of .posterior where .kept is True"
        )

    @property
    def mean(self):
        return jnp.where(self.kept, self.posterior.mean, 0.0)

    @property
    def variance(self):
        return jnp.where(self.kept, self.posterior.variance, 0.0)

    @property
    def shape(self):
        return self.posterior.shape

    def sample_with_log_prob(self, key):
        value, log_prob = self.posterior.sample_with_log_prob(key)
        return jnp.where(self.kept, value, 0.0), jnp.where(self.kept, log_prob, 0.0)


def is_posterior(node: Any) -> bool:
    """Whether a node of a network is a posterior, for ``is_leaf=`` of ``jax.tree`` functions."""
    return isinstance(node, Posterior)


def posteriors(network: PyTree) -> list[Posterior]:
    """The posteriors in ``network``, in the order of its leaves."""
    return [leaf for leaf in jax.tree.leaves(network, is_leaf=is_posterior) if is_posterior(leaf)]


def sample_weights(network: PyTree, key: jax.Array) -> PyTree:
    """``network`` with a draw in place of each posterior: an ordinary network. ``key`` gives each posterior noise of its own."""
    leaves, structure = jax.tree.flatten(network, is_leaf=is_posterior)
    drawn = [p.sample(jax.random.fold_in(key, k)) if is_posterior(p) else p for k, p in enumerate(leaves)]
    return structure.unflatten(drawn)


def mean_weights(network: PyTree) -> PyTree:
    """``network`` with its mean in place of each posterior: an ordinary network. NumPyro's ``random_eqx_module`` takes it, and
    not the network with posteriors, whose means and scales would get priors."""
    return jax.tree.map(lambda p: p.mean if is_posterior(p) else p, network, is_leaf=is_posterior)


def signal_to_noise(network: PyTree) -> PyTree:
    """``network`` with ``|mean| / standard deviation`` in place of each posterior, None in place of all else: scores for
    ``vinb.coding.keep``."""
    score = lambda p: coding.signal_to_noise(p.mean, jnp.sqrt(p.variance)) if is_posterior(p) else None  # noqa: E731
    return jax.tree.map(score, network, is_leaf=is_posterior)


def mask(network: PyTree, masks: PyTree) -> PyTree:
    """``network`` with zeros, without noise, where ``masks`` are False: pruned.

    Args:
        network: a pytree with posteriors in it.
        masks: as ``vinb.coding.keep(signal_to_noise(network), ...)`` gives them: a boolean array in place of each posterior,
            None in place of all else; None leaves a posterior as it is, too.

    Raises:
        ValueError: where the two do not fit together.
    """

    def one(p, kept):
        if kept is None:
            return p
        if not is_posterior(p):
            raise ValueError("masks has an array where network has no posterior")
        return Masked(p.posterior, p.kept & kept) if isinstance(p, Masked) else Masked(p, kept)

    return jax.tree.map(one, network, masks, is_leaf=is_posterior)


def project(network: PyTree) -> PyTree:
    """``network`` with every ``log_alpha`` moved back to its limit; :func:`projected` does so after each step."""

    def one(p):
        if not isinstance(p, _Dropout) or p.log_alpha is None:
            return p
        return eqx.tree_at(lambda q: q.log_alpha, p, p.clamped_log_alpha)

    return jax.tree.map(one, network, is_leaf=lambda node: isinstance(node, _Dropout))


def projected(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """``optimizer`` with :func:`project` applied to the parameters that its step leads to (kingma2015variational, section 3:
    ``alpha <= 1`` throughout)."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError(
                "projected(optimizer) needs the parameters: optimizer.update(gradient, state, params)"
            )
        updates, state = optimizer.update(updates, state, params, **extra)
        moved = project(eqx.apply_updates(params, updates))
        step = lambda update, new, old: None if update is None else new - old  # noqa: E731
        return jax.tree.map(step, updates, moved, params, is_leaf=lambda node: node is None), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
