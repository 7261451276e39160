"""Exact expectations for the tests of estimators: quadrature and enumeration in float64 by numpy and scipy.

A :class:`Case` is a family of distributions: how NumPyro makes it from a vector of parameters, and a float64 rule of nodes and
weights for the same law, which shares no code with any sampler. ``f`` turns a draw into a number; tests use draws through it alone.

Import it from a test as ``import _exact``: pytest puts ``tests/`` on the path.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import special, stats

from vinb.distributions import OneHotCategorical


@dataclass(frozen=True)
class Case:
    """``make(t)`` with parameters along the last axis of ``t``; ``law(t)`` for one vector gives nodes and weights.

    ``at`` and ``other`` are two parameter vectors: everything between them must be valid too.
    """

    make: Callable
    law: Callable
    at: tuple
    other: tuple
    f: Callable


def expect(case, t, h):
    """``E[h(f(x))]`` for ``x`` from ``case`` at the parameters ``t``."""
    x, w = case.law(np.asarray(t, np.float64))
    return (h(case.f(x, np)) * w).sum()


def nodes(case, t):
    """The values of ``f`` and their weights."""
    x, w = case.law(np.asarray(t, np.float64))
    return case.f(x, np), w


def gradient(function, params, step=1e-3):
    """Value and central differences (fourth order) of a float64 function of a dict of arrays."""
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    slopes = {k: np.zeros_like(v) for k, v in params.items()}
    for name, value in params.items():
        for index in np.ndindex(value.shape):
            h = step * max(abs(value[index]), 0.1)

            def at(n, name=name, index=index, h=h):
                moved = {k: v.copy() for k, v in params.items()}
                moved[name][index] += n * h
                return function(moved)

            slopes[name][index] = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)
    return function(params), slopes


# Statistics ----------------------------------------------------------------------------------------------------------


def check_unbiased(draw, key, exact, z_limit, batch=2**15, most=2**27):
    """A z-test of each entry of ``E[draw(key)]``, with draws enough that an error of 2 % fails.

    Draws are added until ``z_limit`` standard errors are below 2 % of each exact entry's size, or of a quarter of the largest in
    its array where that is more. Rounding in float32 is allowed 3e-5 of the same.
    """

    # vinb.estimators.moments would compile the draw twice, once for its centre, and compiling is what takes the time here.
    @jax.jit
    def run(key):
        draws = [d.reshape(batch, -1) for d in jax.tree.leaves(jax.vmap(draw)(jax.random.split(key, batch)))]
        draws = jnp.concatenate(draws, 1)
        return draws.mean(0), draws.var(0, ddof=1)

    exact = [np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(exact)]
    sizes = np.concatenate([np.maximum(np.abs(a), 0.25 * np.abs(a).max(initial=0.0)) for a in exact])
    exact, sums, count = np.concatenate(exact), 0.0, 0
    while True:
        sums += np.asarray(run(jax.random.fold_in(key, count)), np.float64)
        count += 1
        mean, variance = sums / count
        assert mean.shape == exact.shape
        assert np.isfinite(sums).all(), f"not finite: {mean}"
        error = np.sqrt(variance / (count * batch))
        if np.all(z_limit * error <= 0.02 * sizes):
            break
        assert count * batch < most, f"too few draws to see an error of 2 %: {error} of {sizes}"
    wrong = np.abs(mean - exact) > z_limit * error + 3e-5 * sizes
    z = (mean - exact) / np.maximum(error, 1e-12)
    assert not wrong.any(), f"mean {mean}, exact {exact}, z = {z}, {count * batch} draws"
    return count * batch


# Rules ---------------------------------------------------------------------------------------------------------------


@functools.cache
def _gauss(panels):
    x, w = np.polynomial.legendre.leggauss(12)
    edges = np.linspace(0, 1, panels + 1)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel()


def _line(density, low, high, panels=30):
    """Gauss-Legendre between ``low(t)`` and ``high(t)``."""

    def law(t):
        u, w = _gauss(panels)
        a, b = (end(t) if callable(end) else end for end in (low, high))
        x = a + (b - a) * u
        return x, density(t, x) * w * (b - a)

    return law


def _heavy(density, reach=9.0):
    """The whole line, by x = sinh(s)."""

    def law(t):
        u, w = _gauss(60)
        s = reach * (2 * u - 1)
        return np.sinh(s), density(t, np.sinh(s)) * w * 2 * reach * np.cosh(s)

    return law


def _positive(density, low=1e-7, high=40.0):
    """The half line, by x = exp(s): densities may have a pole at zero."""

    def law(t):
        u, w = _gauss(40)
        s = np.log(low) + (np.log(high) - np.log(low)) * u
        return np.exp(s), density(t, np.exp(s)) * np.exp(s) * w * (np.log(high) - np.log(low))

    return law


def _counts(mass, size):
    return lambda t: (np.arange(size), mass(t, np.arange(size)))


def _hermite(order=16):
    x, w = np.polynomial.hermite_e.hermegauss(order)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    return grid, np.outer(w, w).ravel() / (2 * np.pi)


def _mvn_law(t):
    z, w = _hermite()
    tril = np.array([[t[2], 0], [t[3], t[4]]])
    return t[:2] + z @ tril.T, w


def _mvn(t):
    zero = jnp.zeros_like(t[..., 2])
    rows = [jnp.stack([t[..., 2], zero], -1), jnp.stack([t[..., 3], t[..., 4]], -1)]
    return dist.MultivariateNormal(t[..., :2], scale_tril=jnp.stack(rows, -2))


def _diagonal_mixture_law(t):
    z, w = _hermite()
    p = special.softmax(t[:2])
    x = [t[2 + 2 * k : 4 + 2 * k] + t[6 + 2 * k : 8 + 2 * k] * z for k in range(2)]
    return np.concatenate(x), np.concatenate([p[0] * w, p[1] * w])


def _diagonal_mixture(t):
    loc, scale = (t[..., k : k + 4].reshape(*t.shape[:-1], 2, 2) for k in (2, 6))
    return dist.MixtureSameFamily(dist.Categorical(logits=t[..., :2]), dist.Normal(loc, scale).to_event(1))


def _dirichlet_law(t):
    def beta(a, b):
        x, w = special.roots_jacobi(20, b - 1, a - 1)
        return (x + 1) / 2, w / w.sum()

    (v1, w1), (v2, w2) = beta(t[0], t[1] + t[2]), beta(t[1], t[2])
    v1, v2 = (a.ravel() for a in np.meshgrid(v1, v2, indexing="ij"))
    return np.stack([v1, (1 - v1) * v2, (1 - v1) * (1 - v2)], -1), np.outer(w1, w2).ravel()


def _mixture_density(t, x):
    p = special.softmax(t[:2])
    return sum(p[k] * stats.norm.pdf(x, t[2 + k], t[4 + k]) for k in range(2))


def _simplex(t):
    return jnp.concatenate([t, 1 - t.sum(-1, keepdims=True)], -1)


# Costs ---------------------------------------------------------------------------------------------------------------


def bump(x, xp):
    return 0.5 + 1.5 / (1 + (x - 0.4) ** 2)


def ramp(x, xp):
    return xp.log1p(xp.exp(1.5 * (x - 0.4)))


def saturating(x, xp):
    return 0.4 + x / (1 + 0.3 * x) + 0 * x


def circular(x, xp):
    return 1.5 + xp.sin(x + 0.2) + 0.4 * xp.cos(2 * x)


def plane(x, xp):  # not a sum over coordinates
    return 0.5 + xp.log1p(xp.exp(x[..., 0] - 0.5 * x[..., 1])) * (1.2 + xp.sin(x[..., 1] + 0.3))


def simplex(x, xp):
    return 0.1 + 3 * x[..., 0] ** 2 + 2 * x[..., 1] ** 3


def steps(x, xp):  # of 0, 1, 2, ...: neither linear nor monotone
    return 0.8 + 1.4 / (1 + (x - 1.0) ** 2) + 0.2 * x / (1 + 0.1 * x)


def falling(x, xp):  # of 0, 1, 2, ...
    return 0.1 + 2.5 / (1 + x)


def rising(x, xp):
    return 0.2 + 0.3 * x + 0.2 * x**2


def coin(x, xp):
    return 0.7 + 1.3 * x


def corners(x, xp):  # of one-hot vectors
    return x @ xp.asarray([0.6, 2.0, 1.1])


def _gamma(t, x):
    return stats.gamma.pdf(x, t[0], scale=1 / t[1])


def _von_mises(t, x):
    return np.exp(t[1] * (np.cos(x - t[0]) - 1)) / (2 * np.pi * special.i0e(t[1]))


def _truncated(t, x, low, high):
    mass = stats.norm.cdf(high, t[0], t[1]) - stats.norm.cdf(low, t[0], t[1])
    return stats.norm.pdf(x, t[0], t[1]) / mass


def _p(t):
    return np.append(t, 1 - t.sum())


def _first(make):
    """A family of scalar parameters, as positional arguments."""
    return lambda t: make(*jnp.moveaxis(t, -1, 0))


NORMAL = _line(
    lambda t, x: stats.norm.pdf(x, t[0], t[1]), lambda t: t[0] - 9 * t[1], lambda t: t[0] + 9 * t[1]
)
MIXTURE = ((0.3, -0.4, -0.6, 1.3, 0.8, 0.7), (-0.2, 0.2, -0.3, 1.6, 0.9, 0.6))
DIAGONAL = (
    (0.3, -0.4, -0.5, 0.4, 0.9, -0.3, 0.8, 0.7, 0.6, 0.9),
    (-0.2, 0.2, -0.3, 0.1, 1.1, -0.2, 0.7, 0.8, 0.7, 0.8),
)

CASES = {
    "Normal": Case(_first(dist.Normal), NORMAL, (0.6, 0.9), (0.9, 0.7), ramp),
    "LogNormal": Case(
        _first(dist.LogNormal),
        _positive(lambda t, x: stats.lognorm.pdf(x, t[1], scale=np.exp(t[0])), 1e-4, 1e3),
        (0.1, 0.6),
        (0.4, 0.8),
        saturating,
    ),
    "Gamma": Case(_first(dist.Gamma), _positive(_gamma), (1.4, 1.6), (2.0, 1.2), saturating),
    "Chi2": Case(
        _first(dist.Chi2),
        _positive(lambda t, x: stats.chi2.pdf(x, t[0]), 1e-7, 80),
        (3.0,),
        (2.4,),
        saturating,
    ),
    "InverseGamma": Case(
        _first(dist.InverseGamma),
        _positive(lambda t, x: stats.invgamma.pdf(x, t[0], scale=t[1]), 1e-2, 1e5),
        (3.0, 2.5),
        (2.5, 3.0),
        saturating,
    ),
    "Exponential": Case(
        _first(dist.Exponential),
        _positive(lambda t, x: stats.expon.pdf(x, scale=1 / t[0]), 1e-9, 60),
        (1.3,),
        (0.9,),
        saturating,
    ),
    "Weibull": Case(
        _first(dist.Weibull),
        _positive(lambda t, x: stats.weibull_min.pdf(x, t[1], scale=t[0]), 1e-7, 20),
        (1.2, 1.7),
        (1.6, 1.3),
        saturating,
    ),
    "Beta": Case(
        _first(dist.Beta),
        _line(lambda t, x: stats.beta.pdf(x, t[0], t[1]), 0, 1, 200),
        (2.6, 2.2),
        (3.0, 2.8),
        lambda x, xp: 0.1 + 3 * x**4,
    ),
    "Kumaraswamy": Case(
        _first(dist.Kumaraswamy),
        _line(lambda t, x: t[0] * t[1] * x ** (t[0] - 1) * (1 - x ** t[0]) ** (t[1] - 1), 0, 1, 200),
        (2.7, 2.3),
        (3.2, 2.6),
        lambda x, xp: 0.1 + 3 * x**4,
    ),
    "Dirichlet": Case(dist.Dirichlet, _dirichlet_law, (1.5, 2.2, 1.1), (2.0, 1.4, 1.6), simplex),
    "StudentT": Case(
        _first(dist.StudentT),
        _heavy(lambda t, x: stats.t.pdf(x, t[0], t[1], t[2])),
        (2.5, 1.1, 0.7),
        (3.5, 0.8, 0.9),
        bump,
    ),
    "Cauchy": Case(
        _first(dist.Cauchy),
        _heavy(lambda t, x: stats.cauchy.pdf(x, t[0], t[1]), 20.0),
        (1.0, 0.7),
        (0.7, 0.9),
        bump,
    ),
    "VonMises": Case(
        _first(dist.VonMises), _line(_von_mises, -np.pi, np.pi), (0.5, 1.3), (0.2, 1.8), circular
    ),
    "Mixture": Case(
        lambda t: dist.MixtureSameFamily(
            dist.Categorical(logits=t[..., :2]), dist.Normal(t[..., 2:4], t[..., 4:6])
        ),
        _line(_mixture_density, -9, 10, 40),
        *MIXTURE,
        ramp,
    ),
    "MixtureGeneral": Case(
        lambda t: dist.MixtureGeneral(
            dist.Categorical(logits=t[..., :2]),
            [dist.Normal(t[..., 2], t[..., 4]), dist.Normal(t[..., 3], t[..., 5])],
        ),
        _line(_mixture_density, -9, 10, 40),
        *MIXTURE,
        ramp,
    ),
    "DiagonalMixture": Case(_diagonal_mixture, _diagonal_mixture_law, *DIAGONAL, plane),
    "MultivariateNormal": Case(_mvn, _mvn_law, (0.4, -0.2, 0.8, 0.3, 0.7), (0.6, 0.1, 0.9, -0.2, 0.6), plane),
    "Uniform": Case(
        _first(dist.Uniform),
        _line(lambda t, x: 1 / (t[1] - t[0]) + 0 * x, lambda t: t[0], lambda t: t[1]),
        (-0.4, 1.3),
        (-0.1, 1.8),
        ramp,
    ),
    "Laplace": Case(
        _first(dist.Laplace),
        lambda t: tuple(
            np.concatenate(a)
            for a in zip(
                *(
                    _line(lambda t, x: stats.laplace.pdf(x, t[0], t[1]), *ends)(t)
                    for ends in (
                        (lambda t: t[0] - 30 * t[1], lambda t: t[0]),
                        (lambda t: t[0], lambda t: t[0] + 30 * t[1]),
                    )
                ),
                strict=True,
            )
        ),
        (0.8, 0.6),
        (1.0, 0.5),
        ramp,
    ),
    "Gumbel": Case(
        _first(dist.Gumbel),
        _line(lambda t, x: stats.gumbel_r.pdf(x, t[0], t[1]), -5, 30, 60),
        (0.3, 0.6),
        (0.6, 0.5),
        ramp,
    ),
    "Logistic": Case(
        _first(dist.Logistic),
        _line(lambda t, x: stats.logistic.pdf(x, t[0], t[1]), -18, 20, 60),
        (0.8, 0.4),
        (1.0, 0.5),
        ramp,
    ),
    "HalfNormal": Case(
        _first(dist.HalfNormal),
        _line(lambda t, x: stats.halfnorm.pdf(x, scale=t[0]), 0, 12),
        (0.9,),
        (1.2,),
        saturating,
    ),
    "TruncatedNormal": Case(
        _first(lambda a, b, c, d: dist.TruncatedNormal(a, b, low=c, high=d)),
        _line(lambda t, x: _truncated(t, x, t[2], t[3]), lambda t: t[2], lambda t: t[3]),
        (0.3, 0.9, -0.5, 1.4),
        (0.5, 0.8, -0.2, 1.8),
        ramp,
    ),
    "TruncatedNormal, fixed ends": Case(
        _first(lambda a, b: dist.TruncatedNormal(a, b, low=-0.5, high=1.9)),
        _line(lambda t, x: _truncated(t, x, -0.5, 1.9), -0.5, 1.9),
        (0.5, 0.6),
        (0.7, 0.5),
        ramp,
    ),
    "Bernoulli": Case(
        _first(dist.BernoulliProbs),
        _counts(lambda t, k: np.where(k, t[0], 1 - t[0]), 2),
        (0.35,),
        (0.6,),
        coin,
    ),
    "Bernoulli, logits": Case(
        _first(lambda t: dist.Bernoulli(logits=t)),
        _counts(lambda t, k: special.expit(np.where(k, t[0], -t[0])), 2),
        (-0.6,),
        (0.3,),
        coin,
    ),
    "Categorical": Case(
        lambda t: dist.Categorical(probs=_simplex(t)),
        _counts(lambda t, k: _p(t), 3),
        (0.5, 0.2),
        (0.2, 0.45),
        steps,
    ),
    "Categorical, logits": Case(
        lambda t: dist.Categorical(logits=t),
        _counts(lambda t, k: special.softmax(t), 3),
        (0.4, -0.3, 0.1),
        (-0.2, 0.5, 0.3),
        steps,
    ),
    "OneHotCategorical": Case(
        lambda t: OneHotCategorical(probs=_simplex(t)),
        lambda t: (np.eye(3), _p(t)),
        (0.5, 0.2),
        (0.2, 0.45),
        corners,
    ),
    "OneHotCategorical, logits": Case(
        lambda t: OneHotCategorical(logits=t),
        lambda t: (np.eye(3), special.softmax(t)),
        (0.4, -0.3, 0.1),
        (-0.2, 0.5, 0.3),
        corners,
    ),
    "Binomial": Case(
        _first(lambda p: dist.Binomial(3, probs=p)),
        _counts(lambda t, k: stats.binom.pmf(k, 3, t[0]), 4),
        (0.7,),
        (0.55,),
        steps,
    ),
    "Binomial, logits": Case(
        _first(lambda t: dist.Binomial(3, logits=t)),
        _counts(lambda t, k: stats.binom.pmf(k, 3, special.expit(t[0])), 4),
        (0.9,),
        (0.5,),
        steps,
    ),
    "BetaBinomial": Case(
        _first(lambda a, b: dist.BetaBinomial(a, b, 3)),
        _counts(lambda t, k: stats.betabinom.pmf(k, 3, *t), 4),
        (3.0, 1.2),
        (2.0, 1.5),
        rising,
    ),
    "DiscreteUniform": Case(
        lambda t: dist.DiscreteUniform(0, 3).expand(t.shape[:-1]),
        _counts(lambda t, k: 0.25 + 0 * k, 4),
        (),
        (),
        steps,
    ),
    "Poisson": Case(
        _first(dist.Poisson), _counts(lambda t, k: stats.poisson.pmf(k, t[0]), 40), (2.2,), (1.7,), falling
    ),
    "Geometric": Case(
        _first(dist.GeometricProbs),
        _counts(lambda t, k: t[0] * (1 - t[0]) ** k, 200),
        (0.3,),
        (0.4,),
        falling,
    ),
    "Geometric, logits": Case(
        _first(lambda t: dist.GeometricLogits(t)),
        _counts(lambda t, k: special.expit(t[0]) * special.expit(-t[0]) ** k, 200),
        (-0.8,),
        (-0.5,),
        falling,
    ),
    "NegativeBinomial": Case(
        _first(lambda m, c: dist.NegativeBinomial2(m, c)),
        _counts(lambda t, k: stats.nbinom.pmf(k, t[1], t[1] / (t[0] + t[1])), 200),
        (2.5, 2.0),
        (1.8, 3.0),
        falling,
    ),
}
