"""Surface terms of costs that jump: exact gradients, programs of every form of branch, merged boundaries, and what is refused.

Where the jump is the same all over a hyperplane the gradient in means has no variance, and equals the exact one to rounding. Other
tests are two-sided z-tests at 4.5 standard errors (false-alarm rate 7e-6 each, seeded).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _exact import check_unbiased, gradient
from jax import lax
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from scipy import integrate, stats

from vinb.analysis.branches import Branches, NotAffine
from vinb.estimators import (
    Pathwise,
    PathwiseWithBoundaries,
    ScoreFunction,
    expectation,
    explain,
    init,
    moments,
)
from vinb.objectives import elbo

KEY = jax.random.key(5)
Z_LIMIT = 4.5
WITH = PathwiseWithBoundaries()


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def normal(name, loc, scale, strategy=WITH):
    return numpyro.sample(name, dist.Normal(loc, scale), infer={"gradient": strategy})


# Exact gradients -------------------------------------------------------------------------------------------------------


def two_levels():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(jnp.where(z > 0, 5.0, -2.0), 1.0), obs=0.0)


def one_normal():
    numpyro.sample("z", dist.Normal(numpyro.param("theta", 0.0), 1.0))


@pytest.mark.parametrize("theta", [-1.5, -1.0, 0.0, 0.5, 1.0])
def test_the_standard_illustration(theta):
    bound = elbo(two_levels, one_normal)
    params = {"theta": jnp.array(theta)}
    plain = jax.grad(bound)(params, KEY)["theta"]
    ours = jax.grad(bound.with_strategies({"z": WITH}))(params, KEY)["theta"]
    np.testing.assert_allclose(plain, -theta, atol=1e-12)  # whatever the data
    np.testing.assert_allclose(ours, -theta - 10.5 * stats.norm.pdf(theta), rtol=1e-12)
    noisy = elbo(two_levels, one_normal, kl="monte-carlo").with_strategies({"z": WITH})
    measured = moments(lambda k: jax.grad(noisy)(params, k)["theta"], KEY, 100_000, batch_size=50_000)
    assert abs(measured.mean - ours) < Z_LIMIT * measured.standard_error
    np.testing.assert_allclose(measured.variance, 1.0, rtol=0.02)  # of plain reparameterisation


A, C = np.array([1.5, -2.0]), 0.3


def exact_of_two_normals(q):
    """E of (-(z0-1)^2/2 if 1.5 z0 - 2 z1 > 0.3 else 2 - (z1+1)^2/2), the inner integral in closed form."""
    (m0, m1), (s0, s1) = q["loc"], np.log1p(np.exp(q["raw"]))

    def given(e):
        z1 = m1 + s1 * e
        edge = ((C - A[1] * z1) / A[0] - m0) / s0  # z0 above it
        above, density = stats.norm.sf(edge), stats.norm.pdf(edge)
        square = (m0 - 1) ** 2 * above + 2 * (m0 - 1) * s0 * density + s0**2 * (above + edge * density)
        return stats.norm.pdf(e) * (-0.5 * square + (1 - above) * (2 - 0.5 * (z1 + 1) ** 2))

    return integrate.quad(given, -10, 10, epsabs=1e-13, limit=500)[0]


POINT = {"loc": (0.4, -0.2), "raw": tuple(np.log(np.expm1([0.7, 1.3])))}
PARAMS = jax.tree.map(np.array, POINT, is_leaf=lambda p: isinstance(p, tuple))


def two_normals(strategy):
    def program():
        scale = jax.nn.softplus(numpyro.param("raw"))
        z = numpyro.sample(
            "z", dist.Normal(numpyro.param("loc"), scale).to_event(1), infer={"gradient": strategy}
        )
        return jnp.where(A @ z > C, -0.5 * (z[0] - 1) ** 2, 2 - 0.5 * (z[1] + 1) ** 2)

    return expectation(program)


@pytest.mark.parametrize("strategy", [WITH, PathwiseWithBoundaries(num_boundaries=1)])
def test_an_oblique_boundary_in_mean_and_scale(strategy):
    params = jax.tree.map(jnp.asarray, PARAMS)
    expected = gradient(exact_of_two_normals, POINT)
    # The dossier of the paper prints the same numbers for this integral with the prior's divergence added.
    scales = np.log1p(np.exp(POINT["raw"]))
    divergence = {"loc": -np.array(POINT["loc"]), "raw": (1 / scales - scales) * (1 - np.exp(-scales))}
    whole = np.concatenate([np.add(expected[1][n], divergence[n]) for n in ("loc", "raw")])
    np.testing.assert_allclose(whole, [-0.49545577, -0.11630613, 0.31443314, -1.04633780], atol=1e-6)
    function = two_normals(strategy)
    check_unbiased(lambda k: jax.value_and_grad(function)(params, k), KEY, expected, Z_LIMIT)


def test_plain_reparameterisation_is_measurably_biased_there():
    expected = gradient(exact_of_two_normals, POINT)
    with pytest.raises(AssertionError):
        check_unbiased(
            lambda k: jax.value_and_grad(two_normals(Pathwise()))(PARAMS, k), KEY, expected, Z_LIMIT
        )


# Forms of branches, one constant jump ------------------------------------------------------------------------------------

JUMP, WEIGHTS, EDGE = 3.0, np.array([1.0, -2.0, 0.5]), 0.2
MATRIX = np.array([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]])


def by_scan(z):
    total, _ = lax.scan(lambda total, wz: (total + wz[0] * wz[1], None), 0.0, (jnp.asarray(WEIGHTS), z))
    return jnp.where(total > EDGE, JUMP, 0.0)


def in_scan(z):
    def step(count, w):
        return count + jnp.where(w @ z > EDGE, JUMP, 0.0), w @ z

    return lax.scan(step, 0.0, jnp.asarray(WEIGHTS)[None], reverse=True)[0]


def by_nested_cond(z):
    inner = lambda z: lax.cond(z @ WEIGHTS < EDGE, lambda: 0.0, lambda: JUMP)  # noqa: E731
    return lax.cond(jnp.sum(jnp.asarray(WEIGHTS) * z) <= EDGE, lambda z: 0.0 * z[0], inner, z)


FORMS = {
    "where": lambda z: jnp.where(z @ WEIGHTS > EDGE, JUMP, 0.0),
    "less": lambda z: jnp.where(lax.lt(EDGE, z @ WEIGHTS), JUMP, 0.0),
    "not less or equal": lambda z: jnp.where(~(z @ WEIGHTS <= EDGE), JUMP, 0.0),
    "multiplied truth": lambda z: JUMP * (2 * (z @ WEIGHTS) >= 2 * EDGE),
    "sign": lambda z: JUMP / 2 * jnp.sign(z @ WEIGHTS - EDGE),
    "heaviside": lambda z: JUMP * jnp.heaviside(z @ WEIGHTS - EDGE, 0.5),
    "linear layer": lambda z: jnp.where((MATRIX @ z - jnp.array([EDGE, 0.0]))[0] > 0, JUMP, 0.0),
    "both of a duplicate": lambda z: jnp.where((z @ WEIGHTS > EDGE) & (-3 * (z @ WEIGHTS) < -3 * EDGE), JUMP, 0.0),
    "product of duplicates": lambda z: (
        jnp.where(z @ WEIGHTS > EDGE, 1.0, 2.0) * jnp.where(EDGE - z @ WEIGHTS < 0, 5.0, 1.0)
    ),
    "conjunction with a certainty": lambda z: jnp.where((z @ WEIGHTS > EDGE) & (jnp.sum(z * 0) < 1), JUMP, 0.0),
    "cond": lambda z: lax.cond(z @ WEIGHTS > EDGE, lambda z: JUMP + 0 * z[0], lambda z: 0 * z[1], z),
    "nested cond": by_nested_cond,
    "switch": lambda z: lax.switch(
        (z @ WEIGHTS > EDGE).astype(int), [lambda: 0.0, lambda: JUMP]
    ),
    "accumulated in a scan": by_scan,
    "within a scan": in_scan,
    "within jit and checkpoint": lambda z: jax.jit(jax.checkpoint(lambda z: JUMP * (z @ WEIGHTS > EDGE)))(z),
    "within vmap": lambda z: jax.vmap(lambda w: jnp.where(w @ z > EDGE, JUMP, 0.0))(jnp.asarray(WEIGHTS)[None]).sum(),
    "beside an empty scan": lambda z: JUMP * (lax.scan(lambda c, x: (c + x, c), z @ WEIGHTS, jnp.zeros(0))[0] > EDGE),
    "indexed by a truth": lambda z: jnp.array([0.0, JUMP])[(z @ WEIGHTS > EDGE).astype(int)],
}  # fmt: skip


def family(name):
    loc = numpyro.param("loc")
    if name == "normal":
        return dist.Normal(loc, jnp.exp(numpyro.param("raw"))).to_event(1)
    if name == "full":
        return dist.MultivariateNormal(loc, scale_tril=jnp.tril(numpyro.param("factor")))
    if name == "low rank":
        return dist.LowRankMultivariateNormal(
            loc, numpyro.param("factor")[:, :1], jnp.exp(numpyro.param("raw"))
        )
    scale = jnp.tril(numpyro.param("factor"))
    standard = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    return dist.TransformedDistribution(standard, dist.transforms.LowerCholeskyAffine(loc, scale))


PLACE = {
    "loc": np.array([0.1, -0.3, 0.2]),
    "raw": np.array([-0.3, 0.2, 0.1]),
    "factor": np.array([[0.8, 0.0, 0.0], [-0.4, 1.2, 0.0], [0.3, 0.2, 0.6]]),
}


def exact_of_a_constant_jump(name, params, jump):
    def probability(params):
        with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.substitute(data=params):
            fn = family(name)
        if name == "normal":
            covariance = jnp.diag(fn.base_dist.scale**2)
        elif name == "transformed":
            covariance = fn.transforms[0].scale_tril @ fn.transforms[0].scale_tril.T
        else:
            covariance = fn.covariance_matrix
        mean = params["loc"] @ WEIGHTS - EDGE
        return jump * jax.scipy.stats.norm.cdf(mean / jnp.sqrt(WEIGHTS @ covariance @ WEIGHTS))

    return jax.grad(probability)(params)


IN_SLICE = [
    "where",
    "sign",
    "linear layer",
    "product of duplicates",
    "nested cond",
    "within a scan",
    "indexed by a truth",
]
CELLS = [(form, "normal") for form in FORMS] + [("where", n) for n in ("full", "low rank", "transformed")]


@pytest.mark.parametrize(
    ("form", "name"),
    [pytest.param(*c, marks=() if c[0] in IN_SLICE else pytest.mark.exhaustive) for c in CELLS],
)
def test_every_form_of_a_branch_and_family_of_normals(form, name):
    def program():
        return FORMS[form](numpyro.sample("z", family(name), infer={"gradient": WITH}))

    slopes = jax.jit(jax.vmap(jax.grad(expectation(program)), (None, 0)))
    ours = slopes(jax.tree.map(jnp.asarray, PLACE), jax.random.split(KEY, 400))
    exact = exact_of_a_constant_jump(name, jax.tree.map(jnp.asarray, PLACE), JUMP)
    for draw in np.asarray(ours.pop("loc")):
        np.testing.assert_allclose(draw, exact["loc"], atol=1e-11)
    for n, draws in ours.items():  # how fast a scale moves the boundary depends on where on it the draw is
        error = draws.std(0) / np.sqrt(len(draws))
        assert np.all(np.abs(draws.mean(0) - exact[n]) < Z_LIMIT * error + 1e-11)


@pytest.mark.exhaustive  # a minute of XLA's work on a busy machine
def test_a_chain_of_sites_and_a_moving_edge():
    """z2 ~ N(w z1, s): the boundary moves with both, and with its own edge."""

    def program():
        z1 = normal("z1", numpyro.param("m"), 0.7)
        z2 = normal("z2", numpyro.param("w") * z1, jnp.exp(numpyro.param("s")))
        return jnp.where(z2 - z1 > numpyro.param("edge"), 2.0, -1.0)

    params = {"m": jnp.array(0.4), "w": jnp.array(1.7), "s": jnp.array(0.2), "edge": jnp.array(0.3)}

    def exact(p):
        mean, scale = (p["w"] - 1) * p["m"] - p["edge"], jnp.hypot((p["w"] - 1) * 0.7, jnp.exp(p["s"]))
        return 3 * jax.scipy.stats.norm.cdf(mean / scale)

    expected = exact(params), jax.grad(exact)(params)
    function = jax.value_and_grad(expectation(lambda: program() + 1))
    check_unbiased(lambda k: function(params, k), KEY, expected, Z_LIMIT)


def test_merged_boundaries_in_single_precision():
    with jax.enable_x64(False):

        def program():
            z = normal("z", numpyro.param("m"), 1e-3)
            return jnp.where(z - 0.5 > 0, 2.0, 1.0) * jnp.where(0.5 - z < 0, 7.0, 3.0)

        ours = jax.grad(expectation(program))({"m": jnp.array(0.5005)}, KEY)["m"]
        np.testing.assert_allclose(ours, 11 * stats.norm.pdf(0.5) / 1e-3, rtol=1e-3)


def test_where_the_cost_is_continuous_nothing_is_added():
    def program(strategy):
        z = normal("z", numpyro.param("m"), 0.8, strategy)
        return jnp.where(z > 0, 0.5 * z, 2 * z) + lax.cond(z > 1, lambda: z, lambda: 1.0 + 0 * z)

    params = {"m": jnp.array(0.3)}
    grads = [jax.grad(expectation(program))(params, KEY, s)["m"] for s in (WITH, Pathwise())]
    np.testing.assert_allclose(*grads, rtol=1e-14)


def test_a_condition_that_no_parameter_moves_adds_nothing():
    def program(strategy):
        z, w = normal("z", 0.0, 1.0, strategy), normal("w", numpyro.param("m"), 1.0, strategy)
        return jnp.where(z > 0.3, w**2, -w)

    grads = [jax.grad(expectation(program))({"m": jnp.array(0.3)}, KEY, s)["m"] for s in (WITH, Pathwise())]
    np.testing.assert_allclose(*grads, rtol=1e-14)


def test_values_draws_and_transformations_are_those_of_pathwise():
    params, keys = jax.tree.map(jnp.asarray, PARAMS), jax.random.split(KEY, 5)
    ours, plain = (jax.vmap(two_normals(s), (None, 0))(params, keys) for s in (WITH, Pathwise()))
    np.testing.assert_allclose(ours, plain, rtol=1e-14)
    assert WITH.draw(dist.Normal(jnp.ones(2), 2.0), KEY, (3,)).shape == (3, 2)


# Automatic guides, SVI, tables ------------------------------------------------------------------------------------------


def switch_model(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y)):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        loc = jnp.where(b > a, 2.0, jnp.where((b < -0.5) & (a > 0), -1.0, 0.5))
        numpyro.sample("y", dist.Normal(loc, 0.8), obs=y)


Y = np.array([0.3, 1.9, -0.8])


@pytest.mark.parametrize(
    "guide",
    [
        AutoNormal,
        *(
            pytest.param(g, marks=pytest.mark.exhaustive)
            for g in (AutoMultivariateNormal, AutoLowRankMultivariateNormal)
        ),
    ],
)
def test_automatic_guides_against_the_score_function(guide):
    guide = guide(switch_model, init_scale=0.9)
    numpyro.handlers.seed(guide, KEY)(Y)
    bound = elbo(switch_model, guide, kl="monte-carlo")
    params = init((switch_model, guide), KEY, Y)
    sites = [n for n, site in bound.plan(params, KEY, Y).sites.items() if site.distribution != "Delta"]
    measured = {}
    for name, strategy in {"ours": WITH, "score": ScoreFunction(), "plain": Pathwise()}.items():
        function = bound.with_strategies(dict.fromkeys(sites, strategy))
        draw = lambda k, f=function: jax.grad(f)(params, k, Y)  # noqa: E731
        num = 1_000_000 if name == "score" else 100_000
        measured[name] = moments(draw, KEY, num, batch_size=50_000)
    compare = lambda a, b: max(  # noqa: E731
        float(jnp.max(jnp.abs(x - y) / jnp.hypot(ex, ey)))
        for x, ex, y, ey in zip(
            *(jax.tree.leaves(m) for k in (a, b) for m in (measured[k].mean, measured[k].standard_error)),
            strict=True,
        )
    )
    assert compare("ours", "score") < Z_LIMIT
    assert compare("plain", "score") > 20


def test_as_loss_of_svi_it_finds_the_optimum_that_plain_reparameterisation_misses():
    from vinb.objectives import SVILoss

    bound = elbo(two_levels, one_normal).with_strategies({"z": WITH})
    loss = SVILoss(lambda model, guide: bound)
    svi = SVI(two_levels, one_normal, numpyro.optim.Adam(0.05), loss)
    result = svi.run(KEY, 600, progress_bar=False)
    np.testing.assert_allclose(result.params["theta"], -1.45449505, atol=0.01)


def test_explain_names_the_strategy():
    table = str(explain(two_normals(WITH))(PARAMS, KEY))
    assert "PathwiseWithBoundaries" in table
    assert "+ 2 without derivatives per boundary" in table


# The analysis ----------------------------------------------------------------------------------------------------------


def test_conditions_their_lines_and_forced_values():
    def cost(noise):
        a, b = noise["a"], noise["b"]
        inner = jnp.where(b > 0.5, 1.0, 2.0)
        return jnp.sum(jnp.where(a < b, 10.0, 20.0)) + jnp.where((a[0] > 1) & (b > 0.5), inner, 5.0)

    noise = {"a": jnp.array([0.0, 2.0]), "b": jnp.array(1.0)}
    branches = Branches(cost, noise)
    assert branches.num == 5
    assert [size for _, size in branches.lines] == [1, 2, 1, 1]
    assert all("test_boundaries.py" in line for line, _ in branches.lines)
    nothing = jnp.zeros(5, bool)
    assert branches.value(noise, nothing, nothing) == cost(noise) == 35.0
    np.testing.assert_allclose(branches.gaps(noise), [0.5, 1.0, -1.0, -1.0, 0.5])
    mask = jnp.array([True, False, True, True, False])
    assert branches.value(noise, mask, jnp.array([False, False, True, True, False])) == 22.0


# What is refused -------------------------------------------------------------------------------------------------------

CURVED = {
    "exp": (lambda z: jnp.where(jnp.exp(z[0]) > 1, 1.0, 0.0), "'gt' at .*test_boundaries.*'exp' is not affine"),
    "product": (lambda z: jnp.where(z[0] * z[1] > 0, 1.0, 0.0), "'mul' is not affine"),
    "quotient": (lambda z: jnp.where(1 / z[0] > 0, 1.0, 0.0), "'div' is not affine"),
    "norm": (lambda z: jnp.where(jnp.sum(z**2) > 1, 1.0, 0.0), "not affine"),
    "floor": (lambda z: jnp.floor(z[0]), "'floor' at .*test_boundaries"),
    "argmax": (lambda z: 1.0 * jnp.argmax(z), "'argmax' at"),
    "integer": (lambda z: 1.0 * z[0].astype(int), "'convert_element_type' at"),
    "another branch": (lambda z: jnp.where(z[1] > jnp.where(z[0] > 0, 1.0, 0.0), 1.0, 0.0), "changes with another branch"),
    "a branch between": (lambda z: jnp.where(jnp.where(z[0] > 0, z[1], 0.0) > 0.5, 1.0, 0.0), "moves with another branch"),
    "relu is zero": (lambda z: jnp.where(jax.nn.relu(z[0]) == 0, 1.0, 0.0), "'eq' at"),
    "angle": (lambda z: jnp.arctan2(z[0], z[1]), "'atan2' at"),
    "eight bits": (lambda z: z[0].astype(jnp.float8_e4m3fn).astype(float), "'convert_element_type' at"),
    "eigenvectors": (lambda z: jnp.linalg.eigh(jnp.diag(z))[1][0, 0], "'eigh' at"),
    "while": (lambda z: lax.while_loop(lambda c: c < 3, lambda c: c + 1, z[0]), "'while' at"),
}  # fmt: skip


@pytest.mark.parametrize("name", CURVED)
def test_a_branch_that_is_not_affine_is_refused_with_its_line(name):
    function, message = CURVED[name]

    def program():
        return function(
            numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1), infer={"gradient": WITH})
        )

    with pytest.raises(NotAffine, match=message) as error:
        jax.grad(expectation(program))({}, KEY)
    assert "'z'" in str(error.value)


def test_edges_that_coincide_for_these_parameters_only_move_apart():
    def program():
        z = normal("z", 0.0, 1.0)
        edges = jnp.stack([numpyro.param("a"), numpyro.param("b")])
        return jnp.sum(jnp.where(z > edges, jnp.array([1.0, 10.0]), 0.0)) + jnp.where(
            -z < -numpyro.param("c"), 3.0, 0.0
        )

    slopes = jax.grad(expectation(program))(dict.fromkeys("abc", jnp.array(0.2)), KEY)
    for name, jump in zip("abc", (1, 10, 3), strict=True):
        np.testing.assert_allclose(slopes[name], -jump * stats.norm.pdf(0.2), rtol=1e-12)


def test_stopped_comparisons_edges_at_infinity_and_second_derivatives():
    params = {"m": jnp.array(0.3)}
    stopped = expectation(
        lambda: jnp.where(lax.stop_gradient(normal("z", numpyro.param("m"), 1.0)) > 0, 2.0, 0.0)
    )
    np.testing.assert_allclose(jax.grad(stopped)(params, KEY)["m"], 2 * stats.norm.pdf(0.3), rtol=1e-12)
    edges, sizes = np.array([-np.inf, 0.0, np.inf]), np.array([1.0, 2.0, 3.0])
    program = lambda: jnp.sum(jnp.where(normal("z", numpyro.param("m"), 1.0) > edges, sizes, 0.0))  # noqa: E731
    np.testing.assert_allclose(
        jax.grad(expectation(program))(params, KEY)["m"], 2 * stats.norm.pdf(0.3), rtol=1e-12
    )
    with pytest.raises(NotImplementedError, match="second derivatives with PathwiseWithBoundaries"):
        jax.hessian(stopped)(params, KEY)


def test_smooth_functions_with_comparisons_inside_are_no_branches():
    def program():
        z = normal("z", numpyro.param("m"), 1.0)
        total = jax.nn.relu(z) + jax.nn.softplus(z) + jnp.logaddexp(z, 0.3) + jnp.abs(z) + jnp.clip(z, -1, 1)
        return (
            total
            + jax.scipy.special.log_ndtr(z)
            + jax.nn.logsumexp(jnp.stack([z, 0.0]))
            + jnp.maximum(z, 0.2)
        )

    noise = {"z": jnp.array(0.1)}
    assert jnp.isfinite(jax.grad(expectation(program))({"m": jnp.array(0.2)}, KEY)["m"])
    assert Branches(lambda n: jnp.logaddexp(n["z"], 0.0), noise).num == 0


def test_other_sites_and_other_places_are_refused():
    with pytest.raises(ValueError, match="site 'z' is Gamma, whose draws are no function of Gaussian noise"):
        expectation(lambda: numpyro.sample("z", dist.Gamma(2.0), infer={"gradient": WITH}))({}, KEY)

    def mixed():
        z = normal("z", 0.0, 1.0)
        b = numpyro.sample("b", dist.Bernoulli(0.3), infer={"gradient": ScoreFunction()})
        return jnp.where(z > 0, b, 0.0)

    with pytest.raises(ValueError, match=r"'z' has PathwiseWithBoundaries.*'b' has ScoreFunction"):
        expectation(mixed)({}, KEY)

    def disagreeing():
        return normal("z", 0.0, 1.0) + normal("w", 0.0, 1.0, PathwiseWithBoundaries(2))

    with pytest.raises(ValueError, match=r"site 'w' has .*give all sites the same"):
        expectation(disagreeing)({}, KEY)

    def looped():
        from numpyro.contrib.control_flow import scan

        return scan(lambda c, x: (c + normal("z", c, 1.0), None), 0.0, None, length=3)[0]

    with pytest.raises(ValueError, match="inside a scan"):
        expectation(looped)({}, KEY)
    with pytest.raises(ValueError, match="num_boundaries must be a positive integer, got 0"):
        PathwiseWithBoundaries(0)


# Random programs -------------------------------------------------------------------------------------------------------


def random_program(rng):
    """Three sites, each affine in those before, and a cost of random pieces chosen by random conditions."""
    links, edges = rng.normal(size=(3, 3)), rng.normal(size=8) * 0.7
    kinds = rng.integers(0, 5, 3)
    pieces = rng.normal(size=(6, 3))
    normals = rng.normal(size=(6, 3)) * (rng.random((6, 3)) < 0.7)

    def piece(k, z):
        return pieces[k] @ z + 0.3 * (z[k % 3] - pieces[k][0]) ** 2

    def condition(k, z):
        if kinds[k % 3] == 0:
            return normals[k] @ z > edges[k]
        if kinds[k % 3] == 1:
            return (normals[k] @ z > edges[k]) & (normals[(k + 1) % 6] @ z < edges[k] + 1)
        if kinds[k % 3] == 2:
            return ~((z[k % 3] < edges[k]) | (-2 * z[k % 3] > -2 * edges[k] + 0.6))
        if kinds[k % 3] == 3:
            return (jnp.asarray(normals[:2]) @ z - edges[:2])[k % 2] > 0
        return jnp.sign(normals[k] @ z - edges[k]) > 0

    def program(strategy):
        m, r = numpyro.param("m"), numpyro.param("r")
        z1 = normal("z1", m[0], jnp.exp(r[0]), strategy)
        z2 = normal("z2", m[1] + links[0, 0] * z1, jnp.exp(r[1]), strategy)
        z3 = normal("z3", m[2] + links[0, 1] * z1 + links[0, 2] * z2, jnp.exp(r[2]), strategy)
        z = jnp.stack([z1, z2, z3])
        inner = jnp.where(condition(1, z), piece(0, z), piece(1, z))
        first = jnp.where(condition(0, z), inner, piece(2, z) * jnp.where(condition(0, z), 2.0, 3.0))
        second = lax.cond(condition(2, z), lambda z: piece(3, z), lambda z: piece(4, z), z)
        return first + second * jnp.where(condition(1, z), 1.0, -0.5)

    return expectation(program), {
        "m": jnp.asarray(rng.normal(size=3) * 0.5),
        "r": jnp.asarray(rng.normal(size=3) * 0.2),
    }


def check_random_program(seed):
    function, params = random_program(np.random.default_rng(seed))
    key = jax.random.key(seed)

    def measure(strategy, num):
        draw = lambda k: jax.grad(function)(params, k, strategy)  # noqa: E731
        return moments(draw, key, num, batch_size=50_000)

    ours, score = measure(WITH, 100_000), measure(ScoreFunction(), 1_000_000)
    for n in params:
        error = np.hypot(ours.standard_error[n], score.standard_error[n])
        assert np.all(np.abs(ours.mean[n] - score.mean[n]) < Z_LIMIT * error), (seed, n)


@pytest.mark.parametrize("seed", range(1))
def test_random_programs_against_the_score_function(seed):
    check_random_program(seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1, 102))
def test_many_random_programs_against_the_score_function(seed):
    check_random_program(seed)


def test_explain_tells_of_a_pole_beside_the_branches():
    def program(fn):
        def cost():
            z = numpyro.sample(
                "z", dist.Normal(numpyro.param("loc", 0.3), 1.0), infer={"gradient": PathwiseWithBoundaries()}
            )
            return fn(z)

        return str(explain(cost)(init(cost, jax.random.key(0)), jax.random.key(0)))

    assert "'div'" in program(lambda z: z / jnp.abs(z))
    assert "apart from" not in program(
        lambda z: jnp.where(z > 0, 1.0, -1.0) * z + jnp.sign(z) + jnp.log1p(z**2)
    )
