"""Attend-infer-repeat: its spatial transformer, its programs against formulas written out by hand, and its canvases."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.stats import norm

from vinb import data
from vinb.estimators import init
from vinb.estimators.sites import site_keys, unconstrained_params
from vinb.models.air import AIR, extract, place
from vinb.models.canvases import multi_mnist

KEY = jax.random.key(0)
PRIOR = (0.3, 0.1)


def tiny(**settings):
    sizes = {"canvas_size": 7, "glimpse_size": 4, "what_size": 2, "rnn_size": 5, "hidden_size": 6}
    return AIR.init(KEY, **(sizes | {"presence_prior": PRIOR, "where_loc": (1.5, 0.1, -0.2)} | settings))


X = np.random.default_rng(0).uniform(size=(3, 7, 7)).astype(np.float32)


def bilinear(image, row, column):
    """The image at a position in pixels, zero outside, by the textbook formula."""
    total = 0.0
    for i in (np.floor(row), np.floor(row) + 1):
        for j in (np.floor(column), np.floor(column) + 1):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[int(i), int(j)]
    return total


def sampled(image, size, transform):
    """An image of ``size`` pixels: at (u, v) the bilinear value of ``image`` at ``transform(u, v)``, corner centres at -1 and 1."""
    grid = np.linspace(-1, 1, size)
    pixel = lambda u, n: (u + 1) * (n - 1) / 2  # noqa: E731
    at = lambda u, v: bilinear(image, pixel(v, image.shape[0]), pixel(u, image.shape[1]))  # noqa: E731
    return np.array([[at(*transform(u, v)) for u in grid] for v in grid])


def place_by_hand(glimpse, where, size):
    s, x, y = np.asarray(where, np.float64)
    return sampled(np.asarray(glimpse, np.float64), size, lambda u, v: (s * u + x, s * v + y))


def extract_by_hand(image, where, size):
    s, x, y = np.asarray(where, np.float64)
    return sampled(np.asarray(image, np.float64), size, lambda u, v: ((u - x) / s, (v - y) / s))


WHERE = np.array([[2.3, 0.4, -0.7], [1.2, 0.9, 0.3], [0.6, -0.3, 0.2]], np.float32)


def test_transformer_is_bilinear_with_zeros_outside():
    glimpses = X[:, :4, :4]
    placed = jax.jit(place, static_argnums=2)(glimpses, WHERE, 7)
    read = jax.jit(extract, static_argnums=2)(X, WHERE, 4)
    for i in range(3):
        np.testing.assert_allclose(placed[i], place_by_hand(glimpses[i], WHERE[i], 7), atol=1e-5)
        np.testing.assert_allclose(read[i], extract_by_hand(X[i], WHERE[i], 4), atol=1e-5)


def test_what_was_placed_is_read_back():
    # 9 glimpse pixels on 9 of 33 canvas pixels: grids meet, so that nothing is lost. s = 32 / 8.
    glimpse = np.random.default_rng(1).uniform(size=(9, 9)).astype(np.float32)
    where = jnp.array(
        [4.0, -1.5, 2.0]
    )  # centre at (1.5, -2) / 4: 6 pixels to the right of the middle, 8 above it
    canvas, back = jax.jit(lambda w: (c := place(glimpse, w, 33), extract(c, w, 9)))(where)
    np.testing.assert_allclose(canvas[16 - 8 - 4 : 16 - 8 + 5, 16 + 6 - 4 : 16 + 6 + 5], glimpse, atol=1e-5)
    assert abs(float(canvas.sum()) - glimpse.sum()) < 1e-3
    np.testing.assert_allclose(back, glimpse, atol=1e-5)


def test_gradients_are_finite_at_any_scale():
    where = jnp.array([[s, 0.1, 0.2] for s in (0.0, 1e-30, -1e-8, 3.0)])
    images = np.stack([X[0]] * 4)
    read = lambda where: extract(images, where, 4).sum()  # noqa: E731
    drawn = lambda where: place(images, where, 9).sum()  # noqa: E731
    for gradient in jax.jit(lambda where: (jax.grad(read)(where), jax.grad(drawn)(where)))(where):
        assert np.isfinite(gradient).all()
        assert gradient[3].any()


@jax.jit
def run(air, params, key, x):
    """A run of the guide, its log density, and the model's at its values."""
    model, guide = (unconstrained_params(program, params=params) for program in (air.model, air.guide))
    log_q, sites = log_density(site_keys(guide, key=key), (x,), {}, {})
    values = {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}
    return values, log_q, log_density(model, (x,), {}, values)[0]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def network(layers, x):
    for layer in layers[:-1]:
        x = x @ np.asarray(layer.weight) + np.asarray(layer.bias)
        x = np.where(x > 0, x, 0.01 * x)
    return x @ np.asarray(layers[-1].weight) + np.asarray(layers[-1].bias)


