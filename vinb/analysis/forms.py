"""Primitives whose result follows from more than the table of rules: what passes an operand on, selects, compares, sorts or solves.

Each form is a function of the interpreter, the equation and the operands to the outputs, or to None: then the table decides.
"""

from dataclasses import replace

import jax
import numpy as np

from vinb.analysis import intervals as iv
from vinb.analysis import rules
from vinb.analysis.abstract import Abstract, Axes, Level, Reach, Shifted
from vinb.analysis.equations import fitted
from vinb.analysis.intervals import ANYTHING
from vinb.analysis.knowledge import knows


def _tag(self, eqn, operands):
    name, aval = eqn.params["name"], eqn.outvars[0].aval
    given = self.inputs(name) if knows("supports") else iv.REAL
    if isinstance(given, Abstract):
        return [replace(given, shape=aval.shape)]
    levels = {} if self.untracked(name) else {name: Reach(Level.DIFF)}
    self.seen.add(name)
    whole = fitted(ANYTHING, aval)
    interval = iv.meet(given, whole) if whole != ANYTHING else given
    return [self._made(interval, levels, self.numbers("tag", name), aval.shape)]


def _moved(moves):
    """Of a primitive that repeats or reshapes: the value with the same elements, and where its axes went."""

    def rule(self, eqn, operands):
        (operand, *rest), shape = operands, eqn.outvars[0].aval.shape
        axes = moves(operand.shape, shape, eqn.params)
        if rest or axes is None:
            return None
        number = self.numbers("moved", operand.number, tuple(sorted(axes.items())), operand.shape, shape)
        made = replace(operand, number=number, shape=tuple(shape), shifted=None)
        view = operand.shifted
        if view is not None and all(p in axes for p in view.shift.places):
            shift = Axes(view.shift.number, tuple(axes[p] for p in view.shift.places))
            base = replace(view.base, number=number, shape=tuple(shape), shifted=None)
            made = replace(made, shifted=Shifted(view.kind, base, shift))
        self.latest[number] = made
        return [made]

    return rule


def _broadcast_axes(before, after, params):
    return {k: to for k, to in enumerate(params["broadcast_dimensions"]) if before[k] != 1}


def _reshaped_axes(before, after, params):
    if params.get("dimensions") is not None:
        return None
    kept = [[k for k, n in enumerate(shape) if n != 1] for shape in (before, after)]
    if [before[k] for k in kept[0]] != [after[k] for k in kept[1]]:
        return None
    return dict(zip(*kept, strict=True))


def _squeezed_axes(before, after, params):
    return _reshaped_axes(before, after, {})


def _same(self, eqn, operands):
    """The same real numbers: another precision, another layout, the mark of a stopped gradient."""
    if len(operands) != len(eqn.outvars):
        return None
    return operands


def _stop_gradient(self, eqn, operands):
    (operand,) = operands
    return [
        operand.with_levels({name: reach._replace(stopped=True) for name, reach in operand.levels.items()})
    ]


def _convert(self, eqn, operands):
    (operand,), new = operands, eqn.outvars[0].aval
    old = eqn.invars[0].aval.dtype
    inexact = jax.numpy.inexact
    if (
        jax.numpy.issubdtype(new.dtype, inexact)
        and _wide(new.dtype)
        and not jax.dtypes.issubdtype(old, jax.dtypes.extended)
    ):
        return [operand]  # integers and booleans are real numbers too
    if new.dtype == bool:
        truth = iv.negation(iv.equal(operand.interval, iv.ZERO))
        levels = {} if truth != iv.BOOLEAN else self.compose(eqn, [(Level.ANY, operand)])
        return [self._made(truth, levels, self._number(eqn, operands), new.shape)]
    low = jax.numpy.issubdtype(old, inexact)
    levels = self.compose(eqn, [(Level.ANY, operand)]) if low else operand.levels
    values = iv.stepping(np.trunc)(operand.interval) if low else operand.interval
    number = (
        self._number(eqn, operands)
        if low or not operand.interval.within(fitted(ANYTHING, new))
        else operand.number
    )
    return [self._made(fitted(values, new), levels, number, new.shape)]


def _wide(dtype):
    """Rounding to eight bits or less is a staircase."""
    return jax.numpy.dtype(dtype).itemsize >= 2


def _negative(self, operand):
    """Minus a value, by the table."""
    number = self.numbers("neg", ((operand.number, operand.shape),), 0, operand.shape, ())
    return self._made(iv.negate(operand.interval), operand.levels, number, operand.shape)


def _abs(self, eqn, operands):
    (operand,) = operands
    if jax.numpy.issubdtype(eqn.invars[0].aval.dtype, jax.numpy.complexfloating):
        return [
            self._made(
                iv.NONNEGATIVE,
                self.compose(eqn, [(Level.LIP, operand)]),
                self._number(eqn, operands),
                operand.shape,
            )
        ]
    if operand.interval.nonnegative:
        return [operand]
    if operand.interval.nonpositive:
        return [_negative(self, operand)]
    levels = self.compose(eqn, [(Level.LIP, operand)])
    return [self._made(iv.absolute(operand.interval), levels, self._number(eqn, operands), operand.shape)]


