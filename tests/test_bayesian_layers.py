"""Bayesian layers: outputs of every mode against exact moments, their noise across a batch, posteriors, and moment propagation.

z-tests are two-sided at 4.5 standard errors (false-alarm rate 7e-6 each, seeded), with draws enough that an error of 2 % fails.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import random_eqx_module
from numpyro.infer import MCMC, NUTS
from scipy import special, stats

from vinb.models.bayesian import (
    BayesianConv,
    BayesianDense,
    BayesianLSTMCell,
    BayesianMLP,
    CorrelatedNormal,
    Delta,
    DiagonalNormal,
    LogUniformPrior,
    Masked,
    MomentTable,
    MultiplicativeNormal,
    NormalPrior,
    complexity,
    dense_moments,
    kl_log_uniform,
    layers,
    mean_weights,
    posteriors,
    project,
    projected,
    quadrature_moments,
    relu_moments,
    sample_weights,
    threshold_moments,
)

KEY = jax.random.key(11)
MODES = ("shared", "separate", "flipout", "local")
Z_LIMIT = 4.5
exhaustive = partial(pytest.param, marks=pytest.mark.exhaustive)


def dense():
    return BayesianDense.init(KEY, 5, 3, scale=0.3)


def conv(padding="SAME", strides=(1, 1)):
    return BayesianConv.init(KEY, 2, 3, (3, 2), padding=padding, strides=strides, scale=0.2)


X = jax.random.normal(jax.random.key(12), (4, 5))
IMAGES = jax.random.normal(jax.random.key(13), (2, 4, 5, 2))


def outputs(layer, x, mode, num_draws, seed=0):
    keys = jax.random.split(jax.random.key(seed), num_draws)
    return np.asarray(jax.jit(jax.vmap(lambda k: layer(x, key=k, mode=mode)))(keys), np.float64)


# ---- outputs


def exact_moments(layer, x):
    """Of the outputs of a layer with normal weights, output by output from the linear map's matrix."""
    flat = lambda w: layer.linear(x, w.reshape(layer.weight.shape))  # noqa: E731
    matrix = np.asarray(jax.jacobian(flat)(jnp.zeros(layer.weight.mean.size)), np.float64)
    mean = matrix @ np.asarray(layer.weight.mean, np.float64).ravel() + np.asarray(layer.bias.mean)
    variance = matrix**2 @ np.asarray(layer.weight.variance, np.float64).ravel() + np.asarray(
        layer.bias.variance
    )
    return mean, variance


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: (dense(), X),
        exhaustive(lambda: (conv("VALID", (2, 1)), IMAGES)),
        exhaustive(lambda: (conv(), IMAGES)),
    ],
)
def test_every_mode_has_the_exact_mean_and_variance(make, mode):
    layer, x = make()
    mean, variance = exact_moments(layer, x)
    np.testing.assert_allclose(layer.moments(x)[0], mean, atol=1e-5)
    np.testing.assert_allclose(layer.moments(x)[1], variance, rtol=1e-5)
    num = 120_000  # the variance's relative standard error is 0.4 %
    drawn = outputs(layer, x, mode, num)
    assert np.all(np.abs(drawn.mean(0) - mean) < Z_LIMIT * np.sqrt(variance / num))
    kurtosis = ((drawn - mean) ** 4).mean(0) / variance**2
    assert np.all(np.abs(drawn.var(0) / variance - 1) < Z_LIMIT * np.sqrt((kurtosis - 1) / num))


@pytest.mark.parametrize(
    ("mode", "independent"),
    [("shared", False), exhaustive("separate", True), exhaustive("flipout", True), ("local", True)],
)
def test_noise_of_two_examples_is_uncorrelated_but_for_the_shared_draw(mode, independent):
    layer, num = dense(), 60_000
    drawn = outputs(layer, X, mode, num)[..., 0]
    correlation = np.corrcoef(drawn.T)
    # Of x_m . w + b for a shared draw.
    shared = np.asarray(X) @ np.diag(np.asarray(layer.weight.variance[:, 0])) @ np.asarray(X).T + float(
        layer.bias.variance[0]
    )
    shared /= np.sqrt(np.outer(np.diag(shared), np.diag(shared)))
    expected = np.eye(len(X)) if independent else shared
    assert np.abs(correlation - expected).max() < Z_LIMIT * 1.5 / np.sqrt(num)


