"""Priors of weights. Their numbers are static, so no optimiser moves them, but for those of :class:`LearnedNormal` and
:class:`LearnedMixture`; the empirical ones take theirs from the posteriors, in closed form, and pass no gradient."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from vinb.distributions import ImproperLogUniform
from vinb.models.bayesian.posteriors import Masked, Posterior


class Prior(eqx.Module):
    """The law that the complexity of weights is measured against."""

    def distribution(self, posteriors: Sequence[Posterior]) -> dist.Distribution:
        """The law of one weight. ``posteriors``: all those that this prior is for."""
        raise NotImplementedError


def _positive(**scales):
    for name, scale in scales.items():
        if not scale > 0:
            raise ValueError(f"{name} must be positive, got {scale}")


class _LocScale(Prior):
    loc: float = eqx.field(static=True, converter=float, default=0.0)
    scale: float = eqx.field(static=True, converter=float, default=1.0)

    def __check_init__(self):
        _positive(scale=self.scale)


class NormalPrior(_LocScale):
    """``N(loc, scale^2)``."""

    def distribution(self, posteriors):
        return dist.Normal(self.loc, self.scale)


class LaplacePrior(_LocScale):
    """Double exponential around ``loc``, with mean absolute deviation ``scale``."""

    def distribution(self, posteriors):
        return dist.Laplace(self.loc, self.scale)


class ScaleMixturePrior(Prior):
    """``wide_share N(0, wide^2) + (1 - wide_share) N(0, narrow^2)`` (blundell2015weight, equation 7)."""

    wide_share: float = eqx.field(static=True, converter=float)
    wide: float = eqx.field(static=True, converter=float)
    narrow: float = eqx.field(static=True, converter=float)

    def __check_init__(self):
        _positive(wide=self.wide, narrow=self.narrow)
        if not 0 < self.wide_share < 1:
            raise ValueError(f"wide_share must lie between 0 and 1, got {self.wide_share}")

    def distribution(self, posteriors):
        share = dist.Categorical(probs=jnp.array([self.wide_share, 1 - self.wide_share]))
        return dist.MixtureSameFamily(share, dist.Normal(jnp.zeros(2), jnp.array([self.wide, self.narrow])))


class LogUniformPrior(Prior):
    """Density in proportion to ``1 / |w|``: improper, and blind to scale (kingma2015variational, section 3.3)."""

    def distribution(self, posteriors):
        return ImproperLogUniform()


class UniformPrior(Prior):
    """Constant density: improper. With it a posterior of fixed scale is weight noise (graves2011practical, section 5.2)."""

    def distribution(self, posteriors):
        return dist.ImproperUniform(constraints.real, (), ())


def _float_or_none(value):
    return None if value is None else float(value)


class _Empirical(Prior):
    loc: float | None = eqx.field(static=True, converter=_float_or_none, default=None)
    scale: float | None = eqx.field(static=True, converter=_float_or_none, default=None)

    def __check_init__(self):
        if self.scale is not None:
            _positive(scale=self.scale)


class EmpiricalNormal(_Empirical):
    """The normal prior that makes the complexity least, given the posteriors (graves2011practical, equation 15). Weights that
    were pruned do not count.

    Args:
        loc: its mean if that is fixed; None to fit it too.
        scale: its standard deviation likewise.
    """

    def distribution(self, posteriors):
        mean, variance = (_join([getattr(p, name) for p in posteriors]) for name in ("mean", "variance"))
        kept = _kept(posteriors)
        loc = jnp.mean(mean, where=kept) if self.loc is None else self.loc
        scale = self.scale
        if scale is None:
            scale = jnp.sqrt(jnp.mean(variance + (mean - loc) ** 2, where=kept))
        return dist.Normal(*stop_gradient((loc, scale)))


class EmpiricalLaplace(_Empirical):
    """The Laplace prior that makes the complexity of points least (graves2011practical, section 5.1): median, mean deviation
    from it. Weights that were pruned do not count.

    Args:
        loc: its mean if that is fixed; None to fit it too.
        scale: its mean absolute deviation likewise.
    """

    def distribution(self, posteriors):
        mean = _join([p.mean for p in posteriors])
        kept = _kept(posteriors)
        loc = jnp.nanmedian(jnp.where(kept, mean, jnp.nan)) if self.loc is None else self.loc
        scale = jnp.mean(jnp.abs(mean - loc), where=kept) if self.scale is None else self.scale
        return dist.Laplace(*stop_gradient((loc, scale)))


class LearnedNormal(Prior):
    """A normal prior whose mean and log scale are trained with the rest."""

    loc: Float[Array, ""]
    log_scale: Float[Array, ""]

    def distribution(self, posteriors):
        return dist.Normal(self.loc, jnp.exp(self.log_scale))


class LearnedMixture(Prior):
    """An adaptive mixture of normals (hinton1993keeping, section 6.1); all its numbers are trained.

    Args:
        logits, loc, log_scale: of shape ``[components]``.
    """

    logits: Float[Array, " components"]
    loc: Float[Array, " components"]
    log_scale: Float[Array, " components"]

    def distribution(self, posteriors):
        shares = dist.Categorical(logits=self.logits)
        return dist.MixtureSameFamily(shares, dist.Normal(self.loc, jnp.exp(self.log_scale)))


def _join(arrays):
    return jnp.concatenate([jnp.ravel(a) for a in arrays])


def _kept(posteriors):
    return _join([p.kept if isinstance(p, Masked) else jnp.ones(p.shape, bool) for p in posteriors])
