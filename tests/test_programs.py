"""``marginal`` and ``normalize`` keep the two contracts of stochastic densities (lew2023stochastic, definitions 3.1 and 3.2).

Discrete programs are enumerated whole: exact to rounding. Continuous ones: two-sided z-tests at |z| < 4.5 (false alarm rate 7e-6
each, seeded), with samples enough that a 2 % error is more than 7 standard errors away.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

from vinb.estimators import Enumerate, ScoreFunction, expectation, moments
from vinb.objectives import elbo, iwelbo
from vinb.programs import SIR, importance, log_density, marginal, normalize, scalar, simulate

KEY = jax.random.key(0)


def assert_means(measured, exact, resolution=None):
    """A z-test for every name in ``exact``; ``resolution`` is what 2 % is taken of, by default the exact value itself."""
    for name, value in exact.items():
        mean, error = (np.asarray(a[name], np.float64) for a in (measured.mean, measured.standard_error))
        z = (mean - value) / np.maximum(error, 1e-6 * np.abs(value))
        assert np.all(np.abs(z) < 4.5), f"{name}: z = {z}, mean {mean}, exact {value}"
        scale = np.abs(value) if resolution is None else resolution
        assert np.all(error < 0.02 / 7 * scale), f"{name}: too few samples, {error / scale}"


# A hierarchical normal: u ~ N(A, TAU), z | u ~ N(u, S), and z's marginal is N(A, SPREAD).
A, TAU, S = 0.3, 0.4, 1.0
SPREAD = np.hypot(TAU, S)


def hierarchy():
    u = numpyro.sample("u", dist.Normal(A, TAU))
    numpyro.sample("z", dist.Normal(u, S))


def exact_reverse(kept):
    shrink = TAU**2 / SPREAD**2
    numpyro.sample("u", dist.Normal(A + shrink * (kept["z"] - A), TAU * S / SPREAD))


def rough_reverse(kept):
    numpyro.sample("u", dist.Normal(0.2 * kept["z"] + 0.2, 0.42))


MARGINALS = {
    f"{label}, {num}": marginal(hierarchy, keep=["z"], proposal=proposal, num_particles=num)
    for label, proposal in (("prior", None), ("proposal", rough_reverse))
    for num in (1, 3)
}
POINTS = np.array([-0.5, 1.0])


def test_contracts_of_a_marginal_with_a_normal_auxiliary():
    # E[1 / w | z] = 1 / p(z) for all z means that E[f(z) / w] is the integral of f: here of two densities.
    def both_ways(program):
        def one():
            densities = [jnp.exp(scalar(log_density(program, {"z": point}))) for point in POINTS]
            z, log_w = (run := simulate(program)).values["z"], scalar(run.log_density)
            integrals = jnp.exp(dist.Normal(POINTS, 0.7).log_prob(z) - log_w)
            return {"density": jnp.stack(densities), "reciprocal": integrals}

        return one

    def draw(key):
        results = {}
        for name, program in MARGINALS.items():
            for direction, value in handlers.seed(both_ways(program), key)().items():
                results[f"{direction}, {name}"] = value
        return results

    measured = moments(draw, KEY, 600_000, batch_size=50_000)
    densities = stats.norm.pdf(POINTS, A, SPREAD)
    exact = {n: densities if n.startswith("density") else np.ones(2) for n in measured.mean}
    assert len(exact) == 8
    assert_means(measured, exact)
    # The two directions are not the same: the weight of a simulated run is not an unbiased density, by far.
    w = {k: measured.standard_error[f"density, {k}"].max() for k in MARGINALS}
    assert w["prior, 3"] < w["prior, 1"]


def test_a_marginal_with_the_exact_reverse_knows_its_density():
    program = marginal(hierarchy, keep=["z"], proposal=exact_reverse, num_particles=2)
    run = handlers.seed(lambda: simulate(program), 1)()
    exact = stats.norm.logpdf(run.values["z"], A, SPREAD)
    np.testing.assert_allclose(scalar(run.log_density), exact, rtol=1e-5)
    scored = handlers.seed(lambda: scalar(log_density(program, run.values)), 2)()
    np.testing.assert_allclose(scored, exact, rtol=1e-5)


# Discrete: u of three values, z of two, and a target over z whose weights do not add up to one.
PRIOR, LIKELIHOOD = np.array([0.2, 0.5, 0.3]), np.array([0.9, 0.35, 0.6])
TARGET = np.array([0.3, 0.45])
REVERSE = np.array([[0.5, 0.2, 0.3], [0.25, 0.35, 0.4]])


def categories(theta=0.0):
    probs = jnp.asarray(LIKELIHOOD) + theta
    u = numpyro.sample("u", dist.Categorical(probs=jnp.asarray(PRIOR)))
    numpyro.sample("z", dist.Bernoulli(probs=probs[u]))


def categories_reverse(kept, theta=0.0):
    numpyro.sample("u", dist.Categorical(probs=jnp.asarray(REVERSE)[kept["z"].astype(int)]))


def unnormalised(*args):
    z = numpyro.sample("z", dist.Bernoulli(probs=0.5))
    numpyro.factor("weight", jnp.log(2 * jnp.asarray(TARGET))[z.astype(int)])


def coin(*args):
    numpyro.sample("z", dist.Bernoulli(probs=0.35))


def by_enumeration(program):
    """E[w] at z = 0 and 1; E[1{z = k} / w] of a simulated run; and the law of z: all exact, every site enumerated."""

    def summed(function):
        every = expectation(function).with_strategies(lambda name: Enumerate())
        return every({}, KEY)

    def one(k):
        z = jnp.asarray(k)

        def reciprocal():
            run = simulate(program)
            return jnp.where(run.values["z"] == z, jnp.exp(-scalar(run.log_density)), 0.0)

        return (
            summed(lambda: jnp.exp(scalar(log_density(program, {"z": z})))),
            summed(reciprocal),
            summed(lambda: jnp.where(simulate(program).values["z"] == z, 1.0, 0.0)),
        )

    return np.array(jax.jit(lambda: [jnp.stack(row) for row in zip(one(0), one(1), strict=True)])())


@pytest.mark.parametrize("proposal", [None, categories_reverse])
@pytest.mark.parametrize("num_particles", [1, 2])
def test_contracts_of_a_marginal_with_a_discrete_auxiliary(proposal, num_particles):
    program = marginal(categories, keep="z", proposal=proposal, num_particles=num_particles)
    density, reciprocal, law = by_enumeration(program)
    p = PRIOR @ LIKELIHOOD
    np.testing.assert_allclose(density, [1 - p, p], rtol=1e-5)
    np.testing.assert_allclose(law, [1 - p, p], rtol=1e-5)
    np.testing.assert_allclose(reciprocal, 1.0, rtol=1e-5)


def law_of_sir(num, proposal):
    """The probabilities of what SIR returns, summed over all particles and choices."""
    law = np.zeros(2)
    for particles in itertools.product((0, 1), repeat=num):
        weights = TARGET[list(particles)] / proposal[list(particles)]
        for chosen, share in zip(particles, weights / weights.sum(), strict=True):
            law[chosen] += np.prod(proposal[list(particles)]) * share
    return law


@pytest.mark.parametrize("num_particles", [1, 2, 4])
def test_contracts_of_normalize(num_particles):
    program = normalize(unnormalised, SIR(coin, num_particles))
    density, reciprocal, law = by_enumeration(program)
    exact = law_of_sir(num_particles, np.array([0.65, 0.35]))
    np.testing.assert_allclose(law, exact, rtol=1e-5)
    np.testing.assert_allclose(density, exact, rtol=1e-5)
    np.testing.assert_allclose(reciprocal, 1.0, rtol=1e-5)
    if num_particles == 1:
        np.testing.assert_allclose(by_enumeration(normalize(unnormalised, importance(coin)))[2], exact)


@pytest.mark.parametrize("proposal", [pytest.param(None, marks=pytest.mark.exhaustive), categories_reverse])
def test_contracts_of_a_marginal_within_a_normalize(proposal):
    # The proposal's density is only estimated, and its estimates decide which particle is returned.
    guide = marginal(categories, keep="z", proposal=proposal, num_particles=2)
    density, reciprocal, law = by_enumeration(normalize(unnormalised, SIR(guide, 2)))
    np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(density, law, rtol=1e-5)
    np.testing.assert_allclose(reciprocal, 1.0, rtol=1e-5)
    assert abs(law[1] - TARGET[1] / TARGET.sum()) < abs(PRIOR @ LIKELIHOOD - TARGET[1] / TARGET.sum())


def test_contracts_of_a_normalize_of_a_marginal():
    def joint():  # z's weight is an integral over u
        u = numpyro.sample("u", dist.Bernoulli(probs=0.4))
        z = numpyro.sample("z", dist.Bernoulli(probs=0.5))
        numpyro.factor("weight", jnp.log(0.2 + 0.5 * u + 0.3 * z - 0.4 * u * z))

    density, reciprocal, law = by_enumeration(
        normalize(marginal(joint, keep="z", num_particles=2), SIR(coin, 2))
    )
    np.testing.assert_allclose(density, law, rtol=1e-5)
    np.testing.assert_allclose(reciprocal, 1.0, rtol=1e-5)


def test_contracts_of_normalize_with_continuous_particles():
    def target():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=1.2)

    def proposal():
        numpyro.sample("z", dist.Normal(0.3, 1.0))

    program = normalize(target, SIR(proposal, 3))

    def draw(key):
        def one():
            run = simulate(program)
            reciprocal = jnp.exp(dist.Normal(POINTS, 0.5).log_prob(run.values["z"]) - scalar(run.log_density))
            # The law of z by its own draws, and by its estimated density at draws from elsewhere: the same mean of a function.
            elsewhere = numpyro.sample("elsewhere", dist.Normal(0.5, 1.2))
            ratio = scalar(log_density(program, {"z": elsewhere})) - dist.Normal(0.5, 1.2).log_prob(elsewhere)
            test = lambda z: jnp.exp(-2 * (z - jnp.asarray(POINTS)) ** 2)  # noqa: E731
            return {
                "reciprocal": reciprocal,
                "difference": test(run.values["z"]) - test(elsewhere) * jnp.exp(ratio),
                "scale": test(run.values["z"]),
            }

        return handlers.seed(one, key)()

    measured = moments(draw, KEY, 600_000, batch_size=50_000)
    assert_means(measured, {"reciprocal": np.ones(2)})
    assert_means(measured, {"difference": np.zeros(2)}, resolution=np.asarray(measured.mean["scale"]))


# The bound of normalize(SIR_N) is the importance-weighted bound of N.


def target(x):
    z = numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0), 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def proposal(x):
    numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), jnp.exp(numpyro.param("l", 0.0))))


PARAMS = {"a": jnp.array(0.1), "m": jnp.array(0.3), "l": jnp.array(-0.5)}


@pytest.mark.parametrize("num_particles", [3, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_the_bound_of_sir_is_the_importance_weighted_bound_draw_by_draw(num_particles):
    ours = iwelbo(target, proposal, num_particles=num_particles)
    sir = elbo(target, normalize(target, SIR(proposal, num_particles)))

    @jax.jit
    def both(keys):
        return [jax.vmap(lambda k, f=f: jax.value_and_grad(f)(PARAMS, k, 1.2))(keys) for f in (ours, sir)]

    first, second = both(jax.random.split(KEY, 50))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), first, second)
    assert first[0].std() > 0.01


@pytest.mark.exhaustive
def test_a_scored_index_has_the_same_mean_gradient():
    # Aimed at its own target the bound does not depend on the choice, which then gets no credit; at another one it does.
    def other(x):
        z = numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0), 1.0))
        numpyro.sample("x", dist.StudentT(3.0, 2 * z, 0.7), obs=x)

    def draw(key):
        def gradients(model, index):
            bound = elbo(model, normalize(target, SIR(proposal, 3, index)))
            return jax.value_and_grad(bound)(PARAMS, key, 1.2)

        own = [gradients(target, i) for i in (Enumerate(), ScoreFunction())]
        summed, scored = [gradients(other, i)[1] for i in (Enumerate(), ScoreFunction())]
        noise = {n: scored[n] - summed[n] for n in PARAMS}
        return {"own": jax.tree.map(jnp.subtract, *own), **noise}

    measured = moments(draw, KEY, 300_000, batch_size=50_000)
    assert max(map(float, jax.tree.leaves(measured.variance["own"]))) < 1e-10
    for name in PARAMS:
        assert float(measured.variance[name]) > 0.01
        assert_means(measured, {name: 0.0}, resolution=1.0)


def test_a_marginal_model_keeps_its_data():
    # z ~ N(0, 1), u | z ~ N(z, 0.5), x | u ~ N(u, 1): given u's exact posterior, the bound is that of x | z ~ N(z, 1.25).
    def joint(x):
        u = numpyro.sample("u", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 0.5))
        numpyro.sample("x", dist.Normal(u, 1.0), obs=x)

    def exact(kept, x):
        numpyro.sample("u", dist.Normal((4 * kept["z"] + x) / 5, np.sqrt(0.2)))

    model = marginal(joint, keep=["z"], proposal=exact)
    z = jnp.array(0.7)
    expected = stats.norm.logpdf(0.7) + stats.norm.logpdf(1.2, 0.7, np.sqrt(1.25))
    got = handlers.seed(lambda: scalar(log_density(model, {"z": z}, 1.2)), 0)()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    by_prior = marginal(joint, keep=["z"], num_particles=50_000)
    got = handlers.seed(lambda: scalar(log_density(by_prior, {"z": z}, 1.2)), 0)()
    np.testing.assert_allclose(got, expected, atol=0.01)


def test_verbs_outside_of_an_expectation_are_numpyros():
    with handlers.seed(rng_seed=0), handlers.substitute(data={"m": 0.3, "l": -0.5}):
        run = simulate(proposal, 1.2)
        scored = log_density(proposal, run.values, 1.2)
    exact = stats.norm.logpdf(run.values["z"], 0.3, np.exp(-0.5))
    np.testing.assert_allclose([float(run.log_density), float(scored)], exact, rtol=1e-5)


class TestRefusals:
    def run(self, function):
        return handlers.seed(function, 0)()

    def test_arguments(self):
        with pytest.raises(ValueError, match="keep is empty"):
            marginal(hierarchy, keep=[])
        for make in (lambda n: marginal(hierarchy, keep="z", num_particles=n), lambda n: SIR(coin, n)):
            for bad in (0, -1, 2.0, True):
                with pytest.raises(ValueError, match="num_particles must be a positive integer"):
                    make(bad)
        with pytest.raises(TypeError, match="algorithm must be SIR"):
            normalize(unnormalised, coin)

    def test_names_that_do_not_match(self):
        with pytest.raises(ValueError, match=r"keep names \['y'\]"):
            self.run(lambda: simulate(marginal(hierarchy, keep="y")))
        with pytest.raises(ValueError, match=r"keep names \['z'\]"):
            self.run(lambda: log_density(marginal(hierarchy, keep="z"), {"u": 0.0}))
        with pytest.raises(ValueError, match=r"values has \['u'\], but the marginal keeps \['z'\]"):
            self.run(lambda: log_density(marginal(hierarchy, keep="z"), {"z": 0.0, "u": 0.0}))

        def wrong(kept):
            numpyro.sample("v", dist.Normal(0.0, 1.0))

        program = marginal(hierarchy, keep="z", proposal=wrong)
        with pytest.raises(ValueError, match="no entry for the latent site 'v'"):
            self.run(lambda: simulate(program))
        with pytest.raises(ValueError, match="no entry for the latent site 'u'"):
            self.run(lambda: log_density(program, {"z": 0.0}))

    def test_gradients_that_need_a_density(self):
        guide = marginal(hierarchy, keep="z")

        def model():
            numpyro.sample("z", dist.Normal(0.0, 1.0))

        for kl in ("analytic", "sticking-the-landing"):
            with pytest.raises(ValueError, match=f"kl='{kl}'.*pass 'auto'"):
                elbo(model, guide, kl=kl)({}, KEY)
        for gradient in ("doubly-reparameterised", "sticking-the-landing"):
            with pytest.raises(ValueError, match="needs known densities"):
                iwelbo(model, guide, num_particles=2, gradient=gradient)({}, KEY)


def test_outside_of_an_expectation_the_verbs_use_the_handlers_parameters():
    def shifted():
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1e-3))

    with handlers.seed(rng_seed=0), handlers.substitute(data={"loc": jnp.array(5.0)}):
        plain = simulate(shifted).values["z"]
        resampled = simulate(normalize(shifted, SIR(shifted, 3))).values["z"]
    np.testing.assert_allclose([plain, resampled], 5.0, atol=0.01)