def model_by_hand(air, values):
    """Log density of all sites, image by image and object by object (dossier of becker2024programmable, figure 7)."""
    total = 0.0
    for i, image in enumerate(np.asarray(X, np.float64)):
        canvas = np.zeros((7, 7))
        for t, prior in enumerate(PRIOR):
            present, where, what = (
                np.asarray(values[f"{n}_{t}"][i], np.float64) for n in ("present", "where", "what")
            )
            total += np.log(prior if present else 1 - prior)
            total += norm.logpdf(where, (1.5, 0.1, -0.2), (0.2, 1, 1)).sum() + norm.logpdf(what).sum()
            glimpse = sigmoid(network(air.decoder.layers, what)).reshape(4, 4)
            canvas += present * place_by_hand(glimpse, where, 7)
        total += norm.logpdf(image, canvas, 0.3).sum()
    return total


def guide_by_hand(air, values, relative):
    net, eps, total = air.recognition, 1e-4, 0.0
    for i, image in enumerate(np.asarray(X, np.float64)):
        hidden, cell, before, there = np.zeros(5), np.zeros(5), np.zeros(5), 1.0
        for t in range(2):
            present, where, what = (
                np.asarray(values[f"{n}_{t}"][i], np.float64) for n in ("present", "where", "what")
            )
            inputs = np.concatenate([before, [there], hidden])
            gates = (
                image.ravel() @ np.asarray(net.image.weight)
                + net.image.bias
                + inputs @ np.asarray(net.recurrent)
            )
            enter, forget, candidate, leave = np.split(np.asarray(gates), 4)
            cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(candidate)
            hidden = sigmoid(leave) * np.tanh(cell)
            out = network([net.head], hidden)
            p = (eps + sigmoid(out[0]) * there) / (1 + 1.01 * eps)
            loc, scale = out[1:4], np.log1p(np.exp(out[4:]))
            if relative:
                loc, scale = loc + np.array([1.5, 0.1, -0.2]), scale * (0.2, 1, 1)
            look = network(net.encoder.layers, extract_by_hand(image, where, 4).ravel())
            total += np.log(p if present else 1 - p) + norm.logpdf(where, loc, scale).sum()
            total += norm.logpdf(what, look[:2], np.log1p(np.exp(look[2:]))).sum()
            before, there = np.concatenate([where, what]), present
    return total


@pytest.mark.parametrize("relative", [False, True])
def test_densities_are_the_formulas(relative):
    air = tiny(relative_where=relative, presence_bias=2.0)
    params = init((air.model, air.guide), KEY, X)
    seen = set()
    for seed in range(4):
        values, log_q, log_p = run(air, params, jax.random.key(seed), X)
        np.testing.assert_allclose(log_q, guide_by_hand(air, values, relative), rtol=2e-5, atol=1e-3)
        np.testing.assert_allclose(log_p, model_by_hand(air, values), rtol=2e-5)
        seen |= set(zip(*(np.asarray(values[f"present_{t}"]).tolist() for t in range(2)), strict=True))
    assert {(0, 0), (1, 0), (1, 1)} <= seen


def test_an_absent_object_is_not_seen():
    air = tiny()
    params = init((air.model, air.guide), KEY, X)
    values = dict(run(air, params, KEY, X)[0])
    values |= {"present_0": jnp.array([0, 1, 1]), "present_1": jnp.array([0, 0, 1])}
    images = air.render(values)
    assert images.shape == (3, 7, 7)
    np.testing.assert_array_equal(images[0], np.zeros((7, 7)))
    assert images[1].max() > 0.05
    moved = air.render(values | {"where_1": values["where_1"] + 0.3})
    np.testing.assert_array_equal(moved[:2], images[:2])
    assert not np.allclose(moved[2], images[2])


def test_each_image_has_its_own_draws_in_one_plate():
    air = tiny()
    params = init((air.model, air.guide), KEY, X)
    values = run(air, params, KEY, np.stack([X[0]] * 3))[0]
    assert all(len(np.unique(np.asarray(values[name])[:, 0])) == 3 for name in ("where_0", "what_0"))

    traces = []

    def record(x):
        for program in (air.guide, air.model):
            with handlers.seed(rng_seed=0), handlers.trace() as trace:
                program(x)
            traces.append(trace)

    jax.eval_shape(record, X)
    for trace in traces:
        for name in (f"{kind}_{t}" for kind in ("present", "where", "what") for t in range(2)):
            assert trace[name]["fn"].batch_shape == (3,)
            assert [frame.name for frame in trace[name]["cond_indep_stack"]] == ["data"]
    assert traces[1]["x"]["fn"].batch_shape == (3,)
    assert traces[1]["x"]["fn"].event_shape == (7, 7)


