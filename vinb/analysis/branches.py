"""The branches of a function of noise: which comparisons decide them, where they change over, and the function with some forced.

Design notes. The jaxpr of the function is walked equation by equation, with each value's kind beside it: how it depends on the
noise. A comparison of values that are affine in the noise is a *condition*: it changes over on a hyperplane. Each of its elements
is one. The walk computes the conditions' values and, given a truth value for some of them, the outputs that follow from these;
so no list of branches is kept, and ``2^m`` combinations of ``m`` conditions cost nothing. Whatever may jump in the noise and is
no such comparison is refused with its line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters import partial_eval
from jaxtyping import Array, Bool, Float

from vinb.analysis.source import called_jaxpr, library_function, source_line

MAX_STEPS = 1024  # of a scan that is written out


class NotAffine(ValueError):
    """A branch does not change over on a hyperplane of the noise."""


class Kind(IntEnum):
    """How a value depends on the noise, given everything else."""

    CONSTANT = 0
    STEP = 1  # constant as long as no condition changes over
    AFFINE = 2
    CURVED = 3  # continuous as long as no condition changes over


class Value(NamedTuple):
    array: Any
    kind: Kind = Kind.CONSTANT
    sites: frozenset[str] = frozenset()  # whose noise it depends on
    why: str = ""  # of a CURVED one: what made it so


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Affine in all operands together.
_LINEAR = _words("""
    add add_any sub neg reduce_sum cumsum reshape broadcast_in_dim squeeze expand_dims transpose rev slice concatenate pad copy
    copy_p real optimization_barrier split stack unstack scatter scatter-add gather dynamic_slice
    dynamic_update_slice
""")
_BILINEAR = _words("mul dot_general conv_general_dilated")
_INDEXED = {"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2}  # the first operand that is an index
_CONTINUOUS = (
    _LINEAR
    | _BILINEAR
    | _words("""
    div exp exp2 expm1 log log1p sin cos tanh sinh cosh asin acos atan asinh acosh atanh logistic sqrt rsqrt cbrt pow
    integer_pow square abs max min clamp erf erfc erf_inv lgamma digamma polygamma igamma igammac igamma_grad_a random_gamma_grad
    random_gamma regularized_incomplete_beta bessel_i0e bessel_i1e reduce_max reduce_min reduce_prod cumprod cummax cummin
    cumlogsumexp reduce_window_sum reduce_window_max cholesky triangular_solve fft select_n
