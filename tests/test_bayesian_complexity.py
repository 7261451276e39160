"""The cost of weights: divergences against quadrature in float64, priors, and the shares of minibatches."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from scipy import integrate, special, stats

from vinb.models.bayesian import (
    BayesianDense,
    Delta,
    DiagonalNormal,
    EmpiricalLaplace,
    EmpiricalNormal,
    LaplacePrior,
    LearnedMixture,
    LearnedNormal,
    LogUniformPrior,
    Masked,
    MultiplicativeNormal,
    NormalPrior,
    ScaleMixturePrior,
    UniformPrior,
    complexity,
    kl_log_uniform,
    kl_log_uniform_exact,
    kl_weights,
    sample_weights,
    warm_up,
)

KEY = jax.random.key(21)
LOC, SCALE = np.array([0.5, -2.0, 0.01, 1.3]), np.array([0.3, 0.05, 1.2, 0.7])
NORMAL = DiagonalNormal(jnp.asarray(LOC, jnp.float32), jnp.log(jnp.asarray(SCALE, jnp.float32)), True)


def by_quadrature(log_prior):
    """``KL(q || p)`` of each weight."""

    def one(loc, scale):
        q = stats.norm(loc, scale)
        points = [p for p in (0.0, 0.4) if abs(p - loc) < 12 * scale]  # kinks of the priors below
        f = lambda w: q.pdf(w) * (q.logpdf(w) - log_prior(w))  # noqa: E731
        return integrate.quad(
            f, loc - 12 * scale, loc + 12 * scale, points=points or None, epsabs=1e-11, limit=400
        )[0]

    return np.array([one(*pair) for pair in zip(LOC, SCALE, strict=True)])


@pytest.mark.parametrize(
    ("prior", "log_prior", "method"),
    [
        (NormalPrior(0.4, 0.8), stats.norm(0.4, 0.8).logpdf, "closed form"),
        (LearnedNormal(jnp.array(0.4), jnp.log(0.8)), stats.norm(0.4, 0.8).logpdf, "closed form"),
        (LaplacePrior(0.4, 0.8), stats.laplace(0.4, 0.8).logpdf, "closed form"),
        (UniformPrior(), lambda w: 0 * w, "closed form, up to a constant"),
    ],
)
def test_closed_forms_against_quadrature(prior, log_prior, method):
    found = complexity(NORMAL, prior)
    exact = by_quadrature(log_prior)
    np.testing.assert_allclose(found.by_path[""], exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.nats, exact.sum(), rtol=1e-5)
    assert found.methods == {"": method}


def mixture_log_prob(w):
    return np.logaddexp(
        np.log(0.25) + stats.norm(0, 1.0).logpdf(w), np.log(0.75) + stats.norm(0, 0.1).logpdf(w)
    )


@pytest.mark.exhaustive
def test_draws_of_a_scale_mixture_against_quadrature():
    prior, num = ScaleMixturePrior(0.25, 1.0, 0.1), 100_000
    draw = lambda key: complexity(NORMAL, prior, key=key).by_path[""]  # noqa: E731
    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, num)), np.float64)
    error = draws.std(0) / np.sqrt(num)
    assert np.all(np.abs(draws.mean(0) - by_quadrature(mixture_log_prob)) < 4.5 * error)
    assert complexity(NORMAL, prior, key=KEY, num_samples=3).methods == {"": "3 draw(s)"}
    averaged = jax.jit(jax.vmap(lambda k: complexity(NORMAL, prior, key=k, num_samples=4).nats))(
        jax.random.split(KEY, 20_000)
    )
    np.testing.assert_allclose(np.var(averaged), draws.sum(1).var() / 4, rtol=0.06)


def test_a_mixtures_density_is_finite_far_out():
    law = ScaleMixturePrior(0.25, 1.0, np.exp(-6.0)).distribution([])
    w = jnp.array([-40.0, -15.0, 0.0, 0.01, 15.0, 40.0])
    exact = np.logaddexp(
        np.log(0.25) + stats.norm(0, 1).logpdf(w), np.log(0.75) + stats.norm(0, np.exp(-6)).logpdf(w)
    )
    np.testing.assert_allclose(law.log_prob(w), exact, rtol=1e-5)
    assert np.isfinite(jax.vmap(jax.grad(law.log_prob))(w)).all()


def test_the_mixture_bound_is_a_bound_and_exact_for_one_component():
    random = np.random.default_rng(0)
    for _ in range(5):
        logits, loc, log_scale = random.normal(size=3), random.normal(size=3), random.normal(-0.5, 0.5, 3)
        log_shares = special.log_softmax(logits)
        prior = LearnedMixture(*(jnp.asarray(a, jnp.float32) for a in (logits, loc, log_scale)))
        bound = complexity(NORMAL, prior, mixture="bound")
        assert bound.methods == {"": "upper bound"}
        each = stats.norm(loc, np.exp(log_scale))
        log_prior = lambda w, a=log_shares, b=each: special.logsumexp(a + b.logpdf(w))  # noqa: E731
        assert np.all(bound.by_path[""] >= by_quadrature(np.vectorize(log_prior)) - 1e-4)
    # Through a code that sends the component first (hinton1993keeping, equations 18 to 25).
    each = np.log(np.exp(log_scale) / SCALE[:, None]) + 0.5 * np.exp(-2 * log_scale) * (
        SCALE[:, None] ** 2 + (LOC[:, None] - loc) ** 2
    ) - 0.5  # fmt: skip
    r = special.softmax(log_shares - each, axis=1)
    code = (r * (each - log_shares)).sum(1) + (r * np.log(np.maximum(r, 1e-300))).sum(1)
    np.testing.assert_allclose(bound.by_path[""], code, rtol=2e-5)
    single = LearnedMixture(jnp.zeros(1), jnp.array([0.4]), jnp.log(jnp.array([0.8])))
    np.testing.assert_allclose(
        complexity(NORMAL, single, mixture="bound").nats,
        complexity(NORMAL, NormalPrior(0.4, 0.8)).nats,
        rtol=1e-6,
    )


# ---- the log-uniform prior


def test_exact_divergence_from_the_log_uniform_prior_against_quadrature():
    for log_alpha in (-6.0, -2.0, 0.0, 1.5, 6.0):
        centre = np.exp(-0.5 * log_alpha)
        f = lambda x, c=centre: stats.norm(c, 1).pdf(x) * np.log(np.abs(x))  # noqa: E731
        pieces = [(-12.0, 0.0), (0.0, centre + 12)]
        mean_log = sum(integrate.quad(f, *piece, limit=500, epsabs=1e-12)[0] for piece in pieces)
        limit = 0.5 * (np.log(2) + special.digamma(0.5))
        np.testing.assert_allclose(kl_log_uniform_exact(log_alpha), mean_log - limit, atol=1e-7)
    # d KL / d log alpha = -sqrt(u) D(sqrt(u)), with Dawson's integral.
    grid, h = np.linspace(-8, 8, 33), 1e-4
    root = np.sqrt(0.5 * np.exp(-grid))
    slope = (kl_log_uniform_exact(grid + h) - kl_log_uniform_exact(grid - h)) / (2 * h)
    np.testing.assert_allclose(slope, -root * special.dawsn(root), atol=1e-6)
    with pytest.raises(ValueError, match="at least -12"):
        kl_log_uniform_exact(-13.0)


def test_approximations_are_within_their_stated_errors():
    wide, unit = np.linspace(-10, 10, 401), np.log(np.linspace(1e-4, 1, 400))
    limit = 0.5 * (np.log(2) + special.digamma(0.5))
    sigmoid = kl_log_uniform(jnp.asarray(wide), "sigmoid")
    assert np.abs(sigmoid - kl_log_uniform_exact(wide)).max() < 0.010
    assert np.all(np.asarray(sigmoid) > 0)
    assert np.all(np.diff(sigmoid) < 0)
    error = kl_log_uniform_exact(unit) + limit - np.asarray(kl_log_uniform(jnp.asarray(unit)), np.float64)
    assert error.max() == pytest.approx(
        0.040, abs=0.001
    )  # the polynomial takes the divergence for smaller than it is
    assert error.min() > -1e-4
    assert float(kl_log_uniform(jnp.zeros(()))) == pytest.approx(-0.24570927, abs=1e-6)


def test_it_does_not_depend_on_the_mean_and_counts_each_weight():
    shared = MultiplicativeNormal(jnp.asarray(LOC, jnp.float32), jnp.full(1, -1.2))
    found = complexity(shared, LogUniformPrior())
    np.testing.assert_allclose(found.nats, 4 * kl_log_uniform(jnp.array(-1.2)), rtol=1e-6)
    slope = jax.grad(lambda p: complexity(p, LogUniformPrior()).nats)(shared)
    np.testing.assert_array_equal(slope.loc, 0.0)
    additive = DiagonalNormal(shared.loc, 0.5 * -1.2 + jnp.log(jnp.abs(shared.loc)), True)
    same = complexity(shared, LogUniformPrior(), log_uniform="sigmoid").nats
    np.testing.assert_allclose(complexity(additive, LogUniformPrior()).nats, same, rtol=1e-5)
    smooth = complexity(shared, LogUniformPrior(), log_uniform="sigmoid")
    np.testing.assert_allclose(smooth.nats, 4 * kl_log_uniform_exact(-1.2), atol=0.04)


# ---- priors


def test_empirical_priors_make_the_complexity_least():
    points = Delta(NORMAL.loc)
    for posterior in (NORMAL, points):
        law = EmpiricalNormal().distribution([posterior])
        best = float(complexity(posterior, EmpiricalNormal()).nats)
        for loc, scale in ((0.1, 1), (-0.1, 1), (0, 1.02), (0, 0.98)):
            other = NormalPrior(float(law.loc) + loc, float(law.scale) * scale)
            assert complexity(posterior, other).nats > best
    np.testing.assert_allclose(
        complexity(NORMAL, EmpiricalNormal()).nats, np.log(law_scale() / SCALE).sum(), rtol=1e-5
    )
    laplace = EmpiricalLaplace().distribution([points])
    best = float(complexity(points, EmpiricalLaplace()).nats)
    for loc, scale in ((1.1, 1), (0.9, 1), (1, 1.01), (1, 0.99)):
        # Between the two middle values every median is as good.
        assert (
            complexity(points, LaplacePrior(float(laplace.loc) * loc, float(laplace.scale) * scale)).nats
            >= best - 1e-6
        )
    fixed = EmpiricalNormal(0.0).distribution([NORMAL])
    np.testing.assert_allclose(
        [fixed.loc, fixed.scale], [0.0, np.sqrt(np.mean(SCALE**2 + LOC**2))], rtol=1e-6
    )
    # With the scale fixed, the mean (a median, for Laplace's law) is still the best.
    normal = EmpiricalNormal(scale=0.3).distribution([points])
    np.testing.assert_allclose([normal.loc, normal.scale], [LOC.mean(), 0.3], rtol=1e-6)
    three = Delta(NORMAL.loc[:3])
    laplace = EmpiricalLaplace(scale=0.2).distribution([three])
    np.testing.assert_allclose([laplace.loc, laplace.scale], [np.median(LOC[:3]), 0.2], rtol=1e-6)
    best = float(complexity(three, EmpiricalLaplace(scale=0.2)).nats)
    for loc in (-0.02, 0.02):
        assert complexity(three, LaplacePrior(float(laplace.loc) + loc, 0.2)).nats > best
    with pytest.raises(ValueError, match="scale must be positive, got -1"):
        EmpiricalLaplace(scale=-1)


def law_scale():
    return np.sqrt(np.mean(SCALE**2 + (LOC - LOC.mean()) ** 2))


def test_an_empirical_prior_passes_no_gradient_and_has_none_at_its_optimum():
    slope = jax.grad(lambda p: complexity(p, EmpiricalNormal()).nats)(NORMAL)
    loc, variance = LOC.mean(), law_scale() ** 2
    np.testing.assert_allclose(slope.loc, (LOC - loc) / variance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slope.raw_scale, SCALE**2 / variance - 1, rtol=1e-4, atol=1e-6)


def test_fixed_priors_are_not_trained_and_learned_ones_are():
    fixed = [
        NormalPrior(0.0, 2.0),
        LaplacePrior(),
        ScaleMixturePrior(0.5, 1.0, 0.01),
        LogUniformPrior(),
        UniformPrior(),
    ]
    assert jax.tree.leaves(fixed) == []
    learned = LearnedNormal(jnp.array(0.1), jnp.array(0.0))
    optimizer, both = optax.sgd(0.1), (NORMAL, learned)
    slope = jax.grad(lambda both: complexity(*both).nats)(both)
    updates, _ = optimizer.update(slope, optimizer.init(eqx.filter(both, eqx.is_inexact_array)))
    after = eqx.apply_updates(both, updates)
    assert float(after[1].log_scale) != 0.0
    assert float(after[1].loc) != np.float32(0.1)


def test_priors_by_path_and_empirical_priors_fitted_to_their_own():
    network = {
        "first": BayesianDense.init(KEY, 3, 4, loc_scale=0.1),
        "second": BayesianDense.init(KEY, 4, 2, loc_scale=2.0),
    }
    one, two = EmpiricalNormal(), NormalPrior(0.0, 0.5)
    found = complexity(network, lambda path: one if "first" in path else two)
    assert set(found.by_path) == {f"['{layer}'].{name}" for layer in network for name in ("weight", "bias")}
    np.testing.assert_allclose(
        found.nats,
        complexity(network["first"], one).nats + complexity(network["second"], two).nats,
        rtol=1e-6,
    )
    text = str(found.table())
    assert "bits per weight" in text
    assert "closed form" in text


def test_pruned_weights_cost_nothing():
    kept = jnp.array([True, False, True, False])
    whole, pruned = (complexity(p, NormalPrior()).by_path[""] for p in (NORMAL, Masked(NORMAL, kept)))
    np.testing.assert_allclose(pruned, np.where(kept, whole, 0.0))


def test_draws_are_those_of_the_weights():
    network = BayesianDense.init(KEY, 3, 2, scale=0.3)
    drawn = sample_weights(network, KEY)
    found = complexity(network, NormalPrior(0.0, 0.7), key=KEY, closed_form=False)
    for name in ("weight", "bias"):
        q, w = getattr(network, name), np.asarray(getattr(drawn, name), np.float64)
        exact = stats.norm(q.loc, q.scale).logpdf(w) - stats.norm(0, 0.7).logpdf(w)
        np.testing.assert_allclose(found.by_path[f".{name}"], exact, rtol=1e-4, atol=1e-4)


def test_the_entropys_path_derivative_is_exact():
    """Along a draw's path log q has no derivative in the mean and ``-1 / scale`` in the scale, without noise."""
    posterior = DiagonalNormal(jnp.asarray(LOC, jnp.float32), jnp.asarray([-3.0, -9.0, 1.0, 0.0]))
    slope = jax.grad(lambda p: complexity(p, UniformPrior(), key=KEY, closed_form=False).nats)(posterior)
    np.testing.assert_array_equal(slope.loc, 0.0)
    raw = np.asarray(posterior.raw_scale, np.float64)
    np.testing.assert_allclose(slope.raw_scale, -special.expit(raw) / np.logaddexp(0, raw), rtol=1e-5)


