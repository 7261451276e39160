"""Is the bound finite: growth of log densities against tails, and poles at zero, with the truth in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

from vinb.analysis import Verdict, integrability
from vinb.models.pairs import make_pair


def noise_of(prior, posterior, likelihood=lambda s: dist.Normal(0.0, s)):
    def model():
        numpyro.sample("x", likelihood(numpyro.sample("s", prior)), obs=1.0)

    def guide():
        numpyro.sample("s", posterior if isinstance(posterior, dist.Distribution) else posterior())

    return integrability(model, guide)


def learnt(make, low=0.0):
    return lambda: make(numpyro.param("a", low + 1.0, constraint=dist.constraints.greater_than(low)))


@pytest.mark.parametrize(
    ("posterior", "verdict"),
    [
        (dist.Uniform(0.0, 10.0), "INVALID"),
        (dist.HalfNormal(1.0), "INVALID"),
        (dist.Exponential(1.0), "INVALID"),
        (dist.Gamma(2.0, 1.0), "INVALID"),
        (dist.Gamma(1.5, 1.0), "INVALID"), (learnt(lambda a: dist.Gamma(a, 1.0)), "INVALID"), (dist.Uniform(0.1, 10.0), "VALID"),
    ],
)  # fmt: skip
def test_a_scale_near_zero(posterior, verdict):
    assert noise_of(dist.Uniform(0.0, 10.0), posterior).verdict == verdict


@pytest.mark.parametrize(
    "posterior", [dist.Gamma(2.5, 1.0), dist.LogNormal(0.0, 1.0), learnt(lambda a: dist.Gamma(a, 1.0), 2.0)]
)
def test_no_pole_where_the_guide_avoids_zero(posterior):
    assert noise_of(dist.HalfNormal(5.0), posterior).verdict != Verdict.INVALID


def test_the_power_at_zero_is_that_of_the_integral():
    """``E[s^-2]`` under a Gamma is finite exactly for a shape above 2."""
    for shape in (1.5, 2.0, 2.5, 3.5):
        parts = [
            integrate.quad(lambda s, a=shape: s**-2.0 * stats.gamma.pdf(s, a), low, 1.0, limit=200)[0]
            for low in (1e-4, 1e-6, 1e-8)
        ]
        diverges = parts[2] > 1.05 * parts[1] and parts[2] - parts[1] > 0.5 * (parts[1] - parts[0])
        assert diverges == (noise_of(dist.HalfNormal(1.0), dist.Gamma(shape, 1.0)).verdict == Verdict.INVALID)


def test_the_kind_of_tail_decides_which_power():
    heavy = lambda s: dist.Laplace(0.0, s)  # noqa: E731
    assert noise_of(dist.HalfNormal(1.0), dist.Gamma(1.5, 1.0), heavy).verdict != Verdict.INVALID
    assert noise_of(dist.HalfNormal(1.0), dist.Gamma(1.0, 1.0), heavy).verdict == Verdict.INVALID


def normal_pair(mean, scale):
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(mean(z), scale(z)), obs=1.0)

    def guide():
        loc = numpyro.param("loc", 0.0)
        numpyro.sample(
            "z", dist.Normal(loc, numpyro.param("scale", 1.0, constraint=dist.constraints.positive))
        )

    return integrability(model, guide).verdict


@pytest.mark.parametrize(
    ("mean", "scale", "verdict"),
    [
        (lambda z: z, lambda z: 1.0, "VALID"),
        (lambda z: z**3, jnp.exp, "VALID"),
        (jnp.exp, jax.nn.softplus, "VALID"),
        (jnp.tanh, jnp.exp, "VALID"),
        (lambda z: jnp.exp(z**2), lambda z: 1.0, "UNKNOWN"),
        (lambda z: z, lambda z: jnp.exp(z**2), "UNKNOWN"),
        (lambda z: z, lambda z: jnp.abs(z), "UNKNOWN"),
        (lambda z: jax.nn.relu(z) @ jnp.ones(3) if z.ndim else jax.nn.relu(z), lambda z: 0.1 + z**2, "VALID"),
    ],
)  # fmt: skip
def test_normal_guides(mean, scale, verdict):
    assert normal_pair(mean, scale) == verdict


def test_growth_is_right_about_a_bound_that_diverges():
    """``exp(z^2)`` as a mean: the second moment of it is infinite under a standard normal."""
    draws = [np.mean(np.exp(2 * np.random.default_rng(k).normal(size=10**5) ** 2)) for k in range(5)]
    assert max(draws) > 100 * min(draws)
    assert normal_pair(lambda z: jnp.exp(z**2), lambda z: 1.0) != "VALID"


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("vae", "VALID"),
        ("csis", "VALID"),
        ("spnor", "VALID"),
        ("br_edited", "VALID"),
        ("dmm", "VALID"),
        ("ssvae", "VALID"),
        ("sgdef", "UNKNOWN"),
    ],
)
def test_pairs_of_the_papers(name, verdict):
    pair = make_pair(name, "small")
    assert integrability(pair.model, pair.guide, pair.args, pair.kwargs).verdict == verdict