def _extreme(values, wins):
    def rule(self, eqn, operands):
        a, b = operands
        if a.number == b.number:
            return [a]
        for first, second in ((a, b), (b, a)):
            if wins(first.interval, second.interval) and first.shape == eqn.outvars[0].aval.shape:
                return [first]
        levels = self.compose(eqn, [(Level.LIP, a), (Level.LIP, b)])
        made = values(a.interval, b.interval)
        return [
            self._made(
                fitted(made, eqn.outvars[0].aval),
                levels,
                self._number(eqn, operands),
                eqn.outvars[0].aval.shape,
            )
        ]

    return rule


def _clamp(self, eqn, operands):
    low, x, high = operands
    if x.interval.low >= low.interval.high and x.interval.high <= high.interval.low:
        return [x]
    levels = self.compose(eqn, ((Level.LIP, a) for a in operands))
    made = iv.minimum(iv.maximum(x.interval, low.interval), high.interval)
    return [self._made(fitted(made, eqn.outvars[0].aval), levels, self._number(eqn, operands), x.shape)]


def _integer_pow(self, eqn, operands):
    (operand,), exponent = operands, eqn.params["y"]
    level = Level.DIFF if exponent >= 0 or operand.interval.nonzero else Level.ANY
    values = iv.power(operand.interval, exponent)
    levels = self.compose(eqn, [(level, operand)])
    return [
        self._made(fitted(values, eqn.outvars[0].aval), levels, self._number(eqn, operands), operand.shape)
    ]


def _mul(self, eqn, operands):
    if operands[0].number != operands[1].number:
        return None
    levels = self.compose(eqn, [(Level.DIFF, operands[0])])
    values = fitted(iv.square(operands[0].interval), eqn.outvars[0].aval)
    return [self._made(values, levels, self._number(eqn, operands), eqn.outvars[0].aval.shape)]


def _add(self, eqn, operands):
    """``log(1 + exp(x))`` as ``max(x, 0) + log1p(exp(-|x|))``, the way it is written by hand."""
    for first, second in (operands, operands[::-1]) if knows("idioms") else ():
        x = self._positive_part(first)
        if x is not None and self._is_softplus_tail(second, x):
            values = iv.within(iv.POSITIVE, iv.increasing(lambda v: np.logaddexp(v, 0.0)))(x.interval)
            return [self._made(values, x.levels, self._number(eqn, operands), eqn.outvars[0].aval.shape)]
    return None


_COMPARED = {
    "lt": (iv.less, False), "le": (iv.less_equal, True),
    "gt": (lambda a, b: iv.less(b, a), False), "ge": (lambda a, b: iv.less_equal(b, a), True),
    "eq": (iv.equal, True), "ne": (lambda a, b: iv.negation(iv.equal(a, b)), False),
}  # fmt: skip


def _compare(self, eqn, operands):
    (a, b), (decide, at_equal) = operands, _COMPARED[eqn.primitive.name]
    shape, number = eqn.outvars[0].aval.shape, self._number(eqn, operands)
    if not all(jax.numpy.issubdtype(v.aval.dtype, np.generic) for v in eqn.invars):
        return None
    # A number is equal to itself; what may be NaN is not.
    truth = (
        iv.point(at_equal) if a.number == b.number and a.interval.finite else decide(a.interval, b.interval)
    )
    counts = self.branches and truth == iv.BOOLEAN
    levels = self.compose(eqn, [(Level.ANY, a), (Level.ANY, b)]) if counts else {}
    return [self._made(truth, levels, number, shape)]


def _logical(name):
    def rule(self, eqn, operands):
        if eqn.outvars[0].aval.dtype != bool:
            return None
        truths = [a.decided for a in operands]
        neutral = name == "and"
        made = None
        if name in ("and", "or"):
            if (not neutral) in truths:
                made = iv.point(not neutral)
            elif truths.count(neutral) >= 1:
                return (
                    [operands[1 - truths.index(neutral)]]
                    if len(set(a.shape for a in operands)) == 1
                    else None
                )
        elif name == "not" and truths[0] is not None:
            made = iv.point(not truths[0])
        elif name == "xor" and None not in truths:
            made = iv.point(truths[0] != truths[1])
        levels = {} if made is not None else self.compose(eqn, ((Level.ANY, a) for a in operands))
        return [
            self._made(made or iv.BOOLEAN, levels, self._number(eqn, operands), eqn.outvars[0].aval.shape)
        ]

    return rule


