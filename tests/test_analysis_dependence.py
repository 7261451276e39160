"""The dependence analysis, rule by rule. test_analysis_dependence_fuzz.py holds it against the truth on random programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy.special import logsumexp

from vinb.analysis import dependence, tag

X, V, TABLE = np.ones((5, 3), np.float32), np.ones(5, np.float32), np.ones((7, 4), np.float32)
BOTH, FIRST, SECOND, MIXED = (0, 1), (0, None), (None, 1), (None, None)


@jax.custom_vjp
def halved(x):
    return x / 2


halved.defvjp(lambda x: (x / 2, None), lambda residual, cotangent: (cotangent / 2,))


# Every function gets z, tagged on both axes of shape [5, 3]; expected: where those axes went in its output.
CASES = {
    "elementwise": (lambda z: jnp.exp(z) * jnp.ones((5, 3)) + 1.0, BOTH),
    "special functions": (lambda z: jax.scipy.special.gammainc(z, 2.0) + lax.lgamma(z), BOTH),
    "broadcast operand": (lambda z: jnp.ones((5, 3)) * z[:, :1], FIRST),
    "conflict": (lambda z: z + z[::-1], SECOND),
    "outer": (lambda z: z[:, None, :] * z[None], (None, 2)),
    "scalar operand": (lambda z: jnp.ones((5, 3)) * z[0, 0], MIXED),
    "where": (lambda z: jnp.where(z > 0, z, -z), BOTH),
    "where with a scalar predicate": (lambda z: jnp.where(z[0, 0] > 0, 1.0, jnp.ones((5, 3))), MIXED),
    "clamp": (lambda z: jnp.clip(z, 0.0, 1.0), BOTH),
    "broadcast_in_dim": (lambda z: lax.broadcast_in_dim(z, (5, 2, 3), (0, 2)), (0, 2)),
    "broadcast": (lambda z: jnp.broadcast_to(z, (4, 5, 3)), (1, 2)),
    "new axis": (lambda z: z[:, None, :, None], (0, 2)),
    "reshape to vector": (lambda z: z.reshape(-1), MIXED),
    "reshape keeps the first": (lambda z: jnp.stack([z, z], 2).reshape(5, -1), FIRST),
    "reshape keeps the last": (lambda z: jnp.stack([z, z]).reshape(-1, 3), SECOND),
    "reshape around ones": (lambda z: z.reshape(1, 5, 1, 3).reshape(5, 3, 1, 1), BOTH),
    "reshape as transpose": (lambda z: z.reshape(3, 5), MIXED),
    "transpose": (lambda z: jnp.stack([z] * 4).transpose(2, 0, 1), (2, 0)),
    "squeeze": (lambda z: lax.squeeze(z[:, None, :], (1,)), BOTH),
    "sum": (lambda z: z.sum(0), (None, 0)),
    "all and max": (lambda z: (z > 0).all(1) * z.max(1), FIRST),
    "logsumexp": (lambda z: logsumexp(z, axis=0), (None, 0)),
    "argmax": (lambda z: z.argmax(1), FIRST),
    "matmul": (lambda z: jnp.tanh(z @ jnp.ones((3, 3))) @ jnp.ones((3, 2)), FIRST),
    "matmul from the left": (lambda z: jnp.ones((2, 5)) @ z, SECOND),
    "gram": (lambda z: z @ z.T, MIXED),
    "batched matmul": (lambda z: jnp.einsum("bi,bij->bj", z, jnp.ones((5, 3, 4))), FIRST),
    "dot_general, all kinds": (
        lambda z: jnp.einsum("ki,cbk->kbci", jnp.ones((2, 3)), z[None, :, :2]),
        (1, None),
    ),
    "one-hot matmul": (lambda z: jax.nn.one_hot(z.astype(int), 7) @ jnp.array(TABLE), BOTH),
    "table lookup": (lambda z: jnp.array(TABLE)[z.astype(int)], BOTH),
    "table lookup, two columns": (
        lambda z: jnp.array(TABLE)[z[:, 0].astype(int), z[:, 1].astype(int)],
        FIRST,
    ),
    "vmapped lookup": (lambda z: jax.vmap(lambda r, i: r[i])(z, z[:, 0].astype(int)), FIRST),
    "take_along_axis": (lambda z: jnp.take_along_axis(jnp.ones((5, 3)), z.astype(int), 1), BOTH),
    "take_along_axis of itself": (lambda z: jnp.take_along_axis(z, jnp.zeros((5, 3), int), 1), FIRST),
    "lookup in itself": (lambda z: z[jnp.array([0, 1, 2, 3, 4])], SECOND),
    "columns of itself": (lambda z: z[:, jnp.array([0, 2])], FIRST),
    "concatenate": (lambda z: jnp.concatenate([z, z], 1), FIRST),
    "stack": (lambda z: jnp.stack([z, z], 1), (0, 2)),
    "unstack": (lambda z: jnp.unstack(z, axis=1)[0], FIRST),
    "tile": (lambda z: jnp.tile(z, (1, 2)), FIRST),
    "slice": (lambda z: z[1:], SECOND),
    "strided slice": (lambda z: z[:, ::2], FIRST),
    "split": (lambda z: jnp.split(z, [1], axis=1)[1], FIRST),
    "dynamic_slice": (lambda z: lax.dynamic_slice(z, (2, 0), (3, 3)), SECOND),
    "dynamic_slice at itself": (lambda z: lax.dynamic_slice(z, (z[0, 0].astype(int), 0), (3, 3)), MIXED),
    "dynamic_update_slice": (lambda z: lax.dynamic_update_slice(jnp.ones((5, 6)), z, (0, 1)), FIRST),
    "updated": (lambda z: lax.dynamic_update_slice(z, jnp.ones((2, 2)), (1, 1)), BOTH),
    "scatter": (lambda z: z.at[1].set(3.0), BOTH),
    "scatter of itself": (lambda z: jnp.zeros((7, 3)).at[jnp.arange(5)].add(z), SECOND),
    "vmapped scatter": (lambda z: jax.vmap(lambda r: r.at[r[0].astype(int)].add(r[1]))(z), FIRST),
    "pad": (lambda z: jnp.pad(z, ((0, 0), (1, 1))), FIRST),
    "pad as shift": (lambda z: lax.pad(z, 0.0, ((1, -1, 0), (0, 0, 0))), SECOND),
    "rev": (lambda z: z[:, ::-1], FIRST),
    "roll": (lambda z: jnp.roll(z, 1, axis=0), SECOND),
    "cumsum": (lambda z: jnp.cumsum(z, 0), SECOND),
    "sort": (lambda z: jnp.sort(z, 1), FIRST),
    "argsort": (lambda z: jnp.argsort(z, axis=0), SECOND),
    "sort with values": (lambda z: lax.sort((jnp.ones((5, 3)), z), dimension=1, num_keys=1)[0], FIRST),
    "top_k": (lambda z: lax.top_k(z, 2)[0], FIRST),
    "stop_gradient": (lax.stop_gradient, BOTH),
    "optimization_barrier": (lambda z: lax.optimization_barrier((jnp.ones(4), z))[1], BOTH),
    "random bits": (lambda z: jax.random.normal(jax.random.key(z[0, 0].astype(int)), (5, 3)), MIXED),
    "gamma": (lambda z: jax.random.gamma(jax.random.key(0), z), BOTH),
    "conv": (lambda z: lax.conv(z[:, None], jnp.ones((2, 1, 2)), (1,), "VALID"), FIRST),
    "window": (lambda z: lax.reduce_window(z, -jnp.inf, lax.max, (1, 2), (1, 1), "VALID"), FIRST),
    "shifted window": (
        lambda z: lax.reduce_window(z, -jnp.inf, lax.max, (1, 1), (1, 1), ((0, 0), (1, -1))),
        FIRST,
    ),
    "cholesky": (lambda z: jnp.linalg.cholesky(jnp.eye(3) + z[..., None] * z[:, None]), FIRST),
    "jit": (lambda z: jax.jit(lambda a, b: jax.jit(jnp.add)(a, b).T)(z, 1.0), (1, 0)),
    "checkpoint": (lambda z: jax.checkpoint(lambda a: jnp.sin(a).sum(0))(z), (None, 0)),
    "relu and softmax": (lambda z: jax.nn.softmax(jax.nn.relu(z), axis=1), FIRST),
    "custom_vjp": (halved, BOTH),
    "gradient": (lambda z: jax.grad(lambda a: logsumexp(jnp.sin(a), axis=1).sum())(z), FIRST),
    "cond": (lambda z: lax.cond(jnp.array(True), lambda a: a * 2, lambda a: a[:, ::-1], z), FIRST),
    "cond on itself": (lambda z: lax.cond(z.sum() > 0, jnp.sin, jnp.cos, jnp.ones((5, 3))), MIXED),
    "fori_loop": (lambda z: lax.fori_loop(0, 3, lambda i, c: c * z + i, jnp.ones((5, 3))), BOTH),
    "while": (lambda z: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * z), (0, z))[1], BOTH),
    "while on itself": (lambda z: lax.while_loop(lambda c: c[1, 1] < 3, lambda c: c + 1, z), MIXED),
    "while until itself": (
        lambda z: lax.while_loop(lambda c: c[0] < z.sum(), lambda c: c + 1, jnp.ones(5)),
        MIXED,
    ),
    "map": (lambda z: lax.map(lambda r: jnp.sin(r).sum(), z), FIRST),
    "map of map": (lambda z: lax.map(lambda r: lax.map(jnp.sin, r), z), BOTH),
    "scan's carry": (lambda z: lax.scan(lambda c, r: (c + r, c), jnp.zeros(3), z)[0], (None, 0)),
    "scan's carry in ys": (lambda z: lax.scan(lambda c, r: (c + r, c), jnp.zeros(3), z)[1], SECOND),
    "scan's xs in ys": (lambda z: lax.scan(lambda c, r: (c, c * r), jnp.zeros(3), z)[1], BOTH),
    "scan's constant": (
        lambda z: lax.scan(lambda c, r: (c * z, c[:, 0]), jnp.ones((5, 3)), jnp.ones(9))[1],
        (1, None),
    ),
    "scan that rotates its carry": (
        lambda z: lax.scan(lambda c, _: ((c[1], c[2], c[0][::-1]), 0), (z, z, z), None, length=9)[0][0],
        SECOND,
    ),
    "scan in scan": (
        lambda z: lax.scan(lambda c, r: (c, lax.scan(lambda d, s: (d + s, d * r), 0.0, r)[1]), 0, z)[1],
        (0, None),
    ),
    "unknown primitive": (lambda z: jnp.fft.fft(z), MIXED),
    "unknown with jaxprs": (lambda z: jnp.linalg.solve(jnp.eye(5), z), MIXED),
    "callback": (lambda z: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((5, 3), np.float32), z), MIXED),
}


# The same on shape [5, 5], where a wrong axis does not give itself away by its size: whole families of primitives.
SQUARE_CASES = {
    **{
        f"{fn.__name__} over rows": (lambda z, fn=fn: fn(z, axis=0), SECOND)
        for fn in (lax.cumsum, lax.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp, jnp.sort, jnp.argsort)
    },
    **{
        f"{fn.__name__} of rows": (lambda z, fn=fn: fn(z, axis=0), (None, 0))
        for fn in (jnp.sum, jnp.prod, jnp.max, jnp.min, jnp.argmax, jnp.argmin, jnp.all, jnp.any)
    },
    **{
        f"scatter, {how}": (
            lambda z, how=how: getattr(jnp.zeros((5, 5)).at[jnp.array([1, 2, 3, 4, 0])], how)(z),
            SECOND,
        )
        for how in ("set", "add", "subtract", "multiply", "min", "max")
    },
    **{
        f"window, {fn.__name__} from {start}": (
            lambda z, fn=fn, start=start: lax.reduce_window(z, start, fn, (2, 1), (1, 1), "SAME"),
            SECOND,
        )
        for fn, start in ((lax.add, 0.0), (lax.max, -np.inf), (lax.min, np.inf), (lax.max, 0.0))
    },
    "reduce_xor": (lambda z: lax.reduce_xor(z.astype(int), (0,)), (None, 0)),
    "reduce by a function": (lambda z: lax.reduce(z, 0.0, lambda a, b: a + b * a, (0,)), (None, 0)),
    "matmul": (lambda z: z @ jnp.ones((5, 5)), FIRST),
    "matmul from the left": (lambda z: jnp.ones((5, 5)) @ z, SECOND),
    "second operand's free axis": (lambda z: jnp.einsum("i,jk->ijk", jnp.ones(5), z), (1, 2)),
    "row of a table": (lambda z: jnp.ones((5, 5))[z.astype(int)], BOTH),
    "column of a table": (lambda z: jnp.ones((5, 5))[:, z.astype(int)], (1, 2)),
    "row of itself": (lambda z: z[:, jnp.arange(5)[::-1]], FIRST),
    "scatter in batches": (lambda z: jax.vmap(lambda r: jnp.zeros(5).at[jnp.arange(5)].set(r))(z), FIRST),
    "scatter in places of itself": (lambda z: jnp.zeros(5).at[z.astype(int)].set(1.0), MIXED),
    "pad": (lambda z: lax.pad(z, 0.0, ((-1, 1, 0), (0, 0, 0))), SECOND),
    "broadcast": (lambda z: lax.broadcast_in_dim(z, (5, 5, 5), (1, 2)), (1, 2)),
    "squeeze": (lambda z: lax.squeeze(z[:, None], (1,)), BOTH),
    "transpose": (lambda z: z[None].transpose(2, 0, 1), (2, 0)),
    "reshape": (lambda z: jnp.stack([z] * 5, 2).transpose(2, 0, 1).reshape(25, 5), SECOND),
    "reshape anew": (lambda z: z.reshape(25).reshape(5, 5), MIXED),
    "unstack": (lambda z: jnp.unstack(z)[0], (None, 0)),
    "top_k": (lambda z: lax.top_k(z, 5)[1], FIRST),
    "conv": (lambda z: lax.conv(z[:, None], jnp.ones((1, 1, 3)), (1,), "SAME"), FIRST),
    "conv that sums the batch": (
        lambda z: lax.conv_general_dilated(
            z[:, None], jnp.ones((5, 1, 3)), (1,), "SAME", batch_group_count=5
        ),
        MIXED,
    ),
    "cholesky": (lambda z: lax.linalg.cholesky(z, symmetrize_input=False), MIXED),
    "triangular_solve": (lambda z: lax.linalg.triangular_solve(z, jnp.ones((5, 5))), MIXED),
}


@pytest.mark.parametrize("case", CASES)
def test_axes_through(case):
    fn, expected = CASES[case]
    assert dependence(lambda x: fn(tag(x, "z", 2)))(X) == {"z": expected}


@pytest.mark.parametrize("case", SQUARE_CASES)
def test_axes_of_one_size_through(case):
    fn, expected = SQUARE_CASES[case]
    assert dependence(lambda x: fn(tag(x, "z", 2)))(np.ones((5, 5), np.float32)) == {"z": expected}


def test_outputs_keep_their_structure_and_constants_depend_on_nothing():
    out = dependence(lambda x: {"a": (tag(x, "z", 1), x, 2.0), "b": None, "c": jnp.arange(5)})(X)
    assert out == {"a": ({"z": (0,)}, {}, {}), "b": None, "c": {}}


def test_arguments_may_be_abstract_and_named():
    assert dependence(lambda x, y: tag(x, "x", 1) + y)(jax.ShapeDtypeStruct((5,), jnp.float32), y=1.0) == {
        "x": (0,)
    }


def test_a_tag_cuts_and_tags_of_one_name_are_taken_together():
    def cut(x):
        first = tag(x, "first", 2)
        second = tag(first.sum(1), "second", 1)
        return second, first * second[:, None], first.T @ tag(x, "first", 1)

    second, both, merged = dependence(cut)(X)
    assert second == {"second": (0,)}
    assert both == {"first": (0, 1), "second": (0,)}
    assert merged == {"first": (None, None)}
    assert dependence(lambda v: tag(v, "z", 1) + tag(v, "z", 1)[::-1])(V) == {"z": (None,)}
    assert dependence(lambda v: tag(v, "z", 1) + jnp.sin(tag(v, "z", 1)))(V) == {"z": (0,)}


def test_vmap_makes_element_axes():
    def cost(x, w):
        hidden = jnp.tanh(w @ tag(x, "z", 0))
        return hidden.sum(), tag(w.sum(), "w", 0)

    def both(x):
        return jax.vmap(jax.vmap(cost, (0, None)), (1, None))(x, jnp.ones((4, 2)))

    assert dependence(both)(np.ones((5, 3, 2))) == ({"z": (0, 1)}, {"w": ()})
    assert dependence(lambda x: jax.vmap(lambda r: tag(r, "z", 1).sum(), in_axes=1)(x))(X) == {"z": (0, None)}


def test_a_tag_inside_a_loop_is_found():
    def step(carry, row):
        value = tag(carry + row, "z", 1)
        return value[::-1] + carry, jnp.sin(value)

    carry, values = dependence(lambda x: lax.scan(step, jnp.zeros(3), x))(X)
    assert values == {"z": (1,)}
    assert carry == {"z": (None,)}

    def found(x):
        grow = lax.while_loop(lambda c: tag(c, "test", 0) < 3, lambda c: tag(c + 1, "body", 0), x.sum())
        either = lax.cond(x[0] > 0, lambda v: tag(v, "yes", 1), lambda v: v, x)
        opaque = lax.custom_linear_solve(lambda v: v, tag(x, "b", 1), lambda mv, b: tag(b, "solve", 1))
        folded = lax.reduce(jnp.ones(5), 0.0, lambda a, b: tag(a + b, "fold", 0), (0,))
        return grow, either, opaque, folded

    grow, either, opaque, folded = dependence(found)(V)
    assert folded == {"fold": ()}
    assert grow == {"test": (), "body": ()}
    assert either == {"yes": (0,)}
    assert opaque == {"b": (None,), "solve": (None,)}


def test_tangents_pass_a_tag_unmarked():
    def derivative(x):
        z = tag(x, "x", 1)
        return jax.jvp(lambda u: tag(u**2, "z", 1) ** 3, (z,), (jnp.ones(5),))[1]

    assert dependence(derivative)(V) == {"x": (0,), "z": (0,)}


def test_a_tag_is_the_identity_under_every_transformation():
    def cost(x):
        return jax.vmap(lambda r: (tag(r, "z", 1) ** 3).sum())(x).sum()

    x = jnp.arange(6.0).reshape(2, 3)
    assert cost(x) == (x**3).sum()
    np.testing.assert_allclose(jax.jit(jax.grad(cost))(x), 3 * x**2)
    np.testing.assert_allclose(jax.hessian(cost)(x).sum((2, 3)), 6 * x)
    np.testing.assert_array_equal(jax.linear_transpose(lambda v: tag(v, "z", 1), x)(x)[0], x)
    assert tag(jax.random.key(1), "key", 0) == jax.random.key(1)


def test_closing_over_tracers():
    seen = []

    def inner(weight, x):
        seen.append(dependence(lambda u: tag(u * weight, "z", 1) @ jnp.outer(weight, x))(x))
        return (weight * x).sum()

    jax.jit(jax.grad(inner))(V, V)
    jax.vmap(inner, (0, None))(jnp.ones((2, 5)), V)
    assert seen == [{"z": (None,)}, {"z": (None,)}]
    jax.jit(lambda w: seen.append(dependence(lambda u: (tag(u, "z", 1) * w, w))(V)))(V)
    assert seen[-1] == ({"z": (0,)}, {})


def test_a_mutable_array_mixes_everything():
    def through_a_reference(x):
        memory = jax.new_ref(jnp.zeros(5))
        jax.jit(lambda v: memory.__setitem__(..., v[::-1]))(tag(x, "z", 1))
        return memory[...]

    assert dependence(through_a_reference)(V) == {"z": (None,)}


@pytest.mark.parametrize(
    ("name", "num_axes", "error", "message"),
    [
        (3, 0, TypeError, "name must be a string, got 3"),
        ("z", 1.0, TypeError, "num_axes must be an integer, got 1.0"),
        ("z", 3, ValueError, r"between 0 and the 2 axes of the value of shape \(5, 3\), got 3"),
        ("z", -1, ValueError, "got -1"),
    ],
)
def test_bad_tags_are_refused(name, num_axes, error, message):
    with pytest.raises(error, match=message):
        tag(X, name, num_axes)