# ---- minibatches


@pytest.mark.parametrize("number", [1, 7, 391])
@pytest.mark.parametrize("scheme", ["uniform", "geometric"])
def test_shares_of_minibatches_sum_to_one(scheme, number):
    shares = kl_weights(number, scheme)
    assert np.isfinite(shares).all()
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(
        kl_weights(number, scheme, temperature=0.1), 0.1 * shares, rtol=1e-6, atol=1e-30
    )
    if scheme == "geometric":
        np.testing.assert_allclose(shares[:-1][:20] / shares[1:][:20], 2.0, rtol=1e-6)


def test_warm_up_rises_to_one():
    np.testing.assert_allclose([warm_up(t, 4) for t in (0, 1, 4, 9)], [0, 0.25, 1, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: complexity(NORMAL, ScaleMixturePrior(0.5, 1.0, 0.1)),
            ValueError,
            "has no closed form; pass key=",
        ),
        (lambda: complexity(NORMAL, NormalPrior(), mixture="exact"), ValueError, "mixture must be"),
        (lambda: complexity(NORMAL, NormalPrior(), log_uniform="exact"), ValueError, "log_uniform must be"),
        (lambda: complexity(NORMAL, 1.0), TypeError, "prior must be a Prior"),
        (lambda: NormalPrior(0.0, -1.0), ValueError, "scale must be positive, got -1.0"),
        (lambda: ScaleMixturePrior(1.5, 1.0, 0.1), ValueError, "wide_share must lie between 0 and 1"),
        (lambda: kl_weights(0), ValueError, "num_batches must be at least 1"),
        (lambda: kl_weights(3, "harmonic"), ValueError, "scheme must be"),
        (lambda: kl_weights(3, temperature=-1), ValueError, "temperature must not be negative, got -1"),
        (lambda: warm_up(0, 0), ValueError, "num_steps must be at least 1"),
        (lambda: LogUniformPrior().distribution([]).sample(KEY), NotImplementedError, "cannot be sampled"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_log_uniform_prior_chooses_an_approximation_that_holds():
    layer = BayesianDense.init(KEY, 3, 2)  # its biases start with mean zero
    cost, slope = jax.value_and_grad(lambda one: complexity(one, LogUniformPrior()).nats)(layer)
    assert np.isfinite(cost)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert set(complexity(layer, LogUniformPrior()).methods.values()) == {
        "sigmoid approximation, up to a constant"
    }
    free = MultiplicativeNormal(jnp.ones(1), jnp.array([3.0]), None)
    np.testing.assert_allclose(complexity(free, LogUniformPrior()).nats, kl_log_uniform_exact(3.0), atol=0.01)
    with pytest.raises(ValueError, match="log_uniform='polynomial' is for alpha <= 1"):
        complexity(free, LogUniformPrior(), log_uniform="polynomial")
    bounded = MultiplicativeNormal(jnp.ones(1), jnp.array([-1.0]))
    assert complexity(bounded, LogUniformPrior()).methods == {
        "": "polynomial approximation, up to a constant"
    }


def test_pruned_weights_do_not_count():
    inner = DiagonalNormal(jnp.array([1.0, -0.5, 2.0, 9.0]), jnp.full(4, np.log(0.3)), True)
    kept = DiagonalNormal(inner.loc[:3], inner.raw_scale[:3], True)
    pruned = Masked(inner, jnp.array([True, True, True, False]))
    for prior in (EmpiricalNormal(), EmpiricalNormal(0.0), EmpiricalLaplace(), EmpiricalLaplace(0.1)):
        one, other = complexity(pruned, prior), complexity(kept, prior)
        np.testing.assert_allclose(one.nats, other.nats, rtol=1e-5)
        assert int(one.counts[""]) == 3
    slope = jax.grad(lambda p: complexity(p, LogUniformPrior()).nats)(
        Masked(inner, jnp.zeros(4, bool)).posterior
    )
    assert np.isfinite(slope.loc).all()
    assert "3" in str(complexity(pruned, NormalPrior()).table())


def test_complexity_passes_through_jit():
    network = [NORMAL, MultiplicativeNormal(jnp.ones(2), jnp.zeros(2))]
    prior = NormalPrior(0.4, 0.8)
    inside, outside = jax.jit(lambda n: complexity(n, prior))(network), complexity(network, prior)
    np.testing.assert_allclose(inside.nats, outside.nats, rtol=1e-6)
    assert inside.methods == outside.methods
    tiny = DiagonalNormal(jnp.zeros(1), jnp.full(1, -80.0), True)
    np.testing.assert_allclose(complexity(tiny, NormalPrior()).nats, 79.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Normal(0.0, 1.0), r"prior must be a Prior, such as NormalPrior\(\)"),
        (NormalPrior, "prior must be a Prior, such as NormalPrior"),
        (lambda path: dist.Normal(0.0, 1.0), r"prior\(''\) must be a Prior, got"),
    ],
)
def test_priors_are_priors(prior, message):
    with pytest.raises(TypeError, match=message):
        complexity(NORMAL, prior)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        complexity(NORMAL, NormalPrior(), key=KEY, num_samples=0)
