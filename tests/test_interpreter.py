"""The interpreter of jaxprs: intervals against evaluation, levels of single functions, loops, calls, and what it must not
believe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.nn import log_softmax
from jax.scipy.special import logsumexp, xlogy
from numpyro.distributions import Distribution, constraints

from vinb.analysis import Level, tag
from vinb.analysis import intervals as iv
from vinb.analysis.interpreter import Interpreter
from vinb.analysis.intervals import POSITIVE, REAL, UNIT, Interval

DIFF, LIP, CONT, ANY = Level.DIFF, Level.LIP, Level.CONT, Level.ANY


def interpret(fn, *inputs, shape=()):
    """The abstract result of ``fn`` of inputs ``a``, ``b``, ... with these intervals."""
    names = "abcdef"[: len(inputs)]
    closed = jax.make_jaxpr(lambda: fn(*(tag(jnp.zeros(shape), n, 0) for n in names)))()
    interpreter = Interpreter(dict(zip(names, inputs, strict=True)).__getitem__)
    results = interpreter.run(closed, [])
    return results[0] if len(results) == 1 else results, interpreter


def level(fn, *inputs, shape=()):
    result, _ = interpret(fn, *inputs, shape=shape)
    levels = [result.levels[n].level if n in result.levels else Level.CONST for n in "abcdef"[: len(inputs)]]
    return levels[0] if len(levels) == 1 else tuple(levels)


# ---- intervals

FUNCTIONS = [
    (lambda x: jnp.exp(x) / (1 + jnp.exp(x)), REAL),
    (lambda x: jnp.sqrt(x * x + 1), REAL),
    (lambda x: jnp.log(2 + jnp.sin(x)), REAL),
    (lambda x: jnp.clip(x, -1, 2) ** 3, REAL), (lambda x: jnp.maximum(x, 0.5) * jnp.minimum(x, 3.0), POSITIVE),
    (lambda x: jnp.where(x > 1, x, 2.0), POSITIVE), (lambda x: jnp.where(x < 1, 1.0, x), REAL), (jax.nn.softplus, REAL),
    (lambda x: jnp.cumprod(jnp.stack([x, 1 - x, x])), UNIT), (lambda x: jnp.stack([x, -x]).sum(), UNIT),
    (lambda x: lax.fori_loop(0, 4, lambda i, c: c * 0.5 + x, x), UNIT), (lambda x: jnp.floor(3 * x), UNIT),
    (lambda x: (3 * x).astype(int), REAL), (lambda x: jnp.dot(jnp.stack([x, x]), jnp.array([1.0, 2.0])), UNIT),
    (lambda x: lax.cond(x > 0.3, lambda y: y, lambda y: y - 1, x), UNIT),
    (lambda x: jnp.tanh(x) * jax.nn.relu(x), Interval(-2.0, 1.0)),
    (lambda x: jnp.abs(x - 0.5), UNIT),
    (lambda x: jnp.var(jnp.stack([x, 2 * x, 0.0])), REAL),
    (lambda x: logsumexp(jnp.stack([x, 0.0])), REAL),
    (lambda x: jax.nn.softmax(jnp.stack([x, 0.0])), REAL), (lambda x: jnp.rint(2 * x) % 3, POSITIVE), (lambda x: x**2.5, POSITIVE),
    (lambda x: jnp.sort(jnp.stack([x, 1 - x]))[0], UNIT), (lambda x: lax.while_loop(lambda c: c < 5, lambda c: c + 1, x), UNIT),
    (lambda x: jnp.linalg.norm(jnp.stack([x, 1.0])), REAL), (lambda x: jnp.pad(jnp.exp(x)[None], 1), REAL),
    (lambda x: jnp.log1p(-x), UNIT), (lambda x: lax.erf_inv(2 * x - 1), UNIT), (lambda x: -jnp.log(x), UNIT),
]  # fmt: skip


@pytest.mark.parametrize("which", range(len(FUNCTIONS)))
def test_values_lie_in_the_interval(which):
    fn, given = FUNCTIONS[which]
    result, _ = interpret(fn, given)
    low, high = max(given.low, -6), min(given.high, 6)
    points = np.linspace(low, high, 201)[1:-1]
    values = np.asarray(jax.vmap(fn)(jnp.array(points)))
    assert values.min() >= result.interval.low - 1e-5
    assert values.max() <= result.interval.high + 1e-5


@pytest.mark.parametrize(
    ("fn", "given", "expected"),
    [
        (jnp.exp, REAL, POSITIVE), (jax.nn.sigmoid, REAL, UNIT), (jax.nn.softplus, REAL, POSITIVE),
        (lambda x: jnp.exp(x) + 0.1, REAL, Interval(0.1)), (lambda x: 1 / (jnp.exp(x) @ jnp.exp(x)), REAL, POSITIVE),
        (lambda x: 10 * jax.nn.sigmoid(x), REAL, Interval(0.0, 10.0)), (lambda x: jnp.where(x > 0, x, 1.0), REAL, POSITIVE),
        (lambda x: jnp.maximum(x, 0.0), REAL, iv.NONNEGATIVE),
        (lambda x: jnp.square(x - x.mean()).mean() + 1e-5, REAL, iv.Interval(1e-5, np.inf, False)),
    ],
)  # fmt: skip
def test_intervals_are_sharp_where_it_matters(fn, given, expected):
    result, _ = interpret(fn, given, shape=(3,))
    assert result.interval == pytest.approx(expected, rel=1e-6)


def test_shares_of_a_sum_are_below_one():
    softmax = lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)  # noqa: E731
    for fn in (softmax, lambda x: jax.nn.softmax(x, 0), lambda x: jax.nn.softmax(x, -1)):
        assert interpret(fn, REAL, shape=(3, 3))[0].interval.within(iv.CLOSED_UNIT)
    other_sum = lambda x: jnp.exp(x) / jnp.exp(x).sum(0)[:, None]  # noqa: E731
    signed = lambda x: x / x.sum(-1, keepdims=True)  # noqa: E731
    for fn in (other_sum, signed):
        assert not interpret(fn, REAL, shape=(3, 3))[0].interval.within(iv.CLOSED_UNIT)


# ---- levels


def test_shift_is_undone_only_if_it_is_the_same_along_the_sum():
    def right(x, keepdims):
        s = lax.stop_gradient(x.max(-1, keepdims=True))
        total = jnp.log(jnp.exp(x - s).sum(-1, keepdims=keepdims))
        return total + (s if keepdims else s[..., 0])

    def wrong_shift(x):  # added back for the wrong rows
        s = lax.stop_gradient(x.max(-1))
        return jnp.log(jnp.exp(x - s[:, None]).sum(-1)) + s[::-1]

    def varies(x):  # the shift differs between the terms of the sum
        s = lax.stop_gradient(jnp.abs(x))
        return jnp.log(jnp.exp(x - s).sum(-1)) + s[:, 0]

    def transposed(x):
        s = lax.stop_gradient(x.max(0))
        return jnp.log(jnp.exp(x - s[:, None]).sum(1)) + s

    def other_axis(x):
        s = lax.stop_gradient(x.max(0))
        return jnp.log(jnp.exp(x - s[None]).sum(1)) + s

    for keepdims in (True, False):
        assert level(lambda x, k=keepdims: right(x, k), REAL, shape=(3, 3)) == DIFF
    # s.max(0) is a constant of each row there: the sum is over the other axis, so that what is added back was subtracted
    assert level(transposed, REAL, shape=(3, 3)) == DIFF
    for wrong in (wrong_shift, varies, other_axis):
        assert level(wrong, REAL, shape=(3, 3)) == LIP, wrong.__name__


@pytest.mark.parametrize(
    ("fn", "shape", "expected"),
    [
        (lambda x: log_softmax(x, -1),
        (2, 3), DIFF),
        (lambda x: log_softmax(x, 0),
        (2, 3), DIFF),
        (lambda x: jax.nn.softmax(x, 0),
        (3, 3), DIFF),
        (lambda x: logsumexp(x, b=jnp.array([1.0, 2.0, 0.5])),
        (3,), DIFF),
        (lambda x: x - logsumexp(x, -1, keepdims=True),
        (3, 3), DIFF),
        (lambda x: logsumexp(jnp.where(jnp.array([True, False, True]), x, -jnp.inf)), (3,), ANY),
        (lambda x: jnp.log(jnp.mean(jnp.exp(x - x.max()))) + x.max(), (3,), DIFF), (lambda x: x.max() - logsumexp(x), (3,), LIP),
        (lambda x: jax.nn.softmax(jax.nn.relu(x)), (3,), LIP), (lambda x: jnp.exp(x - x.max()).sum(), (3,), LIP),
        (lambda x: jnp.logaddexp(x, 1.0), (), DIFF), (lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), (), DIFF),
        (lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(2 * x))),
        (), LIP),
        (jax.nn.gelu, (), DIFF),
        (jax.nn.silu, (), DIFF),
        (jax.nn.leaky_relu, (), LIP),
        (jax.nn.elu, (), LIP),
        (lambda x: jnp.where(x > 0, x, 0.0),
        (), ANY),
        (lambda x: xlogy(x, x),
        (), ANY),
        (lambda x: x * jnp.sign(x),
        (), ANY),
        (lambda x: jnp.sign(jnp.exp(x)) * x, (), DIFF),
        (lambda x: jnp.where(x == x, x, 0.0),
        (), DIFF),
        (lambda x: jnp.where(jnp.isnan(x), 0.0, x),
        (), DIFF),
        (lambda x: jnp.nan_to_num(x),
        (), DIFF),
        (lambda x: x[jnp.argmax(x)], (3,), ANY),
        (lambda x: jnp.linalg.slogdet(x @ x.T + jnp.eye(3))[0] * x, (3, 3), ANY),
        (lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(3)),
        (3, 3), DIFF),
        (lambda x: jnp.linalg.eigh(x + x.T)[0], (3, 3), DIFF),
        (lambda x: jnp.linalg.eigh(x + x.T)[1], (3, 3), ANY),
        (jnp.fft.fft, (4,), DIFF),
        (lambda x: jnp.convolve(x, x),
        (4,), DIFF),
        (lambda x: x.astype(jnp.float8_e4m3fn),
        (), ANY),
        (lambda x: lax.top_k(x, 2)[0], (3,), LIP),
    ],
)  # fmt: skip
def test_levels(fn, shape, expected):
    assert level(fn, REAL, shape=shape) == expected


def test_each_input_has_its_level():
    assert level(lambda a, b: jnp.where(a > 0, b, -b), REAL, REAL) == (ANY, DIFF)
    assert level(lambda a, b: a * b / (a * a + b * b), REAL, REAL) == (ANY, ANY)
    assert level(lambda a, b: a / b, REAL, POSITIVE) == (DIFF, DIFF)
    assert level(lambda a, b: jnp.take(jnp.stack([a, 2 * a]), jnp.int32(b)), REAL, REAL) == (DIFF, ANY)
    assert level(lambda a, b: jnp.abs(a) + b + 0 * jnp.floor(a), REAL, REAL) == (ANY, DIFF)
    assert level(lambda a, b: lax.dynamic_slice(jnp.stack([a, b]), (1,), (1,)), REAL, REAL) == (DIFF, DIFF)


def test_loops_reach_a_fixpoint():
    def swap(a, b):  # the level of a reaches b in the second step only
        return lax.fori_loop(0, 5, lambda i, c: (c[1], jax.nn.relu(c[0])), (a, b))

    (first, second), _ = interpret(swap, REAL, REAL)
    assert {n: r.level for n, r in first.levels.items()} == {"a": LIP, "b": LIP}
    assert {n: r.level for n, r in second.levels.items()} == {"a": LIP, "b": LIP}
    until = lambda x: lax.while_loop(lambda c: jnp.abs(c) < 1, lambda c: 2 * c, x)  # noqa: E731
    assert level(until, REAL) == ANY
    counted = lambda a, b: lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, c[1] * b), (0, a))[1]  # noqa: E731
    assert level(counted, REAL, REAL) == (DIFF, DIFF)
    assert level(lambda x: lax.scan(lambda c, y: (c + y, jnp.abs(y)), 0.0, x)[0], REAL, shape=(3,)) == DIFF
    assert level(lambda x: lax.scan(lambda c, y: (c + y, jnp.abs(y)), 0.0, x)[1], REAL, shape=(3,)) == LIP
    result, _ = interpret(lambda x: lax.fori_loop(0, 100, lambda i, c: c + x, 0.0), UNIT)
    assert result.interval == POSITIVE
    assert level(lambda x: jnp.log(lax.fori_loop(0, 100, lambda i, c: c + x, x)), POSITIVE) == DIFF


def test_equal_values_are_known_across_calls():
    assert level(lambda x: jnp.where(x > 0, jax.jit(jnp.sin)(x), jax.jit(jnp.sin)(x)), REAL) == DIFF
    assert level(lambda x: jax.jit(lambda c, u, v: jnp.where(c, u, v))(x > 0, x, x), REAL) == DIFF
    assert level(lambda x: lax.cond(x > 0, lambda y: y + 1, lambda y: 1 + y, x), REAL) == DIFF
    assert level(lambda x: jnp.where(x > 0, x + 1, x + 2), REAL) == ANY
    same = lambda x: lax.scan(lambda c, y: (c * y, None), x, jnp.arange(3.0))[0]  # noqa: E731
    other = lambda x: lax.scan(lambda c, y: (c + y, None), x, jnp.arange(3.0))[0]  # noqa: E731
    assert level(lambda x: jnp.where(x > 0, same(x), same(x)), REAL) == DIFF
    assert level(lambda x: jnp.where(x > 0, same(x), other(x)), REAL) == ANY


def test_a_users_function_is_not_taken_for_jaxs():
    @jax.custom_jvp
    def logaddexp(x, y):
        return jnp.floor(x) + y

    logaddexp.defjvp(lambda p, t: (logaddexp(*p), t[0] + t[1]))
    ndtr = jax.jit(lambda x: jnp.sign(x))
    ndtr.__wrapped__.__name__ = "ndtr"
    assert level(lambda x: logaddexp(x, 1.0), REAL) == ANY
    assert level(ndtr, REAL) == ANY


def test_what_has_no_rule_is_named_with_its_line():
    result, interpreter = interpret(lambda x: jnp.linalg.qr(x)[0], REAL, shape=(3, 3))
    assert result.levels["a"].level == ANY
    assert "test_interpreter.py" in result.levels["a"].cause
    assert interpreter.unknown


def test_a_kink_is_named_with_its_line():
    result, _ = interpret(lambda x: jax.nn.relu(x), REAL)
    assert result.levels["a"].cause.startswith("'max' at test_interpreter.py:")


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, lambda f: jax.vmap(f, axis_size=1, in_axes=None, out_axes=None)]
)
def test_transformations_change_nothing(wrap):
    def fn(x):
        return logsumexp(jnp.stack([x, jax.nn.relu(x)])) + jnp.where(jnp.exp(x) > 0, x, 0.0)

    assert level(wrap(fn), REAL) == level(fn, REAL) == LIP
    assert level(wrap(jnp.sin), REAL) == DIFF


def test_float64_changes_nothing():
    for fn in (lambda x: logsumexp(jnp.stack([x, 0.0])), lambda x: jnp.where(x > 0, x, 1.0), jax.nn.softplus):
        with jax.enable_x64(True):
            wide, _ = interpret(fn, REAL)
        narrow, _ = interpret(fn, REAL)
        assert wide.levels == narrow.levels or [r.level for r in wide.levels.values()] == [
            r.level for r in narrow.levels.values()
        ]
        assert wide.interval == narrow.interval


def test_every_rule_is_of_a_primitive():
    """A misspelt name would be a rule that never applies."""
    from jax.extend.core import primitives

    from vinb.analysis.forms import FORMS
    from vinb.analysis.loops import CONTROL_FLOW
    from vinb.analysis.rules import RULES

    known = {p.name for p in vars(primitives).values() if hasattr(p, "name")}
    # Known to JAX, but without a public name.
    own = {
        "tag",
        "expand_dims",
        "copy_p",
        "reduce_window_max",
        "reduce_window_min",
        "stop_gradient",
        "device_put",
        "stack",
        "unstack",
    }
    own |= {"cumlogsumexp", "split", "scatter-sub", "optimization_barrier"}
    assert (set(RULES) | set(FORMS) | set(CONTROL_FLOW)) - known <= own


def test_every_signature_is_of_a_distribution():
    import numpyro.distributions as dist

    from vinb.analysis.signatures import SIGNATURES
    from vinb.distributions import one_hot

    for name, signature in SIGNATURES.items():
        cls = getattr(dist, name, None) or getattr(one_hot, name)
        assert issubclass(cls, Distribution)
        assert set(signature.arguments) <= set(cls.arg_constraints)
        assert all(
            c is not constraints.positive_definite or signature.assumption
            for c in cls.arg_constraints.values()
        )


def test_knowledge_can_be_taken_away():
    from vinb.analysis import without

    assert level(jax.nn.softmax, REAL, shape=(3,)) == DIFF
    assert level(jnp.log, POSITIVE) == DIFF
    with without("idioms"):
        assert level(jax.nn.softmax, REAL, shape=(3,)) == LIP
        assert level(jax.nn.softplus, REAL) > DIFF
        assert level(jnp.log, POSITIVE) == DIFF
    with without("supports"):
        assert level(jnp.log, POSITIVE) == ANY
        assert level(jax.nn.softmax, REAL, shape=(3,)) == DIFF
    assert level(jnp.log, POSITIVE) == DIFF
    with pytest.raises(ValueError, match="'idioms'"), without("everything"):
        pass