def test_gradient_of_every_parameter_is_finite_and_not_zero():
    air = tiny(relative_where=True, presence_bias=3.0)
    params = init((air.model, air.guide), KEY, X)

    def bound(params):
        _, log_q, log_p = run(air, params, KEY, X)
        return log_p - log_q

    for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(bound))(params)):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf != 0), path


def test_only_networks_are_trained_and_with_params_puts_them_back():
    air = AIR.lite(KEY)
    params = init((air.model, air.guide), KEY, jnp.zeros((2, 28, 28)))
    assert set(params) == {"decoder$params", "recognition$params"}
    assert jax.tree.structure(jax.tree.leaves(params)) == jax.tree.structure(jax.tree.leaves(air))
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    for ours, theirs in zip(jax.tree.leaves(air.with_params(changed)), jax.tree.leaves(air), strict=True):
        np.testing.assert_array_equal(ours, theirs + 1)


def test_the_papers_setting():
    air = jax.eval_shape(AIR.paper, KEY)
    net = air.recognition
    assert (air.canvas_size, air.glimpse_size, air.what_size, air.max_steps) == (50, 20, 50, 3)
    assert net.image.weight.shape == (2500, 1024)
    assert net.recurrent.shape == (3 + 50 + 1 + 256, 1024)
    assert [layer.weight.shape for layer in net.encoder.layers] == [(400, 200), (200, 100)]
    assert [layer.weight.shape for layer in air.decoder.layers] == [(50, 200), (200, 400)]
    np.testing.assert_allclose(air.presence_prior, (0.05, 0.00102, 3.1e-7), rtol=0.01)
    assert AIR.lite(KEY, max_steps=2).max_steps == 2


def test_initial_weights_are_uniform_within_the_bound():
    air = AIR.lite(KEY)
    for weight, fan_in in (
        (air.recognition.image.weight, 64),
        (air.recognition.recurrent, 64),
        (air.recognition.encoder.layers[0].weight, 144),
        (air.decoder.layers[1].weight, 64),
    ):
        scaled = np.asarray(weight) * np.sqrt(fan_in)
        assert abs(scaled).max() <= 1
        assert abs(scaled.var() * 3 - 1) < 4.5 * np.sqrt(0.8 / scaled.size)  # false alarm rate 7e-6
    assert (np.asarray(air.decoder.layers[1].bias) < -2 + 1 / 8).all()


def test_count_accuracy_is_the_share_of_right_counts():
    air = tiny()
    params = init((air.model, air.guide), KEY, X)
    x = np.stack([X[0]] * 4001)  # the last batch is not full
    accuracy = functools.partial(air.count_accuracy, key=KEY, x=x, batch_size=1000)
    # A guide that is sure to see two objects: nothing else decides.
    sure = params | {
        "recognition$params": eqx.tree_at(
            lambda net: net.head.bias, params["recognition$params"], np.array([40.0] + [0.0] * 6, np.float32)
        )
    }
    counts = np.array([2] * 3000 + [1] * 1001)
    np.testing.assert_allclose(accuracy(sure, counts=counts), 3000 / 4001, rtol=1e-6)
    p = sigmoid(head_logit(air, np.asarray(X[0], np.float64)))
    none = float(accuracy(params, counts=np.zeros(4001, int)))
    assert (
        abs(none - (1 - p)) < 4.5 * np.sqrt(p * (1 - p) / 4001) + 2e-4
    )  # the guard against log(0) adds up to 1e-4


def head_logit(air, image):
    """The first step's presence logit."""
    net = air.recognition
    inputs = np.concatenate([np.zeros(5), [1.0], np.zeros(5)])
    gates = image.ravel() @ np.asarray(net.image.weight) + net.image.bias + inputs @ np.asarray(net.recurrent)
    enter, _, candidate, leave = np.split(np.asarray(gates), 4)
    hidden = sigmoid(leave) * np.tanh(sigmoid(enter) * np.tanh(candidate))
    return network([net.head], hidden)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"canvas_size": 1}, "canvas_size must be at least 2 pixels, got 1"),
        ({"what_size": 0}, "what_size must be at least 1"),
        ({"presence_prior": ()}, "presence_prior must hold a probability"),
        ({"presence_prior": (0.5, 1.0)}, r"got \(0.5, 1.0\)"),
        ({"where_scale": (0.2, 0.0, 1.0)}, "where_loc and where_scale must hold three numbers"),
        ({"likelihood_scale": 0.0}, "likelihood_scale must be positive"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_bad_images_are_refused():
    air = tiny()
    with pytest.raises(ValueError, match=r"\[batch, 7, 7\], got \[7, 7\]"):
        air.model(X[0])
    with pytest.raises(TypeError, match=r"floats in \[0, 1\], not uint8"):
        air.guide(np.zeros((2, 7, 7), np.uint8))
    with pytest.raises(ValueError, match="one entry per image"):
        air.count_accuracy({}, KEY, X, jnp.zeros(2))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        air.count_accuracy({}, KEY, X, jnp.zeros(3), batch_size=0)
    with pytest.raises(ValueError, match="max_steps must be 1, 2 or 3, got 4"):
        AIR.lite(KEY, max_steps=4)


SQUARES = np.full((3, 12, 12), 255, np.uint8) // np.array([1, 2, 3], np.uint8)[:, None, None]


def test_canvases_hold_as_many_digits_as_counted():
    # Solid squares of 4 pixels, white, half or a third of it: light and area tell the digits on a canvas.
    found = multi_mnist(KEY, SQUARES[:1], 900, canvas_size=16, max_digits=3, scale=(3.0, 0.0))
    assert found.images.shape == (900, 16, 16)
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.images.sum(axis=(1, 2), dtype=int), 255 * 16 * found.counts)
    share = np.bincount(found.counts, minlength=4) / 900
    assert abs(share - 1 / 4).max() < 4.5 * np.sqrt(3 / 16 / 900)  # false alarm rate 3e-5
    # Every pixel is reached, and none of the sums wrapped around.
    assert set(np.unique(found.images)) == {0, 255}
    assert (found.images.max(axis=0) == 255).all()


