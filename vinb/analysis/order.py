"""Which of two abstract values is the larger: for all values of the inputs, or for some."""

from vinb.analysis import intervals as iv
from vinb.analysis.abstract import Abstract
from vinb.analysis.evaluate import Evaluated
from vinb.analysis.interpreter import Interpreter


def latest(number: int, interpreters: list[Interpreter]) -> Abstract:
    """The value with this number, as one of the interpreters saw it last."""
    known = (i.latest[number] for i in interpreters if number in i.latest)
    return next(known, Abstract(iv.ANYTHING, {}, number))


class Order:
    """Which of two abstract values is the larger, for all values of the inputs or for some."""

    def __init__(self, interpreter: Interpreter, *results: Evaluated):
        self.numbers, self.interpreters = interpreter.numbers, [r.interpreter for r in results]
        # What both draw comes from the first of them, the guide.
        self.free: set[str] = set()
        drawn: set[str] = set()
        for result in results:
            self.free |= _free_inputs(result) - drawn
            drawn |= {name for name, site in result.path.sites.items() if not site.observed}
        self._known: dict[int, set[str] | None] = {}

    def at_most(self, small: Abstract, large: Abstract, depth: int = 6) -> bool:
        """Is ``small`` never above ``large``?"""
        if small.number == large.number or small.interval.high <= large.interval.low:
            return True
        if depth == 0:
            return False
        below = lambda a, b: self.at_most(a, b, depth - 1)  # noqa: E731
        name, operands = self.term(small)
        if name == "min" and any(below(a, large) for a in operands):
            return True
        if name == "max" and all(below(a, large) for a in operands):
            return True
        if name == "mul" and any(
            a.interval.nonnegative and b.interval.within(iv.CLOSED_UNIT) and below(a, large)
            for a, b in (operands, operands[::-1])
        ):
            return True
        if (
            name == "div"
            and operands[0].interval.nonnegative
            and operands[1].interval.low >= 1
            and below(operands[0], large)
        ):
            return True
        if name == "sub" and operands[1].interval.nonnegative and below(operands[0], large):
            return True
        if name == "add" and any(
            b.interval.nonpositive and below(a, large) for a, b in (operands, operands[::-1])
        ):
            return True
        other, others = self.term(large)
        if other == "max" and any(below(small, b) for b in others):
            return True
        if other == "min" and all(below(small, b) for b in others):
            return True
        if other == "add" and any(
            b.interval.nonnegative and below(small, a) for a, b in (others, others[::-1])
        ):
            return True
        if other == "mul" and any(
            a.interval.nonnegative and b.interval.low >= 1 and below(small, a)
            for a, b in (others, others[::-1])
        ):
            return True
        return name == other and self._alike(name, operands, others, below)

    def _alike(self, name, first, second, below) -> bool:
        """The same increasing function of both."""
        if name in _INCREASING:
            return below(first[0], second[0])
        if name in ("add", "mul"):
            for a, b in (first, first[::-1]):
                for c, d in (second, second[::-1]):
                    if b.number == d.number and (name == "add" or b.interval.nonnegative) and below(a, c):
                        return True
        if name == "sub":
            return (first[1].number == second[1].number and below(first[0], second[0])) or (
                first[0].number == second[0].number and below(second[1], first[1])
            )
        return False

    def always_above(self, small: Abstract, large: Abstract) -> bool:
        """Is ``small`` above ``large`` whatever the inputs are?"""
        return small.interval.low > large.interval.high or (
            small.interval.low == large.interval.high
            and (small.interval.low_open or large.interval.high_open)
        )

    def may_be_above(self, small: Abstract, large: Abstract) -> bool:
        """Do some values of the inputs take ``small`` above ``large``? False where that is not known."""
        first, second = self._attained(small), self._attained(large)
        if first is None or second is None or first & second:
            return False
        return small.interval.high > large.interval.low

    def _attained(self, value: Abstract) -> set[str] | None:
        """The inputs of a value that comes as near to the ends of its interval as one likes; None where that is not known."""
        if value.number not in self._known:
            self._known[value.number] = None  # of a value that is part of itself
            self._known[value.number] = self._attained_by(value)
        return self._known[value.number]

    def _attained_by(self, value):
        if value.interval.is_point:
            return set()
        term = self.numbers.terms.get(value.number)
        if term is None:
            return None
        if term[0] == "tag":
            return {term[1]} if term[1] in self.free else None
        if term[0] == "moved":
            return self._attained(self._latest(term[1]))
        name, operands = self.term(value)
        if name in _TIGHT and len(operands) == 1:
            return self._attained(operands[0])
        if name in ("add", "sub", "mul", "div", "max", "min", "logaddexp", "pow") and len(operands) == 2:
            for a, b in (operands, operands[::-1]):
                if b.interval.is_point:
                    return self._attained(a)
            if name in ("add", "sub", "mul", "max", "min"):
                found = [self._attained(a) for a in operands]
                if None not in found and not found[0] & found[1]:
                    return found[0] | found[1]
        return None

    def term(self, value: Abstract) -> tuple[str, list[Abstract]]:
        """What a value is the result of, and the operands; copies along new axes in front are looked through."""
        term = self.numbers.terms.get(value.number)
        if term is not None and term[0] == "moved" and _is_aligned(*term[2:]):
            return self.term(self._latest(term[1]))
        if (
            term is None
            or len(term) < 2
            or not isinstance(term[1], tuple)
            or not all(isinstance(p, tuple) and len(p) == 2 for p in term[1])
        ):
            return "", []
        return term[0], [self._latest(number) for number, _ in term[1]]

    def _latest(self, number):
        return latest(number, self.interpreters)


_INCREASING = (
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "tanh",
    "logistic",
    "sqrt",
    "erf",
    "sinh",
    "asinh",
    "atan",
)
_TIGHT = (*_INCREASING, "neg", "integer_pow", "square", "abs", "rsqrt")


def _is_aligned(axes, before, after) -> bool:
    """Do the axes keep their places from the right, so that the smaller array broadcasts to the larger one?"""
    return all(len(before) - old == len(after) - new for old, new in axes)


def _free_inputs(result: Evaluated) -> set[str]:
    """Inputs whose elements each take all values of their interval: parameters and draws of single numbers with fixed ends."""
    free = {tag for p in result.path.params.values() if _is_free(p.constraint) for tag in p.tags}
    for name, site in result.path.sites.items():
        fixed = all(end.interval.is_point for end in ends_of(result, name))
        if site.kind == "interval" and site.exact and fixed and not site.observed and not site.assigned:
            free.add(name)
    return free


def _is_free(constraint) -> bool:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    ends = [getattr(constraint, name, None) for name in ("lower_bound", "upper_bound")]
    is_line = type(constraint).__name__ == "_Real" or any(end is not None for end in ends)
    return (
        is_line
        and not constraint.is_discrete
        and all(end is None or isinstance(end, int | float) for end in ends)
    )


def ends_of(result, name):
    return [end for side in ("lower", "upper") if (end := result.get(name, side)) is not None]
