"""The unbiasedness matrix: every strategy, with every distribution it supports, in every context, value and gradient.

Each cell compares the mean of many draws, jitted as one program, with exact values from ``_exact``, in all of the distribution's
parameters and in those of the context. The family of all z-tests of the matrix has a false-alarm rate of 1e-3 at most
(Bonferroni over 24 numbers per cell), and every one has draws enough that an error of 2 % fails (``_exact.check_unbiased``).

The full matrix runs under ``pytest -m exhaustive``. ``make test`` runs a seeded slice that has each strategy in
each context, baselines in some, and each distribution with one of its strategies.
"""

import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _exact import CASES, check_unbiased, expect, gradient, nodes
from numpyro.contrib.control_flow import cond, scan
from scipy import special, stats

from vinb.estimators import (
    Constant,
    Enumerate,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    Pathwise,
    ScoreFunction,
    Terms,
    expectation,
)
from vinb.programs import replicate

# Strategies and what they support ------------------------------------------------------------------------------------

DISCRETE = [
    "Bernoulli", "Bernoulli, logits", "Categorical", "Categorical, logits", "OneHotCategorical", "OneHotCategorical, logits",
    "Binomial", "Binomial, logits", "BetaBinomial", "DiscreteUniform",
]  # fmt: skip
UNBOUNDED = ["Poisson", "Geometric", "Geometric, logits", "NegativeBinomial"]
# Where the parameters move the support, the score function has no unbiased gradient.
MOVING_SUPPORT = ["Uniform", "TruncatedNormal"]
CONTINUOUS = [name for name in CASES if name not in DISCRETE + UNBOUNDED]

STRATEGIES = {
    "Pathwise": (Pathwise(), [n for n in CONTINUOUS if n != "TruncatedNormal, fixed ends"]),
    "ScoreFunction": (
        ScoreFunction(),
        [n for n in CASES if n not in [*MOVING_SUPPORT, "MixtureGeneral", "Kumaraswamy", "Cauchy"]],
    ),
    "ScoreFunction, Constant": (ScoreFunction(Constant(1.0)), ["Bernoulli, logits", "Poisson", "Normal"]),
    "ScoreFunction, MovingAverage": (
        ScoreFunction(MovingAverage()),
        ["Bernoulli, logits", "Categorical", "Gamma"],
    ),
    "ScoreFunction, LeaveOneOut": (
        ScoreFunction(LeaveOneOut()),
        ["Bernoulli", "Categorical, logits", "Dirichlet", "Normal"],
    ),
    "Enumerate": (Enumerate(), DISCRETE),
    "MeasureValued": (
        MeasureValued(),
        [
            "Bernoulli",
            "Bernoulli, logits",
            "Categorical",
            "Categorical, logits",
            "Poisson",
            "Geometric",
            "Geometric, logits",
            "Exponential",
            "Gamma",
            "Chi2",
            "Normal",
        ],
    ),
}


class Cell:
    """One cell: its sites, and the function of ``(params, key, *args)`` that is tested."""

    def __init__(self, strategy, name):
        self.case, self.strategy = CASES[name], STRATEGIES[strategy][0]
        self.seed = zlib.crc32(f"{strategy} {name}".encode())

    def site(self, t, name="x"):
        return self.case.f(numpyro.sample(name, self.case.make(t), infer={"gradient": self.strategy}), jnp)

    def expectation(self, program):
        baseline = getattr(self.strategy, "baseline", None)
        if isinstance(baseline, MovingAverage):
            function = expectation(program, has_state=True)

            def with_state(
                params, key, *args
            ):  # any state that does not depend on the draw: here an average of one
                state = jax.tree.map(jnp.ones_like, function.init_state(params, key, *args))
                return function(params, key, *args, state=state)[0]

            return with_state
        return expectation(program, num_particles=2 if isinstance(baseline, LeaveOneOut) else 1)

    def mean(self, t, h=lambda f: f):
        return expect(self.case, t, h)


# Contexts: each gives params, the tested function, and the exact expectation in numpy ---------------------------------
# "t" holds two vectors of the distribution's parameters, or one; "s" is a parameter of the cost alone.


