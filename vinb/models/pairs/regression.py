"""Pairs with few latents: a split normal, Bayesian regression, inference compilation, a Dirichlet process mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from vinb.models.pairs.layers import dense
from vinb.models.pairs.pair import Pair, sized


def spnor(scale: str) -> Pair:
    """A normal chain whose observation has another mean on either side of zero (lee2023smoothness); one size."""

    def model(x):
        z1 = numpyro.sample("z1", dist.Normal(0.0, 5.0))
        z2 = numpyro.sample("z2", dist.Normal(z1, 3.0))
        numpyro.sample("x", dist.Normal(jnp.where(z2 > 0, 1.0, -2.0), 1.0), obs=x)

    def guide(x):
        for i in (1, 2):
            numpyro.sample(f"z{i}", dist.Normal(numpyro.param(f"theta{i}", jnp.array(1.0)), 1.0))

    return Pair("spnor", model, guide, (0.0,))


def br(scale: str) -> Pair:
    """Bayesian regression of log GDP on the ruggedness of terrain, in Africa and elsewhere (lee2020verifiedsvi,
    lee2023smoothness), with its bug: ``sigma`` is uniform on (0, 10) in the model and normal in the guide. Made-up countries."""

    def sigma():
        loc = numpyro.param("sigma_loc", jnp.array(1.0), constraint=constraints.positive)
        return dist.Normal(loc, 0.05)

    return _regression("br", scale, lambda: dist.Uniform(0.0, 10.0), sigma)


def br_original(scale: str) -> Pair:
    """:func:`br` under the name that it has among the pairs of lee2020verifiedsvi."""
    return br(scale)._replace(name="br_original")


def br_edited(scale: str) -> Pair:
    """:func:`br` with the bug mended as in lee2020verifiedsvi: ``sigma`` is uniform on (0.1, 10) in model and guide."""

    def sigma():
        return dist.Uniform(0.1, 10.0)

    return _regression("br_edited", scale, sigma, sigma)


def _regression(name, scale, sigma_prior, sigma_posterior):
    (countries,) = sized(scale, small=(6,), original=(170,))
    slopes = ("bA", "bR", "bAR")

    def model(africa, ruggedness, log_gdp):
        a = numpyro.sample("a", dist.Normal(8.0, 1000.0))
        b_africa, b_ruggedness, b_both = (numpyro.sample(b, dist.Normal(0.0, 1.0)) for b in slopes)
        sigma = numpyro.sample("sigma", sigma_prior())
        mean = a + b_africa * africa + b_ruggedness * ruggedness + b_both * africa * ruggedness
        with numpyro.plate("data", countries):
            numpyro.sample("obs", dist.Normal(mean, sigma), obs=log_gdp)

    def guide(africa, ruggedness, log_gdp):
        a_loc = numpyro.param("a_loc", jnp.array(0.0))
        a_scale = numpyro.param("a_scale", jnp.array(1.0), constraint=constraints.positive)
        loc = numpyro.param("weights_loc", jnp.zeros(3))
        spread = numpyro.param("weights_scale", jnp.ones(3), constraint=constraints.positive)
        numpyro.sample("a", dist.Normal(a_loc, a_scale))
        for i, slope in enumerate(slopes):
            numpyro.sample(slope, dist.Normal(loc[i], spread[i]))
        numpyro.sample("sigma", sigma_posterior())

    africa = (np.arange(countries) % 3 == 0).astype(np.float32)
    ruggedness = np.linspace(0, 6, countries, dtype=np.float32)
    return Pair(name, model, guide, (africa, ruggedness, 9 - 2 * africa - 0.2 * ruggedness))


def csis(scale: str) -> Pair:
    """Compiled importance sampling: a normal mean seen twice, and a ReLU network from the two observations to its posterior
    (lee2020verifiedsvi, lee2023smoothness). One size."""
    names = ("first", "second", "third", "fourth", "fifth")
    widths = (2, 10, 20, 10, 5, 2)

    def model(x1, x2):
        z = numpyro.sample("z", dist.Normal(1.0, np.sqrt(5.0)))
        numpyro.sample("x1", dist.Normal(z, np.sqrt(2.0)), obs=x1)
        numpyro.sample("x2", dist.Normal(z, np.sqrt(2.0)), obs=x2)

    def guide(x1, x2):
        *hidden, last = (dense(*layer) for layer in zip(names, widths, widths[1:], strict=False))
        values = jnp.stack([x1, x2])
        for layer in hidden:
            values = jax.nn.relu(layer(values))
        loc, log_scale = last(values)
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)))

    return Pair("csis", model, guide, (8.0, 9.0))


def csis_swapped(scale: str) -> Pair:
    """:func:`csis` with model and guide exchanged: it minimises KL(p || q), so the model's support must lie within the guide's
    (lee2020verifiedsvi)."""
    pair = csis(scale)
    return Pair("csis_swapped", pair.guide, pair.model, pair.args)


def dpmm(scale: str) -> Pair:
    """A truncated Dirichlet process mixture of Poisson counts by stick breaking, and a mean-field guide (lee2023smoothness).

    Made-up counts stand for the yearly sunspot numbers from 1700 to 2008.
    """
    components, years = sized(scale, small=(4, 6), original=(20, 309))
    alpha = 1.1

    def model(counts):
        with numpyro.plate("sticks", components - 1):
            beta = numpyro.sample("beta", dist.Beta(1.0, alpha))
        with numpyro.plate("components", components):
            rate = numpyro.sample("lambda", dist.Gamma(3.0, 0.05))
        weights = jnp.append(beta, 1.0) * jnp.append(1.0, jnp.cumprod(1 - beta))
        with numpyro.plate("data", years):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("obs", dist.Poisson(rate[z]), obs=counts)

    def guide(counts):
        positive = {"constraint": constraints.positive}
        kappa = numpyro.param("kappa", jnp.ones(components - 1), **positive)
        tau_0 = numpyro.param("tau_0", jnp.linspace(1.0, 5.0, components), **positive)
        tau_1 = numpyro.param("tau_1", jnp.full(components, 0.1), **positive)
        uniform = jnp.full((years, components), 1 / components)
        phi = numpyro.param("phi", uniform, constraint=constraints.simplex)
        with numpyro.plate("sticks", components - 1):
            numpyro.sample("beta", dist.Beta(1.0, kappa))
        with numpyro.plate("components", components):
            numpyro.sample("lambda", dist.Gamma(tau_0, tau_1))
        with numpyro.plate("data", years):
            numpyro.sample("z", dist.Categorical(phi))

    return Pair("dpmm", model, guide, (np.arange(years) % 11 * 15,))
