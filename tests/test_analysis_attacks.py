"""Programs that an adversarial review broke the analyses with, each with the answer that would be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.example_libraries import stax
from numpyro.distributions import constraints, transforms

from vinb.analysis import Level, audit, integrability, select_pathwise, smoothness, support_match
from vinb.estimators import expectation, init
from vinb.programs import log_density

S, P, N, U, TD = numpyro.sample, numpyro.param, dist.Normal, dist.Uniform, dist.TransformedDistribution
KEY = jax.random.key(0)


def seen(value):
    S("x", N(value, 1.0), obs=0.7)


def program(fn, prior=None):
    """A latent z and what becomes of it."""
    prior = N(0.0, 1.0) if prior is None else prior

    def model():
        fn(S("z", prior))

    return model


BASE, OTHER = jnp.arange(2.0), jnp.arange(2.0) + 1
with_base, with_other = jax.jit(lambda c: c + BASE.sum()), jax.jit(lambda c: c + OTHER.sum())
three, vector = N(jnp.zeros(3), 1.0).to_event(1), jnp.arange(1, 4)
solved = lambda z: lax.custom_linear_solve(  # noqa: E731
    lambda v: jnp.where(z > 0, 2.0, 1.0) * v, jnp.ones(()), lambda matvec, b: b / matvec(jnp.ones(()))
)


@jax.custom_jvp
def flat(z):
    return z


flat.defjvp(lambda primals, tangents: (primals[0], jnp.zeros_like(tangents[0])))


def mutable(z):
    ref = jax.new_ref(jnp.zeros(()))
    ref[...] = jnp.sign(z)
    seen(ref[...])


JUMPS = {
    "sign at its end": lambda z: seen(jnp.where(jnp.sign(z) == 1, 5.0, 0.0)),
    "sign at or above": lambda z: seen(jnp.where(jnp.sign(z) >= 1, 5.0, 0.0)),
    "round": lambda z: seen(jnp.where(jnp.round(z) > 0, 5.0, 0.0)),
    "whole division": lambda z: seen(jnp.where(jnp.arange(1, 4) // 2 > 0, z, jnp.sign(z)).sum()),
    "one number of two types": lambda z: seen(
        jnp.where(z > 0, (vector // (vector + 1)).astype(float), vector / (vector + 1)).sum()
    ),
    "consts of inner calls": lambda z: seen(
        jnp.where(
            z > 0,
            lax.fori_loop(0, 3, lambda i, c: with_base(c), 1.0),
            lax.fori_loop(0, 3, lambda i, c: with_other(c), 1.0),
        )
    ),
    "derivative of a library function": lambda z: seen(jax.grad(jax.nn.leaky_relu)(z)),
    "tangent of a library function": lambda z: seen(jax.jvp(jax.nn.selu, (z,), (1.0,))[1]),
    "lost argument": lambda z: S("x", dist.BetaProportion(jnp.where(z > 0, 0.3, 0.6), 10.0), obs=0.5),
    "mean that is not positive": lambda z: S("x", dist.NegativeBinomial2(z, 2.0), obs=1),
    "value at the end of a support": lambda z: S("x", U(0.0, 1.0), obs=z),
    "value below a support": lambda z: S("x", dist.HalfNormal(1.0), obs=z),
    "weight of a point": lambda z: S("d", dist.Delta(0.0, log_density=jnp.sign(z))),
    "linear operator with a jump": lambda z: seen(solved(z)),
    "mutable array": mutable,
    "logarithm of a gamma draw": lambda z: seen(
        jnp.where(jax.random.loggamma(KEY, jnp.exp(z)) > 0, 1.0, 0.0)
    ),
    "pole that is clipped": lambda z: seen(jnp.where(jnp.isfinite(lax.erf_inv(jnp.clip(z, -1, 1))), z, 0.0)),
    "infinity that is compared": lambda z: seen(
        (lambda y: jnp.where(jnp.isfinite(jnp.where(y <= 0, y, 0)), 1.0, 0.0))(jnp.log(jnp.maximum(z, 0)))
    ),
    "no number": lambda z: seen(jnp.where(jnp.isnan(jnp.sqrt(z)), 1.0, 0.0)),
}
NESTED = {
    "rank by loops in loops": lambda z: seen(
        lax.map(lambda a: lax.map(lambda b: jnp.where(a > b, 1.0, 0.0), z).sum(), z)[0]
    ),
}
UNIT_JUMPS = {
    "floor at an open end": lambda z: seen(jnp.where(jnp.floor(5 * z) > 0, 1.0, 0.0)),
    "ceil at an open end": lambda z: seen(jnp.where(jnp.ceil(5 * z) < 5, 1.0, 0.0)),
    "whole numbers": lambda z: seen(jnp.where((5 * z).astype(int) > 0, 1.0, 0.0)),
}


@pytest.mark.parametrize("name", [*JUMPS, *NESTED, *UNIT_JUMPS])
def test_jumps_are_not_overlooked(name):
    fn, prior = next(
        (fns[name], p)
        for fns, p in ((JUMPS, None), (NESTED, three), (UNIT_JUMPS, U(0.0, 1.0)))
        if name in fns
    )
    assert smoothness(program(fn, prior)).levels["z"] == Level.ANY


def test_parameters_of_modules_count():
    def model(module):
        f = numpyro.module("net", module, (1,))
        seen(jnp.where(f(jnp.ones(1))[0] > 0, 1.0, -1.0) + S("z", N(0.0, 1.0)))

    levels = smoothness(model, (stax.serial(stax.Dense(1)),)).levels
    assert levels == {"z": Level.DIFF, "net$params": Level.ANY}

    def bounded(module):
        S("z", U(0.0, numpyro.module("net", module, (1,))(jnp.ones(1))[0]))

    assert (
        support_match(bounded, lambda module: S("z", U(0.0, 1.0)), (stax.serial(stax.Dense(1)),)).verdict
        != "VALID"
    )


def test_a_parameter_and_a_site_may_have_one_name():
    def model():
        w = S("net/w", N(0.0, 1.0))
        z = S("z", N(0.0, 1.0))
        seen(jnp.where(z > w, 1.0, 0.0) * P("net", {"w": jnp.ones(())})["w"])

    assert smoothness(model).levels == {"net/w": Level.ANY, "z": Level.ANY, "net": Level.DIFF}


def chosen(fn, make=lambda: N(P("mu", 0.0), 1.0)):
    def cost():
        return fn(S("z", make(), infer={"gradient": "auto"}))

    (kind, _), *_ = expectation(cost).plan(init(cost, KEY), KEY).strategies.values()
    return str(kind)


def leaves(z):
    w = P("w", {"a": jnp.ones(()), "b": 2 * jnp.ones(())})
    return jnp.where(z > 0, w["a"], w["b"])


def two_densities(z):
    first, second = (lambda law=law: S("v", law) for law in (N(0.0, 1.0), dist.Cauchy(0.0, 1.0)))
    return jnp.where(z > 0, log_density(first, {"v": z}).total(), log_density(second, {"v": z}).total())


@pytest.mark.parametrize(
    "fn",
    [
        leaves,
        two_densities,
        lambda z: jnp.exp(log_density(lambda: S("v", U(0.0, 1.0)), {"v": z}).total()),
        lambda z: lax.stop_gradient(z) ** 2,
        lambda z: jnp.where(jnp.sign(z) == 1, 1.0, 0.0),
    ],
)
def test_auto_does_not_choose_a_biased_gradient(fn):
    assert chosen(fn) != "Pathwise"


def test_auto_leaves_the_circle_to_the_score():
    assert chosen(lambda z: z, lambda: dist.VonMises(P("mu", 0.0), 1.0)) != "Pathwise"


def test_selection_does_not_trust_what_is_stopped_or_undeclared():
    def guide():
        S("z", N(P("mu", 0.0), 1.0))

    assert not select_pathwise(program(lambda z: seen(lax.stop_gradient(z))), guide).sites
    report = smoothness(program(lambda z: seen(flat(z))))
    assert any("derivative rule of 'flat'" in text for text in report.assumptions)

    class Own(dist.Distribution):
        arg_constraints, support = {}, constraints.real

        def sample(self, key, sample_shape=()):
            return lax.stop_gradient(jax.random.normal(key, sample_shape))

        def log_prob(self, value):
            return -(value**2)

    assert not select_pathwise(program(seen), lambda: S("z", Own())).sites


def pair(model, guide):
    """Verdict for two distributions, or functions to them, at one site."""
    law = lambda d: d if isinstance(d, dist.Distribution) else d()  # noqa: E731
    return support_match(lambda: S("s", law(model)), lambda: S("s", law(guide)))


def after(make):
    """A distribution that follows from a positive vector."""
    return lambda: make(S("u", dist.Gamma(2 * jnp.ones(3), 1.0).to_event(1)))


MIXED = dist.MixtureGeneral(
    dist.Categorical(jnp.ones(2) / 2), [U(0.0, 1.0), U(2.0, 3.0)], support=constraints.real
)
POINTS = dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [dist.Bernoulli(0.0), dist.Bernoulli(0.0)])
NOT_VALID = {
    "exp of a vector": (
        TD(dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), transforms.ExpTransform()),
        N(0.0, 1.0).expand([2]).to_event(1),
    ),
    "absolute value": (TD(N(0.0, 1.0), transforms.AbsTransform()), N(0.0, 1.0)),
    "exp of a mixture": (TD(MIXED, transforms.ExpTransform()), U(3.0, 6.0)),
    "moved counts": (N(0.0, 1.0), TD(dist.Poisson(3.0), transforms.AffineTransform(0.0, 1.0))),
    "transposed bounds": (
        after(lambda u: U(0.0, jnp.exp(u)[:, None])),
        after(lambda u: U(0.0, jnp.exp(u)[None, :])),
    ),
    "point on a hole": (dist.Categorical(jnp.array([0.5, 0.5, 0.0])), dist.Delta(2)),
    "point between counts": (dist.Poisson(3.0), dist.Delta(0.5)),
    "point that never happens": (dist.Bernoulli(0.0), dist.Delta(1)),
    "batch that is no axis of classes": (
        dist.Categorical(jnp.array([[0.0, 0.5, 0.5], [0.3, 0.3, 0.4]])),
        dist.Binomial(2, jnp.array([0.0, 0.5])),
    ),
    "mixture of points": (POINTS, dist.Bernoulli(0.5)),
    "scale within a transform": (
        lambda: TD(N(0.0, P("scale", 1.0)), transforms.ExpTransform()),
        dist.LogNormal(0.0, 1.0),
    ),
    "bounds out of order": (lambda: U(0.0, P("b", 1.0)), lambda: U(0.0, P("b", 1.0))),
    "hurdle": (dist.Gamma(1.0, 1.0), dist.HurdleGamma(0.3, 1.0, 1.0)),
    "scale that is a step": (lambda: N(0.0, jnp.floor(5 * S("u", U(0.0, 1.0)))), N(0.0, 1.0)),
    "certain success": (dist.Binomial(3, 1.0), dist.Binomial(3, 0.5)),
}
NOT_INVALID = {
    "part of a vector": (
        dist.HalfNormal(1.0).expand([2]).to_event(1),
        TD(dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), transforms.ExpTransform()),
    ),
    "square of a uniform": (U(0.0, 2.0), TD(U(0.0, 1.0), transforms.PowerTransform(2.0))),
    "two classes of three": (
        dist.Categorical(jnp.array([0.5, 0.5, 0.0])),
        lambda: dist.Bernoulli(logits=P("l", 0.0)),
    ),
    "bounds of an array": (
        lambda: U(jnp.array([0.0, 2.0]), 9.0),
        lambda: U(jnp.array([0.5, 2.5]) - 0.5 * jax.nn.sigmoid(P("p", 0.0)), 8.0),
    ),
    "first value never drawn": (dist.DiscreteUniform(1, 2), dist.Categorical(jnp.array([0.0, 0.5, 0.5]))),
    "last value never drawn": (
        dist.DiscreteUniform(0, 1),
        lambda: dist.Categorical(logits=jnp.array([0.0, 0.0, -jnp.inf])),
    ),
    "no trials": (dist.Binomial(0, 1.0), dist.Binomial(0, 0.5)),
    "clipped sigmoid": (TD(N(0.0, 1.0), transforms.SigmoidTransform()), U(0.0, 1.0)),
}


@pytest.mark.parametrize("name", NOT_VALID)
def test_no_false_proof(name):
    assert pair(*NOT_VALID[name]).verdict in ("INVALID", "UNKNOWN")


@pytest.mark.parametrize("name", NOT_INVALID)
def test_no_false_alarm(name):
    assert pair(*NOT_INVALID[name]).verdict in ("VALID", "UNKNOWN")


def test_observations():
    z = lambda: S("z", N(0.0, 1.0))  # noqa: E731

    def verdict(fn):
        return support_match(lambda: fn(z()), z).verdict

    assert verdict(lambda z: S("x", TD(N(0.0, 1.0), transforms.AbsTransform()), obs=-1.0)) != "VALID"
    assert verdict(lambda z: S("x", dist.Poisson(3.0), obs=jnp.exp(z))) != "VALID"
    assert verdict(lambda z: S("x", dist.Delta(1.0, log_density=-jnp.inf), obs=1.0)) != "VALID"
    assert verdict(lambda z: numpyro.factor("f", 0 * jnp.where(z > 0, 0, -jnp.inf))) != "VALID"
    assert verdict(lambda z: numpyro.factor("f", -lax.erf_inv(jnp.clip(z, -1, 1)))) != "VALID"
    masked = dist.Categorical(jnp.array([0.5, 0.5])).mask(jnp.array([True, False]))
    assert verdict(lambda z: S("x", masked, obs=jnp.array([0, 99]))) in ("VALID", "UNKNOWN")

    def guide():
        a = S("a", U(0.1, 0.9))
        S("u", U(a + 1 / a, 20.0))

    def model():
        S("a", U(0.1, 0.9))
        S("x", U(0.0, S("u", U(0.0, 30.0))), obs=1.5)

    assert support_match(model, guide).verdict != "INVALID"


def bound(model_of, guide=lambda: S("z", N(P("m", 0.0), P("s", 1.0, constraint=constraints.positive)))):
    return integrability(lambda: model_of(S("z", N(0.0, 1.0))), guide).verdict


@pytest.mark.parametrize(
    "fn",
    [
        lambda z: z**-2,
        lambda z: 1 / jnp.logaddexp(z, -1.0),
        lambda z: jnp.exp(-2 * jnp.log1p(0.25 * jnp.sin(z) - 0.75)),
        lambda z: 1 / jnp.expm1(jnp.sin(z) ** 2),
        lambda z: jnp.exp(z**2),
    ],
)
def test_bounds_that_may_be_infinite(fn):
    assert bound(lambda z: seen(fn(z))) != "VALID"


def test_scales_in_several_arrays():
    assert (
        bound(lambda z: S("x", N(0.0, jnp.stack([jnp.ones(()), jnp.exp(-jnp.exp(z))])), obs=jnp.ones(2)))
        != "VALID"
    )


def test_a_pole_that_does_no_harm():
    def half(observe, own=False):
        def run():
            s = S("s", dist.HalfNormal(1.0))
            observe(s) if not own else S("z", N(0.0, s))

        return run

    nothing = lambda s: None  # noqa: E731
    at = lambda obs, **mask: lambda s: S("x", N(0.0, s).mask(mask.get("mask", True)), obs=obs)  # noqa: E731
    prior = half(nothing, own=True)
    assert integrability(prior, prior).verdict != "INVALID"
    assert integrability(half(at(1.0)), half(nothing)).verdict == "INVALID"
    for harmless in (at(0.0), at(jnp.zeros(0)), at(jnp.ones(2), mask=jnp.array([False, False]))):
        assert integrability(half(harmless), half(nothing)).verdict != "INVALID"


# ---- crashes


def test_a_loop_that_need_not_end_is_stopped():
    def model():
        i = 0
        while S(f"b{i}", dist.Bernoulli(0.5)):
            i += 1

    assert support_match(model, model).verdict == "UNKNOWN"


def test_shared_subexpressions_cost_no_more():
    def model():
        b = S("b", dist.Gamma(1.0, 1.0))
        for _ in range(40):
            b = jnp.maximum(b, jnp.sin(b)) + b
        S("u", U(0.0, b))

    assert support_match(model, model).verdict in ("VALID", "UNKNOWN")


@pytest.mark.parametrize(
    "fn",
    [
        lambda z: 1 / (1 - jnp.tanh(20 + 10 * jax.nn.sigmoid(z))),
        lambda z: 1 / jnp.exp(-((30 + jax.nn.sigmoid(z)) ** 2)),
    ],
)
def test_saturated_floats(fn):
    assert smoothness(program(lambda z: seen(fn(z)))).levels["z"] in list(Level)


def test_distributions_of_other_kinds():
    improper = dist.ImproperUniform(constraints.positive, (), ())
    assert support_match(lambda: S("s", improper), lambda: S("s", dist.Gamma(1.0, 1.0))).verdict == "VALID"
    assert smoothness(lambda: S("s", improper)).levels

    class Scaled(dist.Distribution):
        arg_constraints, support = {"loc": constraints.real}, constraints.real

        def __init__(self, loc):
            self.loc, self.by = loc, 2.0 * jnp.ones(())
            super().__init__(jnp.shape(loc))

        def sample(self, key, sample_shape=()):
            return self.loc + self.by * jax.random.normal(key, sample_shape)

        def log_prob(self, value):
            return -(((value - self.loc) / self.by) ** 2)

    assert smoothness(program(lambda z: S("x", Scaled(jnp.abs(z)), obs=1.0))).levels == {"z": Level.LIP}


def test_wrong_programs_are_told():
    def nameless():
        S("z", N(P("b"), 1.0))

    found = support_match(nameless, nameless)
    assert found.verdict == "ERROR"
    assert "'b' has no initial value" in found.findings[0].message

    def branching():
        if S("z", N(0.0, 1.0)) > 0:
            numpyro.factor("f", 1.0)

    assert audit(branching, lambda: S("z", N(P("mu", 0.0), 1.0)), num_draws=2).advice
    assert (
        audit(lambda: S("z", N(0.0, 1.0)), lambda: S("z", dist.Delta(1.0)), num_draws=2).verdict == "INVALID"
    )
    with pytest.raises(ValueError, match="num_draws"):
        audit(branching, branching, num_draws=1)


def test_whole_division_is_not_division():
    k = np.arange(1, 4)
    assert (
        support_match(lambda: S("z", U(0.0, (k // 2) + 1e-3)), lambda: S("z", U(0.0, k / 2 + 1e-3))).verdict
        != "VALID"
    )
