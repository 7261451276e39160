"""Description lengths against integrals, real codes and the papers' own numbers; masks of pruned weights."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

from vinb import coding
from vinb.models.bayesian import (
    BayesianDense,
    DiagonalNormal,
    Masked,
    mask,
    mean_weights,
    posteriors,
    sample_weights,
    signal_to_noise,
)

KEY = jax.random.key(31)

# ---- lengths


def test_misfits_cost_what_their_quantised_codes_cost():
    errors = np.random.default_rng(0).normal(0, [0.5, 2.0], (40, 2))
    scale, tolerance = np.array([0.7, 1.5]), 1e-3
    code = stats.norm(0, scale)
    exact = -np.log(code.cdf(errors + tolerance / 2) - code.cdf(errors - tolerance / 2)).sum()
    found = coding.misfit_length(jnp.asarray(errors**2), scale=scale, tolerance=tolerance)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    best = coding.misfit_length(errors**2, tolerance=tolerance)
    root = np.sqrt((errors**2).mean(0))
    np.testing.assert_allclose(
        best, coding.misfit_length(errors**2, scale=root, tolerance=tolerance), rtol=1e-6
    )
    for factor in (0.9, 1.1):
        assert best < coding.misfit_length(errors**2, scale=factor * root, tolerance=tolerance)
    np.testing.assert_allclose(
        coding.misfit_length(errors**2), 20 * np.log((errors**2).mean(0)).sum(), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"one for each output, \(2,\), got shape \(40, 2\)"):
        coding.misfit_length(errors**2, scale=np.ones((40, 2)))
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        coding.misfit_length(errors**2, tolerance=0.0)


def test_values_cost_what_their_quantised_codes_cost():
    values, tolerance = np.array([-0.3, 0.0, 1.2]), 1e-3
    exact = -np.log(
        stats.norm(0.1, 0.8).cdf(values + tolerance / 2) - stats.norm(0.1, 0.8).cdf(values - tolerance / 2)
    )
    np.testing.assert_allclose(
        coding.value_length(values, dist.Normal(0.1, 0.8), tolerance=tolerance), exact, rtol=1e-5
    )
    # Weight decay: the slope of the length is that of w^2 / (2 s^2).
    slope = jax.grad(lambda w: coding.value_length(w, dist.Normal(0.0, 0.5)).sum())(
        jnp.asarray(values, jnp.float32)
    )
    np.testing.assert_allclose(slope, values / 0.25, rtol=1e-5)


def normals(loc, scale):
    return dist.Normal(jnp.asarray(loc, float), jnp.asarray(scale, float))


def mixture(shares, loc, scale):
    return dist.MixtureSameFamily(dist.Categorical(probs=jnp.asarray(shares)), normals(loc, scale))


@pytest.mark.parametrize(
    ("loc", "scale", "exact", "bound"),  # computed by quadrature in the paper's dossier
    [
        (0, 0.05, 1.49822, 1.49963),
        (0.5, 0.3, 1.73060, 2.30024),
        (-1, 1, 2.24959, 4.54192),
        (0, 1, 0.54829, 4.41290),
    ],
)
def test_the_mixture_code_bounds_the_divergence(loc, scale, exact, bound):
    shares, locs, scales = (0.5, 0.3, 0.2), (-1, 0, 1), (0.3, 0.1, 0.5)
    code = coding.mixture_code(normals(loc, scale), mixture(shares, locs, scales))
    np.testing.assert_allclose(code.total, bound, atol=1e-5)
    np.testing.assert_allclose(code.choice + code.value - code.returned, code.total, rtol=1e-5)
    q = stats.norm(loc, scale)
    p = lambda w: sum(s * stats.norm(m, d).pdf(w) for s, m, d in zip(shares, locs, scales, strict=True))  # noqa: E731
    divergence = integrate.quad(
        lambda w: q.pdf(w) * (q.logpdf(w) - np.log(p(w))), loc - 8 * scale, loc + 8 * scale, limit=200
    )
    np.testing.assert_allclose(divergence[0], exact, atol=2e-5)


def test_the_mixture_code_on_random_mixtures():
    with jax.enable_x64(True):
        random = np.random.default_rng(1)
        for size in (1, 2, 5):
            shares = random.dirichlet(np.ones(size))
            prior = mixture(shares, random.normal(size=size), random.uniform(0.1, 1, size))
            q = normals(random.normal(size=40), random.uniform(0.05, 1, 40))
            code = coding.mixture_code(q, prior)
            grid = q.loc[:, None] + q.scale[:, None] * np.linspace(-10, 10, 4001)
            log_ratio = dist.Normal(q.loc[:, None], q.scale[:, None]).log_prob(grid) - prior.log_prob(grid)
            weights = stats.norm.pdf(np.linspace(-10, 10, 4001))
            divergence = log_ratio @ (weights / weights.sum())
            assert np.all(code.total >= divergence - 1e-8)
            if size == 1:
                np.testing.assert_allclose(code.total, divergence, rtol=1e-7)
            np.testing.assert_allclose(code.choice + code.value - code.returned, code.total, rtol=1e-10)
            # No other choice of component is cheaper.
            other = random.dirichlet(np.ones(size), 40)
            each = dist.kl_divergence(
                dist.Normal(q.loc[:, None], q.scale[:, None]), prior.component_distribution
            )
            cost = np.sum(other * (np.asarray(each) - np.log(shares) + np.log(other)), -1)
            assert np.all(cost >= code.total - 1e-9)


def test_description_lengths_in_bits():
    found = coding.description_length(300.0, 100.0, num_weights=50, num_labels=200, alphabet=8)
    np.testing.assert_allclose(found.total_bits, 400 / np.log(2))
    np.testing.assert_allclose(found.bits_per_weight, 2 / np.log(2))
    np.testing.assert_allclose(found.ratio, 400 / (200 * np.log(8)))
    assert coding.description_length(300.0, 100.0, num_weights=50).ratio is None
    with pytest.raises(ValueError, match="both num_labels and alphabet or neither, got 3 and None"):
        coding.description_length(1.0, 1.0, num_weights=1, num_labels=3)
    with pytest.raises(ValueError, match="alphabet at least 2, got 1, 3, 1"):
        coding.description_length(1.0, 1.0, num_weights=1, num_labels=3, alphabet=1)


# ---- Bayes factors


def free_energies(x, y, degree, noise):
    """Of a polynomial with standard normal coefficients of Legendre polynomials: the best normal posterior's with independent
    coefficients, and minus the exact log evidence."""
    features = np.polynomial.legendre.legvander(x, degree)
    evidence = stats.multivariate_normal(
        np.zeros(len(x)), noise**2 * np.eye(len(x)) + features @ features.T
    ).logpdf(y)
    precision = features.T @ features / noise**2 + np.eye(degree + 1)
    # For a normal target the best independent posterior has its mean and the diagonal of its precision.
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    return -evidence + gap, -evidence


def test_the_free_energies_of_polynomials_prefer_the_right_degree():
    """Occam's razor: data of a cubic, and a higher degree fits them better but is not worth its bits."""
    random = np.random.default_rng(3)
    x = np.linspace(-1, 1, 60)
    y = np.polynomial.legendre.legval(x, [0.3, -0.8, 0.5, 1.0]) + random.normal(0, 0.3, len(x))
    by_degree = [free_energies(x, y, degree, 0.3) for degree in range(9)]
    bound, exact = np.array(by_degree).T
    assert exact.argmin() == bound.argmin() == 3
    for degree in (1, 2, 5, 8):
        found = coding.bayes_factor(bound[3], bound[degree])
        assert found.words.endswith("for the first")
        # Off by no more than the two gaps.
        assert abs(found.nats - (exact[degree] - exact[3])) <= (bound - exact)[[3, degree]].max() + 1e-9


