"""Abstract interpretation of jaxprs: an interval for each value, and how smooth it is in each tracked input (lee2023smoothness).

Design notes. Inputs are marked inside the traced function by ``vinb.analysis.tag``. For each level L, a value is jointly L in all
inputs at level L or better, on the product of the inputs' open domains, whatever the others are. One rule carries this through
every equation: a primitive that is jointly ``s`` in some operands takes each input to the worse of ``s`` and its level in the operand.
``rules`` has the levels; here are control flow, calls, selections, and what passes an operand on unchanged. Values that
are computed alike from equal values share a number, so that ``where(c, x, x)`` is seen to be ``x``, in calls and loops too. A
value minus something that is added back later keeps both views (``abstract.Shifted``): that is all that logsumexp, softmax and
their relatives need.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from vinb.analysis import intervals as iv
from vinb.analysis import rules
from vinb.analysis.abstract import Abstract, Axes, Level, Numbers, Reach, Shifted, composed, join
from vinb.analysis.intervals import ANYTHING, Interval
from vinb.analysis.source import called_jaxpr, library_function, source_line

_ROUNDS = 3  # of a loop before its intervals are widened
_SMALL = 2**16  # elements of a constant whose content is compared


@dataclass
class Interpreter:
    """Runs jaxprs abstractly.

    Args:
        inputs: the interval of a tagged input, by name; or the value that takes its place.
        untracked: is this name's level not of interest (a subsample, say)?
        calls: rules of calls by the called function's name: ``(operands, interpreter, eqn) -> outputs``, or None to
            look inside.

    Attributes:
        assumptions: what the levels rest on, beyond the table of rules.
        unknown: primitives without a rule that depend on an input, with a line where they stand.
    """

    inputs: Callable[[str], Interval | Abstract]
    untracked: Callable[[str], bool] = lambda name: False
    calls: Mapping[str, Callable] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=Numbers)
    assumptions: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)
    calls_around: list[str] = field(
        default_factory=list
    )  # lines of the calls of JAX's own functions we are in
    # The last value with each number: what a term's operands are.
    latest: dict[int, Abstract] = field(default_factory=dict)

    def run(self, closed: ClosedJaxpr, operands: list[Abstract]) -> list[Abstract]:
        return self._walk(closed.jaxpr, [self.constant(c) for c in closed.consts], operands)

    def constant(self, array) -> Abstract:
        shape = np.shape(array)
        known = not isinstance(array, jax.core.Tracer) and hasattr(array, "dtype")
        if known and jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
            known = False
        if known and array.size <= _SMALL:
            number = self.numbers("constant", np.asarray(array).tobytes(), str(array.dtype), shape)
        else:
            number = self.numbers("constant", self.numbers.keep(array))
        return self._made(iv.of_array(array), {}, number, shape)

    def unknown_input(self, shape) -> Abstract:
        """An input of which nothing is known, and that is not tracked."""
        return self._made(ANYTHING, {}, self.numbers("input", len(self.numbers.terms)), shape)

    # ---- equations

    def _walk(self, jaxpr: Jaxpr, consts, operands) -> list[Abstract]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *operands], strict=True))

        def read(atom):
            return (
                self.constant(np.asarray(atom.val, atom.aval.dtype))
                if isinstance(atom, Literal)
                else known[atom]
            )

        for eqn in jaxpr.eqns:
            known.update(zip(eqn.outvars, self.outputs(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def outputs(self, eqn, operands: list[Abstract]) -> list[Abstract]:
        name = eqn.primitive.name
        inner = called_jaxpr(eqn)
        if inner is not None:
            return self._call(eqn, inner, operands)
        if name in _SPECIAL:
            made = _SPECIAL[name](self, eqn, operands)
            if made is not None:
                return made
        rule = rules.RULES.get(name)
        if rule is None:
            return self._without_rule(eqn, operands)
        return self.by_rule(rule, eqn, operands)

    def by_rule(self, rule: rules.Rule, eqn, operands) -> list[Abstract]:
        level, values = self._ruled(rule, eqn, operands)
        results = [
            self._made(_fitted(values, out.aval), level, self._number(eqn, operands, k), out.aval.shape)
            for k, out in enumerate(eqn.outvars)
        ]
        if len(results) == 1:
            results = [self._with_view(rule, eqn, operands, results[0])]
            self.latest[results[0].number] = results[0]
        return results

    def _ruled(self, rule, eqn, operands):
        intervals = [a.interval for a in operands]
        levels = rule.level(*intervals) if callable(rule.level) else rule.level
        if isinstance(levels, Level):
            levels = (levels,) * len(operands)
        if rule.assumption and any(a.levels for a in operands):
            self.assumptions.add(rule.assumption)
        reach = self.compose(eqn, zip(levels, operands, strict=True))
        if rule.sized:
            return reach, rule.values([a.shape for a in operands], eqn.params, *intervals)
        return reach, rule.values(*intervals)

    def compose(self, eqn, leveled):
        """Levels of an equation that has these levels in its operands."""
        leveled = [(level, a) for level, a in leveled if a.levels]
        cause = ""
        if any(level > Level.DIFF for level, _ in leveled):
            cause = f"{_name(eqn)} at {self.line(eqn)}"
        return join(composed(level, a.levels, cause) for level, a in leveled)

    def _made(self, interval, levels, number, shape) -> Abstract:
        made = Abstract(interval, levels, number, tuple(shape))
        self.latest[number] = made
        return made

    def _number(self, eqn, operands, output=0):
        name, parts = library_function(eqn) or eqn.primitive.name, [(a.number, a.shape) for a in operands]
        if name in ("add", "mul", "max", "min", "eq", "ne", "and", "or"):
            parts.sort()
        key = () if called_jaxpr(eqn) is not None else _params_key(eqn)
        return self.numbers(name, tuple(parts), output, eqn.outvars[output].aval.shape, key)

    def _without_rule(self, eqn, operands):
        if any(a.levels for a in operands):
            self.unknown.setdefault(eqn.primitive.name, self.line(eqn))
        levels = self.compose(eqn, ((Level.ANY, a) for a in operands))
        return [
            self._made(_fitted(ANYTHING, v.aval), levels, self._number(eqn, operands, k), v.aval.shape)
            for k, v in enumerate(eqn.outvars)
        ]

    # ---- calls

    def _call(self, eqn, inner, operands):
        label = getattr(getattr(inner, "jaxpr", inner).debug_info, "func_name", "")
        if label in self.calls:
            made = self.calls[label](operands, self, eqn)
            if made is not None:
                return made
        library = library_function(eqn)
        if library in rules.LIBRARY:
            return self.by_rule(rules.LIBRARY[library], eqn, operands)
        if library.startswith("_slogdet"):
            self.assumptions.add(rules.NONSINGULAR)
            sign, value = (self.compose(eqn, [(level, operands[0])]) for level in (Level.ANY, Level.DIFF))
            return [
                self._made(iv.closed(-1, 1), sign, self._number(eqn, operands, 0), eqn.outvars[0].aval.shape),
                self._made(iv.REAL, value, self._number(eqn, operands, 1), eqn.outvars[1].aval.shape),
            ]
        return self.inside(eqn, operands)

    def inside(self, eqn, operands) -> list[Abstract]:
        """The outputs of a call by what it calls."""
        inner = called_jaxpr(eqn)
        consts = [self.constant(c) for c in inner.consts] if isinstance(inner, ClosedJaxpr) else []
        # What is traced inside of JAX's own functions has their first caller's lines, or none.
        if library_function(eqn) and not self.calls_around:
            self.calls_around.append(source_line(eqn))
            try:
                return self._walk(getattr(inner, "jaxpr", inner), consts, operands)
            finally:
                self.calls_around.pop()
        return self._walk(getattr(inner, "jaxpr", inner), consts, operands)

    def line(self, eqn) -> str:
        """Where an equation stands in the user's program."""
        return self.calls_around[0] if self.calls_around else source_line(eqn)

    def result(self, eqn, operands, interval: Interval, levels) -> Abstract:
        """The only output of an equation."""
        return self._made(interval, levels, self._number(eqn, operands), eqn.outvars[0].aval.shape)

    # ---- values that are shifted

    def _with_view(self, rule, eqn, operands, made):
        """``made`` with what it would be without its shift; or that itself, where the shift has been undone."""
        name, views = eqn.primitive.name, [a.shifted for a in operands]
        if name == "sub" and views[0] is not None and views[0].kind == "sum" and views[1] is not None:
            first, second = views
            if second.kind == "sum" and first.shift == second.shift:  # (a - s) - (b - s)
                return self._unshifted(rule, eqn, [first.base, second.base], made)
        if name == "sub" and operands[0].shape == made.shape:
            view = Shifted("sum", operands[0], self.axes(operands[1]))
            return replace(made, shifted=view)
        if not any(views):
            return made
        if name == "add":
            for view, other in ((views[0], operands[1]), (views[1], operands[0])):
                if view is not None and view.kind == "sum" and view.shift == self.axes(other):
                    return replace(view.base, number=made.number, shape=made.shape, shifted=None)
            if all(v is not None and v.kind == "product" for v in views) and views[0].shift == views[1].shift:
                return self._viewed(rule, eqn, [v.base for v in views], made, views[0].shift, "product")
        if name == "div" and all(v is not None and v.kind == "product" for v in views):
            if views[0].shift == views[1].shift:
                return self._unshifted(rule, eqn, [v.base for v in views], made)
        if name == "mul" and sum(v is not None and v.kind == "product" for v in views) == 1:
            k = 0 if views[0] is not None and views[0].kind == "product" else 1
            bases = [views[0].base, operands[1]] if k == 0 else [operands[0], views[1].base]
            return self._viewed(rule, eqn, bases, made, views[k].shift, "product")
        if name == "div" and views[0] is not None and views[0].kind == "product":
            return self._viewed(rule, eqn, [views[0].base, operands[1]], made, views[0].shift, "product")
        view = views[0]
        if view is None or len(operands) != 1:
            return made
        if (name, view.kind) in (("exp", "sum"), ("log", "product")):
            kind = "product" if name == "exp" else "sum"
            return self._viewed(rule, eqn, [view.base], made, view.shift, kind)
        if name == "reduce_sum" and view.kind == "product":
            axes = eqn.params["axes"]
            if not set(axes) & set(view.shift.places):
                places = tuple(p - sum(a < p for a in axes) for p in view.shift.places)
                return self._viewed(rule, eqn, [view.base], made, Axes(view.shift.number, places), view.kind)
        return made

    def _viewed(self, rule, eqn, bases, made, shift, kind):
        return replace(made, shifted=Shifted(kind, self._unshifted(rule, eqn, bases, made), shift))

    def _unshifted(self, rule, eqn, bases, made):
        levels, values = self._ruled(rule, eqn, bases)
        return self._made(_fitted(values, eqn.outvars[0].aval), levels, made.number, made.shape)

    def axes(self, value: Abstract) -> Axes:
        """``value`` as a smaller array whose axes are repeated, as far as it was made by reshaping one."""
        number, shape = value.number, value.shape
        places = {k: k for k, n in enumerate(shape) if n != 1}  # axis of the array looked at -> axis of value
        while True:
            term = self.numbers.terms.get(number)
            if term is None or term[0] != "moved":
                return Axes(number, tuple(places[k] for k in sorted(places)))
            places = {before: places[after] for before, after in term[2] if after in places}
            number = term[1]

    # ---- what a value was computed from

    def term(self, value: Abstract, name: str) -> list[Abstract] | None:
        """The operands of the primitive ``name`` that ``value`` is the result of, or None."""
        term = self.numbers.terms.get(value.number)
        if term is None or term[0] != name:
            return None
        return [self.latest[number] for number, _ in term[1] if number in self.latest]

    def _positive_part(self, value):
        """``x`` of ``max(x, 0)``."""
        if value.interval.nonnegative and (operands := self.term(value, "max")):
            for x, other in (operands, operands[::-1]):
                if other.interval == iv.ZERO:
                    return x
        return None

    def _is_softplus_tail(self, value, x):
        """Is it ``log1p(exp(-|x|))``?"""
        for name in ("log1p", "exp", "neg", "abs"):
            operands = self.term(value, name)
            if not operands:
                return False
            (value,) = operands
        return value.number == x.number

    def _given(self, which, truth, value) -> Interval:
        """The interval of ``value`` where the comparison ``which`` has this truth."""
        term = self.numbers.terms.get(which.number)
        if term is None or term[0] not in ("lt", "le", "gt", "ge"):
            return value.interval
        a, b = (self.latest[number] for number, _ in term[1])
        for one, other, above in ((a, b, term[0] in ("gt", "ge")), (b, a, term[0] in ("lt", "le"))):
            if one.number != value.number:
                continue
            strict = (term[0] in ("gt", "lt")) == truth
            bound = other.interval
            if above == truth:
                return iv.meet(value.interval, Interval(bound.low, np.inf, strict or bound.low_open))
            return iv.meet(value.interval, Interval(-np.inf, bound.high, True, strict or bound.high_open))
        return value.interval

    # ---- joins

    def joined(self, values: list[Abstract], number, shape, extra=()) -> Abstract:
        """Any one of ``values``, with further levels."""
        interval = iv.hull(*(v.interval for v in values))
        return self._made(interval, join([*(v.levels for v in values), *extra]), number, shape)


