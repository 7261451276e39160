"""Objectives as the loss of NumPyro's ``SVI``, and NumPyro's automatic guides and ``Predictive`` with vinb's parameters.

Statistical tests are two-sided z-tests at |z| < 4.5 (false alarm rate 7e-6 each, seeded).
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import SVI, Predictive, Trace_ELBO, autoguide
from numpyro.infer.initialization import init_to_value

from vinb import objectives, training
from vinb.estimators import Enumerate, MeasureValued, ScoreFunction, constrain, init, moments, strategies
from vinb.objectives import SVILoss, elbo, iwelbo

KEY = jax.random.key(0)

# Two coefficients and normal data: the posterior is normal, in closed form.
FEATURES = np.array([[1.0, 0.5], [1.0, -1.0], [1.0, 2.0], [1.0, 0.3]])
TARGETS = np.array([1.2, -0.3, 2.5, 0.4])
PRECISION = np.eye(2) + FEATURES.T @ FEATURES
MEAN, COV = np.linalg.solve(PRECISION, FEATURES.T @ TARGETS), np.linalg.inv(PRECISION)


def regression(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(a * x[:, 0] + b * x[:, 1], 1.0), obs=y)


DATA = (jnp.asarray(FEATURES), jnp.asarray(TARGETS))


def mean_field(x, y=None):
    for name, start in (("a", 0.1), ("b", 0.4)):
        loc = numpyro.param(f"{name}_loc", start)
        scale = numpyro.param(f"{name}_scale", 0.5, constraint=constraints.positive)
        numpyro.sample(name, dist.Normal(loc, scale))


def gradient_of(loss, model, guide, params, key, *args):
    """The gradient of a loss in constrained parameters: NumPyro's interface of an ELBO."""
    return jax.value_and_grad(lambda p: loss.loss(key, p, model, guide, *args))(params)


CONSTRAINED = {"a_loc": 0.1, "a_scale": 0.5, "b_loc": 0.4, "b_scale": 0.5}