def test_local_outputs_are_normal_and_independent_across_units():
    drawn = outputs(dense(), X, "local", 20_000)[:, 0]
    for unit in range(3):
        assert stats.kstest(stats.zscore(drawn[:, unit]), "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < Z_LIMIT / np.sqrt(len(drawn))


def test_the_local_gradient_in_a_variance_has_one_kth_of_the_noise():
    # Linear loss, K equal inputs: Var(reparameterised) / Var(local) of d/d sigma^2 is K (kingma2015variational, section 2.3).
    number, scale = 20, 0.5
    raw = jnp.full((number, 1), jnp.log(scale))

    def gradient(mode):
        def loss(raw, key):
            layer = BayesianDense(DiagonalNormal(jnp.zeros((number, 1)), raw, True))
            return layer(jnp.ones((1, number)), key=key, mode=mode).sum()

        slope = lambda key: jax.grad(loss)(raw, key)[0, 0] / (2 * scale**2)  # d/d sigma^2  # noqa: E731
        return np.asarray(jax.jit(jax.vmap(slope))(jax.random.split(KEY, 200_000)), np.float64)

    separate, local = gradient("shared").var(), gradient("local").var()
    np.testing.assert_allclose(separate, 1 / (4 * scale**2), rtol=0.02)
    np.testing.assert_allclose(separate / local, number, rtol=0.03)


@pytest.mark.parametrize("mode", ["local", *(exhaustive(m) for m in MODES if m != "local")])
def test_all_modes_have_the_same_mean_gradient(mode):
    """Of E[sum of squares], which is known: sum over outputs of mean^2 + variance."""
    layer = dense()
    expected = jax.grad(
        lambda layer: sum(jnp.sum(m) for m in (layer.moments(X)[0] ** 2, layer.moments(X)[1]))
    )(layer)
    slope = lambda key: jax.grad(lambda layer: jnp.sum(layer(X, key=key, mode=mode) ** 2))(layer)  # noqa: E731
    drawn = jax.jit(jax.vmap(slope))(jax.random.split(KEY, 100_000))
    for many, one in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected), strict=True):
        many = np.asarray(many, np.float64)
        error = many.std(0) / np.sqrt(len(many))
        assert np.all(np.abs(many.mean(0) - np.asarray(one)) < Z_LIMIT * error)
        assert np.all(Z_LIMIT * error < 0.1 * np.abs(np.asarray(one)).max())


@pytest.mark.parametrize("shared_noise", [True, exhaustive(False)])
def test_the_law_of_a_minibatch_estimators_variance(shared_noise):
    """``N^2 (Var[L] / M + (M - 1) / M Cov[L, L'])``: the second term is there if and only if noise is shared (section 2.1)."""
    num_data, inputs = 40, 6
    random = np.random.default_rng(0)
    x, loc, scale = (
        random.normal(size=(num_data, inputs)),
        random.normal(size=inputs),
        random.uniform(0.1, 0.4, inputs),
    )
    y = x @ random.normal(size=inputs)
    residual, covariance = y - x @ loc, x @ np.diag(scale**2) @ x.T
    mean = -0.5 * (residual**2 + np.diag(covariance))
    pairs = 0.25 * (
        2 * covariance**2 + 4 * np.outer(residual, residual) * covariance
    )  # Cov(L_i, L_j) over the noise
    variance = np.diag(pairs).mean() + mean.var()
    layer = BayesianDense(
        DiagonalNormal(
            jnp.array(loc[:, None], jnp.float32), jnp.log(jnp.array(scale[:, None], jnp.float32)), True
        )
    )
    xs, ys = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def estimate(key, size):
        index_key, noise_key = jax.random.split(key)
        index = jax.random.randint(index_key, (size,), 0, num_data)
        out = layer(xs[index], key=noise_key, mode="shared" if shared_noise else "local")[:, 0]
        return num_data * jnp.mean(-0.5 * (ys[index] - out) ** 2)

    measured = {}
    for size in (1, 5, 20):
        draws = jax.jit(jax.vmap(lambda k, size=size: estimate(k, size)))(jax.random.split(KEY, 200_000))
        exact = num_data**2 * (variance / size + (size - 1) / size * (pairs.mean() if shared_noise else 0.0))
        measured[size] = float(np.var(np.asarray(draws, np.float64)))
        np.testing.assert_allclose(measured[size], exact, rtol=0.03)
    slope = np.log(measured[20] / measured[1]) / np.log(20)
    assert (slope > -0.9) if shared_noise else abs(slope + 1) < 0.03


