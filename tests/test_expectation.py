"""The driver of expectations: composition, credit, cost, baselines, strategies from outside, and what is refused.

Statistical tests are two-sided z-tests at |z| < 4.5 (false-alarm rate 7e-6 each, seeded); those of means have draws enough that an
error of 2 % fails (``_exact.check_unbiased``). Exact values come from enumeration and quadrature in float64.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from _exact import check_unbiased, gradient
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from scipy import special, stats

from vinb.estimators import (
    Constant,
    Enumerate,
    GumbelSoftmax,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    Network,
    Pathwise,
    ScoreFunction,
    StraightThrough,
    Terms,
    expectation,
    moments,
    strategies,
    with_baseline,
)
from vinb.objectives import elbo
from vinb.programs import replicate, simulate

Z_LIMIT = 4.5
KEY = jax.random.key(3)
E, M, S, P = Enumerate(), MeasureValued(), ScoreFunction(), Pathwise()


def bernoulli(name, strategy=None, **parameter):
    infer = {} if strategy is None else {"gradient": strategy}
    return numpyro.sample(name, dist.Bernoulli(**parameter), infer=infer)


def normal(name, loc, scale, strategy=None):
    infer = {} if strategy is None else {"gradient": strategy}
    return numpyro.sample(name, dist.Normal(loc, scale), infer=infer)


def params_of(exact):
    return jax.tree.map(lambda a: jnp.asarray(a, float), exact)


def gradients(function, params, num_draws=2**17, key=KEY):
    return moments(lambda k: jax.grad(function)(params, k), key, num_draws, batch_size=2**13)


def assert_variance(measured, exact):
    z = (np.asarray(measured.variance) - exact) / np.maximum(np.asarray(measured.variance_error), 1e-6)
    assert np.all(np.abs(z) < Z_LIMIT), f"variance {measured.variance}, exact {exact}, z = {z}"


def strategy_names(function, params, *args):
    return {s: type(k).__name__ for s, (k, _) in function.plan(params, KEY, *args).strategies.items()}


def all_bits(n):
    return np.array(list(itertools.product((0, 1), repeat=n)))


# Composition ---------------------------------------------------------------------------------------------------------

TRIPLES = list(itertools.product("EMS", "PSM", "EMS"))
LATIN_SQUARE = [(a, b, "EMS"[(i + j) % 3]) for i, a in enumerate("EMS") for j, b in enumerate("PSM")]
NEEDS_DRAWS = [("M", "S", "S"), ("S", "M", "M"), ("E", "M", "S")]


def check_triple(a, b, c):
    """Each site's parameters depend on the sites before it, and the cost on all."""
    kinds = {"E": E, "M": M, "S": S, "P": P}

    def program():
        p, m = numpyro.param("p"), numpyro.param("m")
        first = bernoulli("first", kinds[a], probs=p)
        x = normal("x", jnp.where(first == 1, m, -m), 0.8, kinds[b])
        last = bernoulli("last", kinds[c], probs=jax.nn.sigmoid(x + p))
        return jnp.where(last == 1, x**2, jnp.cos(x)) + first

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def exact(q):
        total = 0.0
        for first, sign in ((1, 1), (0, -1)):
            x = sign * q["m"] + 0.8 * nodes
            y = special.expit(x + q["p"])
            mean = weights @ (y * x**2 + (1 - y) * np.cos(x)) / np.sqrt(2 * np.pi)
            total += (q["p"] if first else 1 - q["p"]) * (mean + first)
        return total

    point = {"p": 0.3, "m": 0.5}
    expected = gradient(exact, point)
    # The figures of the paper's authors' talk.
    np.testing.assert_allclose(jax.tree.leaves(expected), [0.98453, 0.18660, 1.36828], atol=1e-5)
    function = expectation(program)
    check_unbiased(lambda k: jax.value_and_grad(function)(params_of(point), k), KEY, expected, Z_LIMIT)


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [pytest.param(*t, marks=pytest.mark.exhaustive) if t in NEEDS_DRAWS else t for t in LATIN_SQUARE],
)
def test_strategies_compose(a, b, c):
    check_triple(a, b, c)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("a", "b", "c"), TRIPLES)
def test_all_triples_of_strategies_compose(a, b, c):
    check_triple(a, b, c)


def test_the_flip_example_has_the_known_means_and_variances():
    # L(t) = E[0 if b else -t / 2], b ~ flip(t): L' = t - 1/2 (lew2023adev, the introductory example)
    t = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    score = t * (1 - t) * (t / (2 * (1 - t)) - 0.5) ** 2
    for strategy, variance in ((E, 0 * t), (M, t * (1 - t) / 4), (S, score)):

        def program(strategy=strategy):
            p = numpyro.param("t")
            return jnp.where(bernoulli("b", strategy, probs=p) == 1, 0.0, -p / 2)

        function = expectation(program)

        def total(p, key, function=function):
            return jax.vmap(lambda p, k: function({"t": p}, k))(p, jax.random.split(key, 5)).sum()

        measured = gradients(total, jnp.array(t, jnp.float32))
        error = np.abs(np.asarray(measured.mean) - (t - 0.5))
        assert np.all(error <= Z_LIMIT * np.asarray(measured.standard_error) + 1e-6)
        assert_variance(measured, variance)


