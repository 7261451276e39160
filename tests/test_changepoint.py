"""vinb.models.changepoint against enumeration of all placements."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.test_util import check_grads
from numpyro import handlers
from numpyro.infer.util import log_density

from vinb.models import changepoint
from vinb.models.changepoint import ChangepointSeries

SIZES = [(6, 1), (8, 2), (10, 3), (12, 4), (7, 6), (5, 0), (1, 0)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def inputs(n, m, seed=0):
    random = np.random.default_rng([seed, n, m])
    return (
        3 * random.normal(size=(n, m + 1)),
        random.normal(size=(n - 1, m)),
        random.normal(size=(n - 1, m + 1)),
    )


def placements(n, m):
    return list(itertools.combinations(range(1, n), m))


def score(placement, density, weights, stay):
    """The logarithm of one term of the sum, written out step by step."""
    segment, total = 0, density[0, 0]
    for t in range(1, len(density)):
        if t in placement:
            total += weights[t - 1, segment]
            segment += 1
        else:
            total += stay[t - 1, segment]
        total += density[t, segment]
    return total


def enumerated(density, weights, stay):
    """All placements and the logarithm of each term."""
    n, k = density.shape
    every = placements(n, k - 1)
    return every, np.array([score(p, density, weights, stay) for p in every])


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_the_sum_over_placements(n, m):
    density, weights, stay = inputs(n, m)
    every, scores = enumerated(density, weights, stay)
    assert len(every) == math.comb(n - 1, m)
    exact = np.logaddexp.reduce(scores)
    np.testing.assert_allclose(
        changepoint.log_marginal(density, weights, log_stay=stay), exact, rtol=0, atol=1e-12
    )
    none, some = np.zeros_like(weights), np.zeros_like(stay)
    np.testing.assert_allclose(
        changepoint.log_marginal(density),
        np.logaddexp.reduce(enumerated(density, none, some)[1]),
        rtol=0,
        atol=1e-12,
    )
    np.testing.assert_allclose(changepoint.log_normalizer(n, m), np.log(len(every)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        changepoint.log_normalizer(n, m, weights, log_stay=stay),
        np.logaddexp.reduce(enumerated(np.zeros_like(density), weights, stay)[1]), rtol=0, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_posterior_is_that_of_enumeration_and_the_gradient(n, m):
    density, weights, stay = inputs(n, m, 1)
    every, scores = enumerated(density, weights, stay)
    probabilities = np.exp(scores - np.logaddexp.reduce(scores))
    segments, changes = np.zeros((n, m + 1)), np.zeros((n - 1, m))
    for placement, p in zip(every, probabilities, strict=True):
        segments[np.arange(n), np.searchsorted(placement, np.arange(n), "right")] += p
        changes[np.array(placement, int) - 1, np.arange(m)] += p
    found = changepoint.posterior(density, weights, log_stay=stay)
    slopes = jax.grad(lambda d, w: changepoint.log_marginal(d, w, log_stay=stay), (0, 1))(density, weights)
    for a, b, exact in zip(found, slopes, (segments, changes), strict=True):
        np.testing.assert_allclose(a, exact, rtol=0, atol=1e-12)
        np.testing.assert_allclose(b, exact, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.segments.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(found.changepoints.sum(0), 1, rtol=1e-12)


@pytest.mark.exhaustive
def test_second_derivatives():
    density, weights, stay = inputs(7, 2, 2)
    check_grads(
        lambda *a: changepoint.log_marginal(a[0], a[1], log_stay=a[2]),
        (density, weights, stay),
        order=2,
        modes=["fwd", "rev"],
    )


@pytest.mark.parametrize(("n", "m"), [(9, 2), (7, 6), (6, 0)])
def test_most_probable(n, m):
    for seed in range(20):
        density, weights, stay = inputs(n, m, 10 + seed)
        every, scores = enumerated(density, weights, stay)
        placement, best = changepoint.most_probable(density, weights, log_stay=stay)
        assert tuple(placement.tolist()) == every[int(np.argmax(scores))]
        np.testing.assert_allclose(best, scores.max(), rtol=1e-12)


def test_every_count_in_one_pass():
    density, _, _ = inputs(9, 4)
    found = changepoint.log_marginal(density, every_count=True)
    for k in range(5):
        np.testing.assert_allclose(found[k], changepoint.log_marginal(density[:, : k + 1]), rtol=1e-12)


def test_draws_have_the_exact_law():
    """Chi-squared of 40,000 draws over the 165 placements, within four standard deviations (false alarm about 1e-4)."""
    density, weights, stay = inputs(12, 3, 3)
    density = density / 3  # so that many placements count
    every, scores = enumerated(density, weights, stay)
    probabilities = np.exp(scores - np.logaddexp.reduce(scores))
    draws = changepoint.sample(jax.random.key(0), density, weights, log_stay=stay, num_samples=40_000)
    number = {p: k for k, p in enumerate(every)}
    counts = np.bincount([number[tuple(d)] for d in draws.tolist()], minlength=len(every))
    expected = 40_000 * probabilities
    well = expected >= 5
    chi2 = np.sum((counts[well] - expected[well]) ** 2 / expected[well])
    degrees = well.sum() - 1
    assert abs(chi2 - degrees) < 4 * np.sqrt(2 * degrees)
    assert counts[~well].sum() < 4 * expected[~well].sum() + 10


def test_uniform_placements_are_a_left_to_right_markov_chain():
    n, m = 10, 3
    density, _, _ = inputs(n, m, 4)
    alpha = np.full(m + 1, -np.inf)
    alpha[0] = density[0, 0]
    for t in range(1, n):
        advance = np.clip((m - np.arange(m + 1)) / (n - t), 0, 1)
        with np.errstate(divide="ignore"):
            stay, move = np.log1p(-advance), np.log(advance)
        moved = np.append(-np.inf, (alpha + move)[:-1])
        alpha = np.logaddexp(alpha + stay, moved) + density[t]
    found = changepoint.log_marginal(density) - changepoint.log_normalizer(n, m)
    np.testing.assert_allclose(found, np.logaddexp.reduce(alpha), rtol=1e-12)


def test_impossible_steps_and_placements():
    density, weights, _ = inputs(8, 2, 5)
    density[3, 0] = density[4, 2] = -np.inf
    weights[5, 1] = -np.inf
    every, scores = enumerated(density, weights, np.zeros((7, 3)))
    value, slopes = jax.value_and_grad(changepoint.log_marginal, (0, 1))(density, weights)
    np.testing.assert_allclose(value, np.logaddexp.reduce(scores), rtol=1e-12)
    assert all(np.isfinite(s).all() for s in slopes)
    assert slopes[0][3, 0] == slopes[0][4, 2] == slopes[1][5, 1] == 0
    draws = changepoint.sample(jax.random.key(1), density, weights, num_samples=2000)
    possible = {p for p, s in zip(every, scores, strict=True) if s > -np.inf}
    assert {tuple(d) for d in draws.tolist()} <= possible
    density[2] = -np.inf  # no segment can explain step 2
    assert changepoint.log_marginal(density, weights) == -np.inf
    assert np.isfinite(jax.grad(changepoint.log_marginal)(density, weights)).all()


def test_float32_and_long_series():
    n, m = 675, 11
    random = np.random.default_rng(6)
    density = random.normal(size=(n, m + 1)) * 3 - 4
    exact, slope = jax.value_and_grad(changepoint.log_marginal)(jnp.asarray(density))
    with jax.enable_x64(False):
        value, low = jax.value_and_grad(changepoint.log_marginal)(jnp.asarray(density, jnp.float32))
        inside, _ = changepoint.posterior(jnp.asarray(density, jnp.float32))
    assert value.dtype == low.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(low, slope, atol=1e-4)
    np.testing.assert_allclose(inside, slope, atol=1e-4)


def test_memory_is_linear_in_steps_and_segments():
    def temporary(n, m):
        compiled = jax.jit(jax.grad(changepoint.log_marginal)).lower(jnp.zeros((n, m + 1))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one = temporary(1000, 15)
    assert one < 40 * 1000 * 16 * 8
    assert temporary(2000, 15) < 2.1 * one
    assert temporary(1000, 31) < 2.1 * one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 4),), "4 segments for 3 steps"),
        (((4,),), r"log_densities must be of shape \[steps, segments\], got \(4,\)"),
        (((5, 3), (5, 2)), r"log_weights must be of shape \[4, 2\] for 5 steps and 3 segments, got \(5, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        changepoint.log_marginal(*map(jnp.zeros, arguments))


# The distribution


def test_the_distribution_is_the_mixture_of_all_placements():
    level, x = jnp.array([0.0, 2.0, -1.0]), np.random.default_rng(7).normal(size=9)
    law = ChangepointSeries(dist.Normal(level, 0.7), 9)
    assert law.batch_shape == ()
    assert law.event_shape == (9,)
    each = [
        dist.Normal(level[np.searchsorted(p, np.arange(9), "right")], 0.7).log_prob(x).sum()
        for p in placements(9, 2)
    ]
    np.testing.assert_allclose(law.log_prob(x), np.logaddexp.reduce(each) - np.log(len(each)), rtol=1e-12)
    found = law.posterior(x)
    np.testing.assert_allclose(found.segments.sum(1), 1, rtol=1e-12)
    placement, best = law.most_probable(x)
    np.testing.assert_allclose(best, max(each) - np.log(len(each)), rtol=1e-12)
    assert tuple(placement.tolist()) == placements(9, 2)[int(np.argmax(each))]
    assert law.sample_changepoints(jax.random.key(0), x, 5).shape == (5, 2)


def test_batches_events_and_tree():
    random = np.random.default_rng(8)
    loc, x = random.normal(size=(4, 1, 3, 2)), random.normal(size=(5, 4, 6, 2))
    law = ChangepointSeries(dist.Normal(loc, 1.0).to_event(1), 6)
    assert law.batch_shape == (4,)
    assert law.event_shape == (6, 2)
    single = [
        [ChangepointSeries(dist.Normal(loc[b], 1.0).to_event(1), 6).log_prob(x[a, b]) for b in range(4)]
        for a in range(5)
    ]
    np.testing.assert_allclose(law.log_prob(x), np.array(single), rtol=1e-12)
    assert law.posterior(x).changepoints.shape == (5, 4, 5, 2)
    assert law.sample(jax.random.key(0), (7,)).shape == (7, 4, 6, 2)
    again = jax.tree.map(lambda a: a, law)
    np.testing.assert_allclose(jax.jit(lambda law, x: law.log_prob(x))(again, x), law.log_prob(x), rtol=1e-12)


def test_draws_of_series_have_the_law_of_log_prob():
    """E[exp(g(x) - log p(x))] under p is the integral of exp(g), for a density g: importance weights average to one."""
    weights = np.log(np.array([[0.5, 0.1], [2.0, 1.0], [0.3, 3.0]]))
    law = ChangepointSeries(dist.Normal(jnp.array([0.0, 1.0, 3.0]), jnp.array([1.0, 0.5, 1.5])), 4, weights)
    x = law.sample(jax.random.key(2), (200_000,))
    other = ChangepointSeries(dist.Normal(jnp.array([0.2, 1.1, 2.8]), jnp.array([0.8, 0.45, 1.2])), 4)
    ratio = np.exp(other.log_prob(x) - law.log_prob(x))
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.005
    assert abs(ratio.mean() - 1) < 4.5 * error  # false alarm 7e-6


def test_inside_a_model():
    x = np.r_[np.zeros(20), 3 * np.ones(20)] + 0.1 * np.random.default_rng(9).normal(size=40)

    def model(x=None):
        level = numpyro.sample("level", dist.Normal(0, 5).expand([2]).to_event(1))
        numpyro.sample("x", ChangepointSeries(dist.Normal(level, 0.1), 40), obs=x)

    value, slope = jax.value_and_grad(lambda level: log_density(model, (x,), {}, {"level": level})[0])(
        jnp.array([0.1, 2.9])
    )
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    trace = handlers.trace(handlers.seed(model, 0)).get_trace()
    assert trace["x"]["value"].shape == (40,)
    law = ChangepointSeries(dist.Normal(jnp.array([0.0, 3.0]), 0.1), 40)
    assert law.most_probable(x)[0].tolist() == [20]


def test_hazards():
    """Chib's chain, given that it ends in the last segment."""
    n, m = 6, 2
    hazard = np.random.default_rng(10).uniform(0.1, 0.5, size=m)
    move = np.broadcast_to(np.log(hazard), (n - 1, m))
    stay = np.broadcast_to(np.log(np.append(1 - hazard, 1.0)), (n - 1, m + 1))
    x, level = np.random.default_rng(11).normal(size=n), jnp.array([0.0, 1.0, 2.0])
    law = ChangepointSeries(dist.Normal(level, 1.0), n, move, log_stay=stay)
    scores = enumerated(np.asarray(dist.Normal(level, 1.0).log_prob(x[:, None])), move, stay)[1]
    prior = enumerated(np.zeros((n, m + 1)), move, stay)[1]
    np.testing.assert_allclose(
        law.log_prob(x), np.logaddexp.reduce(scores) - np.logaddexp.reduce(prior), rtol=1e-12
    )


def test_components_that_do_not_fit():
    with pytest.raises(ValueError, match="axis of segments"):
        ChangepointSeries(dist.Normal(0.0, 1.0), 5)
    with pytest.raises(ValueError, match="1 or 5 steps"):
        ChangepointSeries(dist.Normal(jnp.zeros((4, 2)), 1.0), 5)
    with pytest.raises(ValueError, match="6 segments for 5 steps"):
        ChangepointSeries(dist.Normal(jnp.zeros(6), 1.0), 5)


def test_numbers_of_changepoints_without_placement():
    for number in (-1, 4):
        with pytest.raises(ValueError, match=f"from 0 to 3 for 4 steps, got {number}"):
            changepoint.log_normalizer(4, number)
