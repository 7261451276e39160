"""Strategy "auto": pathwise exactly where it is shown to be right; and the audit that tells of it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoNormal

from vinb.analysis import Verdict, audit
from vinb.estimators import Auto, Enumerate, Pathwise, ScoreFunction, expectation, explain, init, moments
from vinb.objectives import elbo, iwelbo

KEY = jax.random.key(0)
SIGMAS = 5.0  # of a z-test: a false alarm in 2 million


def jump():
    z1 = numpyro.sample("z1", dist.Normal(0, 5))
    z2 = numpyro.sample("z2", dist.Normal(z1, 3))
    numpyro.sample("x", dist.Normal(jnp.where(z2 > 0, 1.0, -2.0), 1.0), obs=0.0)


def normals():
    numpyro.sample("z1", dist.Normal(numpyro.param("theta1", 1.0), 1))
    numpyro.sample("z2", dist.Normal(numpyro.param("theta2", 1.0), 1))


def chosen(objective, *args, programs=None):
    params = init(programs or objective.program, KEY, *args)
    plan = objective.plan(params, KEY, *args)
    return {name: str(strategy) for name, (strategy, _) in plan.strategies.items()}


def cost(fn, distribution=None):
    """The expectation of ``fn(z)`` of a normal ``z``, with "auto"."""
    distribution = dist.Normal if distribution is None else distribution

    def program():
        loc = numpyro.param("loc", 0.3)
        return fn(numpyro.sample("z", distribution(loc, 1.0), infer={"gradient": "auto"}))

    return expectation(program)


@pytest.mark.parametrize(
    "make", [elbo, lambda m, g: elbo(m, g, kl="monte-carlo"), lambda m, g: iwelbo(m, g, num_particles=3)]
)
def test_the_site_that_a_branch_depends_on_has_the_score_function(make):
    kinds = chosen(make(jump, normals).with_strategies("auto"))
    assert {name.rsplit("/", 1)[-1]: kind for name, kind in kinds.items()} == {
        "z1": "Pathwise",
        "z2": "ScoreFunction",
    }


def test_it_is_unbiased_where_plain_pathwise_is_not():
    """Derivatives of the bound in closed form (lee2023smoothness, the example with a jump)."""
    exact = np.array([-0.04, -(1 - 1) / 9 + 1.5 * norm.pdf(1.0)])
    params = init((jump, normals), KEY)
    objective = elbo(jump, normals, kl="monte-carlo")

    def mean(objective):
        found = moments(lambda key: jax.grad(objective)(params, key), KEY, 5_000_000)
        pair = lambda tree: np.array([tree["theta1"], tree["theta2"]])  # noqa: E731
        return pair(found.mean), pair(found.standard_error)

    value, error = mean(objective.with_strategies("auto"))
    assert np.all(np.abs(value - exact) < SIGMAS * error)
    assert SIGMAS * error[1] < 0.02 * exact[1]  # so that 2 % would be seen
    plain, error = mean(objective)
    assert abs(plain[1] - exact[1]) > 30 * error[1]


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (lambda z: z**2, "Pathwise"),
        (jax.nn.relu, "Pathwise"),
        (lambda z: jnp.where(z > 0, 1.0, 0.0), "ScoreFunction"),
        (jnp.floor, "ScoreFunction"),
        (lambda z: jnp.sqrt(jnp.abs(z)), "ScoreFunction"),
        (lambda z: 1 / z, "ScoreFunction"),
        (lambda z: jax.jit(jnp.sin)(z), "Pathwise"),
        (lambda z: jax.lax.cond(z > 0, jnp.sin, jnp.cos, z), "ScoreFunction"),
        (lambda z: jnp.sum(jnp.linalg.qr(z * jnp.eye(2))[0]), "ScoreFunction"),
    ],
)  # fmt: skip
def test_costs(fn, kind):
    assert chosen(cost(fn)) == {"z": kind}


def test_a_support_makes_a_cost_smooth():
    positive = lambda loc, scale: dist.Gamma(jnp.exp(loc), scale)  # noqa: E731
    assert chosen(cost(jnp.log, positive)) == {"z": "Pathwise"}
    assert chosen(cost(jnp.log)) == {"z": "ScoreFunction"}


def test_sites_that_follow_roughly_keep_a_site_from_moving():
    def program(smooth):
        loc = numpyro.param("loc", 0.3)
        a = numpyro.sample("a", dist.Normal(loc, 1.0))
        b = numpyro.sample("b", dist.Normal(jnp.sin(a) if smooth else jnp.sign(a), 1.0))
        return b**2

    rough = expectation(lambda: program(False)).with_strategies("auto")
    assert chosen(rough) == {"a": "ScoreFunction", "b": "Pathwise"}
    assert chosen(expectation(lambda: program(True)).with_strategies("auto")) == {
        "a": "Pathwise",
        "b": "Pathwise",
    }
    # A site that is held: its density is differentiated instead.
    assert chosen(rough.with_strategies({"b": ScoreFunction()})) == {
        "a": "ScoreFunction",
        "b": "ScoreFunction",
    }


def test_a_parameter_in_a_jump_is_told():
    def program():
        loc = numpyro.param("loc", 0.3)
        return numpyro.sample("z", dist.Normal(jnp.floor(loc), 1.0), infer={"gradient": Auto()}) ** 2

    objective = expectation(program)
    assert chosen(objective) == {"z": "ScoreFunction"}
    text = str(explain(objective)(init(program, KEY), KEY))
    assert "'loc'" in text
    assert "'floor'" in text


def test_discrete_sites_and_given_strategies_are_as_without():
    def program():
        probs = numpyro.param("probs", 0.4, constraint=dist.constraints.unit_interval)
        c = numpyro.sample("c", dist.Bernoulli(probs))
        many = numpyro.sample("n", dist.Poisson(2.0))
        given = numpyro.sample("given", dist.Normal(probs, 1.0), infer={"gradient": ScoreFunction()})
        z = numpyro.sample("z", dist.Normal(probs, 1.0))
        return jnp.where(c == 1, z, -z) + many * given

    kinds = chosen(expectation(program).with_strategies("auto"))
    assert kinds == {
        "c": str(Enumerate()),
        "n": str(ScoreFunction()),
        "given": str(ScoreFunction()),
        "z": str(Pathwise()),
    }


def test_loops_plates_and_automatic_guides():
    def model(x):
        def step(carry, y):
            z = numpyro.sample("z", dist.Normal(carry, 1.0))
            numpyro.sample("x", dist.Normal(jax.nn.relu(z), 1.0), obs=y)
            return z, None

        scan(step, 0.0, x)

    def guide(x):
        shift = numpyro.param("shift", 0.1)

        def step(carry, y):
            return numpyro.sample("z", dist.Normal(carry + shift, 1.0)), None

        scan(step, 0.0, x)

    x = jnp.arange(3.0)
    kinds = chosen(elbo(model, guide).with_strategies("auto"), x, programs=(model, guide))
    assert set(kinds.values()) == {"Pathwise"}

    def scales(x):
        s = numpyro.sample("s", dist.Gamma(2.0, 1.0))
        with numpyro.plate("data", 3):
            numpyro.sample("x", dist.Normal(0.0, s), obs=x)

    automatic = AutoNormal(scales)
    objective = elbo(scales, automatic).with_strategies("auto")
    params = init((scales, automatic), KEY, x)
    assert {str(s) for s, _ in objective.plan(params, KEY, x).strategies.values()} == {"Pathwise"}


def test_the_gradient_is_that_of_the_strategies_it_chose():
    params = init((jump, normals), KEY)
    objective = elbo(jump, normals)
    same = objective.with_strategies({"z1": Pathwise(), "z2": ScoreFunction()})
    first, second = (jax.grad(o)(params, KEY) for o in (objective.with_strategies("auto"), same))
    assert jax.tree.map(float, first) == pytest.approx(jax.tree.map(float, second))


def test_wrong_names_are_refused():
    with pytest.raises(TypeError, match="'auto'"):
        elbo(jump, normals).with_strategies("automatic")
    wrong = expectation(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0), infer={"gradient": "score"}))
    with pytest.raises(TypeError, match=r"Auto\(\)"):
        wrong({}, KEY)


# ---- the audit


def test_audit_of_a_model_with_a_jump():
    found = audit(jump, normals, num_draws=100)
    assert found.verdict == Verdict.VALID
    assert not found.ok
    first, second = found.sites
    assert (first.strategy, first.advice) == ("Pathwise", ())
    assert second.strategy == "ScoreFunction"
    assert "test_automatic.py" in second.advice[0]
    assert second.noise > first.noise > 0
    assert any("MeasureValued" in text for text in second.advice)
    assert "z2" in str(found)
    assert "z2" in found._repr_html_()


def test_audit_of_a_wrong_guide():
    def model(x):
        sigma = numpyro.sample("sigma", dist.Uniform(0.0, 10.0))
        numpyro.sample("x", dist.Normal(0.0, sigma), obs=x)

    def guide(x):
        numpyro.sample("sigma", dist.Normal(numpyro.param("loc", 5.0), 0.05))

    found = audit(model, guide, 1.0, num_draws=0)
    assert found.verdict == Verdict.INVALID
    assert found.sites[0].support == Verdict.INVALID
    assert found.sites[0].noise is None
    assert "support" in found.sites[0].advice[0]
    right = AutoNormal(model)
    assert audit(model, right, 1.0, num_draws=0).ok

    def broken(x):
        raise RuntimeError("no such thing")

    assert audit(broken, guide, 1.0).verdict == Verdict.ERROR
    with pytest.raises(ValueError, match="num_draws"):
        audit(model, right, 1.0, num_draws=1)


def test_the_ends_of_a_support_are_known():
    """A uniform law with ends of numbers moves smoothly between them."""
    uniform = lambda loc, scale: dist.Uniform(0.1, 10.0)  # noqa: E731
    assert chosen(cost(jnp.log, uniform)) == {"z": "Pathwise"}
    assert chosen(cost(lambda z: jnp.log(z - 1), uniform)) == {"z": "ScoreFunction"}


def test_objectives_that_stop_gradients():
    """Sticking the landing stops parameters, not draws; the doubly reparameterised bound wants sites that are sure to move."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(jnp.sin(z), 1.0), obs=0.5)

    def guide():
        a = numpyro.sample("a", dist.Normal(numpyro.param("loc", 0.3), 1.0), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Normal(a, 1.0))

    landing = elbo(model, guide, kl="sticking-the-landing").with_strategies("auto")
    assert set(chosen(landing, programs=(model, guide)).values()) == {"Pathwise"}
    double = iwelbo(model, guide, num_particles=3, gradient="doubly-reparameterised").with_strategies("auto")
    with pytest.raises(ValueError, match="reparameterises every site"):
        chosen(double, programs=(model, guide))