def test_reparameterised_sites_are_independent():
    # With shared noise it would be (a - b)^2.
    def program():
        return (normal("x", 0.0, numpyro.param("a")) - normal("y", 0.0, numpyro.param("b"))) ** 2

    function = expectation(program)
    exact = gradient(lambda p: p["a"] ** 2 + p["b"] ** 2, {"a": 1.2, "b": 0.7})
    point = {"a": jnp.array(1.2), "b": jnp.array(0.7)}
    check_unbiased(lambda k: jax.value_and_grad(function)(point, k), KEY, exact, Z_LIMIT)


def test_forcing_a_site_leaves_the_noise_of_the_others():
    def program():
        x = normal("x", 0.0, 1.0)
        between = replicate(lambda: normal("z", 0.0, 1.0), 3)()
        return Terms(0 * x, between, normal("y", 0.0, 1.0))

    forced = handlers.substitute(program, data={"x": jnp.array(5.0)})
    np.testing.assert_array_equal(*(expectation(p)({}, KEY) for p in (program, forced)))


@pytest.mark.parametrize("strategy", [M, E])
def test_alternative_values_are_compared_under_the_same_noise(strategy):
    # The gradient is exactly 1 in every draw; under other noise its variance would exceed 100.
    def program():
        before = normal("before", 0.0, 10.0)
        b = bernoulli("b", strategy, probs=numpyro.param("p"))
        inner = cond(b == 1, lambda _: normal("c", 0.0, 10.0), lambda _: normal("c", 0.0, 10.0), None)
        return (
            b
            + before
            + 0 * inner
            + normal("after", 0.0, 10.0)
            + replicate(lambda: normal("z", 0.0, 9.0), 2)().sum()
        )

    measured = gradients(expectation(program), {"p": jnp.array(0.3)}, 1000)
    np.testing.assert_allclose(measured.mean["p"], 1, atol=1e-4)
    np.testing.assert_allclose(measured.variance["p"], 0, atol=1e-6)


# Credit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [True, False])
def test_causal_credit_has_the_variance_that_theory_says(apart):
    # A chain of six coins with a cost at each; earlier costs are no news about later coins.
    costs, m = np.array([3.0, -1.0, 2.0, 2.5, -2.0, 1.5]), 0.4

    def program():
        b, terms = 0.0, Terms()
        for k in range(6):
            b = bernoulli(f"b{k}", S, logits=numpyro.param("m") - b)
            terms = terms + costs[k] * (1.0 + b)
        return terms if apart else terms.total()

    bits = all_bits(6)
    p = special.expit(m - np.concatenate([np.zeros((64, 1)), bits[:, :-1]], 1))
    weights, scores, paid = np.where(bits, p, 1 - p).prod(1), bits - p, costs * (1 + bits)
    ahead = np.cumsum(paid[:, ::-1], 1)[:, ::-1] if apart else paid.sum(1, keepdims=True)
    draws = (scores * ahead).sum(1)
    mean = weights @ draws
    variance = weights @ (draws - mean) ** 2
    measured = gradients(expectation(program), {"m": jnp.array(m)})
    assert abs(measured.mean["m"] - mean) < Z_LIMIT * measured.standard_error["m"]
    assert_variance(
        jax.tree.map(lambda a: a, measured)._replace(
            variance=measured.variance["m"], variance_error=measured.variance_error["m"]
        ),
        variance,
    )


@pytest.mark.parametrize("plate", [True, False])
def test_elements_get_their_own_credit(plate):
    logits, costs = np.linspace(-1, 1, 5), np.array([3.0, -1.0, 2.0, 2.5, -2.0])

    def program(logits):
        if plate:
            with numpyro.plate("rows", 5):
                b = bernoulli("b", S, logits=logits)
        else:
            b = numpyro.sample("b", dist.Bernoulli(logits=logits).to_event(1), infer={"gradient": S})
        return Terms(costs * b + 1.0)

    function = expectation(program)
    measured = moments(
        lambda k: jax.grad(lambda a: function({}, k, a))(jnp.array(logits, jnp.float32)),
        KEY,
        2**17,
        batch_size=2**13,
    )
    p = special.expit(logits)
    one, zero = (costs + 1) * (1 - p), -p  # the draw's gradient where b is 1 and 0
    mean = p * one + (1 - p) * zero
    assert np.all(np.abs(measured.mean - mean) < Z_LIMIT * np.asarray(measured.standard_error))
    assert_variance(measured, p * one**2 + (1 - p) * zero**2 - mean**2)


COUPLINGS = {
    "reversed": lambda b, xp: b * b[::-1] + b,
    "cumulative": lambda b, xp: xp.cumsum(b) ** 2,
    "neighbours": lambda b, xp: b[1:] * b[:-1] + 0.5 * b[1:],
    "indexed": lambda b, xp: b[xp.asarray([2, 0, 0])] * (1 + b),
    "normalised": lambda b, xp: (1 + b) / (2 + b.sum()),
}