def test_separate_draws_are_made_in_chunks_of_bounded_memory(monkeypatch):
    layer = dense()
    monkeypatch.setattr(layers, "MEMORY", 2 * layers._COPIES * layer.weight.mean.nbytes)
    few = layer(X, key=KEY, mode="separate")
    monkeypatch.undo()
    np.testing.assert_allclose(few, layer(X, key=KEY, mode="separate"), rtol=1e-6)
    # At width 1000 the weights of a batch of 1000 would need 4 GB, and the noise that a gradient keeps as much again.
    wide = BayesianDense.init(KEY, 1000, 1000)
    loss = lambda layer, x: jnp.sum(layer(x, key=KEY, mode="separate") ** 2)  # noqa: E731
    compiled = jax.jit(jax.grad(loss)).lower(wide, jnp.ones((1000, 1000))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < layers.MEMORY


@pytest.mark.parametrize("mode", ["mean", *MODES])
def test_layers_of_arrays_are_affine_in_every_mode(mode):
    plain = mean_weights(dense())
    np.testing.assert_allclose(plain(X, mode=mode), X @ plain.weight + plain.bias, rtol=1e-6)
    without = BayesianDense(plain.weight)
    np.testing.assert_allclose(without(X, mode=mode), X @ plain.weight, rtol=1e-6)


@pytest.mark.parametrize("mode", ["shared", exhaustive("separate"), "local"])
@pytest.mark.parametrize("make", [lambda: (dense(), X), exhaustive(lambda: (conv(), IMAGES))])
def test_correlated_weights_are_noise_of_the_inputs(make, mode):
    """``s_i theta_ij``: means, variances and the covariance of an example's outputs, sum_i alpha_i a_i^2 theta_ij theta_ik."""
    layer, x = make()
    loc = layer.weight.loc
    log_alpha = jnp.linspace(-3.0, 0.5, loc.shape[-2])[:, None]  # the last counts as 0
    layer = eqx.tree_at(lambda one: one.weight, layer, CorrelatedNormal(loc, log_alpha))
    num = 100_000
    drawn = outputs(layer, x, mode, num).reshape(num, len(x), -1)
    units = np.arange(loc.shape[-2])
    each = [
        layer.linear(x * (k == units), loc).reshape(len(x), -1) for k in units
    ]  # through input unit k alone
    alpha = np.exp(np.minimum(np.asarray(log_alpha[:, 0], np.float64), 0.0))
    exact = np.einsum("k,knj,knl->njl", alpha, each, each)
    bias = np.broadcast_to(layer.bias.variance, layer.moments(x)[0].shape[1:])
    same = np.arange(bias.size) % bias.shape[-1]
    exact += np.where(same[:, None] == same, bias.ravel(), 0.0)
    mean = np.asarray(layer.moments(x)[0]).reshape(len(x), -1)
    variance = np.diagonal(exact, axis1=1, axis2=2)
    np.testing.assert_allclose(layer.moments(x)[1].reshape(len(x), -1), variance, rtol=1e-4, atol=1e-6)
    assert np.all(np.abs(drawn.mean(0) - mean) < Z_LIMIT * np.sqrt(variance / num))
    found = np.einsum("snj,snl->njl", drawn - mean, drawn - mean) / num
    scale = np.sqrt(variance[:, :, None] * variance[:, None])
    assert np.abs((found - exact) / scale).max() < Z_LIMIT * np.sqrt(2 / num)
    across = np.mean((drawn[:, 0] - mean[0]) * (drawn[:, 1] - mean[1]), 0) / np.sqrt(
        variance[0] * variance[1]
    )
    assert (np.abs(across).max() < Z_LIMIT / np.sqrt(num)) == (mode != "shared")


def test_correlated_weights_cost_one_term_per_unit_and_refuse_what_needs_independence():
    posterior = CorrelatedNormal(jnp.ones((4, 3)), jnp.array(-1.0))
    layer = BayesianDense(posterior)
    found = complexity(layer, LogUniformPrior())
    np.testing.assert_allclose(found.nats, 4 * kl_log_uniform(jnp.array(-1.0)), rtol=1e-6)
    with pytest.raises(TypeError, match=r"share their noise.*LogUniformPrior\(\)"):
        complexity(layer, NormalPrior(), key=KEY)
    with pytest.raises(TypeError, match="mode='flipout' needs independent weights"):
        layer(jnp.ones((2, 4)), key=KEY, mode="flipout")
    with pytest.raises(ValueError, match=r"log_alpha has shape \(4, 3\).*the input units, \(4, 1\)"):
        CorrelatedNormal(jnp.ones((4, 3)), jnp.zeros((4, 3)))
    assert project(CorrelatedNormal(jnp.ones((4, 3)), jnp.array(2.0))).log_alpha == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_a_pruned_layer_has_the_exact_mean_and_variance(mode):
    """With a plain bias, and a unit without any weight."""
    layer = dense()
    kept = jax.random.bernoulli(KEY, 0.5, (5, 3)).at[:, 2].set(False)
    layer = BayesianDense(Masked(layer.weight, kept), jnp.array([0.1, -0.2, 0.3]))
    mean = X @ jnp.where(kept, layer.weight.posterior.loc, 0.0) + layer.bias
    variance = np.asarray(X**2 @ jnp.where(kept, layer.weight.posterior.scale**2, 0.0), np.float64)
    num = 60_000
    drawn = outputs(layer, X, mode, num)
    assert np.all(np.abs(drawn.mean(0) - mean) <= Z_LIMIT * np.sqrt(variance / num) + 1e-6)
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.03, atol=1e-12)


