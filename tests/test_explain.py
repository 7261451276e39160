"""What ``explain`` says of a program's sites, and what ``gradient_variance`` measures, against closed forms.

A variance is compared with its closed form at 4.5 of its standard errors (false-alarm rate 7e-6), which are below 1 % of it.
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

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
    explain,
    gradient_variance,
)
from vinb.objectives import elbo, iwelbo

KEY = jax.random.key(5)
COLUMNS = ("site", "distribution", "elements", "strategy", "why", "runs")
Z_LIMIT = 4.5


def rows(table):
    assert table.columns == COLUMNS
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table.rows}


def runs_with_and_without(table):
    return tuple(map(int, re.match(r"(\d+) run\(s\).* and (\d+) without", table.caption).groups()))


def mixed():
    """One site per reason."""
    t = numpyro.param("t", 0.3)
    x = numpyro.sample("x", dist.Normal(t, 1.0))
    b = numpyro.sample("b", dist.Bernoulli(jax.nn.sigmoid(x)))
    c = numpyro.sample("c", dist.Categorical(jnp.ones(3) / 3), infer={"gradient": MeasureValued()})
    n = numpyro.sample("n", dist.Poisson(jnp.exp(t)))
    with numpyro.plate("many", 5):
        z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(t)))
    numpyro.sample("idle", dist.Bernoulli(0.5))
    return x * b + c * n + jnp.prod(1.0 + z) * b


def test_explain_gives_site_strategy_reason_and_runs():
    table = explain(mixed)({"t": jnp.array(0.3)}, KEY)
    found = rows(table)
    assert list(found) == ["x", "b", "c", "n", "z", "idle"]
    assert {s: r["strategy"] for s, r in found.items()} == {
        "x": "Pathwise", "b": "Enumerate", "c": "MeasureValued", "n": "ScoreFunction", "z": "ScoreFunction", "idle": "Enumerate",
    }  # fmt: skip
    assert found["x"] | {"why": ""} == {
        "site": "x", "distribution": "Normal", "elements": "()", "strategy": "Pathwise", "why": "", "runs": "-",
    }  # fmt: skip
    assert "reparameterised" in found["x"]["why"]
    assert found["b"]["why"] == "small finite support"
    assert found["c"]["why"] == "chosen"
    assert found["n"]["why"] == "neither reparameterised nor of finite support"
    assert found["z"]["why"].startswith("2^5 combinations are too many")
    assert found["z"]["elements"] == "(5,)"
    assert found["b"]["runs"] == "x 2"
    assert found["idle"]["runs"] == "no influence on the cost"
    # c meets neither b nor z in a term of the cost, but the cost is one sum: each of its alternatives is run for both values of b.
    alternatives = int(re.match(r"\+ (\d+) without", found["c"]["runs"])[1])
    assert alternatives >= 1
    assert runs_with_and_without(table) == (2, 2 * alternatives)


def test_explain_counts_independent_sites_once():
    def program():
        with numpyro.plate("rows", 20):
            return 1.0 * numpyro.sample(
                "b", dist.Bernoulli(numpyro.param("p")), infer={"gradient": Enumerate()}
            )

    apart = explain(lambda: Terms(program()))({"p": jnp.full(20, 0.3)}, KEY)
    assert rows(apart)["b"]["runs"] == "x 2"
    assert runs_with_and_without(apart) == (2, 0)


def test_explain_marks_what_is_biased():
    bit = lambda: 1.0 * numpyro.sample("b", dist.Bernoulli(numpyro.param("p")))  # noqa: E731
    for strategy in (StraightThrough(), GumbelSoftmax(0.5)):
        found = rows(explain(expectation(bit).with_strategies({"b": strategy}))({"p": jnp.array(0.3)}, KEY))
        assert found["b"]["strategy"].endswith("(BIASED)")
    found = rows(
        explain(expectation(bit).with_strategies({"b": ScoreFunction()}))({"p": jnp.array(0.3)}, KEY)
    )
    assert "BIASED" not in found["b"]["strategy"]


def gaussian_model():
    numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=1.2)


def gaussian_guide():
    numpyro.sample("x", dist.Normal(numpyro.param("m", 0.3), jnp.exp(numpyro.param("l", -0.5))))


GAUSSIAN = {"m": jnp.array(0.3), "l": jnp.array(-0.5)}


@pytest.mark.parametrize(("kl", "says"), [("auto", "divergence in closed form"), ("monte-carlo", None)])
def test_explain_says_how_the_divergence_is_taken(kl, says):
    why = rows(explain(elbo(gaussian_model, gaussian_guide, kl=kl))(GAUSSIAN, KEY))["x"]["why"]
    assert (says in why) if says else ("divergence" not in why)


@pytest.mark.parametrize(
    ("gradient", "num_particles", "biased"),
    [
        ("sticking-the-landing", 5, True),
        ("sticking-the-landing", 1, False),
        ("doubly-reparameterised", 5, False),
        ("plain", 5, False),
    ],
)
def test_explain_marks_the_biased_gradient_of_importance_weighted_bounds(gradient, num_particles, biased):
    bound = iwelbo(gaussian_model, gaussian_guide, num_particles=num_particles, gradient=gradient)
    assert ("BIASED" in explain(bound)(GAUSSIAN, KEY).caption) == biased
    compared = gradient_variance(bound, GAUSSIAN, KEY, strategies={"it": None}, num_draws=100)
    assert compared.rows[0].biased == biased
    assert ("BIASED" in str(compared)) == biased


# ---- gradient_variance, on ADEV's coin: the cost is 0 for heads and -t/2 for tails

T = 0.3


def flip():
    t = numpyro.param("t", T)
    b = numpyro.sample("b", dist.Bernoulli(t))
    return jnp.where(b == 1, 0.0, -t / 2)


def score_variance(baseline):
    heads, tails = -baseline / T, -0.5 + (T / 2 + baseline) / (1 - T)
    return T * (1 - T) * (heads - tails) ** 2


def assert_variance(row, exact):
    assert row.variance_error < 0.01 * exact
    assert abs(row.variance - exact) < Z_LIMIT * row.variance_error


def test_gradient_variance_measures_variance_cost_and_runs():
    chosen = {
        "enumerated": {"b": Enumerate()},
        "moved": {"b": MeasureValued()},
        "score": {"b": ScoreFunction()},
        "constant": {"b": ScoreFunction(Constant(-0.2))},
        "default": None,
        "relaxed": {"b": StraightThrough()},
    }
    compared = gradient_variance(flip, {"t": jnp.array(T)}, KEY, strategies=chosen, num_draws=200_000)
    by_label = {row.label: row for row in compared.rows}
    assert list(by_label) == list(chosen)
    assert by_label["enumerated"].variance < 1e-12
    assert_variance(by_label["moved"], T * (1 - T) / 4)
    assert_variance(by_label["score"], score_variance(0.0))
    assert_variance(by_label["constant"], score_variance(-0.2))
    assert by_label["default"].variance == by_label["enumerated"].variance
    assert by_label["enumerated"].runs == (0, 2)
    assert by_label["moved"].runs == (1, 1)
    assert by_label["score"].runs == (0, 1)
    assert [label for label, row in by_label.items() if row.biased] == ["relaxed"]
    assert all(row.flops > 0 for row in compared.rows)
    np.testing.assert_allclose(by_label["moved"].gradient.mean["t"], T - 0.5, atol=0.01)
    table = compared.table()
    assert [row[0] for row in table.rows] == [*list(chosen)[:-1], "relaxed (BIASED)"]
    assert table.rows[0][-1] == "0"
    assert table.rows[1][-1] == "1"  # the first with a variance is what the others' work is relative to
    work = by_label["score"].variance * by_label["score"].flops
    assert float(table.rows[2][-1]) == pytest.approx(
        work / (by_label["moved"].variance * by_label["moved"].flops), rel=0.01
    )


def test_gradient_variance_lets_baselines_learn_first():
    network = eqx.nn.MLP(1, "scalar", 4, 1, key=KEY)
    known = lambda **_: jnp.ones(1)  # noqa: E731
    chosen = {
        "average": {"b": ScoreFunction(MovingAverage(0.999))},
        "network": {"b": ScoreFunction(Network(network, known, optax.adam(1e-3), batch_ndims=0))},
    }
    compared = gradient_variance(
        flip, {"t": jnp.array(T)}, KEY, strategies=chosen, num_draws=200_000, baseline_steps=4000
    )
    mean_cost = -(1 - T) * T / 2
    for row in compared.rows:
        assert row.variance == pytest.approx(score_variance(mean_cost), rel=0.15)
        assert abs(row.gradient.mean["t"] - (T - 0.5)) < Z_LIMIT * row.gradient.standard_error["t"]
    assert score_variance(mean_cost) > 2 * score_variance(0.0)  # here the mean is a worse baseline than none


def test_gradient_variance_with_particles_counts_work_per_particle():
    one = expectation(flip).with_strategies({"b": ScoreFunction()})
    many = expectation(flip, num_particles=4)
    first = gradient_variance(one, {"t": jnp.array(T)}, KEY, strategies={"score": None}, num_draws=100_000)
    chosen = {"score": {"b": ScoreFunction()}, "leave one out": {"b": ScoreFunction(LeaveOneOut())}}
    compared = gradient_variance(many, {"t": jnp.array(T)}, KEY, strategies=chosen, num_draws=100_000)
    assert_variance(compared.rows[0], score_variance(0.0) / 4)
    assert compared.rows[0].flops < 3 * first.rows[0].flops
    assert compared.rows[1].variance != compared.rows[0].variance


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategies": {}}, "strategies is empty"),
        ({"strategies": {"a": {"nowhere": Pathwise()}}}, "nowhere"),
        ({"strategies": {"a": None}, "num_draws": 1}, "num_draws must be at least 2"),
        (
            {"strategies": {"a": None}, "baseline_steps": 0},
            "baseline_steps must be a positive integer, got 0",
        ),
        ({"strategies": {"a": {"b": Pathwise()}}}, "no reparameterised sampler"),
    ],
)
def test_gradient_variance_says_what_does_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        gradient_variance(flip, {"t": jnp.array(T)}, KEY, **given)
