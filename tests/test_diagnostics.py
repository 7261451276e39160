"""Diagnostics of a fitted guide: Pareto k-hat, the gap between bounds, samples for ArviZ."""

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from vinb import diagnostics
from vinb.programs import marginal

KEY = jax.random.key(0)


def model(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def guide(y):
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.0), scale))


Y = jnp.array(1.2)
EXACT = {"loc": jnp.array(0.6), "scale": jnp.log(jnp.sqrt(0.5))}  # the posterior is N(0.6, 1/2)
LOG_EVIDENCE = -0.5 * np.log(2 * np.pi * 2) - 1.2**2 / 4


def at(loc, scale):
    return {"loc": jnp.array(loc), "scale": jnp.log(jnp.array(scale))}


def test_pareto_k_grows_as_the_guide_gets_too_narrow():
    # With scales s of the guide and t of the posterior the tail index of the weights is 1 - (s / t)^2, up to a power of a
    # logarithm that makes the tail of a finite sample look lighter.
    for ratio in (0.95, 0.7, 0.4, 0.1):
        found = diagnostics.pareto_k(model, guide, at(0.6, ratio * 0.5**0.5), KEY, Y, num_samples=20_000)
        assert 1 - ratio**2 - 0.2 < found.k < 1 - ratio**2 + 0.05


def test_pareto_k_says_what_it_means():
    assert "close to the posterior" in diagnostics.ParetoK(0.2, 4000).meaning
    assert "usable" in diagnostics.ParetoK(0.6, 4000).meaning
    assert "draw more" in diagnostics.ParetoK(0.6, 100).meaning
    assert "unreliable" in diagnostics.ParetoK(0.8, 4000).meaning
    assert "misses mass" in str(diagnostics.ParetoK(0.8, 4000))
    assert "do not use this guide" in diagnostics.ParetoK(1.3, 4000).meaning
    assert "could not be fitted" in diagnostics.ParetoK(float("nan"), 4000).meaning


def test_gap_is_the_divergence_for_many_particles():
    params = at(0.2, 0.9)
    divergence = np.log(0.5**0.5 / 0.9) + (0.81 + 0.16) / (2 * 0.5) - 0.5
    found = diagnostics.gap(model, guide, params, KEY, Y, num_particles=4000, num_draws=400)
    assert abs(found.elbo - (LOG_EVIDENCE - divergence)) < 4 * found.elbo_error
    assert abs(found.gap - divergence) < 4 * found.standard_error + 1e-3  # the rest is of order 1 / 4000
    assert 4 * found.standard_error < 0.02 * divergence
    np.testing.assert_allclose(found.gap, found.iwelbo - found.elbo, atol=1e-6)


def test_gap_of_the_exact_posterior_is_zero():
    found = diagnostics.gap(model, guide, EXACT, KEY, Y, num_particles=10, num_draws=10)
    assert abs(found.gap) < 1e-5
    np.testing.assert_allclose([found.elbo, found.iwelbo], LOG_EVIDENCE, atol=1e-5)


def test_posterior_is_inference_data_that_arviz_reads():
    data = diagnostics.posterior(model, guide, EXACT, KEY, Y, num_samples=5000)
    summary = arviz.summary(data, kind="stats", round_to=6)
    assert abs(summary.loc["x", "mean"] - 0.6) < 4 * 0.5**0.5 / 5000**0.5
    assert abs(summary.loc["x", "sd"] / 0.5**0.5 - 1) < 4 / (2 * 5000) ** 0.5
    # Where the guide is the posterior all weights are the evidence.
    np.testing.assert_allclose(data.sample_stats["log_weight"].values, LOG_EVIDENCE, atol=1e-5)


def test_a_discrete_guide_and_a_marginal_guide_work():
    def mixture(y):
        b = numpyro.sample("b", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(0.6 + 0.01 * b, 0.5**0.5))

    found = diagnostics.gap(
        model, marginal(mixture, keep=["x"], num_particles=2), {}, KEY, Y, num_particles=5, num_draws=5
    )
    assert found.gap < 1e-2
    data = diagnostics.posterior(
        model, marginal(mixture, keep=["x"], num_particles=2), {}, KEY, Y, num_samples=7
    )
    assert data.posterior["x"].shape == (1, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: diagnostics.pareto_k(model, guide, EXACT, KEY, Y, num_samples=50),
            "num_samples must be at least 100",
        ),
        (lambda: diagnostics.gap(model, guide, EXACT, KEY, Y, num_draws=1), "num_draws must be at least 2"),
        (
            lambda: diagnostics.gap(model, guide, EXACT, KEY, Y, num_particles=0),
            "num_particles must be a positive integer",
        ),
        (lambda: diagnostics.pareto_k(model, guide, at(jnp.nan, 1.0), KEY, Y, num_samples=100), "NaN"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_guide_without_overlap_is_refused():
    def bounded(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("positive", jnp.where(x > 5, 0.0, -jnp.inf))

    with pytest.raises(ValueError, match="supports do not match"):
        diagnostics.pareto_k(bounded, guide, at(0.0, 1e-3), KEY, Y, num_samples=100)