def test_local_noise_is_as_small_as_the_weights():
    point = BayesianDense(Delta(dense().weight.loc))
    np.testing.assert_allclose(point(X, key=KEY, mode="local"), X @ point.weight.loc, rtol=1e-6)
    small = BayesianDense(DiagonalNormal(jnp.zeros((4, 1)), jnp.full((4, 1), np.log(1e-5)), True))
    drawn = outputs(small, jnp.ones((1, 4)), "local", 20_000)
    np.testing.assert_allclose(drawn.std(), 2e-5, rtol=0.03)


def test_both_kinds_of_layers_start_alike():
    """With means of the asked spread, or one over the root of the number of inputs to an output."""
    for make, number in (
        (lambda **o: BayesianDense.init(KEY, 180, 200, **o), 180),
        (lambda **o: BayesianConv.init(KEY, 20, 200, (3, 3), **o), 180),
    ):
        np.testing.assert_allclose(make().weight.loc.std(), number**-0.5, rtol=0.03)
        layer = make(loc_scale=0.3, scale=0.2, log_scale=True, bayesian_bias=False)
        np.testing.assert_allclose(layer.weight.loc.std(), 0.3, rtol=0.03)
        np.testing.assert_allclose(layer.weight.scale, 0.2, rtol=1e-6)
        np.testing.assert_array_equal(layer.bias, jnp.zeros(200))


def test_inputs_are_checked():
    with pytest.raises(ValueError, match=r"x must be of shape \[batch, inputs\], got \(5,\); use jax.vmap"):
        dense()(X[0], key=KEY)
    with pytest.raises(ValueError, match=r"x must be of shape \[batch, height, width, channels\]"):
        conv()(IMAGES[0], key=KEY)
    with pytest.raises(TypeError, match="x must be floating-point numbers, got uint8"):
        dense().moments(jnp.ones((2, 5), jnp.uint8))
    with pytest.raises(ValueError, match=r"raw_scale must have loc's shape, \(1, 3\), got \(4, 3\)"):
        DiagonalNormal(jnp.zeros((1, 3)), jnp.zeros((4, 3)))