def _name(eqn):
    inner = called_jaxpr(eqn)
    label = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return repr(label.func_name if label is not None else eqn.primitive.name)


def _params_key(eqn):
    """A hashable for an equation's parameters."""
    items = []
    for key, value in eqn.params.items():
        if key in ("sharding", "out_sharding", "precision", "preferred_element_type", "weak_type"):
            continue
        items.append((key, value if _is_plain(value) else str(value)))
    return tuple(items)


def _is_plain(value):
    return value is None or (isinstance(value, bool | int | float | str | tuple) and not _holds_jaxpr(value))


def _holds_jaxpr(value):
    return isinstance(value, tuple) and any(
        not isinstance(v, int | str | bool | float | None | tuple) or _holds_jaxpr(v) for v in value
    )


def _fitted(interval: Interval, aval) -> Interval:
    """What the type of a value says of it."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return ANYTHING
    if dtype == bool:
        return interval if interval in (iv.TRUE, iv.FALSE) else iv.BOOLEAN
    if jax.numpy.issubdtype(dtype, jax.numpy.integer):
        info = jax.numpy.iinfo(dtype)
        whole = iv.closed(int(info.min), int(info.max))
        if not interval.within(whole):  # it may wrap around
            return whole
        low, high = interval.low, interval.high
        low = np.floor(low) + 1 if interval.low_open or low != np.ceil(low) else low
        high = np.ceil(high) - 1 if interval.high_open or high != np.floor(high) else high
        return iv.closed(low, high) if low <= high else interval
    return interval


# ---- special forms: (interpreter, eqn, operands) to outputs, or None to go by the table


def _tag(self, eqn, operands):
    name, aval = eqn.params["name"], eqn.outvars[0].aval
    given = self.inputs(name)
    if isinstance(given, Abstract):
        return [replace(given, shape=aval.shape)]
    levels = {} if self.untracked(name) else {name: Reach(Level.DIFF)}
    return [self._made(_fitted(given, aval), levels, self.numbers("tag", name), aval.shape)]


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
    values = iv.increasing(np.trunc)(operand.interval) if low else operand.interval
    number = (
        self._number(eqn, operands)
        if low or not operand.interval.within(_fitted(ANYTHING, new))
        else operand.number
    )
    return [self._made(_fitted(values, new), levels, number, new.shape)]


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
                _fitted(made, eqn.outvars[0].aval),
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
    return [self._made(_fitted(made, eqn.outvars[0].aval), levels, self._number(eqn, operands), x.shape)]


def _integer_pow(self, eqn, operands):
    (operand,), exponent = operands, eqn.params["y"]
    level = Level.DIFF if exponent >= 0 or operand.interval.nonzero else Level.ANY
    values = iv.power(operand.interval, exponent)
    levels = self.compose(eqn, [(level, operand)])
    return [
        self._made(_fitted(values, eqn.outvars[0].aval), levels, self._number(eqn, operands), operand.shape)
    ]


def _mul(self, eqn, operands):
    if operands[0].number != operands[1].number:
        return None
    levels = self.compose(eqn, [(Level.DIFF, operands[0])])
    values = _fitted(iv.square(operands[0].interval), eqn.outvars[0].aval)
    return [self._made(values, levels, self._number(eqn, operands), eqn.outvars[0].aval.shape)]


def _add(self, eqn, operands):
    """``log(1 + exp(x))`` as ``max(x, 0) + log1p(exp(-|x|))``, the way it is written by hand."""
    for first, second in (operands, operands[::-1]):
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
    # A number is equal to itself; so is infinity, and NaN is no real number.
    truth = iv.point(at_equal) if a.number == b.number else decide(a.interval, b.interval)
    levels = self.compose(eqn, [(Level.ANY, a), (Level.ANY, b)]) if truth == iv.BOOLEAN else {}
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
    values = _fitted(iv.increasing(np.sign)(operand.interval), eqn.outvars[0].aval)
    if operand.interval.positive or operand.interval.negative:
        values = iv.point(1 if operand.interval.positive else -1)
    levels = {} if values.is_point else self.compose(eqn, [(Level.ANY, operand)])
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
    keys, payload = operands[: eqn.params["num_keys"]], operands[eqn.params["num_keys"] :]
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
            _fitted(iv.closed(0, max(operand.size - 1, 0)), indices),
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
    lengths = eqn.params["const_lengths"]
    total = sum(lengths)
    given = [*operands[: lengths.matvec], *operands[total:]]
    if any(a.levels for a in given):
        self.assumptions.add(rules.NONSINGULAR)
    levels = self.compose(eqn, ((Level.DIFF, a) for a in given))
    return [
        self._made(iv.REAL, levels, self._number(eqn, operands, k), v.aval.shape)
        for k, v in enumerate(eqn.outvars)
    ]


# ---- control flow


def _cond(self, eqn, operands):
    index, *arguments = operands
    branches = eqn.params["branches"]
    known = index.interval.low if index.interval.is_point and "branches_platforms" not in eqn.params else None
    if known is not None:
        return self.run(branches[int(np.clip(known, 0, len(branches) - 1))], arguments)
    outs = [self.run(branch, arguments) for branch in branches]
    reach = {} if "branches_platforms" in eqn.params else self.compose(eqn, [(Level.ANY, index)])
    made = []
    for k, cases in enumerate(zip(*outs, strict=True)):
        if len({c.number for c in cases}) == 1:
            made.append(cases[0])
        else:
            number = self.numbers("cond", index.number, tuple(c.number for c in cases))
            made.append(self.joined(cases, number, eqn.outvars[k].aval.shape, [reach]))
    return made


def _loop_key(self, eqn, operands):
    return self.numbers(eqn.primitive.name, tuple((a.number, a.shape) for a in operands), _params_key(eqn))


def _fixpoint(self, key, initial, step):
    """Carry of a loop that holds before and after each step: ``step(carry)`` is the carry after one."""
    carry = [replace(a, number=self.numbers("carry", key, k), shifted=None) for k, a in enumerate(initial)]
    for count in range(10_000):
        for a in carry:
            self.latest[a.number] = a
        new = step(carry)
        after = []
        for old, one in zip(carry, new, strict=True):
            interval = iv.hull(old.interval, one.interval)
            if count >= _ROUNDS:
                interval = iv.widened(old.interval, interval)
            after.append(replace(old, interval=interval, levels=join([old.levels, one.levels])))
        if all(old.same_as(one) for old, one in zip(carry, after, strict=True)):
            return carry
        carry = after
    raise AssertionError("no fixpoint of a loop")  # levels and widened intervals are finitely many


def _scan(self, eqn, operands):
    params = eqn.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, initial, xs = (
        operands[:num_consts],
        operands[num_consts : num_consts + num_carry],
        operands[num_consts + num_carry :],
    )
    key = _loop_key(self, eqn, operands)
    if params["length"] == 0:
        stacked = [
            self._made(iv.ZERO, {}, self.numbers("step", key, k), v.aval.shape)
            for k, v in enumerate(eqn.outvars[num_carry:])
        ]
        return [*initial, *stacked]
    slices = [
        self._made(x.interval, x.levels, self.numbers("slice", x.number, x.shape), x.shape[1:]) for x in xs
    ]
    step = lambda carry: self.run(params["jaxpr"], [*consts, *carry, *slices])  # noqa: E731
    carry = _fixpoint(self, key, initial, lambda carry: step(carry)[:num_carry])
    outs = step(carry)
    # After at least one step.
    left = [
        self._made(out.interval, out.levels, self.numbers("left", key, k), out.shape)
        for k, out in enumerate(outs[:num_carry])
    ]
    stacked = [
        self._made(out.interval, out.levels, self.numbers("step", key, k), v.aval.shape)
        for k, (out, v) in enumerate(zip(outs[num_carry:], eqn.outvars[num_carry:], strict=True))
    ]
    return [*left, *stacked]


def _while(self, eqn, operands):
    params = eqn.params
    num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
    test_consts, body_consts = operands[:num_test], operands[num_test : num_test + num_body]
    key = _loop_key(self, eqn, operands)

    def stopped(carry):
        """How often the body runs depends on the test."""
        (test,) = self.run(params["cond_jaxpr"], [*test_consts, *carry])
        return self.compose(eqn, [(Level.ANY, test)])

    def step(carry):
        reach = stopped(carry)
        return [
            replace(out, levels=join([out.levels, reach]))
            for out in self.run(params["body_jaxpr"], [*body_consts, *carry])
        ]

    carry = _fixpoint(self, key, operands[num_test + num_body :], step)
    return [
        self._made(a.interval, a.levels, self.numbers("left", key, k), a.shape) for k, a in enumerate(carry)
    ]


_SPECIAL = {
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
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
