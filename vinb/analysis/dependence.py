"""Which outputs of a function depend on which tagged values inside it, and whether element by element along an axis."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Shaped

from vinb.analysis.axis_rules import AXIS_RULES
from vinb.analysis.source import CALLS

# Per tagged name, one entry per element axis: the array axis it is aligned with, or None. Inside scans -1 stands for the
# position in the innermost loop (elements at step t depend on tagged elements with index t only), -2 for the loop around.
Dependence = dict[str, tuple[int | None, ...]]

# Output k is input k.
_POSITIONAL = ("optimization_barrier", "device_put")

_tag_p = Primitive("tag")
_tag_p.def_impl(lambda value, **params: value)
_tag_p.def_abstract_eval(lambda aval, **params: aval)
mlir.register_lowering(_tag_p, lambda ctx, value, **params: [value])
# A tangent passes untagged: it depends on what the value was computed from, which a tag would cut off.
ad.primitive_jvps[_tag_p] = lambda primals, tangents, **params: (_tag_p.bind(*primals, **params), tangents[0])
ad.primitive_transposes[_tag_p] = lambda cotangent, value, **params: [cotangent]


def _batch_tag(values, axes, *, name, num_axes):
    return _tag_p.bind(jnp.moveaxis(values[0], axes[0], 0), name=name, num_axes=num_axes + 1), 0


batching.primitive_batchers[_tag_p] = _batch_tag


def tag(value: Shaped[Array, "*shape"], name: str, num_axes: int) -> Shaped[Array, "*shape"]:
    """Marks an array as a source of dependence for :func:`dependence`; otherwise the identity.

    A tag cuts: what is computed from the result depends on the tag, not on what ``value`` was computed from (tangents and
    cotangents pass unmarked). Under ``jax.vmap`` a batched value gains its batch axis as a further element axis in front.

    Args:
        value: any array.
        name: the source's name. Values tagged with the same name count as one source.
        num_axes: how many of the leading axes of ``value`` are element axes, whose elements are told apart.

    Returns:
        ``value``.

    Raises:
        TypeError: if ``name`` is not a string or ``num_axes`` not an integer.
        ValueError: if ``num_axes`` is negative or more than the axes of ``value``.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if not isinstance(num_axes, int):
        raise TypeError(f"num_axes must be an integer, got {num_axes!r}")
    value = jnp.asarray(value)
    if not 0 <= num_axes <= value.ndim:
        raise ValueError(
            f"num_axes must be between 0 and the {value.ndim} axes of the value of shape {value.shape}, got {num_axes}"
        )
    return _tag_p.bind(value, name=name, num_axes=num_axes)


def dependence(fn: Callable) -> Callable[..., Any]:
    """Finds which tagged values (see :func:`tag`) each output of a function depends on, without running it.

    The function is traced and its jaxpr walked. What is denied does not happen, for any values of the arguments; what is
    admitted need not happen. Dependence through derivative rules counts only where ``fn`` itself differentiates.

    Args:
        fn: a function of arrays that JAX can trace; it may close over tracers of transformations around it.

    Returns:
        A function of the same arguments (arrays or ``jax.ShapeDtypeStruct``) that returns the structure of ``fn``'s output
        with a dict at each leaf. A tagged name that is missing: the leaf does not depend on it. ``leaf[name][a] == b``:
        the leaf's elements with index j along axis b depend only on tagged elements with index j along element axis a (the
        axes have the same size). ``leaf[name][a] is None``: any may depend on any. Tagged values of the same name are
        taken together, each step of a loop that runs through a tag included.
    """

    def analysed(*args, **kwargs):
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        outputs = _walk(closed.jaxpr, [{}] * len(closed.jaxpr.invars))
        if has_state(closed.jaxpr):
            # A write to a mutable array reaches reads that no data flow shows.
            outputs = [_mix(_tags_inside(closed.jaxpr))] * len(outputs)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return analysed


def _join(*states: Dependence) -> Dependence:
    joined = {}
    for state in states:
        for name, axes in state.items():
            # Tags of one name may differ in their number of axes.
            both = zip_longest(joined.get(name, axes), axes)
            joined[name] = tuple(known if known == axis else None for known, axis in both)
    return joined


def _map(state: Dependence, change: Callable[[int], int | None]) -> Dependence:
    return {name: tuple(None if a is None else change(a) for a in axes) for name, axes in state.items()}


def _mix(state: Dependence) -> Dependence:
    return _map(state, lambda a: a if a < 0 else None)