def constant(cell):
    """Taken off the cost of a score function without baseline, which would be too noisy to judge otherwise."""
    return 0.8 * float(cell.mean(np.array(cell.case.at))) if cell.strategy == ScoreFunction() else 0.0


def single(cell):
    program = lambda: numpyro.param("s") * cell.site(numpyro.param("t"))  # noqa: E731
    exact = lambda p: p["s"] * cell.mean(p["t"])  # noqa: E731
    return {"t": cell.case.at, "s": 1.3}, cell.expectation(program), exact


def plate(cell):
    """A cost element by element: each element gets its own credit."""

    def program():
        t = numpyro.param("t")
        with numpyro.plate("rows", 2):
            return Terms(numpyro.param("s") * cell.site(t) * jnp.array([1.0, 0.6]))

    exact = lambda p: p["s"] * (cell.mean(p["t"][0]) + 0.6 * cell.mean(p["t"][1]))  # noqa: E731
    return {"t": (cell.case.at, cell.case.other), "s": 1.3}, cell.expectation(program), exact


def interacting_plate(cell):
    """Elements that meet in the cost."""

    def program():
        t = numpyro.param("t")
        with numpyro.plate("rows", 2):
            f = cell.site(t)
        return numpyro.param("s") * f[0] * f[1] + f[0]

    def exact(p):
        first, second = cell.mean(p["t"][0]), cell.mean(p["t"][1])
        return p["s"] * first * second + first

    return {"t": (cell.case.at, cell.case.other), "s": 1.3}, cell.expectation(program), exact


def mixed_plate(cell):
    """A cost by element beside one of all elements, as a plated prior and a joint likelihood have."""

    def program():
        t, s = numpyro.param("t"), numpyro.param("s")
        with numpyro.plate("rows", 2):
            f = cell.site(t)
        return Terms(s * f * jnp.array([1.0, 0.6])) + Terms(0.5 * f[0] * f[1])

    def exact(p):
        first, second = cell.mean(p["t"][0]), cell.mean(p["t"][1])
        return p["s"] * (first + 0.6 * second) + 0.5 * first * second

    return {"t": (cell.case.at, cell.case.other), "s": 1.3}, cell.expectation(program), exact


def vmapped(cell):
    """``jax.vmap`` of the expectation, over parameters, keys and data."""
    one = cell.expectation(lambda c: c * numpyro.param("s") * cell.site(numpyro.param("t")))

    def function(params, key):
        axes = ({"t": 0, "s": None}, 0, 0)
        return jax.vmap(one, axes)(params, jax.random.split(key, 2), jnp.array([1.0, 0.6])).sum()

    exact = lambda p: p["s"] * (cell.mean(p["t"][0]) + 0.6 * cell.mean(p["t"][1]))  # noqa: E731
    return {"t": (cell.case.at, cell.case.other), "s": 1.3}, function, exact


def in_cond(cell):
    """In both branches of NumPyro's cond, on a random condition."""
    coin = (Enumerate(), MeasureValued(), ScoreFunction())[cell.seed % 3]
    most = constant(cell)

    def program():
        t, s = numpyro.param("t"), numpyro.param("s")
        b = numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("l")), infer={"gradient": coin})
        first, second = (lambda t, k=k: cell.site(t[k]) - most for k in (0, 1))
        return cond(b == 1, lambda t: s * first(t), lambda t: 0.6 * second(t), t)

    def exact(p):
        q = special.expit(p["l"])
        return q * p["s"] * (cell.mean(p["t"][0]) - most) + (1 - q) * 0.6 * (cell.mean(p["t"][1]) - most)

    s = 1.6
    one, two = (cell.mean(np.array(t)) - most for t in (cell.case.at, cell.case.other))
    if abs(s * one - 0.6 * two) < 0.1 * max(abs(one), abs(two)):
        s = 2.4  # or the gradient in l would nearly vanish, and 2 % of it take too many draws
    return {"t": (cell.case.at, cell.case.other), "s": s, "l": 0.3}, cell.expectation(program), exact