def test_places_are_uniform():
    found = multi_mnist(KEY, SQUARES[:1], 4000, canvas_size=8, max_digits=1, scale=(3.0, 0.0))
    shown = found.images[found.counts == 1]
    corner = np.array([np.argwhere(image)[0] for image in shown])
    for axis in range(2):
        share = np.bincount(corner[:, axis], minlength=5) / len(shown)
        assert abs(share - 1 / 5).max() < 4.5 * np.sqrt(0.16 / len(shown))


def test_sums_stay_within_white():
    found = multi_mnist(KEY, SQUARES, 300, canvas_size=8, scale=(3.0, 0.0))
    two = found.images[found.counts == 2]
    assert two.max() == 255
    # Squares that overlap: half and half make 254, a third and a half 212, and so on; white ones never do.
    assert {254, 212} & set(np.unique(two))
    light = two.sum(axis=(1, 2), dtype=int) / 16
    assert set(light) <= {a + b for a in (255, 127, 85) for b in (255, 127, 85)}


def test_sizes_follow_the_scale():
    found = multi_mnist(KEY, SQUARES[:1], 3000, canvas_size=12, max_digits=1, scale=(2.0, 0.3))
    side = np.sqrt((found.images[found.counts == 1] == 255).sum(axis=(1, 2)))
    assert set(side) <= set(range(3, 13))
    # int(12 / s) <= 5 where s > 2
    share = (side <= 5).mean()
    assert abs(share - 0.5) < 4.5 * np.sqrt(0.25 / len(side))


def test_digits_are_resized_like_jax_does():
    digit = data.load_mnist().train_images[7]
    for side, size in ((14, 14), (9, 9), (28, 28)):
        found = multi_mnist(KEY, digit[None], 20, canvas_size=size, max_digits=1, scale=(28 / side, 0.0))
        shown = found.images[found.counts == 1][0]
        expected = jax.jit(jax.image.resize, static_argnums=(1, 2))(
            digit.astype(np.float32), (side, side), "cubic"
        )
        np.testing.assert_allclose(shown, np.clip(expected, 0, 255), atol=0.51)


def test_canvases_depend_on_the_key_alone():
    images = data.load_mnist().train_images[:50]
    draw = functools.partial(multi_mnist, images=images, num_canvases=40, canvas_size=28, scale=(2.0, 0.1))
    first, again, other = draw(KEY), draw(KEY), draw(jax.random.key(1))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.counts, again.counts)
    assert not np.array_equal(first.images, other.images)
    assert not np.array_equal(first.counts, other.counts)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": SQUARES / 255.0}, TypeError, "images must be uint8"),
        ({"images": SQUARES[:, :5]}, ValueError, r"got \[3, 5, 12\]"),
        ({"num_canvases": 0}, ValueError, "num_canvases must be at least 1"),
        ({"max_digits": 0}, ValueError, "max_digits must be at least 1"),
        ({"scale": (0.0, 1.0)}, ValueError, "scale must be a positive mean"),
        (
            {"canvas_size": 5, "scale": (1.0, 0.0)},
            ValueError,
            "canvases could not be filled within max_tries=20",
        ),
        ({"canvas_size": 5, "scale": (3.0, 0.0)}, ValueError, "pass a larger canvas_size"),
    ],
)
def test_bad_canvases_are_refused(arguments, error, message):
    given = {"images": SQUARES[:1], "num_canvases": 30, "canvas_size": 16, "max_tries": 20} | arguments
    with pytest.raises(error, match=message):
        multi_mnist(KEY, **given)