def _sign(self, eqn, operands):
    (operand,) = operands
    values = fitted(iv.stepping(np.sign)(operand.interval), eqn.outvars[0].aval)
    if operand.interval.positive or operand.interval.negative:
        values = iv.point(1 if operand.interval.positive else -1)
    levels = {} if values.is_point or not self.branches else self.compose(eqn, [(Level.ANY, operand)])
    return [self._made(values, levels, self._number(eqn, operands), operand.shape)]


def _is_finite(self, eqn, operands):
    (operand,) = operands
    finite = operand.interval.finite
    levels = {} if finite else self.compose(eqn, [(Level.ANY, operand)])
    return [self._made(iv.TRUE if finite else iv.BOOLEAN, levels, self._number(eqn, operands), operand.shape)]


def _select(self, eqn, operands):
    which, *cases = operands
    out = eqn.outvars[0].aval
    if which.interval.is_point:
        return [cases[int(which.interval.low)]]
    if len({c.number for c in cases}) == 1:
        return [cases[0]]
    seen = (
        [replace(c, interval=self._given(which, bool(k), c)) for k, c in enumerate(cases)]
        if len(cases) == 2
        else cases
    )
    reach = self.compose(eqn, [(Level.ANY, which)])
    return [self.joined(seen, self._number(eqn, operands), out.shape, [reach])]


def _sort(self, eqn, operands):
    keys = operands[: eqn.params["num_keys"]]
    if len(operands) == 1:
        levels = self.compose(eqn, [(Level.LIP if operands[0].size > 1 else Level.DIFF, operands[0])])
        return [self._made(operands[0].interval, levels, self._number(eqn, operands), operands[0].shape)]
    made = []
    for k, operand in enumerate(operands):
        # The first key alone is an order statistic; the others go where the first ones are put.
        moved = [(Level.LIP, operand)] if k == 0 and len(keys) == 1 else [(Level.ANY, key) for key in keys]
        if k >= len(keys):
            moved.append((Level.DIFF, operand))
        made.append(
            self._made(
                operand.interval, self.compose(eqn, moved), self._number(eqn, operands, k), operand.shape
            )
        )
    return made


def _top_k(self, eqn, operands):
    (operand,) = operands
    values, indices = (v.aval for v in eqn.outvars)
    return [
        self._made(
            operand.interval,
            self.compose(eqn, [(Level.LIP, operand)]),
            self._number(eqn, operands, 0),
            values.shape,
        ),
        self._made(
            fitted(iv.closed(0, max(operand.size - 1, 0)), indices),
            self.compose(eqn, [(Level.ANY, operand)]),
            self._number(eqn, operands, 1),
            indices.shape,
        ),
    ]


def _eigh(self, eqn, operands):
    if any(a.levels for a in operands):
        self.assumptions.add("the eigenvalues of a symmetric matrix are simple")
    levels = (Level.ANY, Level.DIFF)
    return [
        self._made(
            iv.REAL, self.compose(eqn, [(level, operands[0])]), self._number(eqn, operands, k), v.aval.shape
        )
        for k, (level, v) in enumerate(zip(levels, eqn.outvars, strict=True))
    ]


def _linear_solve(self, eqn, operands):
    """The solution follows from the matrix and the right side, however it is found."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    matrix, sides = operands[: lengths.matvec], operands[sum(lengths) :]
    given = [self._made(ANYTHING, {}, self.numbers("given", a.number), a.shape) for a in sides]
    applied = self.run(jaxprs.matvec, [*matrix, *given])
    if any(a.levels for a in (*applied, *sides)):
        self.assumptions.add(rules.NONSINGULAR)
    levels = self.compose(eqn, ((Level.DIFF, a) for a in (*applied, *sides)))
    return [
        self._made(iv.REAL, levels, self._number(eqn, operands, k), v.aval.shape)
        for k, v in enumerate(eqn.outvars)
    ]


FORMS = {
    "tag": _tag,
    "broadcast_in_dim": _moved(_broadcast_axes),
    "reshape": _moved(_reshaped_axes),
    "squeeze": _moved(_squeezed_axes),
    "expand_dims": _moved(_squeezed_axes),
    "copy": _same,
    "copy_p": _same,
    "device_put": _same,
    "optimization_barrier": _same,
    "stop_gradient": _stop_gradient,
    "convert_element_type": _convert,
    "abs": _abs,
    "max": _extreme(iv.maximum, lambda a, b: a.low >= b.high),
    "min": _extreme(iv.minimum, lambda a, b: a.high <= b.low),
    "clamp": _clamp,
    "integer_pow": _integer_pow,
    "mul": _mul,
    "add": _add,
    **dict.fromkeys(_COMPARED, _compare),
    **{name: _logical(name) for name in ("and", "or", "not", "xor")},
    "sign": _sign,
    "is_finite": _is_finite,
    "select_n": _select,
    "sort": _sort,
    "top_k": _top_k,
    "eigh": _eigh,
    "custom_linear_solve": _linear_solve,
}