def test_a_layer_without_noise_has_finite_gradients():
    layer = BayesianDense.init(KEY, 5, 3, scale=0.3, bayesian_bias=False)
    slope = jax.grad(lambda layer: layer(jnp.zeros((2, 5)), key=KEY, mode="local").sum())(
        layer
    )  # its variance is 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_what_layers_refuse():
    with pytest.raises(ValueError, match=r"mode must be one of 'mean', 'shared'.*got 'local-ish'"):
        dense()(X, key=KEY, mode="local-ish")
    with pytest.raises(ValueError, match="mode='local' needs key="):
        dense()(X, mode="local")
    with pytest.raises(ValueError, match="scale must be positive"):
        BayesianDense.init(KEY, 2, 2, scale=0.0)


# ---- recurrent networks


def test_a_cell_uses_one_draw_through_a_sequence():
    cell = BayesianLSTMCell.init(KEY, 3, 4, scale=0.1, loc_scale=0.5)
    x, start = jax.random.normal(KEY, (6, 2, 3)), (jnp.zeros((2, 4)), jnp.zeros((2, 4)))
    with pytest.raises(TypeError, match=r"call once sample_weights\(cell, key\)"):
        cell(x[0], start)
    drawn = sample_weights(cell, KEY)
    hidden = [np.asarray(s) for s in start]
    for step in np.asarray(x, np.float64):
        w, u, b = (np.asarray(a, np.float64) for a in (drawn.inputs, drawn.recurrent, drawn.bias))
        enter, forget, candidate, leave = np.split(step @ w + hidden[0] @ u + b, 4, -1)
        memory = special.expit(forget) * hidden[1] + special.expit(enter) * np.tanh(candidate)
        hidden = [special.expit(leave) * np.tanh(memory), memory]
    last = jax.lax.scan(lambda state, step: (drawn(step, state), None), start, x)[0]
    np.testing.assert_allclose(last, hidden, atol=1e-5)


# ---- posteriors


@pytest.mark.parametrize("log_scale", [True, False])
def test_initial_scales_are_as_asked(log_scale):
    posterior = DiagonalNormal.init(KEY, (50, 40), loc_scale=0.3, scale=0.02, log_scale=log_scale)
    np.testing.assert_allclose(posterior.scale, 0.02, rtol=1e-5)
    np.testing.assert_allclose(posterior.loc.std(), 0.3, rtol=0.05)


