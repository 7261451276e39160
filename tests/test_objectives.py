"""Objectives on models with a known evidence, in float32 against closed forms.

z-tests at |z| < 4.5 (false alarm rate 7e-6 each, seeded).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal

from vinb import training
from vinb.estimators import Pathwise, constrain, init, moments
from vinb.objectives import elbo, iwelbo, wake_sleep
from vinb.programs import log_density, simulate

# z ~ N(0, 1), x | z ~ N(W z, S2), q = N(mu, s^2): dossier numbers of the linear-Gaussian toy.
W, S2, X, MU, S = 1.5, 0.5, 2.0, 0.3, 0.6
LAM, A = W**2 / S2, (X - W * MU) * W / S2
PARAMS = {"mu": jnp.array(MU), "s": jnp.array(S)}


def model(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(W * z, np.sqrt(S2)), obs=x)


def guide(x):
    # Unconstrained on purpose: the exact derivatives below are with respect to the scale itself.
    numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.0), numpyro.param("s", 1.0)))


def exact_elbo(mu=MU, s=S):
    expected_log_lik = -0.5 * np.log(2 * np.pi * S2) - ((X - W * mu) ** 2 + W**2 * s**2) / (2 * S2)
    return expected_log_lik + 0.5 * (1 + np.log(s**2) - mu**2 - s**2)


VARIANCES = {
    "monte-carlo": ((LAM + 1) ** 2 * S**2, (A - MU) ** 2 + 2 * (LAM + 1) ** 2 * S**2),
    "analytic": (LAM**2 * S**2, A**2 + 2 * LAM**2 * S**2),
    "sticking-the-landing": (
        (LAM + 1 - 1 / S**2) ** 2 * S**2,
        (A - MU) ** 2 + 2 * (LAM + 1 - 1 / S**2) ** 2 * S**2,
    ),
}


@pytest.mark.parametrize("kl", sorted(VARIANCES))
def test_elbo_value_gradient_and_gradient_variance(kl):
    bound = elbo(model, guide, kl=kl)
    m = moments(
        lambda k: jax.value_and_grad(bound)(PARAMS, k, X), jax.random.key(5), 2_000_000, batch_size=100_000
    )
    value, gradient = m.mean
    value_error, gradient_error = m.standard_error
    exact = {"mu": A - MU, "s": 1 / S - (1 + LAM) * S}
    assert abs(value - exact_elbo()) < 4.5 * value_error
    assert value_error < 0.02 * abs(exact_elbo()) / 9
    for index, name in enumerate(("mu", "s")):
        assert abs(gradient[name] - exact[name]) < 4.5 * gradient_error[name]
        assert gradient_error[name] < 0.02 * abs(exact[name]) / 6
        np.testing.assert_allclose(m.variance[1][name], VARIANCES[kl][index], rtol=0.015)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_particles_divide_the_variance(num_particles):
    bound = elbo(model, guide, num_particles=num_particles)
    m = moments(lambda k: jax.grad(bound)(PARAMS, k, X), jax.random.key(6), 400_000)
    np.testing.assert_allclose(m.variance["mu"], VARIANCES["analytic"][0] / num_particles, rtol=0.02)


def test_at_the_exact_posterior_a_and_stl_have_no_variance_and_b_has():
    lam_plus_one = 1 + LAM
    with jax.enable_x64(True):
        exact = {"mu": jnp.asarray(W * X / S2 / lam_plus_one), "s": jnp.asarray(lam_plus_one**-0.5)}
        evidence = dist.Normal(0.0, np.sqrt(W**2 + S2)).log_prob(X)

        def values(kl):
            bound = elbo(model, guide, kl=kl)
            return jax.vmap(lambda k: bound(exact, k, X))(jax.random.split(jax.random.key(0), 500))

        np.testing.assert_allclose(values("monte-carlo"), evidence, rtol=1e-12)
        assert values("analytic").var() > 0.3
        grads = jax.vmap(lambda k: jax.grad(elbo(model, guide, kl="sticking-the-landing"))(exact, k, X)["mu"])
        assert grads(jax.random.split(jax.random.key(1), 500)).var() < 1e-20


@pytest.mark.exhaustive
def test_iwelbo_rises_to_the_evidence_and_starts_at_the_elbo():
    params = {"mu": jnp.array(0.0), "s": jnp.array(1.0)}  # q is the prior
    evidence = dist.Normal(0.0, np.sqrt(W**2 + S2)).log_prob(X)

    def measure(num_particles):
        bound = iwelbo(model, guide, num_particles=num_particles)
        return moments(lambda k: bound(params, k, X), jax.random.key(num_particles), 200_000)

    bounds = [measure(num_particles) for num_particles in (1, 5, 50)]
    means = [float(b.mean) for b in bounds]
    errors = [float(b.standard_error) for b in bounds]
    assert abs(means[0] - exact_elbo(0.0, 1.0)) < 4.5 * errors[0]
    assert means[0] + 10 * errors[0] < means[1] < means[2] - 10 * errors[1]
    assert means[2] < evidence
    # Second order: log p - L_K tends to Var(w) / (2 K E[w]^2); the exact second-moment ratio R gives (R - 1) / (2K).
    ratio = np.exp(
        dist.Normal(0, np.sqrt(W**2 + S2 / 2)).log_prob(X) - 0.5 * np.log(4 * np.pi * S2) - 2 * evidence
    )
    np.testing.assert_allclose(evidence - means[2], (ratio - 1) / 100, rtol=0.1)


@pytest.mark.parametrize("num_particles", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_iwelbo_value_and_gradient_equal_quadrature(num_particles):
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    with jax.enable_x64(True):
        eps = np.stack(np.meshgrid(*[nodes] * num_particles), -1).reshape(-1, num_particles)
        probability = np.prod(np.meshgrid(*[weights / weights.sum()] * num_particles), axis=0).ravel()

        def bound(mu, s):
            z = mu + s * eps
            log_w = (
                -((X - W * z) ** 2) / (2 * S2)
                - 0.5 * jnp.log(2 * jnp.pi * S2)
                - z**2 / 2
                + eps**2 / 2
                + jnp.log(s)
            )
            return probability @ (jax.nn.logsumexp(log_w, axis=1) - jnp.log(num_particles))

        value, (d_mu, d_s) = jax.tree.map(float, jax.value_and_grad(bound, (0, 1))(MU, S))
    ours = iwelbo(model, guide, num_particles=num_particles)
    m = moments(lambda k: jax.value_and_grad(ours)(PARAMS, k, X), jax.random.key(7), 2_000_000)
    exact = {"value": value, "mu": d_mu, "s": d_s}
    mean = {"value": m.mean[0], **m.mean[1]}
    error = {"value": m.standard_error[0], **m.standard_error[1]}
    for name in exact:
        assert abs(mean[name] - exact[name]) < 4.5 * error[name], name
        assert error[name] < 0.02 * abs(exact[name]) / 5, name


@pytest.mark.parametrize("J", [1, 3])
def test_gaussian_kl_equals_quadrature_and_is_zero_at_the_prior(J):
    # The divergence term alone: a model without data.
    def prior_only():
        numpyro.sample("z", dist.Normal(jnp.zeros(J), 1.0).to_event(1))

    def gaussian():
        loc, log_var = numpyro.param("loc", jnp.zeros(J)), numpyro.param("log_var", jnp.zeros(J))
        numpyro.sample("z", dist.Normal(loc, jnp.exp(0.5 * log_var)).to_event(1))

    with jax.enable_x64(True):
        bound = elbo(prior_only, gaussian)
        zero = {"loc": jnp.zeros(J), "log_var": jnp.zeros(J)}
        assert bound(zero, jax.random.key(0)) == 0.0
        mu, log_var = np.linspace(-1.0, 0.7, J), np.linspace(-2.0, 0.5, J)
        got = -bound({"loc": jnp.asarray(mu), "log_var": jnp.asarray(log_var)}, jax.random.key(0))
        grid = np.linspace(-12, 12, 20001)[:, None]
        log_q = -0.5 * np.log(2 * np.pi) - 0.5 * log_var - 0.5 * (grid - mu) ** 2 * np.exp(-log_var)
        log_p = -0.5 * np.log(2 * np.pi) - 0.5 * grid**2
        np.testing.assert_allclose(
            got, np.trapezoid(np.exp(log_q) * (log_q - log_p), grid, axis=0).sum(), rtol=1e-9
        )


def test_scale_handlers_and_plates_count():
    data = jnp.array([2.0, 1.0, -1.0])

    def batch_model(x):
        with numpyro.handlers.scale(scale=10.0), numpyro.plate("batch", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(W * z, np.sqrt(S2)), obs=x)

    def batch_guide(x):
        with numpyro.handlers.scale(scale=10.0), numpyro.plate("batch", 3):
            numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.0) * x, numpyro.param("s", 1.0)))

    key = jax.random.key(0)
    analytic, monte_carlo = (
        moments(lambda k, kl=kl: elbo(batch_model, batch_guide, kl=kl)(PARAMS, k, data), key, 200_000)
        for kl in ("analytic", "monte-carlo")
    )
    expected = 10 * sum(
        -0.5 * np.log(2 * np.pi * S2)
        - ((x - W * MU * x) ** 2 + W**2 * S**2) / (2 * S2)
        + 0.5 * (1 + np.log(S**2) - (MU * x) ** 2 - S**2)
        for x in np.asarray(data)
    )
    for m in (analytic, monte_carlo):
        assert abs(m.mean - expected) < 4.5 * m.standard_error
        assert m.standard_error < 0.002 * abs(expected)


@pytest.mark.parametrize("num_particles", [2, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_scale_for_each_datum_counts_for_its_own(num_particles):
    scales, data = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 1.0, -1.0])

    def scaled_model(x):
        with numpyro.plate("batch", 3), numpyro.handlers.scale(scale=scales):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=x)

    def scaled_guide(x):
        with numpyro.plate("batch", 3), numpyro.handlers.scale(scale=scales):
            numpyro.sample("z", dist.Normal(numpyro.param("mu", 0.0) * x, 1.0))

    expected = (scales * (dist.Normal(0.0, 1.0).log_prob(data) - 0.5 * (MU * data) ** 2)).sum()
    bound = elbo(scaled_model, scaled_guide, num_particles=num_particles)
    np.testing.assert_allclose(bound(PARAMS, jax.random.key(0), data), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="has a scale of"):
        iwelbo(scaled_model, scaled_guide, num_particles=2)(PARAMS, jax.random.key(0), data)


def test_wake_sleep_gradients_are_those_of_its_two_phases():
    # Model w: E_q d/dw log p = E[(x - w z) z] / S2. Guide z ~ N(c x, s^2): E_p d/dc log q = E[(z - c x) x] / s^2.
    w, c, s = 0.7, 0.4, 0.5

    def learned_model(x):
        with numpyro.plate("batch", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(numpyro.param("w", 1.0) * z, np.sqrt(S2)), obs=x)

    def learned_guide(x):
        with numpyro.plate("batch", x.shape[0]):
            numpyro.sample("z", dist.Normal(numpyro.param("c", 0.0) * x, s))

    objective = wake_sleep(learned_model, learned_guide, observed="x")
    params = {"w": jnp.array(w), "c": jnp.array(c)}
    m = moments(lambda k: jax.grad(objective)(params, k, jnp.array([X])), jax.random.key(8), 1_000_000)
    z_mean, z_square = c * X, (c * X) ** 2 + s**2
    exact = {"w": (X * z_mean - w * z_square) / S2, "c": (w - c * (w**2 + S2)) / s**2}
    for name, value in exact.items():
        assert abs(m.mean[name] - value) < 4.5 * m.standard_error[name]
        assert m.standard_error[name] < 0.02 * abs(value) / 6


def test_simulate_and_log_density_agree():
    with handlers.seed(rng_seed=0), handlers.substitute(data=PARAMS):
        run = simulate(guide, X)
        density = log_density(guide, run.values, X)
    np.testing.assert_allclose(float(run.log_density), float(density), rtol=1e-6)
    np.testing.assert_allclose(float(density), dist.Normal(MU, S).log_prob(run.values["z"]), rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda guide: guide, lambda guide: lambda x: guide(x)])
def test_an_automatic_guide_works_unedited(wrap):
    guide = wrap(AutoNormal(model))
    params = init((model, guide), jax.random.key(0), X)
    bound = elbo(model, guide)
    fitted = training.fit(
        lambda p, k: -bound(p, k, X), params, optax.adam(0.05), jax.random.key(1), num_steps=1000, loop="scan"
    )
    posterior = constrain(guide, fitted.params, X)
    np.testing.assert_allclose(posterior["z_auto_loc"], W * X / S2 / (1 + LAM), atol=0.1)
    np.testing.assert_allclose(posterior["z_auto_scale"], (1 + LAM) ** -0.5, atol=0.06)


class TestRefusals:
    def test_unknown_kl(self):
        with pytest.raises(ValueError, match="kl must be one of"):
            elbo(model, guide, kl="exact")

    @pytest.mark.parametrize("num_particles", [0, -1, 2.0])
    def test_particles(self, num_particles):
        for objective in (elbo, iwelbo):
            with pytest.raises(ValueError, match="num_particles"):
                objective(model, guide, num_particles=num_particles)

    def test_a_discrete_guide_under_a_strategy_or_gradient_for_reparameterised_ones(self):
        def discrete(x):
            numpyro.sample("z", dist.Bernoulli(probs=numpyro.param("p", 0.5)))

        params = {"p": jnp.array(0.5)}
        for objective in (elbo(model, discrete), iwelbo(model, discrete, num_particles=2)):
            with pytest.raises(ValueError, match=r"'z' is Bernoulli.*no reparameterised"):
                objective.with_strategies({"z": Pathwise()})(params, jax.random.key(0), X)
        for gradient in ("doubly-reparameterised", "sticking-the-landing"):
            bound = iwelbo(model, discrete, num_particles=2, gradient=gradient)
            with pytest.raises(ValueError, match="site 'z' is Bernoulli"):
                bound(params, jax.random.key(0), X)

    def test_sites_that_do_not_match(self):
        def other(x):
            numpyro.sample("y", dist.Normal(0.0, 1.0))

        def both(x):
            other(x)
            guide(x)

        with pytest.raises(ValueError, match="no entry for the latent site 'z'"):
            elbo(model, other, kl="monte-carlo")({}, jax.random.key(0), X)
        with pytest.raises(ValueError, match=r"\['y'\], but the program has no such latent sites"):
            elbo(model, both, kl="monte-carlo")(PARAMS, jax.random.key(0), X)
        with pytest.raises(ValueError, match=r"\['y'\], but the program has no such latent sites"):
            elbo(model, both)(PARAMS, jax.random.key(0), X)

    def test_a_guide_that_samples_the_data(self):
        def both(x):
            guide(x)
            numpyro.sample("x", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="must not sample what the model observes"):
            elbo(model, both, kl="monte-carlo")(PARAMS, jax.random.key(0), X)

    def test_a_forgotten_param(self):
        with pytest.raises(ValueError, match="no entry for the param site 's'"):
            elbo(model, guide)({"mu": PARAMS["mu"]}, jax.random.key(0), X)

    def test_no_closed_form(self):
        def heavy(x):
            numpyro.sample("z", dist.StudentT(3.0, numpyro.param("mu", 0.0), 1.0))

        key = jax.random.key(0)
        with pytest.raises(ValueError, match="'z': NumPyro has no divergence from StudentT to Normal"):
            elbo(model, heavy, kl="analytic")(PARAMS, key, X)
        np.testing.assert_array_equal(
            elbo(model, heavy)(PARAMS, key, X), elbo(model, heavy, kl="monte-carlo")(PARAMS, key, X)
        )

    def test_observed_name(self):
        with pytest.raises(ValueError, match="observed='y'"):
            wake_sleep(model, guide, observed="y")(PARAMS, jax.random.key(0), jnp.array(X))

    def test_random_subsampling(self):
        def subsampled(x):
            with numpyro.plate("data", 10, subsample_size=2):
                numpyro.sample("x", dist.Normal(0.0, 1.0), obs=jnp.zeros(2))

        with pytest.raises(ValueError, match="plate 'data' would subsample"):
            log_density(subsampled, {}, X)