def in_scan(cell):
    """Three steps of NumPyro's scan; each draw moves the next one's parameters."""
    num = 3
    most = constant(cell)

    def program():
        t, s = numpyro.param("t"), numpyro.param("s")

        def step(z, _):
            f = cell.site(t[0] + z * (t[1] - t[0]))
            return jax.nn.sigmoid(f - 1), s * (f - most)

        return jnp.sum(scan(step, jnp.zeros(()), None, length=num)[1])

    points = np.cos(np.pi * (np.arange(12) + 0.5) / 12)

    def exact(p):
        t, s = p["t"], p["s"]
        ahead = lambda z: 0 * z  # noqa: E731
        for _ in range(num):  # expected cost from here on, as a polynomial of the carry
            value = lambda f, ahead=ahead: s * (f - most) + ahead(2 * special.expit(f - 1) - 1)  # noqa: E731
            values = [cell.mean(t[0] + (u + 1) / 2 * (t[1] - t[0]), value) for u in points]
            ahead = np.polynomial.chebyshev.Chebyshev.fit(points, values, 11, domain=[-1, 1])
        return ahead(-1.0)

    return {"t": (cell.case.at, cell.case.other), "s": 1.3}, cell.expectation(program), exact


def nested(cell):
    """Between a coin and a last site, each with a strategy of its own."""
    first = (Enumerate(), MeasureValued(), ScoreFunction())[cell.seed % 3]
    bernoulli = [("Bernoulli", k) for k in (Enumerate(), MeasureValued(), ScoreFunction())]
    normal = [("Normal", k) for k in (Pathwise(), MeasureValued(), ScoreFunction())]
    kind, last = (bernoulli + normal)[cell.seed // 3 % 6]

    def program():
        t, s, u = (numpyro.param(n) for n in "tsu")
        b = numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("l")), infer={"gradient": first})
        f = cell.site(jnp.where(b == 1, t[1], t[0]))
        fn = dist.Bernoulli(logits=u * f - 0.5) if kind == "Bernoulli" else dist.Normal(u * f, 0.7)
        y = numpyro.sample("y", fn, infer={"gradient": last})
        y = y if kind == "Bernoulli" else 0.5 * y**2
        return s * f * (1 + 0.5 * y) + 0.3 * b * y

    def exact(p):
        q, total = special.expit(p["l"]), 0.0
        for b in (0, 1):

            def h(f, b=b):
                logits = p["u"] * f - 0.5
                y = special.expit(logits) if kind == "Bernoulli" else 0.5 * ((p["u"] * f) ** 2 + 0.49)
                return p["s"] * f * (1 + 0.5 * y) + 0.3 * b * y

            total += (q if b else 1 - q) * cell.mean(p["t"][b], h)
        return total

    return (
        {"t": (cell.case.at, cell.case.other), "s": 1.3, "l": 0.3, "u": 0.7},
        cell.expectation(program),
        exact,
    )


def importance(cell):
    """Two particles whose weights are averaged inside a logarithm."""

    def program():
        log_weights = replicate(lambda: numpyro.param("s") * cell.site(numpyro.param("t")), 2)()
        return jax.nn.logsumexp(log_weights) - jnp.log(2.0)

    def exact(p):
        f, w = nodes(cell.case, p["t"])
        e = np.exp(p["s"] * f)
        return w @ np.log((e[:, None] + e) / 2) @ w

    return {"t": cell.case.at, "s": 1.3}, cell.expectation(program), exact


CONTEXTS = {
    "single": single,
    "plate": plate,
    "interacting plate": interacting_plate,
    "mixed plate": mixed_plate,
    "vmap": vmapped,
    "cond": in_cond,
    "scan": in_scan,
    "nested": nested,
    "importance": importance,
}
REFUSED = [("Enumerate", "scan"), ("MeasureValued", "scan")]  # the whole table of what may refuse

CELLS = [
    (strategy, name, context)
    for strategy, (_, names) in STRATEGIES.items()
    for name in names
    for context in CONTEXTS
    if (strategy, context) not in REFUSED
]
FALSE_ALARM, NUMBERS = 1e-3, 24
Z_LIMIT = stats.norm.isf(FALSE_ALARM / (2 * NUMBERS * len(CELLS)))


# In the slice the score function, whose variance is large, meets these alone, and a baseline only this many contexts: it changes
# no more than what is taken off the cost. The whole matrix has them all.
PLAIN = {"Normal", "Bernoulli", "Bernoulli, logits"}
BASELINE_CONTEXTS = 3