def test_the_loss_is_numpyros_on_constrained_parameters():
    losses = {
        "numpyro": Trace_ELBO(),
        "elbo": SVILoss(elbo, kl="monte-carlo"),
        "auto, 2": SVILoss(elbo, num_particles=2),
        "stl": SVILoss(elbo, kl="sticking-the-landing"),
    }
    params = jax.tree.map(jnp.asarray, CONSTRAINED)
    measured = moments(
        lambda k: {
            n: gradient_of(loss, regression, mean_field, params, k, *DATA) for n, loss in losses.items()
        },
        KEY,
        200_000,
        batch_size=20_000,
    )
    for name in list(losses)[1:]:
        pairs = [jax.tree.leaves((m[name], m["numpyro"])) for m in (measured.mean, measured.standard_error)]
        half = len(pairs[0]) // 2
        for k in range(half):
            (ours, theirs), errors = (pairs[0][k], pairs[0][k + half]), (pairs[1][k], pairs[1][k + half])
            assert abs(ours - theirs) < 4.5 * np.hypot(*errors)
            assert np.hypot(*errors) < 0.01 * max(abs(float(measured.mean["numpyro"][0])), 1.0)
    unconstrained = init(mean_field, KEY, *DATA)
    np.testing.assert_allclose(unconstrained["a_scale"], np.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(
        -elbo(regression, mean_field)(unconstrained, KEY, *DATA),
        SVILoss(elbo).loss(KEY, params, regression, mean_field, *DATA),
        rtol=1e-5,
    )


def dreaming(x):
    z = numpyro.sample("z", dist.Normal(numpyro.param("p", 0.5), 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def recognising(x):
    numpyro.sample("z", dist.Normal(numpyro.param("c", 0.0) * x + 0.1, 0.8))


def hierarchical(x):
    u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    numpyro.sample("z", dist.Normal(numpyro.param("c", 0.0) * x + 0.3 * u, 0.8))


TRAINABLE = {
    "elbo": (elbo, recognising, {}),
    "iwelbo": (iwelbo, recognising, {"num_particles": 3}),
    "vimco": (iwelbo, recognising, {"num_particles": 3, "gradient": "vimco"}),
    "dreg": (iwelbo, recognising, {"num_particles": 3, "gradient": "doubly-reparameterised"}),
    "renyi": (objectives.renyi, recognising, {"alpha": 0.5, "num_particles": 3}),
    "wake_theta": (objectives.wake_theta, recognising, {"num_particles": 3}),
    "wake_phi": (objectives.wake_phi, recognising, {"num_particles": 3}),
    "reweighted": (objectives.reweighted_wake_sleep, recognising, {"num_particles": 3}),
    "forward_kl": (objectives.forward_kl, recognising, {"num_particles": 3}),
    "symmetric_kl": (objectives.symmetric_kl, recognising, {"num_particles": 3}),
    "over data": (objectives.symmetric_kl_over_data, recognising, {"observed": "x"}),
    "sleep": (objectives.sleep, recognising, {"observed": "x"}),
    "wake_sleep": (objectives.wake_sleep, recognising, {"observed": "x"}),
    "hvi": (objectives.hvi, hierarchical, {"keep": ["z"]}),
    "iwhvi": (objectives.iwhvi, hierarchical, {"keep": ["z"], "num_auxiliary": 3}),
    "diwhvi": (objectives.diwhvi, hierarchical, {"keep": ["z"], "num_auxiliary": 3, "num_particles": 2}),
}


@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_svi_takes_a_step_on_every_objective_of_a_model_and_a_guide(name):
    objective, guide, options = TRAINABLE[name]
    svi = SVI(dreaming, guide, optax.sgd(0.1), SVILoss(objective, **options))
    state = svi.init(KEY, jnp.array(1.2))
    state, loss = jax.jit(svi.update)(state, jnp.array(1.2))
    assert np.isfinite(loss)
    moved = svi.get_params(state)
    changed = {n for n, start in (("p", 0.5), ("c", 0.0)) if abs(float(moved[n]) - start) > 1e-7}
    only = {"wake_theta": {"p"}, "wake_phi": {"c"}, "forward_kl": {"c"}, "sleep": {"c"}}
    assert changed == only.get(name, {"p", "c"})


def test_svi_trains_discrete_latents_without_a_warning():
    # Responsibilities of a mixture with known components: at the optimum the guide is the exact posterior.
    x = jnp.array([-1.2, 0.4, 2.0])

    def mixture(x):
        with numpyro.plate("data", 3):
            k = numpyro.sample("k", dist.Categorical(probs=jnp.array([0.3, 0.7])))
            numpyro.sample("x", dist.Normal(jnp.array([-1.0, 1.0])[k], 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3):
            numpyro.sample("k", dist.Categorical(logits=numpyro.param("logits", jnp.zeros((3, 2)))))

    svi = SVI(mixture, guide, optax.adam(0.05), SVILoss(elbo))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = svi.run(KEY, 400, x, progress_bar=False)
    exact = 1 / (1 + 3 / 7 * np.exp(-2 * np.asarray(x)))
    np.testing.assert_allclose(jax.nn.softmax(result.params["logits"])[:, 1], exact, atol=2e-3)
    # The loss at the optimum is minus the log evidence, without noise.
    density = lambda k: np.exp(-0.5 * (np.asarray(x) - k) ** 2) / np.sqrt(2 * np.pi)  # noqa: E731
    evidence = np.log(0.3 * density(-1) + 0.7 * density(1)).sum()
    np.testing.assert_allclose(-result.losses[-1], evidence, atol=1e-3)


# ---- Subsampling: local latents, and the gradient of a subsample is right on average over subsamples.

MANY = jnp.array([1.0, -0.5, 2.0, 0.3, -1.4, 0.9])


def normal_locals(x, size=2):
    with numpyro.plate("data", 6, subsample_size=size) as rows:
        z = numpyro.sample("z", dist.Normal(numpyro.param("prior", 0.3), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def normal_local_guide(x, size=2):
    loc = numpyro.param("loc", jnp.zeros(6))
    with numpyro.plate("data", 6, subsample_size=size) as rows:
        numpyro.sample("z", dist.Normal(loc[rows] * x[rows], 0.6))


def coin_locals(x, size=2):
    with numpyro.plate("data", 6, subsample_size=size) as rows:
        z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("prior", 0.3)))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x[rows])


def coin_local_guide(x, size=2):
    loc = numpyro.param("loc", jnp.zeros(6))
    with numpyro.plate("data", 6, subsample_size=size) as rows:
        numpyro.sample("z", dist.Bernoulli(logits=loc[rows] * x[rows]))


SUBSAMPLED = {
    "pathwise": (normal_locals, normal_local_guide, None),
    "enumerated": (coin_locals, coin_local_guide, Enumerate()),
    "measure-valued": (coin_locals, coin_local_guide, MeasureValued()),
    "score": (coin_locals, coin_local_guide, ScoreFunction()),
}


def subsampled_exact(name, params):
    """The full data's gradient, in closed form or by enumeration."""
    x, prior, loc = np.asarray(MANY, float), float(params["prior"]), np.asarray(params["loc"], float)
    mean = loc * x
    if name == "pathwise":
        return {"prior": (mean - prior).sum(), "loc": x * ((prior - mean) + (x - mean))}
    q = 1 / (1 + np.exp(-mean))
    advantage = prior - 0.5 * (x - 2) ** 2 + 0.5 * x**2 - mean
    return {"prior": (q - 1 / (1 + np.exp(-prior))).sum(), "loc": x * q * (1 - q) * advantage}


def test_gradients_of_subsamples_are_the_full_datas_on_average():
    params = {"prior": jnp.array(0.3), "loc": jnp.linspace(-0.5, 0.8, 6)}
    losses = {n: SVILoss(elbo) for n in SUBSAMPLED}

    def draw(key):
        result = {}
        for name, (model, guide, strategy) in SUBSAMPLED.items():
            guide = guide if strategy is None else strategies(guide, {"z": strategy})
            result[name] = gradient_of(losses[name], model, guide, params, key, MANY)[1]
        return result

    measured = moments(draw, KEY, 400_000, batch_size=40_000)
    for name in SUBSAMPLED:
        exact = subsampled_exact(name, params)
        for label, value in exact.items():
            mean, error = (
                np.asarray(m[name][label], float) for m in (measured.mean, measured.standard_error)
            )
            assert np.all(np.abs(-mean - value) < 4.5 * error), (name, label, mean, value)
            visible = 0.05 if name == "score" else 0.02  # a subsample's score function is noisy
            assert np.all(error < visible / 4.5 * np.abs(exact["loc"]).max())


def test_scale_and_mask_count_as_in_numpyro():
    def decorated(program):
        def run(x):
            with handlers.scale(scale=3.0), handlers.mask(mask=np.array([True, False, True] * 2)):
                program(x, 6)

        return run

    model, guide = decorated(normal_locals), decorated(normal_local_guide)
    params = {"prior": jnp.array(0.3), "loc": jnp.linspace(-0.5, 0.8, 6)}
    loss = SVILoss(elbo, kl="monte-carlo")

    def both(key):
        ours, theirs = (gradient_of(o, model, guide, params, key, MANY) for o in (loss, Trace_ELBO()))
        return {"ours": ours, "difference": jax.tree.map(jnp.subtract, ours, theirs)}

    measured = moments(both, KEY, 100_000, batch_size=20_000)
    for mean, error in zip(
        *(jax.tree.leaves(m["difference"]) for m in (measured.mean, measured.standard_error)), strict=True
    ):
        assert np.all(np.abs(mean) <= 4.5 * np.asarray(error) + 1e-5)
    slopes = np.asarray(measured.mean["ours"][1]["loc"])
    assert np.all(np.abs(slopes[[0, 2, 3, 5]]) > 0.05)
    np.testing.assert_array_equal(slopes[[1, 4]], 0.0)


# ---- Mutable state


@pytest.mark.parametrize("num_particles", [1, 3])
def test_mutable_state_is_kept(num_particles):
    def model(x):
        z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
        running = numpyro.primitives.mutable("running", {"mean": jnp.zeros(()), "count": jnp.zeros(())})
        running["mean"] = 0.5 * running["mean"] + 0.5 * x.mean() + 0.0 * z
        running["count"] = running["count"] + 1.0
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    svi = SVI(model, guide, optax.adam(0.01), SVILoss(elbo, num_particles=num_particles))
    x = jnp.array([1.0, 3.0])
    state = svi.init(KEY, x)
    for _ in range(2):
        state, loss = jax.jit(svi.update)(state, x)
    running = state.mutable_state["running"]
    # NumPyro's own initialisation runs the model once.
    np.testing.assert_allclose([running["mean"], running["count"]], [1.75, 3.0])
    assert np.isfinite(loss)


# ---- Automatic guides


def guide_list():
    guides = autoguide.AutoGuideList(regression)
    guides.append(autoguide.AutoNormal(handlers.block(regression, hide=["b"])))
    guides.append(autoguide.AutoNormal(handlers.block(regression, hide=["a"])))
    return guides


AUTOMATIC = {
    "AutoNormal": lambda: autoguide.AutoNormal(regression),
    "AutoDelta": lambda: autoguide.AutoDelta(regression),
    "AutoMultivariateNormal": lambda: autoguide.AutoMultivariateNormal(regression),
    "AutoLowRankMultivariateNormal": lambda: autoguide.AutoLowRankMultivariateNormal(regression, rank=1),
    "AutoDiagonalNormal": lambda: autoguide.AutoDiagonalNormal(regression),
    "AutoLaplaceApproximation": lambda: autoguide.AutoLaplaceApproximation(regression),
    "AutoIAFNormal": lambda: autoguide.AutoIAFNormal(regression, num_flows=1, hidden_dims=[2]),
    "AutoGuideList": guide_list,
}
LIGHT = ("AutoMultivariateNormal", "AutoDelta", "AutoNormal")


@functools.cache
def fitted(name, through):
    guide, num_steps = AUTOMATIC[name](), 2000
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    if through == "svi":
        svi = SVI(regression, guide, optimizer, SVILoss(elbo, num_particles=4))
        return guide, svi.run(KEY, num_steps, *DATA, progress_bar=False).params
    params = init((regression, guide), KEY, *DATA)
    bound = elbo(regression, guide, num_particles=4)
    fit = training.fit(
        lambda p, k: -bound(p, k, *DATA), params, optimizer, KEY, num_steps=num_steps, loop="scan"
    )
    return guide, constrain(guide, fit.params, *DATA)


CASES = [
    pytest.param(name, through, marks=() if name in LIGHT else pytest.mark.exhaustive)
    for name in AUTOMATIC
    for through in ("svi", "vinb")
]


@pytest.mark.parametrize(("name", "through"), CASES)
def test_automatic_guides_find_the_posterior(name, through):
    guide, params = fitted(name, through)
    draws = Predictive(guide, params=params, num_samples=4000)(jax.random.key(3), *DATA)
    draws = np.stack([draws["a"], draws["b"]], -1)
    np.testing.assert_allclose(draws.mean(0), MEAN, atol=0.12)
    if name in ("AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal"):
        np.testing.assert_allclose(np.cov(draws.T), COV, atol=0.06)
    elif name not in ("AutoDelta", "AutoLaplaceApproximation"):
        np.testing.assert_allclose(draws.var(0), 1 / np.diag(PRECISION), rtol=0.25)


def test_predictive_takes_fitted_parameters():
    guide, params = fitted("AutoMultivariateNormal", "vinb")
    x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    predicted = Predictive(regression, guide=guide, params=params, num_samples=4000)(jax.random.key(4), x)
    assert predicted["y"].shape == (4000, 2)
    rows = np.asarray(x)
    np.testing.assert_allclose(predicted["y"].mean(0), rows @ MEAN, atol=0.15)
    np.testing.assert_allclose(predicted["y"].var(0), 1 + np.einsum("ni,ij,nj->n", rows, COV, rows), rtol=0.2)


@pytest.mark.parametrize("kl", ["auto", "monte-carlo", "sticking-the-landing"])
def test_a_joint_guide_counts_the_change_of_variables(kl):
    # A positive latent: the guide is log-normal, its bound known from quadrature.
    def model():
        z = numpyro.sample("z", dist.Exponential(2.0))
        numpyro.sample("x", dist.Poisson(3 * z), obs=4)

    guide = autoguide.AutoDiagonalNormal(model, init_loc_fn=init_to_value(values={"z": 1.0}))
    params = init((model, guide), KEY) | {"auto_loc": jnp.array([-0.2])}
    scale = float(constrain(guide, params)["auto_scale"][0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    log_z = -0.2 + scale * nodes
    z = np.exp(log_z)
    log_p = np.log(2) - 2 * z + 4 * np.log(3 * z) - 3 * z - np.log(24)
    log_q = -0.5 * nodes**2 - np.log(scale) - 0.5 * np.log(2 * np.pi) - log_z
    exact = weights @ (log_p - log_q) / weights.sum()
    measured = moments(lambda k: elbo(model, guide, kl=kl)(params, k), KEY, 100_000)
    assert abs(measured.mean - exact) < 4.5 * measured.standard_error + 1e-5
    assert measured.standard_error < 0.02 / 7 * abs(exact)


# ---- Refusals


def test_refusals():
    with pytest.raises(TypeError, match="objective must make an expectation"):
        SVILoss(lambda model, guide: lambda *a: 0.0).loss(KEY, {}, regression, mean_field, *DATA)
    with pytest.raises(ValueError, match="has_state=True does not work in SVI"):
        SVILoss(elbo, has_state=True).loss(KEY, {}, regression, mean_field, *DATA)