def test_bayes_factors_in_words():
    assert coding.bayes_factor(10.0, 10.5).words == "not worth more than a bare mention, for the first"
    assert coding.bayes_factor(12.0, 10.0).words == "positive, for the second"
    assert coding.bayes_factor(0.0, 4.0).words == "strong, for the first"
    assert coding.bayes_factor(0.0, 40.0).words == "very strong, for the first"
    noisy = coding.bayes_factor(0.0, 4.0, standard_errors=(3.0, 4.0))
    assert noisy.standard_error == 5.0
    assert noisy.words == "within two standard errors of none"
    with pytest.raises(ValueError, match="free_energy and other must be finite, got"):
        coding.bayes_factor(0.0, np.inf)
    assert str(noisy) == "4 nats (standard error 5): within two standard errors of none"


# ---- pruning

NETWORK = [BayesianDense.init(jax.random.key(k), 20, 20, scale=0.2) for k in range(2)]


def test_scores_thresholds_and_the_safe_limit():
    loc, scale = jnp.array([0.0, -2.0, 1.0, 0.0]), jnp.array([1.0, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(coding.signal_to_noise(loc, scale), [0.0, 4.0, np.inf, 0.0])
    np.testing.assert_allclose(coding.relative_density(loc, scale), [1.0, np.exp(-8), 0.0, 1.0])
    for density in (0.1, 0.7071, 1.0):
        ratio = coding.threshold(density)
        np.testing.assert_allclose(
            coding.relative_density(jnp.array(ratio), jnp.array(1.0)), density, rtol=1e-6
        )
    assert abs(coding.SAFE_THRESHOLD - 0.8325546111576977) < 1e-12
    draws = np.random.default_rng(0).normal(size=1_000_000)
    assert abs(np.exp(-(draws**2) / 2).mean() - np.exp(-(coding.SAFE_THRESHOLD**2) / 2)) < 0.002
    np.testing.assert_allclose(coding.decibels(jnp.array([0.1, 1.0, 10.0])), [-10, 0, 10], atol=1e-5)
    with pytest.raises(ValueError, match="density must be above 0 and at most 1, got 0"):
        coding.threshold(0.0)


def test_masks_are_nested_and_exact():
    scores = signal_to_noise(NETWORK)
    total = sum(leaf.size for leaf in jax.tree.leaves(scores))
    flat = lambda masks: np.concatenate([np.ravel(m) for m in jax.tree.leaves(masks)])  # noqa: E731
    values, before = flat(scores), np.ones(total, bool)
    for removed in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0):
        kept = flat(coding.keep(scores, removed=removed))
        assert kept.sum() == round((1 - removed) * total)
        assert np.all(before | ~kept)
        assert not kept.any() or kept.all() or values[kept].min() >= values[~kept].max()
        before = kept
    ties = coding.keep({"a": jnp.zeros((3, 3)), "b": jnp.ones(1)}, removed=0.5)
    assert flat(ties).sum() == 5
    assert bool(ties["b"][0])
    assert flat(coding.keep(scores, threshold=0.0)).all()
    np.testing.assert_array_equal(flat(coding.keep(scores, threshold=1.0)), values >= 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of removed and threshold, got None and None"),
        ({"removed": 0.5, "threshold": 1.0}, "got 0.5 and 1.0"),
        ({"removed": 1.5}, "removed must be between 0 and 1, got 1.5"),
        ({"threshold": -1.0}, "threshold must not be negative, got -1.0"),
    ],
)
def test_what_keep_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        coding.keep(jnp.ones(3), **options)
    with pytest.raises(ValueError, match="scores has NaN"):
        coding.keep(jnp.array([1.0, np.nan]), threshold=0.5)
    with pytest.raises(ValueError, match="scores has no arrays"):
        coding.keep([None], removed=0.5)