def _walk(jaxpr: Jaxpr, inputs: list[Dependence]) -> list[Dependence]:
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom) -> Dependence:
        return {} if isinstance(atom, Literal) else known.get(atom, {})

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _outputs(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _outputs(eqn, inputs: list[Dependence]) -> list[Dependence]:
    name, params = eqn.primitive.name, eqn.params
    if eqn.primitive is _tag_p:
        return [{params["name"]: tuple(range(params["num_axes"]))}]
    if name == "scan":
        return _scan(params, inputs)
    if name == "while":
        return _while(params, inputs)
    if name == "cond":
        branches = [_walk(_open(branch), inputs[1:]) for branch in params["branches"]]
        return [_join(_mix(inputs[0]), *outputs) for outputs in zip(*branches, strict=True)]
    inner = inner_jaxprs(params)
    if name in CALLS and len(inner) == 1 and len(inner[0].invars) == len(inputs):
        return _walk(inner[0], inputs)
    tags = _join(*map(_tags_inside, inner))
    if name in _POSITIONAL and len(inputs) == len(eqn.outvars):
        return inputs
    if name in AXIS_RULES and not tags:
        return _apply_rule(eqn, inputs)
    mixed = _mix(_join(*inputs, tags))
    return [mixed for _ in eqn.outvars]


def _apply_rule(eqn, inputs: list[Dependence]) -> list[Dependence]:
    shapes = [v.aval.shape for v in eqn.invars]
    tables = AXIS_RULES[eqn.primitive.name](shapes, eqn.outvars[0].aval.shape, eqn.params)

    def moved(state: Dependence, table, shape, out) -> Dependence:
        def change(axis: int) -> int | None:
            if axis < 0:
                return axis
            place = table[axis] if table is not None else None
            return int(place) if place is not None and shape[axis] == out[place] else None

        return _map(state, change)

    return [
        _join(*(moved(*operand, v.aval.shape) for operand in zip_longest(inputs, tables, shapes)))
        for v in eqn.outvars
    ]


def _scan(params, inputs: list[Dependence]) -> list[Dependence]:
    num_consts, first_x = params["num_consts"], params["num_consts"] + params["num_carry"]
    inside = [_map(state, lambda a: a if a >= 0 else a - 1) for state in inputs[:first_x]]
    consts, carry = inside[:num_consts], inside[num_consts:]
    # Axis 0 becomes -1, the loop's position.
    xs = [_map(state, lambda a: a - 1) for state in inputs[first_x:]]

    def another_step(state: Dependence) -> Dependence:
        return _map(state, lambda a: None if a == -1 else a)

    while True:
        outputs = _walk(_open(params["jaxpr"]), consts + carry + xs)
        after = [_join(old, another_step(new)) for old, new in zip(carry, outputs, strict=False)]
        if after == carry:
            break
        carry = after
    left = [_map(state, lambda a: a if a >= 0 else a + 1) for state in carry]
    return left + [_map(state, lambda a: a + 1) for state in outputs[len(carry) :]]


def _while(params, inputs: list[Dependence]) -> list[Dependence]:
    num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
    test_consts, body_consts = inputs[:num_test], inputs[num_test : num_test + num_body]
    carry = inputs[num_test + num_body :]
    while True:
        (test,) = _walk(_open(params["cond_jaxpr"]), test_consts + carry)
        outputs = _walk(_open(params["body_jaxpr"]), body_consts + carry)
        # How often the body runs depends on the test.
        after = [_join(old, new, _mix(test)) for old, new in zip(carry, outputs, strict=True)]
        if after == carry:
            return carry
        carry = after


def _open(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def inner_jaxprs(params) -> list[Jaxpr]:
    leaves = jax.tree.leaves(params, is_leaf=lambda p: isinstance(p, (ClosedJaxpr, Jaxpr)))
    return [_open(leaf) for leaf in leaves if isinstance(leaf, (ClosedJaxpr, Jaxpr))]


def _tags_inside(jaxpr: Jaxpr) -> Dependence:
    found = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive is _tag_p:
            found = _join(found, {eqn.params["name"]: (None,) * eqn.params["num_axes"]})
        found = _join(found, *(_tags_inside(inner) for inner in inner_jaxprs(eqn.params)))
    return found


def has_state(jaxpr: Jaxpr) -> bool:
    return any(
        any(not isinstance(v.aval, jax.core.ShapedArray) for v in eqn.invars)
        or any(has_state(inner) for inner in inner_jaxprs(eqn.params))
        for eqn in jaxpr.eqns
    )
