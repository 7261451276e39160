"""Surrogates and moments against exact values.

Every statistical test is a two-sided z-test at |z| < 4.5 (false alarm rate 7e-6 each, seeded), with samples enough that a
2 % error is more than 9 standard errors away.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import constraints

from vinb import training
from vinb.estimators import constrain, init, moments, score_function, site_keys, straight_through
from vinb.estimators.keys import site_key

Z_LIMIT = 4.5


def assert_mean(measured, exact):
    z = (np.asarray(measured.mean) - exact) / np.asarray(measured.standard_error)
    assert np.all(np.abs(z) < Z_LIMIT), f"z = {z}: mean {measured.mean}, exact {exact}"
    assert np.all(np.asarray(measured.standard_error) < np.abs(exact) * 0.02 / 9), (
        "too few samples to see a 2 % error"
    )


@pytest.mark.parametrize("theta", [0.2, 0.8])
@pytest.mark.parametrize("baseline", [0.0, 0.2])
def test_score_function_is_unbiased_for_a_bernoulli(theta, baseline):
    # d/dl E[(b - t)^2] = (1 - 2t) theta (1 - theta), l the log odds.
    t, logit = 0.1, np.log(theta / (1 - theta))

    def draw(key):
        b = jax.random.bernoulli(key, theta).astype(jnp.float32)

        def cost(logit):
            return score_function((b - t) ** 2, dist.Bernoulli(logits=logit).log_prob(b), baseline)

        return jax.grad(cost)(logit)

    assert_mean(moments(draw, jax.random.key(1), 2_000_000), (1 - 2 * t) * theta * (1 - theta))


def test_score_function_differentiates_the_cost_itself_too():
    # E[theta b] = theta^2 has derivative 2 theta; without the cost's own gradient it would be theta.
    theta = 0.3

    def draw(key):
        b = jax.random.bernoulli(key, theta).astype(jnp.float32)
        return jax.grad(lambda p: score_function(p * b, dist.Bernoulli(probs=p).log_prob(b)))(theta)

    assert_mean(moments(draw, jax.random.key(2), 1_000_000), 2 * theta)


def test_score_function_value_is_the_cost_and_impossible_samples_have_no_score():
    cost, log_prob = jnp.array([2.0, 3.0]), jnp.array([-1.0, -jnp.inf])
    value, gradient = jax.value_and_grad(lambda lp: score_function(cost, lp).sum())(log_prob)
    np.testing.assert_array_equal(value, 5.0)
    np.testing.assert_array_equal(gradient, [2.0, 0.0])


@pytest.mark.parametrize("theta", [0.3, 0.5, 0.8])
def test_straight_through_has_exactly_the_bias_it_documents(theta):
    t, logit = 0.45, jnp.log(theta / (1 - theta))

    def draw(key):
        return jax.grad(lambda a: (straight_through(key, a) - t) ** 2)(logit)

    exact = (1 - 2 * t) * theta * (1 - theta)
    assert_mean(
        moments(draw, jax.random.key(3), 25_000_000, batch_size=10**6),
        exact + (2 * theta - 1) * theta * (1 - theta),
    )


def test_straight_through_draws_zeros_and_ones():
    b = straight_through(jax.random.key(0), jnp.full(20_000, 0.5))
    assert set(np.unique(b)) == {0.0, 1.0}
    p = jax.nn.sigmoid(0.5)
    assert abs(b.mean() - p) < Z_LIMIT * np.sqrt(p * (1 - p) / 20_000)


def test_moments_of_a_gamma():
    # Gamma(2, 1) + 100: mean 102, variance 2, fourth central moment 24, so the variance's standard error is sqrt((24 - 4) / n).
    m = moments(lambda key: {"a": 100 + jax.random.gamma(key, 2.0)}, jax.random.key(0), 400_000)
    assert abs(m.mean["a"] - 102) < Z_LIMIT * m.standard_error["a"]
    assert abs(m.variance["a"] - 2) < Z_LIMIT * m.variance_error["a"]
    np.testing.assert_allclose(m.standard_error["a"], np.sqrt(2 / 400_000), rtol=0.02)
    np.testing.assert_allclose(m.variance_error["a"], np.sqrt(20 / 400_000), rtol=0.05)


def test_moments_of_many_batches_are_those_of_all_draws():
    draw = lambda key: 1000 + jax.random.gamma(key, 2.0, (3,))  # noqa: E731
    key, size, number = jax.random.key(0), 100, 20
    m = moments(draw, key, size * number, batch_size=size)
    keys = [jax.random.split(jax.random.fold_in(key, k), size) for k in range(number)]
    draws = np.asarray(jax.vmap(draw)(jnp.concatenate(keys)), np.float64)
    variance, fourth = draws.var(0, ddof=1), ((draws - draws.mean(0)) ** 4).mean(0)
    np.testing.assert_allclose(m.mean, draws.mean(0), rtol=1e-6)
    np.testing.assert_allclose(m.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(m.standard_error, np.sqrt(variance / len(draws)), rtol=1e-5)
    np.testing.assert_allclose(m.variance_error, np.sqrt((fourth - variance**2) / len(draws)), rtol=1e-3)


@pytest.mark.parametrize("constant", [0.1, 333.33, 1e10, 3e19])
def test_moments_of_equal_draws_are_exact(constant):
    m = moments(
        lambda key: jnp.float32(constant) + 0 * jax.random.normal(key), jax.random.key(0), 1000, batch_size=90
    )
    assert (m.mean, m.variance, m.standard_error, m.variance_error) == (np.float32(constant), 0, 0, 0)


def test_moments_rounds_up_to_batches_and_counts_them():
    assert moments(jax.random.normal, jax.random.key(0), 25, batch_size=10).count == 30
    assert moments(jax.random.normal, jax.random.key(0), 7).count == 7


def test_moments_of_integers_and_of_many_numbers():
    m = moments(lambda key: jax.random.poisson(key, 3.0), jax.random.key(0), 100_000)
    assert abs(m.mean - 3) < Z_LIMIT * np.sqrt(3 / 100_000)
    many = moments(lambda key: jax.random.normal(key, (3000,)), jax.random.key(0), 2000)
    assert many.count == 2666  # two batches of 1333


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_draws": 1}, "num_draws"), ({"num_draws": 9, "batch_size": 0}, "batch_size")],
)
def test_moments_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        moments(jax.random.normal, jax.random.key(0), **arguments)


def program():
    scale = numpyro.param("scale", 2.0, constraint=constraints.positive)
    a = numpyro.sample("a", dist.Normal(0, scale))
    return a, numpyro.sample("b", dist.Normal(0, 1))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["typed", "old"])
def test_the_key_of_a_site_is_the_folded_one_bit_for_bit(make, impl):
    def same(name):
        number = zlib.crc32(name.encode())
        ours = jax.vmap(lambda key: site_key(key, name))(keys)
        theirs = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(
            *(each if make is jax.random.PRNGKey else jax.random.key_data(each) for each in (ours, theirs))
        )

    with jax.default_prng_impl(impl):
        keys = jax.random.split(make(11), 200)
        for name in ["", "z", "/plate/data", *map(str, range(20))]:
            same(name)
        with pytest.raises((TypeError, ValueError), match="single"):
            site_key(keys, "z")
    with pytest.raises(TypeError, match="key"):
        site_key(None, "z")


def test_the_key_of_a_site_is_compiled_without_a_loop():
    compiled = jax.jit(lambda key: site_key(key, "z")).lower(jax.random.key(0)).compile().as_text()
    assert "while(" not in compiled


def test_forcing_one_site_leaves_the_noise_of_the_others():
    key = jax.random.key(3)
    with site_keys(key=key):
        a, b = program()
    with site_keys(key=key), numpyro.handlers.substitute(data={"a": 0.0}):
        forced_a, same_b = program()
    assert forced_a == 0.0
    assert b == same_b
    assert a / 2 != b, "two sites share their noise"


def test_unnamed_keys_differ_from_each_other_and_repeat_between_runs():
    def two():
        return jax.random.normal(numpyro.prng_key()), jax.random.normal(numpyro.prng_key())

    handled = site_keys(two, key=jax.random.key(0))
    first, again = handled(), handled()
    assert first == again
    assert first[0] != first[1]


def test_init_and_constrain_are_inverse_and_as_svi_has_them():
    params = init(program, jax.random.key(0))
    np.testing.assert_allclose(params["scale"], np.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(constrain(program, params)["scale"], 2.0, rtol=1e-6)
    svi = numpyro.infer.SVI(
        program, lambda: program() and None, numpyro.optim.Adam(1e-3), numpyro.infer.Trace_ELBO()
    )
    svi_params = svi.optim.get_params(svi.init(jax.random.key(0)).optim_state)
    assert jax.tree.structure(svi_params) == jax.tree.structure(params)
    np.testing.assert_allclose(svi_params["scale"], params["scale"])


def test_an_initial_value_that_is_a_python_number_is_an_array_and_trained():
    params = init(lambda: numpyro.param("loc", 1.0), jax.random.key(0))
    assert isinstance(params["loc"], jax.Array)
    assert params["loc"].dtype == jnp.float32
    fitted = training.fit(
        lambda p, key: p["loc"] ** 2, params, optax.sgd(0.25), jax.random.key(0), num_steps=1
    )
    assert fitted.params["loc"] == 0.5


def test_init_runs_for_real_where_an_initial_value_needs_the_arguments():
    def from_data(x):
        numpyro.param("loc", x.mean())
        numpyro.param("noise", lambda key: jax.random.normal(key, (2,)))

    params = init(from_data, jax.random.key(0), jnp.array([1.0, 3.0]))
    assert params["loc"] == 2.0
    assert params["noise"].shape == (2,)
    assert not np.array_equal(params["noise"], init(from_data, jax.random.key(1), jnp.array([1.0]))["noise"])


def test_init_runs_for_real_where_the_program_branches_on_its_arguments():
    def branching(x, flag):
        if flag and float(x.sum()) > 0:
            numpyro.param("a", 1.0)
        else:
            numpyro.param("b", 2.0)

    assert init(branching, jax.random.key(0), jnp.ones(2), True) == {"a": 1.0}
    assert init(branching, jax.random.key(0), jnp.ones(2), False) == {"b": 2.0}


def test_model_and_guide_do_not_share_their_initial_noise():
    def drawing(name):
        return lambda: numpyro.param(name, lambda key: jax.random.normal(key, (3,)))

    params = init((drawing("v"), drawing("w")), jax.random.key(0))
    assert not np.allclose(params["v"], params["w"])
    np.testing.assert_array_equal(params["w"], init(drawing("w"), jax.random.key(0))["w"])


@pytest.mark.parametrize(
    "look", [lambda x: x[x > 0], lambda x: range(x.astype(int)[0]), lambda x: np.asarray(x)]
)
def test_init_runs_for_real_what_tracing_cannot(look):
    def looking(x):
        look(x)
        numpyro.param("a", 1.0)

    assert init(looking, jax.random.key(0), jnp.ones(2)) == {"a": 1.0}


def test_constrain_names_the_missing_param():
    with pytest.raises(ValueError, match="'scale'"):
        constrain(program, {})