""")
)
_ALMOST_NEVER = _words("eq ne")  # decided almost everywhere, so that nothing changes over
_COMPARISONS = {"gt": 1.0, "ge": 1.0, "lt": -1.0, "le": -1.0}
# Functions of JAX that are smooth, and written with comparisons.
_SMOOTH_CALLS = _words("log_ndtr ndtr _ndtr i0e i1e zeta polygamma")


@dataclass
class _Forced:
    """What is collected in one walk, and what is forced."""

    mask: Array | None
    truth: Array | None
    conditions: list
    count: int = 0

    def condition(self, gap, compute):
        """The truth of ``gap > 0`` for a new condition of each element, by ``compute`` where it is not forced."""
        start, self.count = self.count, self.count + gap.size
        self.conditions.append(gap.reshape(-1))
        if self.mask is None:
            return compute
        mask, truth = (a[start : self.count].reshape(gap.shape) for a in (self.mask, self.truth))
        return jnp.where(mask, truth, compute)


class Branches:
    """The branches of a scalar function of noise.

    Args:
        fn: a function of a dict from site name to array of noise; it may close over tracers.
        noise: such a dict (arrays or ``jax.ShapeDtypeStruct``).

    Attributes:
        num: the number of conditions.
        lines: where each comparison stands, with the number of its conditions.

    Raises:
        NotAffine: when something that depends on the noise may jump and is no comparison of affine values.
    """

    def __init__(self, fn: Callable[[dict[str, Array]], Float[Array, ""]], noise: dict[str, Array]):
        self.names = sorted(noise)
        shapes = [jax.ShapeDtypeStruct(noise[n].shape, noise[n].dtype) for n in self.names]
        closed = jax.make_jaxpr(lambda *leaves: fn(dict(zip(self.names, leaves, strict=True))))(*shapes)
        self.lines, self._consts = [], closed.consts
        conditions = jax.eval_shape(
            lambda *leaves: self._run(closed.jaxpr, self._consts, leaves, self.lines)[1], *shapes
        )
        self.num, self._dtype = conditions.shape[0], conditions.dtype
        # What follows is traced once more, without the comparisons' rest or without the conditions' values.
        truths = jax.ShapeDtypeStruct((self.num,), bool)
        self._gaps = _pruned(
            lambda consts, *leaves: self._run(closed.jaxpr, consts, leaves)[1], self._consts, *shapes
        )
        self._value = _pruned(
            lambda consts, mask, truth, *leaves: self._run(closed.jaxpr, consts, leaves, None, mask, truth)[0],
            self._consts, truths, truths, *shapes,
        )  # fmt: skip

    def gaps(self, noise: dict[str, Array], *, frozen: bool = False) -> Float[Array, " num"]:
        """Values of the conditions' affine functions, positive where a condition is true (a ``sign`` is 1).

        Args:
            noise: as at construction.
            frozen: stop gradients in everything that ``fn`` closes over.
        """
        return self._gaps(self._closure(frozen), *(noise[n] for n in self.names))

    def value(
        self,
        noise: dict[str, Array],
        mask: Bool[Array, " num"],
        truth: Bool[Array, " num"],
        *,
        frozen: bool = False,
    ) -> Float[Array, ""]:
        """The function with the conditions in ``mask`` forced to what ``truth`` says of them, all others as they are."""
        return self._value(self._closure(frozen), mask, truth, *(noise[n] for n in self.names))

    def _closure(self, frozen):
        return lax.stop_gradient(self._consts) if frozen else self._consts

    def _run(self, jaxpr, consts, leaves, lines=None, mask=None, truth=None):
        forced = _Forced(mask, truth, [])
        inputs = [
            Value(leaf, Kind.AFFINE, frozenset([n])) for leaf, n in zip(leaves, self.names, strict=True)
        ]
        jaxpr = partial_eval.dce_jaxpr(jaxpr, [True], instantiate=True)[0]
        (out,) = _walk(jaxpr, [Value(c) for c in consts], inputs, forced, lines)
        dtype = leaves[0].dtype
        gaps = [c.astype(dtype) for c in forced.conditions]
        return out.array, jnp.concatenate(gaps) if gaps else jnp.zeros(0, dtype)


def _pruned(fn, consts, *shapes):
    """``fn`` as a function that runs the jaxpr of what its result needs, of arguments of these shapes."""
    closed = jax.make_jaxpr(fn)(consts, *shapes)
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=False)
    # Hidden constants of the closed jaxpr are first among those of the smaller one too.
    run = jax.extend.core.jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))

    def call(consts, *arrays):
        leaves = [*consts, *arrays]
        return run(*(leaf for leaf, kept in zip(leaves, used, strict=True) if kept))[0]

    return call


def _walk(jaxpr: Jaxpr, consts, inputs, forced, lines) -> list[Value]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    read = lambda atom: Value(atom.val) if isinstance(atom, Literal) else known[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        known.update(
            zip(eqn.outvars, _outputs(eqn, [read(v) for v in eqn.invars], forced, lines), strict=True)
        )
    return [read(v) for v in jaxpr.outvars]


def _outputs(eqn, inputs: list[Value], forced, lines) -> list[Value]:
    name, params = eqn.primitive.name, eqn.params
    kind = max((v.kind for v in inputs), default=Kind.CONSTANT)
    if kind == Kind.CONSTANT:
        return [Value(a) for a in _bind(eqn, inputs)]
    inner = called_jaxpr(eqn)
    if inner is not None and not _is_smooth(eqn):
        consts = inner.consts if isinstance(inner, ClosedJaxpr) else []
        return _walk(getattr(inner, "jaxpr", inner), [Value(c) for c in consts], inputs, forced, lines)
    if name == "stop_gradient":  # what is compared moves all the same, and its boundary with it
        return inputs
    if name == "scan":
        return _scan(eqn, inputs, forced, lines)
    if name == "cond" and "branches_platforms" not in params:
        return _cond(eqn, inputs, forced, lines)
    sites = frozenset().union(*(v.sites for v in inputs))
    if name in _COMPARISONS or (name == "sign" and kind >= Kind.AFFINE):
        return [_compare(eqn, inputs, sites, forced, lines)]
    arrays = _bind(eqn, inputs)
    if kind == Kind.STEP and name != "while":
        return [Value(a, kind, sites) for a in arrays]
    if name == "is_finite" or (name in _ALMOST_NEVER and _is_measure_zero(eqn, inputs)):
        return [Value(arrays[0], Kind.STEP, sites)]
    if name == "convert_element_type" and _is_wide_float(params["new_dtype"]):
        return [Value(arrays[0], kind, sites, inputs[0].why)]
    if name not in _CONTINUOUS and not _is_smooth(eqn):
        raise NotAffine(
            f"{name!r} at {source_line(eqn)} may jump where the noise of {_names(sites)} changes, and is no comparison of affine "
            "values. Write it with comparisons of values that are affine in the draws, or use ScoreFunction() at these sites"
        )
    made, why = _kind_of_result(eqn, inputs)
    return [Value(a, made, sites, why) for a in arrays]


def _bind(eqn, inputs):
    out = eqn.primitive.bind(*(v.array for v in inputs), **eqn.primitive.get_bind_params(eqn.params))
    return out if eqn.primitive.multiple_results else [out]


def _kind_of_result(eqn, inputs) -> tuple[Kind, str]:
    """Of a continuous primitive with an operand that moves with the noise."""
    for v in inputs:
        if v.kind == Kind.CURVED:
            return v.kind, v.why
    name = eqn.primitive.name
    kinds = [v.kind for v in inputs]
    moving = [k for k, kind in enumerate(kinds) if kind == Kind.AFFINE]
    steps = Kind.STEP in kinds
    if not steps and name in _INDEXED and max(kinds[_INDEXED[name] :], default=0) == 0:
        return Kind.AFFINE, ""
    if not steps and (
        (name in _LINEAR and name not in _INDEXED)
        or (name in _BILINEAR and len(moving) == 1)
        or (name == "div" and moving == [0])
        or (name == "select_n" and kinds[0] == Kind.CONSTANT)
        or (name == "integer_pow" and eqn.params["y"] == 1)
    ):
        return Kind.AFFINE, ""
    what = f"it moves with another branch through {name!r}" if steps else f"{name!r} is not affine in it"
    return Kind.CURVED, f"{what} at {source_line(eqn)}"


def _compare(eqn, inputs, sites, forced, lines) -> Value:
    curved = [v for v in inputs if v.kind == Kind.CURVED]
    mixed = {v.kind for v in inputs} >= {Kind.STEP, Kind.AFFINE}
    if curved or mixed:
        why = curved[0].why if curved else "one side of it changes with another branch"
        raise NotAffine(
            f"{eqn.primitive.name!r} at {source_line(eqn)} compares a value that depends on the noise of {_names(sites)} and "
            f"is not affine in it: {why}. Compare values that are affine in the draws, or use ScoreFunction() at these sites"
        )
    (raw,) = _bind(eqn, inputs)
    if max(v.kind for v in inputs) < Kind.AFFINE:
        return Value(raw, Kind.STEP, sites)
    if eqn.primitive.name == "sign":
        truth = forced.condition(inputs[0].array, inputs[0].array > 0)
        raw, size = jnp.where(truth, 1, -1).astype(raw.dtype), raw.size
    else:
        gap = _COMPARISONS[eqn.primitive.name] * (inputs[0].array - inputs[1].array)
        raw, size = forced.condition(gap, raw), gap.size
    if lines is not None:
        lines.append((source_line(eqn), size))
    return Value(raw, Kind.STEP, sites)


def _is_measure_zero(eqn, inputs) -> bool:
    """Is equality decided almost everywhere? Not of curved values, which may be equal on a set of positive measure."""
    same = eqn.invars[0] is eqn.invars[1]
    return same or all(v.kind in (Kind.CONSTANT, Kind.AFFINE) for v in inputs)


def _is_wide_float(dtype) -> bool:
    """Rounding to eight bits or less is a staircase."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize >= 2