@pytest.mark.parametrize("strategy", [E, M, S])
@pytest.mark.parametrize(
    "coupling", [c if c != "normalised" else pytest.param(c, marks=pytest.mark.exhaustive) for c in COUPLINGS]
)
def test_plates_whose_elements_interact_get_the_right_gradient(coupling, strategy):
    logits, costs = np.array([-0.5, 0.3, 0.8]), np.array([1.0, 0.4, 1.6])
    weighted = lambda b, xp: COUPLINGS[coupling](b, xp) * costs[: 2 if coupling == "neighbours" else 3]  # noqa: E731

    def program():
        with numpyro.plate("rows", 3):
            b = bernoulli("b", strategy, logits=numpyro.param("l"))
        return Terms(weighted(jnp.asarray(b, float), jnp))

    def exact(p):
        q = special.expit(p["l"])
        return sum(np.where(b, q, 1 - q).prod() * weighted(b * 1.0, np).sum() for b in all_bits(3))

    expected = gradient(exact, {"l": logits})
    function = expectation(program)
    point = params_of({"l": logits})
    check_unbiased(lambda k: jax.value_and_grad(function)(point, k), KEY, expected, Z_LIMIT)


# Cost ----------------------------------------------------------------------------------------------------------------


def compiled(function, *args):
    return jax.jit(jax.value_and_grad(function)).lower(*args).compile()


def flops(function, *args):
    return compiled(function, *args).cost_analysis()["flops"]


def test_twenty_independent_sites_are_enumerated_exactly_at_linear_cost():
    costs = np.random.default_rng(0).normal(size=20)

    def program(num):
        return sum(
            (Terms(costs[i] * bernoulli(f"b{i}", logits=numpyro.param(f"l{i}"))) for i in range(num)),
            start=Terms(),
        )

    point = {f"l{i}": jnp.array(0.1 * i - 1) for i in range(20)}
    twenty, five = (expectation(lambda n=n: program(n)) for n in (20, 5))
    assert twenty.plan(point, KEY).sizes == [2]
    step = compiled(twenty, point, KEY)
    value, slopes = step(point, KEY)
    p = special.expit(0.1 * np.arange(20) - 1)
    np.testing.assert_allclose(value, p @ costs, rtol=1e-5)
    np.testing.assert_allclose([slopes[f"l{i}"] for i in range(20)], p * (1 - p) * costs, rtol=2e-5)
    assert step.cost_analysis()["flops"] < 4.4 * flops(five, point, KEY)


def test_a_pathwise_program_costs_what_handwritten_code_does():
    w = jax.random.normal(jax.random.key(0), (64, 64))

    def program(x):
        w = numpyro.param("w")
        z = numpyro.sample("z", dist.Normal(x @ w, 0.5).to_event(1))
        return jnp.sum(jnp.tanh(z @ w) ** 2)

    def handwritten(params, key, x):
        w = params["w"]
        z = x @ w + 0.5 * jax.random.normal(key, x.shape)
        return jnp.sum(jnp.tanh(z @ w) ** 2)

    arguments = {"w": w}, KEY, jnp.ones((128, 64))
    assert flops(expectation(program), *arguments) <= 1.02 * flops(handwritten, *arguments)


def test_what_if_runs_of_measure_valued_sites_do_not_double_with_each_site():
    w = jax.random.normal(jax.random.key(0), (100, 100))

    def program(num):
        b = jnp.stack([1.0 * bernoulli(f"b{i}", M, logits=numpyro.param(f"l{i}")) for i in range(num)])
        for _ in range(3):
            b = jnp.tanh(jnp.pad(b, (0, 100 - b.size)) @ w)
        return jnp.sum(b)

    point = {f"l{i}": jnp.array(0.1 * i) for i in range(8)}
    four, eight = (flops(expectation(lambda n=n: program(n)), point, KEY) for n in (4, 8))
    assert eight < 2.1 * four


# Edges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("strategy", [E, M, S])
@pytest.mark.parametrize("family", ["Bernoulli", "Categorical"])
def test_impossible_values_leave_no_nan(p, strategy, family):
    def program():
        probs = numpyro.param("p")
        fn = (
            dist.Bernoulli(probs=probs)
            if family == "Bernoulli"
            else dist.Categorical(probs=jnp.stack([1 - probs, probs]))
        )
        return jnp.where(numpyro.sample("b", fn, infer={"gradient": strategy}) == 1, 5.0, 2.0)

    value, slope = jax.value_and_grad(expectation(program))({"p": jnp.array(p)}, KEY)
    assert value == (5 if p else 2)
    if strategy is S:  # sees nothing of the value that has no probability
        assert np.isfinite(slope["p"])
    else:
        np.testing.assert_allclose(slope["p"], 3, rtol=1e-6)


def test_an_infinite_cost_of_an_impossible_value_does_not_count():
    def program():
        b = bernoulli("b", E, probs=numpyro.param("p"))
        return jnp.where(b == 1, jnp.inf, 2.0 + numpyro.param("s"))

    value, slope = jax.value_and_grad(expectation(program))({"p": jnp.array(0.0), "s": jnp.array(1.0)}, KEY)
    assert value == 3
    assert slope["s"] == 1
    assert not np.isnan(slope["p"])