@pytest.mark.parametrize(
    "posterior",
    [
        DiagonalNormal(jnp.array([0.5, -2.0]), jnp.array([-1.0, 0.4])),
        DiagonalNormal(jnp.array([0.5, -2.0]), jnp.array([-1.0, 0.4]), True),
        MultiplicativeNormal(jnp.array([0.5, -2.0]), jnp.array(-0.7)),
        MultiplicativeNormal(jnp.array([0.5, -2.0]), jnp.array([0.9, -3.0])),
    ],
)
def test_draws_have_the_posteriors_moments_and_density(posterior):
    values, log_probs = jax.vmap(posterior.sample_with_log_prob)(jax.random.split(KEY, 100_000))
    error = np.sqrt(np.asarray(posterior.variance) / len(values))
    assert np.all(np.abs(values.mean(0) - posterior.mean) < Z_LIMIT * error)
    np.testing.assert_allclose(values.var(0), posterior.variance, rtol=0.025)
    np.testing.assert_allclose(log_probs, posterior.distribution.log_prob(values), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(posterior.sample(KEY), posterior.sample_with_log_prob(KEY)[0])


def test_log_alpha_is_clamped_and_projected():
    posterior = MultiplicativeNormal(jnp.array([0.5, -2.0]), jnp.array([0.9, -3.0]))
    np.testing.assert_allclose(posterior.variance, [0.25, 4 * np.exp(-3.0)], rtol=1e-6)
    np.testing.assert_allclose(project({"w": posterior})["w"].log_alpha, [0.0, -3.0])
    free = MultiplicativeNormal(posterior.loc, posterior.log_alpha, None)
    np.testing.assert_allclose(free.variance[0], 0.25 * np.exp(0.9), rtol=1e-6)
    assert project(free).log_alpha[0] == np.float32(0.9)
    with pytest.raises(
        ValueError, match=r"log_alpha has shape \(3,\), which does not broadcast to that of loc, \(2,\)"
    ):
        MultiplicativeNormal(jnp.zeros(2), jnp.zeros(3))
    for at in (-1e-3, 0.0):  # at the limit, where a projection leaves it, the derivative is that from below
        slope = jax.grad(lambda a: MultiplicativeNormal(jnp.ones(()), a).variance)(jnp.array(at))
        np.testing.assert_allclose(slope, np.exp(at), rtol=1e-6)
    pruned = Masked(MultiplicativeNormal(jnp.ones(2), jnp.full(2, 2.0)), jnp.ones(2, bool))
    np.testing.assert_array_equal(project(pruned).posterior.log_alpha, 0.0)
    # A gradient through a weight of zero: d/d theta of theta (1 + noise).
    slope = jax.grad(lambda t: MultiplicativeNormal(t, jnp.zeros(())).sample(KEY).sum())(jnp.zeros(3))
    assert np.all(slope != 0)


def test_an_optimiser_can_keep_log_alpha_below_its_limit():
    params = {"w": MultiplicativeNormal(jnp.array([1.0, 2.0]), jnp.array([-0.05, -1.0])), "b": jnp.zeros(2)}
    optimizer = projected(optax.sgd(0.1))
    gradient = jax.tree.map(lambda p: -jnp.ones_like(p), params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["w"].log_alpha, [0.0, -0.9], atol=1e-6)
    np.testing.assert_allclose(after["w"].loc, [1.1, 2.1], rtol=1e-6)
    np.testing.assert_allclose(after["b"], 0.1)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(gradient, optimizer.init(params))
    # With a part that is not trained, and one that is no number.
    pruned = {"w": Masked(params["w"], jnp.array([True, False])), "b": jnp.zeros(2)}
    trained = eqx.tree_at(lambda p: p["w"].posterior.loc, eqx.filter(pruned, eqx.is_inexact_array), None)
    updates, _ = optimizer.update(
        jax.tree.map(lambda p: -jnp.ones_like(p), trained), optimizer.init(trained), trained
    )
    np.testing.assert_allclose(
        eqx.apply_updates(pruned, updates)["w"].posterior.log_alpha, [0.0, -0.9], atol=1e-6
    )


def test_a_multilayer_perceptron_is_its_layers_in_turn():
    network = BayesianMLP.init(KEY, (5, 4, 3), scale=0.1)
    assert [layer.weight.shape for layer in network.layers] == [(5, 4), (4, 3)]
    plain = mean_weights(network)
    hidden = jax.nn.relu(X @ plain.layers[0].weight + plain.layers[0].bias)
    expected = hidden @ plain.layers[1].weight + plain.layers[1].bias
    np.testing.assert_allclose(network(X, mode="mean"), expected, rtol=1e-5)
    drawn = [network(X, key=KEY, mode=mode) for mode in MODES]
    assert all(not np.allclose(one, expected) for one in drawn)
    np.testing.assert_array_equal(network(X, key=KEY, mode="local"), drawn[-1])
    # With one key, the draw that complexity measures.
    np.testing.assert_array_equal(drawn[0], sample_weights(network, KEY)(X, mode="mean"))
    with pytest.raises(ValueError, match=r"sizes must hold the number of inputs .* got \(3,\)"):
        BayesianMLP.init(KEY, (3,))


def test_masked_weights_are_zero_in_every_draw():
    inner = DiagonalNormal.init(KEY, (3, 2), loc_scale=1.0, scale=0.5)
    kept = jnp.array([[True, False], [False, True], [True, True]])
    masked = Masked(inner, kept)
    np.testing.assert_array_equal(masked.sample(KEY) == 0, ~kept)
    np.testing.assert_array_equal(masked.mean == 0, ~kept)
    nothing = BayesianDense(Masked(inner, jnp.zeros((3, 2), bool)))
    for mode in MODES:
        np.testing.assert_array_equal(nothing(X[:, :3], key=KEY, mode=mode), 0.0)
    with pytest.raises(TypeError, match="independent weights and no mask of its own, got CorrelatedNormal"):
        Masked(CorrelatedNormal(jnp.ones((3, 2)), 0.0), kept)
    with pytest.raises(
        ValueError, match=r"kept must be a boolean array of shape \(3, 2\), got float32 of shape \(2,\)"
    ):
        Masked(inner, jnp.zeros(2))


def test_posteriors_get_noise_of_their_own_and_points_none():
    network = {"a": dense(), "b": BayesianDense(Delta(jnp.ones((2, 2)))), "c": jnp.ones(3), "name": "x"}
    assert len(posteriors(network)) == 3
    drawn = sample_weights(network, KEY)
    assert drawn["name"] == "x"
    np.testing.assert_array_equal(drawn["b"].weight, 1.0)
    twins = sample_weights([DiagonalNormal(jnp.zeros(4), jnp.zeros(4))] * 2, KEY)
    assert np.all(np.asarray(twins[0]) != np.asarray(twins[1]))


# ---- networks as NumPyro models


def test_a_network_is_a_numpyro_model():
    x = jnp.linspace(-1, 1, 20)[:, None]
    y = 0.7 * x[:, 0] - 0.2

    def model(x, y):
        network = random_eqx_module("net", mean_weights(BayesianDense.init(KEY, 1, 1)), dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(network(x, mode="mean")[:, 0], 0.1), obs=y)

    chain = MCMC(NUTS(model), num_warmup=300, num_samples=600, progress_bar=False)
    chain.run(KEY, x, y)
    draws = chain.get_samples()
    assert set(draws) == {"net/weight", "net/bias"}
    # The posterior is normal, with precision sum x^2 / 0.01 + 1.
    precision = float(jnp.sum(x**2)) / 0.01 + 1
    np.testing.assert_allclose(draws["net/weight"].mean(), 0.7 * (precision - 1) / precision, atol=0.01)
    np.testing.assert_allclose(draws["net/weight"].std(), precision**-0.5, rtol=0.2)


# ---- moment propagation

LOGISTIC = [  # mean, variance, and the logistic function's mean and variance there, by quadrature in float64
    (0, 1, 0.5, 0.04337904),
    (1, 1, 0.69673467, 0.03335209),
    (2, 4, 0.77520025, 0.06186495),
    (0, 25, 0.5, 0.17485515),
    (-3, 0.5, 0.05812209, 0.00167136),
]


@pytest.mark.parametrize(("mean", "variance", "first", "second"), LOGISTIC)
def test_logistic_moments(mean, variance, first, second):
    table = MomentTable.make(special.expit)
    given = jnp.array(float(mean)), jnp.array(float(variance))
    np.testing.assert_allclose(table(*given), (first, second), atol=4e-5)
    if variance <= 4:
        np.testing.assert_allclose(quadrature_moments(jax.nn.sigmoid)(*given), (first, second), atol=3e-6)


def test_a_table_is_right_all_over_and_so_are_its_slopes():
    table, random = MomentTable.make(special.expit), np.random.default_rng(0)
    mean, scale = random.uniform(-8, 8, 300), random.uniform(0.05, 5, 300)
    noise = np.linspace(-12, 12, 4001)
    weights = np.exp(-0.5 * noise**2) / np.exp(-0.5 * noise**2).sum()

    def exact(mean, scale):
        y = special.expit(mean[:, None] + scale[:, None] * noise)
        first = y @ weights
        return first, (y - first[:, None]) ** 2 @ weights

    given = jnp.asarray(mean, jnp.float32), jnp.asarray(scale**2, jnp.float32)
    for ours, theirs in zip(table(*given), exact(mean, scale), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)
    slope = jax.grad(lambda m: table(m, given[1])[0].sum())(given[0])
    step = 1e-4
    central = (exact(mean + step, scale)[0] - exact(mean - step, scale)[0]) / (2 * step)
    np.testing.assert_allclose(slope, central, atol=5e-3)


@pytest.mark.parametrize(
    ("closed", "activation"),
    [(relu_moments, lambda x: np.maximum(x, 0)), (threshold_moments, lambda x: (x > 0) * 1.0)],
)
def test_closed_moments_against_quadrature(closed, activation):
    noise = np.linspace(-12, 12, 400_001)
    weights = np.exp(-0.5 * noise**2) / np.exp(-0.5 * noise**2).sum()
    for mean, variance in [(0.0, 1.0), (1.3, 0.5), (-2.0, 2.0), (0.4, 0.01)]:
        y = activation(mean + np.sqrt(variance) * noise)
        first = y @ weights
        found = closed(jnp.array(mean), jnp.array(variance))
        np.testing.assert_allclose(found, (first, (y - first) ** 2 @ weights), atol=2e-5)


def test_one_hidden_layer_is_propagated_exactly():
    first = BayesianDense.init(jax.random.key(1), 3, 4, scale=0.6, loc_scale=1.0)
    second = BayesianDense.init(jax.random.key(2), 4, 2, scale=0.4, loc_scale=1.0)
    x = jax.random.normal(KEY, (5, 3))
    hidden = quadrature_moments(jax.nn.sigmoid, 48)(*first.moments(x))
    mean, variance = dense_moments(second, *hidden)

    def network(key):
        drawn = sample_weights((first, second), key)
        return drawn[1](jax.nn.sigmoid(drawn[0](x)))

    draws = np.asarray(jax.jit(jax.vmap(network))(jax.random.split(KEY, 200_000)), np.float64)
    assert np.all(np.abs(draws.mean(0) - mean) < Z_LIMIT * np.sqrt(np.asarray(variance) / len(draws)))
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.02)