def a_slice():
    """Cells that have each distribution, each strategy without baseline in each context, and each baseline in some."""
    rng = np.random.default_rng(0)
    chosen, used = [], dict.fromkeys(CASES, 0)
    contexts_of_baselines = itertools.cycle(str(c) for c in rng.permutation(list(CONTEXTS)))
    for strategy, (_, names) in STRATEGIES.items():
        score = strategy.startswith("ScoreFunction")
        names = [str(n) for n in rng.permutation(names) if not score or n in PLAIN]
        contexts = [c for c in CONTEXTS if (strategy, c) not in REFUSED]
        if "," in strategy:
            contexts = itertools.islice(contexts_of_baselines, BASELINE_CONTEXTS)
        for context in contexts:
            name = min(names, key=used.get)
            used[name] += 1
            chosen.append((strategy, name, context))
    for strategy in ("Pathwise", "Enumerate", "MeasureValued"):
        chosen += [(strategy, n, "single") for n in STRATEGIES[strategy][1] if not used[n]]
    left = {n for n in CASES if not used[n]} - {n for _, n, _ in chosen}
    chosen += [("ScoreFunction", n, "single") for n in sorted(left)]
    assert {n for _, n, _ in chosen} == set(CASES)
    return list(dict.fromkeys(chosen))


def check(strategy, name, context):
    cell = Cell(strategy, name)
    params, function, exact = CONTEXTS[context](cell)
    expected = gradient(exact, params)
    assert sum(np.size(a) for a in jax.tree.leaves(expected)) <= NUMBERS
    params = jax.tree.map(
        lambda p: jnp.asarray(np.array(p), float), params, is_leaf=lambda p: isinstance(p, tuple)
    )
    key = jax.random.key(zlib.crc32(f"{strategy}/{name}/{context}".encode()))
    check_unbiased(lambda k: jax.value_and_grad(function)(params, k), key, expected, Z_LIMIT)


@pytest.mark.parametrize(("strategy", "name", "context"), a_slice())
def test_slice_of_the_matrix(strategy, name, context):
    check(strategy, name, context)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("strategy", "name", "context"), CELLS)
def test_matrix(strategy, name, context):
    check(strategy, name, context)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["Enumerate", "MeasureValued"])
@pytest.mark.parametrize("name", ["Bernoulli", "Categorical, logits"])
def test_enumeration_and_measure_valued_derivatives_refuse_scan(strategy, name):
    params, function, _ = in_scan(Cell(strategy, name))
    params = jax.tree.map(jnp.asarray, params, is_leaf=lambda p: isinstance(p, tuple))
    with pytest.raises(
        ValueError, match=rf"site 'scan/x' is inside NumPyro's scan, where {strategy}.*ScoreFunction\(\)"
    ):
        function(params, jax.random.key(0))


@pytest.mark.parametrize("strategy", [Pathwise(), ScoreFunction(), MeasureValued()])
@pytest.mark.parametrize("loop", ["vmap", "scan"])
def test_a_bare_sample_under_vmap_or_scan_is_refused(strategy, loop):
    def draw(loc):
        return numpyro.sample("x", dist.Normal(loc, 1.0), infer={"gradient": strategy})

    def program():
        locs = jnp.arange(3.0)
        if loop == "vmap":
            return jax.vmap(draw)(locs).sum()
        return jax.lax.scan(lambda total, loc: (total + draw(loc), None), 0.0, locs)[0]

    with pytest.raises(
        ValueError,
        match=r"site 'x' is inside a jax.vmap, jax.lax.scan.*numpyro.plate or vinb.programs.replicate",
    ):
        expectation(program)({}, jax.random.key(0))


@pytest.mark.parametrize("name", MOVING_SUPPORT)
def test_the_score_function_refuses_parameters_that_move_the_support(name):
    # Its gradient would miss what enters and leaves at the ends.
    params, function, _ = single(Cell("ScoreFunction", name))
    params = jax.tree.map(jnp.asarray, params, is_leaf=lambda p: isinstance(p, tuple))
    with pytest.raises(ValueError, match="support"):
        function(params, jax.random.key(0))