@pytest.mark.parametrize("strategy", [E, M, S])
def test_logits_of_exactly_zero(strategy):
    function = expectation(lambda: 1.0 + 3.0 * bernoulli("b", strategy, logits=numpyro.param("l")))
    keys = jax.random.split(KEY, 50)
    values, slopes = jax.vmap(lambda k: jax.value_and_grad(function)({"l": jnp.array(0.0)}, k))(keys)
    expected = 0.75 if strategy is not S else np.where(values == 4, 2.0, -0.5)
    np.testing.assert_allclose(slopes["l"], expected, rtol=1e-6)


NOISY = pytest.mark.exhaustive  # the second derivative of a score function's box: many draws
SECOND = [(P, E), (P, S), (E, P), (E, S), pytest.param(S, E, marks=NOISY), pytest.param(S, S, marks=NOISY)]


@pytest.mark.parametrize(("first", "last"), SECOND)
def test_second_derivatives(first, last):
    """Of m and l in a chain of two sites; each enters its own site, and the first sample the second site too."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    coin_first = first is E

    def program():
        m, logit = numpyro.param("m"), numpyro.param("l")
        if coin_first:
            b = bernoulli("b", first, logits=logit)
            return jnp.cos(normal("x", m + 0.7 * b, 0.6, last) - 0.5) + 2 * m * b
        x = normal("x", m, 0.6, first)
        return jnp.cos(x - 0.5) + 2 * m * bernoulli("b", last, logits=logit + 0.7 * x)

    def exact(p):
        w = weights / np.sqrt(2 * np.pi)
        if coin_first:
            q = special.expit(p["l"])
            means = [w @ np.cos(p["m"] + 0.7 * b + 0.6 * nodes - 0.5) for b in (0, 1)]
            return (1 - q) * means[0] + q * (means[1] + 2 * p["m"])
        x = p["m"] + 0.6 * nodes
        return w @ (np.cos(x - 0.5) + 2 * p["m"] * special.expit(p["l"] + 0.7 * x))

    point = {"m": 0.4, "l": -0.3}
    names = ("l", "m")
    slope = lambda name: lambda p: gradient(exact, p, 2e-2)[1][name]  # noqa: E731
    expected = np.array([[gradient(slope(a), point, 2e-2)[1][b] for b in names] for a in names])

    def draw(key):
        hessian = jax.hessian(expectation(program))(params_of(point), key)
        return jnp.array([[hessian[a][b] for b in names] for a in names])

    check_unbiased(draw, KEY, expected, Z_LIMIT)


def test_second_derivatives_through_a_measure_valued_site_are_refused():
    function = expectation(lambda: 2.0 * bernoulli("b", M, probs=numpyro.param("p")))
    with pytest.raises(
        NotImplementedError, match=r"second derivatives.*MeasureValued\(\).*use ScoreFunction\(\)"
    ):
        jax.hessian(function)({"p": jnp.array(0.3)}, KEY)
    # The derivative of something else beside it is fine.
    assert np.isfinite(jax.grad(function)({"p": jnp.array(0.3)}, KEY)["p"])


# Baselines -----------------------------------------------------------------------------------------------------------


def shifted_coin(baseline):
    return lambda: 10.0 + bernoulli("b", ScoreFunction(baseline), logits=numpyro.param("l"))


def test_a_constant_baseline_has_the_variance_that_theory_says():
    p = special.expit(0.3)
    for value in (0.0, 9.0):
        draws = np.array([10 - value, 11 - value]) * np.array([-p, 1 - p])
        measured = gradients(expectation(shifted_coin(Constant(value))), {"l": jnp.array(0.3)})
        exact = p * (1 - p) * (draws[1] - draws[0]) ** 2
        assert_variance(
            measured._replace(variance=measured.variance["l"], variance_error=measured.variance_error["l"]),
            exact,
        )
        assert abs(measured.mean["l"] - p * (1 - p)) < Z_LIMIT * measured.standard_error["l"]


@pytest.mark.parametrize(("baseline", "num"), [(Constant(9.0), 1), (LeaveOneOut(), 4)])
def test_a_baseline_leaves_the_value_of_each_draw(baseline, num):
    with_and_without = (expectation(shifted_coin(b), num_particles=num) for b in (baseline, None))
    keys = jax.random.split(KEY, 32)
    values = [jax.vmap(lambda k, f=f: f({"l": jnp.array(0.3)}, k))(keys) for f in with_and_without]
    np.testing.assert_allclose(*values, rtol=1e-6)


def variance_of_slope(function, **kwargs):
    point = {"l": jnp.array(0.3)}
    draw = lambda k: jax.grad(lambda p: function(p, k, **kwargs), has_aux=bool(kwargs))(point)  # noqa: E731
    take = lambda k: (draw(k)[0] if kwargs else draw(k))["l"]  # noqa: E731
    measured = moments(take, KEY, 2**14, batch_size=2**12)
    p = special.expit(0.3)
    assert abs(measured.mean - p * (1 - p)) < Z_LIMIT * measured.standard_error
    return float(measured.variance)


def test_learning_baselines_train_through_scan_and_lower_the_variance():
    network = eqx.nn.MLP(1, "scalar", 4, 1, key=jax.random.key(0))
    plain = variance_of_slope(expectation(shifted_coin(None)))
    for baseline in (
        MovingAverage(0.9),
        Network(network, inputs=lambda: jnp.ones(1), optimizer=optax.adam(0.1)),
    ):
        function = expectation(shifted_coin(baseline), has_state=True)
        point = {"l": jnp.array(0.3)}
        state = function.init_state(point, KEY)

        @jax.jit
        def train(state, function=function, point=point):
            step = lambda state, k: function(point, k, state=state)[::-1]  # noqa: E731
            return jax.lax.scan(step, state, jax.random.split(KEY, 200))[0]

        trained = train(state)
        assert jax.tree.structure(trained) == jax.tree.structure(state)
        assert variance_of_slope(function, state=trained) < 0.02 * plain


def test_leave_one_out_lowers_the_variance():
    plain, left = (
        variance_of_slope(expectation(shifted_coin(b), num_particles=4)) for b in (None, LeaveOneOut())
    )
    assert left < 0.02 * plain


def test_baselines_of_several_particles_see_every_run():
    function = expectation(shifted_coin(MovingAverage(0.0)), num_particles=400, has_state=True)
    point = {"l": jnp.array(0.3)}
    value, state = function(point, KEY, state=function.init_state(point, KEY))
    np.testing.assert_allclose(MovingAverage().predict(state["b"], None, ()), value, rtol=1e-6)


def test_wrong_uses_of_baselines_are_refused():
    point = {"l": jnp.array(0.3)}
    with pytest.raises(ValueError, match=r"LeaveOneOut.*'b' needs num_particles of at least 2, got 1"):
        expectation(shifted_coin(LeaveOneOut()))(point, KEY)
    with pytest.raises(ValueError, match="MovingAverage at site 'b' learns: pass has_state=True"):
        expectation(shifted_coin(MovingAverage()))(point, KEY)
    with pytest.raises(ValueError, match=r"pass state=.*init_state"):
        expectation(shifted_coin(MovingAverage()), has_state=True)(point, KEY)
    network = Network(eqx.nn.MLP(1, "scalar", 4, 1, key=KEY))
    function = expectation(shifted_coin(network), has_state=True)
    with pytest.raises(ValueError, match=r"no inputs.*baseline_input"):
        function(point, KEY, state=function.init_state(point, KEY))
    with pytest.raises(ValueError, match="does not broadcast"):
        expectation(shifted_coin(Constant(np.ones(3))), has_state=True).init_state(point, KEY)


# As an ordinary function ----------------------------------------------------------------------------------------------


def test_particles_are_averaged():
    point = {"l": jnp.array(0.3)}
    single, many = (expectation(shifted_coin(None), num_particles=n) for n in (1, 16))
    assert 14 < variance_of_slope(single) / variance_of_slope(many) < 18.3
    assert many(point, KEY) == pytest.approx(10 + special.expit(0.3), abs=0.7)


def test_jit_vmap_and_the_gradient_of_array_arguments():
    def program(x, *, scale):
        b = bernoulli("b", E, logits=x.sum() + numpyro.param("l"))
        return scale * b * x[0]

    function = expectation(program)
    x, scale = jnp.array([0.4, -0.1]), jnp.array(1.5)

    def handwritten(params, x, scale):
        return scale * jax.nn.sigmoid(x.sum() + params["l"]) * x[0]

    point = {"l": jnp.array(0.2)}
    ours = jax.jit(jax.value_and_grad(lambda p, x, s: function(p, KEY, x, scale=s), (0, 1, 2)))(
        point, x, scale
    )
    theirs = jax.value_and_grad(handwritten, (0, 1, 2))(point, x, scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)
    batch = jnp.stack([x, 2 * x])
    mapped = jax.vmap(lambda x: jax.grad(function, 2)(point, KEY, x, scale=scale))(batch)
    exact = jax.vmap(lambda x: jax.grad(handwritten, 1)(point, x, scale))(batch)
    np.testing.assert_allclose(mapped, exact, rtol=1e-5)


# Strategies from outside ----------------------------------------------------------------------------------------------


def test_strategies_are_chosen_at_the_site_from_outside_or_by_default():
    def program():
        b = bernoulli("b", S, probs=0.3)
        x = normal("x", 0.0, 1.0)
        n = numpyro.sample("n", dist.Poisson(3.0))
        many = numpyro.sample("many", dist.Bernoulli(0.5).expand([9]).to_event(1))
        return b + x + n + jnp.sin(many.sum()) + bernoulli("c", probs=0.5)

    default = expectation(program)
    expected = {
        "b": "ScoreFunction",
        "x": "Pathwise",
        "n": "ScoreFunction",
        "many": "ScoreFunction",
        "c": "Enumerate",
    }
    assert strategy_names(default, {}) == expected
    changed = {**expected, "b": "MeasureValued", "x": "ScoreFunction"}
    choice = {"b": M, "x": S}
    assert strategy_names(default.with_strategies(choice), {}) == changed
    assert strategy_names(expectation(strategies(program, choice)), {}) == changed
    assert strategy_names(default.with_strategies(choice.get), {}) == changed
    # The outermost choice wins.
    assert strategy_names(expectation(strategies(program, {"b": E})).with_strategies(choice), {}) == changed


def test_strategies_reach_sites_in_scan_cond_replicate_and_simulate():
    def inner():
        numpyro.sample("simulated", dist.Bernoulli(0.3))

    def program():
        b = bernoulli("b", probs=0.3)
        x = cond(b == 1, lambda _: normal("x", 0.0, 1.0), lambda _: normal("x", 1.0, 1.0), None)
        ys = scan(lambda c, _: (c, normal("y", c, 1.0)), 0.0, None, length=2)[1]
        z = replicate(lambda: normal("z", 0.0, 1.0), 2)()
        return x + ys.sum() + z.sum() + simulate(inner).values["simulated"] + b

    choice = {"x": M, "y": S, "z": M, "simulated": S, "b": E}
    expected = {
        "b": "Enumerate", "cond/true/x": "MeasureValued", "cond/false/x": "MeasureValued", "scan/y": "ScoreFunction",
        "particles/z": "MeasureValued", "simulated": "ScoreFunction",
    }  # fmt: skip
    assert strategy_names(expectation(program).with_strategies(choice), {}) == expected

    def chosen_inside():
        with strategies(choice=choice):
            return program()

    assert strategy_names(expectation(chosen_inside), {}) == expected


def test_choices_for_sites_that_do_not_exist_are_refused():
    function = expectation(shifted_coin(None)).with_strategies({"beta": E})
    with pytest.raises(ValueError, match=r"\['beta'\].*it has \['b'\]"):
        function({"l": jnp.array(0.1)}, KEY)


# Bad input -----------------------------------------------------------------------------------------------------------


def sampling(fn, strategy):
    return lambda: jnp.sum(numpyro.sample("z", fn, infer={"gradient": strategy}) * 1.0)


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (sampling(dist.Normal(0, 1), "reinforce"), TypeError, r"site 'z' is 'reinforce'; pass one of .*Enumerate"),
        (sampling(dist.Normal(0, 1), ScoreFunction), TypeError, r"the class ScoreFunction; pass ScoreFunction\(\)"),
        (sampling(dist.Poisson(2.0), E), ValueError, r"Poisson, .*cannot be enumerated; use Meas"),
        (sampling(dist.Normal(0, 1), E), ValueError, "Normal, whose values cannot be enumerated"),
        (sampling(dist.Beta(2.0, 2.0), M), ValueError, r"Beta, for which MeasureValued has no rule; use Path"),
        (sampling(dist.Bernoulli(0.5), P), ValueError, r"Pathwise\(\) would lose its gradient; use Enumerate\(\) or Mea"),
        (sampling(dist.Poisson(2.0), P), ValueError, r"lose its gradient; use MeasureValued\(\) or ScoreFunction\(\)"),
        (sampling(dist.Poisson(2.0), StraightThrough()), (TypeError, ValueError), "Poisson, for which StraightThrough has"),
        (sampling(dist.Categorical(jnp.ones(3) / 3), GumbelSoftmax(0.5)), (TypeError, ValueError), "OneHotCategorical"),
        (lambda: jnp.sin(sampling(dist.Bernoulli(0.5).expand([20]).to_event(1), E)()), ValueError, r"2\^20 combinations"),
        (lambda: jnp.stack([1.0, bernoulli("b", E, probs=0.3)]), ValueError, r"must return a scalar, got an array of shape \(2,\)"),
        (lambda: 1j * bernoulli("b", E, probs=0.3), ValueError, "must return a real number, got complex64"),
    ],
)  # fmt: skip
def test_bad_programs_are_refused(program, error, message):
    with pytest.raises(error, match=message):
        expectation(program)({}, KEY)


@pytest.mark.parametrize("num", [0, -1, 1.5, True])
def test_a_wrong_number_of_particles_is_refused(num):
    with pytest.raises(ValueError, match="num_particles must be a positive integer"):
        expectation(sampling(dist.Normal(0, 1), P), num_particles=num)


def test_bad_choices_are_refused():
    function = expectation(sampling(dist.Normal(0, 1), P))
    with pytest.raises(TypeError, match=r"the class Pathwise; pass Pathwise\(\)"):
        function.with_strategies({"z": Pathwise})
    with pytest.raises(TypeError, match="must map site names to strategies"):
        function.with_strategies(P)
    with pytest.raises(ValueError, match="temperature must be positive"):
        GumbelSoftmax(0.0)


def test_a_parameter_that_is_missing_is_named():
    with pytest.raises(ValueError, match="no entry for the param site 'l'"):
        expectation(shifted_coin(None))({}, KEY)


# Terms that keep elements apart beside terms that mix them ----------------------------------------------------------


def joint(values, probability):
    """Expectation over independent bits with these probabilities."""
    bits = np.array(list(itertools.product((0, 1), repeat=len(probability))))
    weights = np.prod(np.where(bits, probability, 1 - probability), axis=1)
    return weights @ np.array([values(b) for b in bits])


@pytest.mark.parametrize("strategy", [None, E, M, S])
def test_an_elementwise_prior_beside_a_joint_likelihood(strategy):
    slopes, logits = np.array([1.0, 2.0, -1.0]), np.array([0.2, -0.5, 0.9])
    infer = {} if strategy is None else {"gradient": strategy}

    def model():
        with numpyro.plate("bits", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(jnp.sum(z * slopes), 1.0), obs=1.3)

    def guide():
        with numpyro.plate("bits", 3):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(3))), infer=infer)

    def exact(p):
        q = special.expit(p["l"])

        def log_ratio(b):
            prior = np.sum(np.where(b, np.log(0.3), np.log(0.7)) - np.where(b, np.log(q), np.log(1 - q)))
            return prior + stats.norm.logpdf(1.3, b @ slopes)

        return joint(log_ratio, q)

    params = {"l": jnp.array(logits, jnp.float32)}
    draw = lambda k: jax.value_and_grad(elbo(model, guide))(params, k)  # noqa: E731
    check_unbiased(draw, KEY, gradient(exact, {"l": logits}), Z_LIMIT)


@pytest.mark.parametrize("strategy", [E, M, S])
def test_terms_that_mix_different_axes(strategy):
    at = np.array([[0.2, -0.4], [0.6, 0.1]])

    def program():
        z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("l")), infer={"gradient": strategy})
        return Terms(jnp.sum(z, 0) ** 2.0, jnp.sum(z, 1) ** 3.0)

    def exact(p):
        value = lambda b: np.sum(b.reshape(2, 2).sum(0) ** 2) + np.sum(b.reshape(2, 2).sum(1) ** 3)  # noqa: E731
        return joint(value, special.expit(p["l"]).ravel())

    params = {"l": jnp.array(at, jnp.float32)}
    draw = lambda k: jax.value_and_grad(expectation(program))(params, k)  # noqa: E731
    check_unbiased(draw, KEY, gradient(exact, {"l": at}), Z_LIMIT)


def test_too_many_sites_that_meet_are_refused():
    def program():
        return sum(bernoulli(f"b{i}", E, probs=0.5) for i in range(40)) ** 2.0

    with pytest.raises(ValueError, match="which meet in one term of the cost, would have to run"):
        expectation(program)({}, KEY)


def test_a_sum_whose_terms_are_returned_apart_is_enumerated():
    costs = lambda: [bernoulli(f"b{i}", E, probs=0.3) * (i + 1.0) for i in range(40)]  # noqa: E731
    with pytest.raises(ValueError, match=r"return its terms apart, as vinb.estimators.Terms\("):
        expectation(lambda: sum(costs()))({}, KEY)
    np.testing.assert_allclose(expectation(lambda: Terms(*costs()))({}, KEY), 0.3 * 40 * 41 / 2, rtol=1e-6)


def test_choices_of_strategies_add_up():
    def program():
        p = numpyro.param("p")
        return bernoulli("a", None, probs=p) + 1.0 * bernoulli("b", None, probs=p)

    params = {"p": jnp.array(0.3)}
    chosen = expectation(program).with_strategies({"a": S, "b": S}).with_strategies({"a": M})
    plan = chosen.plan(params, KEY)
    assert (plan.strategy("a"), plan.strategy("b")) == (M, S)


def test_mixed_second_derivatives_through_a_measure_valued_site_are_refused():
    function = expectation(lambda: numpyro.param("b") ** 2 * bernoulli("z", M, logits=numpyro.param("a")))
    params = {"a": jnp.array(0.3), "b": jnp.array(2.0)}
    for outer, inner in (("a", "b"), ("b", "a")):
        slope = lambda p, inner=inner: jax.grad(function)(p, KEY)[inner]  # noqa: E731
        with pytest.raises(NotImplementedError, match="second derivatives"):
            jax.grad(slope)(params)[outer]


@pytest.mark.parametrize(
    "make",
    [
        lambda a: dist.Delta(a),
        lambda a: dist.TransformedDistribution(
            dist.Uniform(0.0, 1.0), dist.transforms.AffineTransform(a, 2.0)
        ),
    ],
)
def test_the_score_function_refuses_supports_that_move_unseen(make):
    function = expectation(lambda: numpyro.sample("z", make(numpyro.param("a")), infer={"gradient": S}) ** 2)
    with pytest.raises(ValueError, match="support"):
        jax.grad(function)({"a": jnp.array(0.3)}, KEY)


def test_score_functions_in_verbs_replicas_and_branches_within_a_scan():
    def program():
        p = numpyro.param("p")

        def step(carry, _):
            q = simulate(lambda: bernoulli("z", S, logits=p + 0.5 * carry))
            z = q.values["z"]
            w = replicate(lambda: bernoulli("w", S, logits=p - 0.4 * z), 2)()
            on, off = (lambda k, a=a: bernoulli("v", S, logits=a * k) for a in (1.0, -0.5))
            carry = z + 0.5 * w.sum()
            return carry, (carry + cond(z == 1, on, off, p)) ** 2 - q.log_density.total()

        return scan(step, 0.0, None, length=2)[1].sum()

    def exact(q):
        bit = lambda value, logits: special.expit((2 * value - 1) * logits)  # noqa: E731
        total, reached = 0.0, {0.0: 1.0}
        for _ in range(2):
            after = {}
            for before, weight in reached.items():
                for z, *w, v in all_bits(4):
                    first = bit(z, q["p"] + 0.5 * before)
                    chance = weight * first * bit(v, q["p"] if z else -0.5 * q["p"])
                    chance *= np.prod([bit(one, q["p"] - 0.4 * z) for one in w])
                    carry = z + 0.5 * sum(w)
                    total += chance * ((carry + v) ** 2 - np.log(first))
                    after[carry] = after.get(carry, 0.0) + chance
            reached = after
        return total

    function = expectation(program)
    expected = gradient(exact, {"p": 0.3})
    check_unbiased(lambda k: jax.value_and_grad(function)({"p": jnp.array(0.3)}, k), KEY, expected, Z_LIMIT)


class Somewhere(dist.Distribution):
    """A unit interval of constant density, wherever it lies."""

    arg_constraints = {"loc": dist.constraints.real}  # noqa: RUF012
    support, reparametrized_params = dist.constraints.real, ["loc"]

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc))

    def sample(self, key, sample_shape=()):
        return self.loc + jax.random.uniform(key, sample_shape + self.batch_shape)

    def log_prob(self, value):
        return jnp.zeros(jnp.shape(value))


def test_a_draw_may_depend_on_what_its_density_does_not():
    def program():
        b = bernoulli("b", S, probs=numpyro.param("p"))
        return numpyro.sample("u", Somewhere(2.0 * b)) ** 2

    function = expectation(program)  # E[u^2] is 1/3 at b = 0 and 19/3 at b = 1
    expected = 1 / 3 + 6 * 0.3, {"p": 6.0}
    check_unbiased(lambda k: jax.value_and_grad(function)({"p": jnp.array(0.3)}, k), KEY, expected, Z_LIMIT)


def test_what_a_moved_site_does_not_influence_is_not_drawn_again():
    drawn = []

    class Counted(dist.Normal):
        def sample(self, key, sample_shape=()):
            drawn.append(key)
            return super().sample(key, sample_shape)

    def program(num_moved):
        x = numpyro.sample("x", Counted(numpyro.param("m"), 1.0), infer={"gradient": P})
        return sum((x - bernoulli(f"b{k}", M, probs=0.3)) ** 2 for k in range(num_moved))

    counts = []
    for num_moved in (1, 4):
        drawn.clear()
        jax.grad(expectation(program))({"m": jnp.array(0.2)}, KEY, num_moved)
        counts.append(len(drawn))
    assert counts[0] == counts[1]


def test_a_baseline_is_dropped_where_its_term_is_multiplied_by_something_random():
    def program():
        z = replicate(lambda: bernoulli("z", S, probs=numpyro.param("p")), 2)()
        cost = with_baseline(z[0] + 2 * z[1], "particles", jnp.array([5.0, -3.0]))
        return cost * (1 + z[0] * z[1])

    def exact(q):
        return sum(
            np.prod([q["p"] if b else 1 - q["p"] for b in z]) * (z[0] + 2 * z[1]) * (1 + z[0] * z[1])
            for z in all_bits(2)
        )

    function = expectation(program)
    expected = gradient(exact, {"p": 0.3})
    check_unbiased(lambda k: jax.value_and_grad(function)({"p": jnp.array(0.3)}, k), KEY, expected, Z_LIMIT)


def test_a_closed_form_sees_that_a_draw_depends_on_what_its_density_does_not():
    def guide():
        x = normal("x", numpyro.param("a"), 1.0)
        numpyro.sample("u", Somewhere(x))

    def model():
        normal("x", normal("u", 0.0, 1.0), 1.0)

    # Of E[log N(u; 0, 1) + log N(x; u, 1) - log N(x; a, 1)] with u - x uniform and x ~ N(a, 1).
    exact = lambda q: -0.5 * np.log(2 * np.pi) - 0.5 * (1 + (q["a"] + 0.5) ** 2 + 1 / 12) - 1 / 6 + 0.5  # noqa: E731
    expected = gradient(exact, {"a": 0.3})
    bound = elbo(model, guide)
    check_unbiased(lambda k: jax.value_and_grad(bound)({"a": jnp.array(0.3)}, k), KEY, expected, Z_LIMIT)


@pytest.mark.parametrize("outer", ["particles", "scan"])
def test_a_cond_beside_a_nested_frame_keeps_its_own_sites(outer):
    def program():
        a, b = numpyro.param("a"), numpyro.param("b")
        m = bernoulli("m", M if outer == "particles" else S, logits=b)

        def one():
            x = cond(a > 0, lambda o: normal("x", o, 1.0), lambda o: normal("x", -o, 1.0), 0.3 * a)
            return x + replicate(lambda: bernoulli("z", S, logits=a), 2)().sum()

        y = replicate(one, 2)() if outer == "particles" else scan(lambda c, _: (c, one()), 0.0, None, 2)[1]
        return (1 + y[0]) * (1 + y[1]) * m

    exact = lambda q: special.expit(q["b"]) * (1 + 0.3 * q["a"] + 2 * special.expit(q["a"])) ** 2  # noqa: E731
    function = expectation(program)
    point = {"a": 0.4, "b": 0.3}
    names = [s.removeprefix(f"{outer}/") for s in function.plan(params_of(point), KEY).sites]
    assert names == ["m", "cond/true/x", "cond/false/x", "particles/z"]
    check_unbiased(
        lambda k: jax.value_and_grad(function)(params_of(point), k), KEY, gradient(exact, point), Z_LIMIT
    )