def test_pruned_networks_have_exact_zeros_and_prune_further():
    scores = signal_to_noise(NETWORK)
    half = mask(NETWORK, coding.keep(scores, removed=0.5))
    kept = [np.asarray(p.kept) for p in posteriors(half)]
    for network in (mean_weights(half), sample_weights(half, KEY)):
        arrays = [a for layer in network for a in (layer.weight, layer.bias)]
        for array, stays in zip(arrays, kept, strict=True):
            np.testing.assert_array_equal(np.asarray(array)[~stays], 0.0)
            assert np.all(np.asarray(array)[stays] != 0)
    most = mask(half, coding.keep(signal_to_noise(half), removed=0.9))
    assert all(isinstance(p, Masked) and isinstance(p.posterior, DiagonalNormal) for p in posteriors(most))
    assert all(np.all(a | ~np.asarray(p.kept)) for a, p in zip(kept, posteriors(most), strict=True))
    again = mask(NETWORK, coding.keep(scores, removed=0.9))
    for one, two in zip(posteriors(most), posteriors(again), strict=True):
        np.testing.assert_array_equal(one.kept, two.kept)
    second = coding.keep(scores[1], removed=0.5)
    one = mask(NETWORK, [jax.tree.map(lambda _: None, second), second])
    assert isinstance(one[1].weight, Masked)
    assert isinstance(one[0].weight, DiagonalNormal)
    with pytest.raises(ValueError, match="masks has an array where network has no posterior"):
        mask([jnp.ones(2)], [jnp.ones(2, bool)])
    nothing = mask(NETWORK, coding.keep(scores, removed=1.0))
    x = jnp.ones((2, 20))
    outputs = [nothing[0](x, key=jax.random.key(k), mode="shared") for k in (1, 2)]
    np.testing.assert_array_equal(*outputs)


def test_pruning_curves():
    curve = coding.pruning_curve(
        lambda masks: float(jnp.mean(masks["w"])), {"w": jnp.arange(10.0)}, [0.0, 0.3, 1.0]
    )
    assert [(p.removed, p.kept) for p in curve] == [(0.0, 10), (0.3, 7), (1.0, 0)]
    np.testing.assert_allclose([p.value for p in curve], [1.0, 0.7, 0.0], rtol=1e-6)
