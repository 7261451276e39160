"""Abstract interpretation of jaxprs: an interval for each value, and how smooth it is in each tracked input (lee2023smoothness).

Design notes. Inputs are marked inside the traced function by ``vinb.analysis.tag``. For each level L, a value is jointly L in
all inputs at level L or better, on the product of the inputs' open domains, whatever the others are. One rule carries this
through every equation: a primitive that is jointly ``s`` in some operands takes each input to the worse of ``s`` and its
level in the operand. ``rules`` has the levels; here are control flow, calls, selections, and what passes an operand on
unchanged. Values that are computed alike from equal values share a number, so that ``where(c, x, x)`` is seen to be ``x``, in
calls and loops too. A value minus something that is added back later keeps both views (``abstract.Shifted``): that is all
that logsumexp, softmax and their relatives need.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from vinb.analysis import intervals as iv
from vinb.analysis import rules
from vinb.analysis.abstract import Abstract, Axes, Level, Numbers, Reach, Shifted, composed, join
from vinb.analysis.dependence import has_state
from vinb.analysis.equations import fitted, is_the_function, name_of, params_key
from vinb.analysis.forms import FORMS
from vinb.analysis.intervals import ANYTHING, Interval
from vinb.analysis.knowledge import knows
from vinb.analysis.loops import CONTROL_FLOW
from vinb.analysis.source import called_jaxpr, library_function, source_line

_SMALL = 2**16  # elements of a constant whose content is compared


@dataclass
class Interpreter:
    """Runs jaxprs abstractly.

    Args:
        inputs: the interval of a tagged input, by name; or the value that takes its place.
        untracked: is this name's level not of interest (a subsample, say)?
        branches: do comparisons count? Without, a value's levels are those between two branches changing over.
        calls: rules of calls by the called function's name: ``(operands, interpreter, eqn) -> outputs``, or None to
            look inside.

    Attributes:
        assumptions: what the levels rest on, beyond the table of rules.
        unknown: primitives without a rule that depend on an input, with a line where they stand.
    """

    inputs: Callable[[str], Interval | Abstract]
    untracked: Callable[[str], bool] = lambda name: False
    calls: Mapping[str, Callable] = field(default_factory=dict)
    branches: bool = True
    numbers: Numbers = field(default_factory=Numbers)
    assumptions: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)  # inputs met so far
    calls_around: list[str] = field(
        default_factory=list
    )  # lines of the calls of JAX's own functions we are in
    # The last value with each number: what a term's operands are.
    latest: dict[int, Abstract] = field(default_factory=dict)

    def run(self, closed: ClosedJaxpr, operands: list[Abstract]) -> list[Abstract]:
        outs = self._walk(closed.jaxpr, [self.constant(c) for c in closed.consts], operands)
        if has_state(closed.jaxpr):  # a write to a mutable array reaches reads that no data flow shows
            reach = {name: Reach(Level.ANY, "a mutable array") for name in self.seen}
            reach |= {name: Reach(Level.ANY, "a mutable array") for a in operands for name in a.levels}
            outs = [replace(a, levels=reach, interval=ANYTHING, shifted=None) for a in outs]
        return outs

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
        is_whole = jax.numpy.issubdtype(eqn.outvars[0].aval.dtype, jax.numpy.integer)
        if eqn.primitive.name == "div" and is_whole:
            values = iv.stepping(np.trunc)(values)
        elif eqn.primitive.name == "div" and self._is_share(*operands):
            values = iv.meet(
                values, Interval(0.0, 1.0, operands[0].interval.positive, operands[1].size < operands[0].size)
            )
        results = [
            self._made(fitted(values, out.aval), level, self._number(eqn, operands, k), out.aval.shape)
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
            cause = f"{name_of(eqn)} at {self.line(eqn)}"
        return join(composed(level, a.levels, cause) for level, a in leveled)

    def _made(self, interval, levels, number, shape) -> Abstract:
        made = Abstract(interval, levels, number, tuple(shape))
        self.latest[number] = made
        return made

    def _number(self, eqn, operands, output=0):
        name, parts = library_function(eqn) or eqn.primitive.name, [(a.number, a.shape) for a in operands]
        if name in ("add", "mul", "max", "min", "eq", "ne", "and", "or"):
            parts.sort()
        inner = called_jaxpr(eqn)
        key = params_key(eqn) if inner is None else getattr(inner, "jaxpr", inner).debug_info.func_name
        aval = eqn.outvars[output].aval
        return self.numbers(name, tuple(parts), output, aval.shape, str(getattr(aval, "dtype", "")), key)

    def _without_rule(self, eqn, operands):
        if any(a.levels for a in operands):
            self.unknown.setdefault(eqn.primitive.name, self.line(eqn))
        levels = self.compose(eqn, ((Level.ANY, a) for a in operands))
        return [
            self._made(fitted(ANYTHING, v.aval), levels, self._number(eqn, operands, k), v.aval.shape)
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
        if library in rules.LIBRARY and knows("idioms") and is_the_function(library, eqn):
            return self.by_rule(rules.LIBRARY[library], eqn, operands)
        if library.startswith("_slogdet") and knows("idioms"):
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
        if (
            eqn.primitive.name.startswith("custom_")
            and not library_function(eqn)
            and any(a.levels for a in operands)
        ):
            self.assumptions.add(f"the derivative rule of {name_of(eqn)} is right")
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
        if not knows("idioms"):
            return made
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
        both = all(v is not None and v.kind == "product" for v in views)
        if name == "div" and both and views[0].shift == views[1].shift:
            whole = self._unshifted(rule, eqn, [v.base for v in views], made)
            return replace(whole, interval=iv.meet(whole.interval, made.interval))
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
        return self._made(fitted(values, eqn.outvars[0].aval), levels, made.number, made.shape)

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

    def _is_share(self, part: Abstract, whole: Abstract) -> bool:
        """Is ``whole`` the sum that a positive ``part`` is a term of, as in a softmax?"""
        axes = self.axes(whole)
        term = self.numbers.terms.get(axes.number)
        if (
            term is None
            or term[0] != "reduce_sum"
            or term[1][0][0] != part.number
            or not part.interval.positive
        ):
            return False
        summed = dict(term[5])["axes"]
        return axes.places == tuple(k for k, n in enumerate(part.shape) if n != 1 and k not in summed)

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
            if above == truth:  # infinity is not ruled out
                return iv.meet(value.interval, Interval(bound.low, np.inf, strict or bound.low_open, False))
            return iv.meet(value.interval, Interval(-np.inf, bound.high, False, strict or bound.high_open))
        return value.interval

    # ---- joins

    def joined(self, values: list[Abstract], number, shape, extra=()) -> Abstract:
        """Any one of ``values``, with further levels."""
        interval = iv.hull(*(v.interval for v in values))
        return self._made(interval, join([*(v.levels for v in values), *extra]), number, shape)


_SPECIAL = {**FORMS, **CONTROL_FLOW}