def _cond(eqn, inputs, forced, lines):
    branches = eqn.params["branches"]
    outs = [_walk(b.jaxpr, [Value(c) for c in b.consts], inputs[1:], forced, lines) for b in branches]
    index = inputs[0]
    if index.kind >= Kind.AFFINE:  # an integer or a boolean never is
        raise NotAffine(f"the index of 'cond' at {source_line(eqn)} moves with the noise")
    at = jnp.clip(jnp.asarray(index.array, jnp.int32), 0, len(branches) - 1)
    at_cases = zip(*outs, strict=True)
    return [
        _join(eqn, cases, lax.select_n(at, *(jnp.asarray(c.array) for c in cases)), index)
        for cases in at_cases
    ]


def _join(eqn, values, array, *chosen_by) -> Value:
    """``array``, made of ``values`` side by side, or chosen among them by another value."""
    parts = [*values, *chosen_by]
    kinds = {v.kind for v in parts}
    kind, why = max(kinds), next((v.why for v in parts if v.kind == Kind.CURVED), "")
    if kinds >= {Kind.AFFINE, Kind.STEP}:
        kind, why = (
            Kind.CURVED,
            why or f"it moves with another branch through {eqn.primitive.name!r} at {source_line(eqn)}",
        )
    return Value(array, kind, frozenset().union(*(v.sites for v in parts)), why)


def _scan(eqn, inputs, forced, lines):
    params = eqn.params
    length, num_consts, num_carry = params["length"], params["num_consts"], params["num_carry"]
    if length > MAX_STEPS:
        raise NotAffine(
            f"'scan' at {source_line(eqn)} has {length} steps; at most {MAX_STEPS} that depend on noise are searched for branches"
        )
    consts, carry, xs = (
        inputs[:num_consts],
        inputs[num_consts : num_consts + num_carry],
        inputs[num_consts + num_carry :],
    )
    inner, stacked = params["jaxpr"], []
    for step in reversed(range(length)) if params["reverse"] else range(length):
        x = [v._replace(array=lax.index_in_dim(v.array, step, keepdims=False)) for v in xs]
        outs = _walk(inner.jaxpr, [Value(c) for c in inner.consts], [*consts, *carry, *x], forced, lines)
        carry = outs[:num_carry]
        stacked.append(outs[num_carry:])
    if params["reverse"]:
        stacked.reverse()
    if length == 0:
        empty = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[num_carry:]]
        return [*carry, *map(Value, empty)]
    return [
        *carry,
        *(_join(eqn, steps, jnp.stack([v.array for v in steps])) for steps in zip(*stacked, strict=True)),
    ]


def _is_smooth(eqn) -> bool:
    """Is this the call of a smooth function of JAX's own?"""
    return library_function(eqn) in _SMOOTH_CALLS


def _names(sites) -> str:
    return ", ".join(map(repr, sorted(sites)))
