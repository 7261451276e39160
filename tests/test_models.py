"""The VAE's programs against formulas written out by hand, its initial values, gradients and refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, TraceMeanField_ELBO
from scipy.stats import norm

from vinb import data, training
from vinb.estimators import init
from vinb.models import VAE, Dense, constant_scale
from vinb.objectives import elbo, iwelbo
from vinb.programs import log_density, scalar, simulate

KEY = jax.random.key(0)


def small_vae(likelihood="bernoulli", hidden=(7,)):
    return VAE.init(KEY, 5, 3, hidden, likelihood=likelihood, init_scale=constant_scale(0.5))


BINARY = jnp.array([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1]], jnp.float32)
GREY = jnp.array([[0.1, 0.5, 0.9, 0.3, 0.2], [0.4, 0.6, 0.8, 0.7, 0.5]])


def by_hand(layers, heads, x):
    for layer in layers:
        x = np.tanh(x @ np.asarray(layer.weight) + np.asarray(layer.bias))
    return [x @ np.asarray(head.weight) + np.asarray(head.bias) for head in heads]


@pytest.mark.parametrize("hidden", [(7,), (7, 4)])
@pytest.mark.parametrize(("likelihood", "x"), [("bernoulli", BINARY), ("gaussian", GREY)])
def test_densities_are_the_papers_formulas(likelihood, x, hidden):
    vae = small_vae(likelihood, hidden)
    params = init((vae.model, vae.guide), KEY, x)
    with handlers.seed(rng_seed=1), handlers.substitute(data=params):
        run = simulate(vae.guide, x)
        density = log_density(vae.model, run.values, x)
    z = np.asarray(run.values["z"], np.float64)
    assert z.shape == (2, 3)
    loc, log_var = by_hand(vae.encoder.hidden, vae.encoder.heads, np.asarray(x, np.float64))
    np.testing.assert_allclose(
        scalar(run.log_density), norm.logpdf(z, loc, np.exp(log_var / 2)).sum(), rtol=1e-5
    )

    heads = by_hand(vae.decoder.hidden, vae.decoder.heads, z)
    sigmoid = 1 / (1 + np.exp(-heads[0]))
    if likelihood == "bernoulli":
        log_lik = np.where(np.asarray(x) == 1, np.log(sigmoid), np.log1p(-sigmoid)).sum()
    else:
        log_lik = norm.logpdf(np.asarray(x), sigmoid, np.exp(heads[1] / 2)).sum()
    np.testing.assert_allclose(scalar(density), log_lik + norm.logpdf(z).sum(), rtol=1e-5)


def test_elbo_of_a_batch_is_numpyros():
    vae = small_vae()
    params = init((vae.model, vae.guide), KEY, BINARY)
    ours = jax.vmap(lambda k: elbo(vae.model, vae.guide)(params, k, BINARY))(jax.random.split(KEY, 20_000))
    theirs = -TraceMeanField_ELBO(num_particles=20_000).loss(
        jax.random.key(9), params, vae.model, vae.guide, BINARY
    )
    error = float(ours.std()) * np.sqrt(2 / 20_000)
    assert abs(float(ours.mean()) - float(theirs)) < 4.5 * error  # false alarm rate 7e-6
    assert error < 0.02 * abs(float(theirs)) / 9


def test_the_divergence_is_in_the_bound():
    # With a decoder that ignores z the bound is the log-likelihood minus the divergence, without noise.
    vae = small_vae()
    dead = jax.tree.map(jnp.zeros_like, vae.decoder.heads[0].weight)
    vae = eqx.tree_at(lambda v: v.decoder.heads[0].weight, vae, dead)
    params = init((vae.model, vae.guide), KEY, BINARY)
    loc, log_var = by_hand(vae.encoder.hidden, vae.encoder.heads, np.asarray(BINARY, np.float64))
    divergence = 0.5 * (np.exp(log_var) + loc**2 - 1 - log_var).sum()
    bias = np.asarray(vae.decoder.heads[0].bias, np.float64)
    log_lik = (np.asarray(BINARY) * bias - np.log1p(np.exp(bias))).sum()
    np.testing.assert_allclose(
        elbo(vae.model, vae.guide)(params, KEY, BINARY), log_lik - divergence, rtol=1e-5
    )


def test_data_points_are_independent_and_have_their_own_noise():
    vae = small_vae()
    params = init((vae.model, vae.guide), KEY, BINARY)
    with handlers.seed(rng_seed=0), handlers.substitute(data=params):
        run = simulate(vae.guide, jnp.stack([BINARY[0]] * 2))
    assert not np.allclose(run.values["z"][0], run.values["z"][1])


def test_initial_values_have_the_asked_spread():
    vae = VAE.init(KEY, 784, 20, (400,), init_scale=constant_scale(0.1))
    weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(vae)])
    assert abs(weights.std() / 0.1 - 1) < 4.5 / np.sqrt(2 * weights.size)
    layer = VAE.init(KEY, 784, 20, (400,)).encoder.hidden[0]
    np.testing.assert_allclose(layer.weight.std(), np.sqrt(2 / (784 + 400)), rtol=0.01)
    assert not layer.bias.any()


def test_decoder_mirrors_the_encoder():
    vae = VAE.init(KEY, 10, 2, (8, 4))
    assert [layer.weight.shape for layer in vae.encoder.hidden] == [(10, 8), (8, 4)]
    assert [layer.weight.shape for layer in vae.decoder.hidden] == [(2, 4), (4, 8)]
    assert vae.decoder.heads[0].weight.shape == (8, 10)


def test_training_raises_the_bound_and_with_params_decodes_with_it():
    digits = data.load_digits()
    x = jnp.asarray(data.binarize(digits.train_images.reshape(-1, 64), 8))
    vae = VAE.init(KEY, 64, 2, (32,))
    bound = elbo(vae.model, vae.guide)
    params = init((vae.model, vae.guide), KEY, x[:1])
    before = float(bound(params, KEY, x)) / len(x)
    fitted = training.fit(
        lambda p, k, b: -bound(p, k, b) / len(b),
        params,
        optax.adam(1e-2),
        KEY,
        data=(x,),
        batch_size=100,
        num_steps=300,
        loop="scan",
    )
    after = float(bound(fitted.params, KEY, x)) / len(x)
    assert after > -24.5 > before, (before, after)  # independent pixels reach -24.5
    trained = vae.with_params(fitted.params)
    np.testing.assert_array_equal(
        trained.decoder.heads[0].weight, fitted.params["decoder$params"].heads[0].weight
    )
    assert trained.decode(jnp.zeros((4, 2))).mean.shape == (4, 64)


def test_parameters_are_those_of_svi():
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    theirs = svi.get_params(svi.init(KEY, BINARY))
    ours = init((vae.model, vae.guide), KEY, BINARY)
    assert jax.tree.structure(theirs) == jax.tree.structure(ours)
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)


def test_init_needs_only_the_shape_of_the_data():
    vae = small_vae()
    jax.tree.map(
        np.testing.assert_array_equal,
        init((vae.model, vae.guide), KEY, 255 * GREY),
        init((vae.model, vae.guide), KEY, BINARY),
    )


def test_grey_levels_are_refused_by_a_bernoulli_likelihood():
    vae = small_vae()
    params = init((vae.model, vae.guide), KEY, BINARY)
    for objective in (elbo(vae.model, vae.guide), iwelbo(vae.model, vae.guide, num_particles=2)):
        with pytest.raises(ValueError, match=r"zeros and ones.*it holds 0\.1"):
            objective(params, KEY, GREY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_size": 0}, "latent_size must be positive"),
        ({"data_size": -3}, "data_size must be positive"),
        ({"hidden_sizes": ()}, "hidden_sizes must be positive"),
        ({"likelihood": "poisson"}, "'bernoulli' or 'gaussian', got 'poisson'"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE.init(KEY, **({"data_size": 5, "latent_size": 2, "hidden_sizes": (3,)} | arguments))


def test_dense_maps_the_last_axis():
    layer = Dense(jnp.ones((3, 2)), jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(layer(jnp.ones((4, 5, 3))), np.broadcast_to([3.0, 4.0], (4, 5, 2)))