def test_an_optimiser_moves_posteriors_and_nothing_else():
    network = [
        dense(),
        BayesianDense(
            Masked(DiagonalNormal.init(KEY, (3, 2), loc_scale=1.0, scale=0.1), jnp.ones((3, 2), bool))
        ),
    ]
    trained, static = eqx.partition(network, eqx.is_inexact_array)
    optimizer = optax.adam(0.1)

    def loss(trained):
        one, two = eqx.combine(trained, static)
        return jnp.sum(two(one(X, key=KEY, mode="local"), key=KEY, mode="shared") ** 2)

    updates, _ = optimizer.update(jax.grad(loss)(trained), optimizer.init(trained))
    after = eqx.combine(optax.apply_updates(trained, updates), static)
    np.testing.assert_array_equal(after[1].weight.kept, network[1].weight.kept)
    assert after[1].weight.kept.dtype == bool
    assert np.all(np.asarray(after[0].weight.loc) != np.asarray(network[0].weight.loc))


def test_moments_far_from_zero_and_without_noise():
    for mean, variance in ((30.0, 1e-5), (100.0, 0.01), (-3.0, 0.5), (0.3, 2.0)):
        first, second = relu_moments(jnp.array(mean), jnp.array(variance))
        law = stats.norm(mean, np.sqrt(variance))
        nodes = law.ppf((np.arange(400_000) + 0.5) / 400_000)
        y = np.maximum(nodes, 0)
        np.testing.assert_allclose(first, y.mean(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(second, y.var(), rtol=2e-3, atol=1e-6)
    ints, floats = (
        quadrature_moments(jax.nn.sigmoid)(one, jnp.ones(())) for one in (jnp.array(1), jnp.array(1.0))
    )
    np.testing.assert_array_equal(ints, floats)
    table = MomentTable.make(special.expit)
    p = special.expit(1.0)
    for variance in (0.0, 1e-8, 1e-6, 1e-3):
        slope = jax.grad(lambda v: table(jnp.array(1.0), v)[1])(jnp.array(variance))
        np.testing.assert_allclose(slope, (p * (1 - p)) ** 2, rtol=0.02)
    assert jax.tree.leaves(table) == []  # nothing to train
