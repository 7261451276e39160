"""Supports of distributions as sets up to null sets, and whether one lies within another (lee2020verifiedsvi)."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpyro.distributions import Distribution

from vinb.analysis import intervals as iv
from vinb.analysis.abstract import Abstract
from vinb.analysis.domains import inflated_base
from vinb.analysis.evaluate import Evaluated
from vinb.analysis.interpreter import Interpreter
from vinb.analysis.sites import concrete


class Verdict(str, Enum):
    """``VALID`` is proved, ``INVALID`` is a definite violation, ``UNKNOWN`` is neither; ``ERROR``: a program raises."""

    VALID = "VALID"
    INVALID = "INVALID"
    UNKNOWN = "UNKNOWN"
    ERROR = "ERROR"

    def __str__(self):
        return self.value


@dataclass(frozen=True)
class Answer:
    """Is one set within another? ``why`` where it is not known to be, with a ``witness`` where one is known."""

    verdict: Verdict
    why: str = ""
    witness: str = ""


YES = Answer(Verdict.VALID)


def no(why: str, witness: str = "") -> Answer:
    return Answer(Verdict.INVALID, why, witness)


def unknown(why: str) -> Answer:
    return Answer(Verdict.UNKNOWN, why)


_LINE = ("interval", "integers")
# Open subsets of vectors of real numbers, so that densities on them and on all vectors are of one kind.
_OPEN_VECTORS = ("_OrderedVector", "_PositiveOrderedVector")
_SUBSETS = {
    ("_PositiveOrderedVector", "_OrderedVector"),
    ("_SoftplusLowerCholesky", "_LowerCholesky"),
    ("_LowerCholesky", "_SoftplusLowerCholesky"),
    ("_ScaledUnitLowerCholesky", "_LowerCholesky"),
    ("_LowerCholesky", "_ScaledUnitLowerCholesky"),
}


@dataclass(frozen=True)
class Support:
    """Of one element of a site: ``kind`` is ``interval`` or ``integers`` (with ends), ``point``, ``one-hot``, the name of a
    set of vectors, or empty if it is not known. ``exact`` is False where only a set around it is known."""

    kind: str
    ends: dict[str, Abstract]
    result: Evaluated
    site: str
    exact: bool = True

    @property
    def fn(self) -> Distribution:
        return self.result.path.sites[self.site].fn

    def __str__(self):
        name = type(self.fn).__name__
        if self.kind not in _LINE:
            return name
        low, high = (self._shown(side) for side in ("lower", "upper"))
        return f"{name} on {'{' if self.kind == 'integers' else '('}{low}, {high}{'}' if self.kind == 'integers' else ')'}"

    def _shown(self, side):
        if side not in self.ends:
            return "-inf" if side == "lower" else "inf"
        interval = self.ends[side].interval
        return f"{interval.low:g}" if interval.is_point else f"something in {interval}"


def support_of(result: Evaluated, name: str) -> Support:
    """The support of a site's distribution, as far as it is known."""
    site = result.path.sites[name]
    ends = {side: end for side in ("lower", "upper") if (end := result.get(name, side)) is not None}
    return Support(site.kind, ends if site.kind in (*_LINE, "_Multinomial") else {}, result, name, site.exact)


def within(guide: Support, model: Support) -> Answer:
    """Is almost every draw of ``guide`` one that ``model`` has a positive density at?"""
    if not guide.kind or not model.kind:
        return unknown(f"the support of {guide if not guide.kind else model} is not known")
    if "point" in (guide.kind, model.kind):
        return _points(guide, model)
    if guide.kind == "one-hot" or model.kind == "one-hot":
        return _one_hots(guide, model)
    discrete = [_is_discrete(s) for s in (guide, model)]
    if discrete[0] != discrete[1]:
        words = ["discrete" if d else "continuous" for d in discrete]
        return no(
            f"the guide's {guide} is {words[0]}, the model's {model} is {words[1]}: no density of one in terms of the other"
        )
    if not model.exact:
        return unknown(f"of the support of the model's {model} only a set around it is known")
    if guide.kind in _LINE and model.kind in _LINE:
        answer = _line(guide, model)
        return answer if answer is not YES or not all(discrete) else _atoms(guide, model)
    return _vectors(guide, model)


def _is_discrete(support):
    return support.kind in ("integers", "_Multinomial", "one-hot")


def _points(guide, model):
    if guide.kind == model.kind:
        same = guide.result[guide.site, "value"].number == model.result[model.site, "value"].number
        return (
            YES
            if same
            else unknown(
                "model and guide both put all mass on one point, and the points are not known to be the same"
            )
        )
    if model.kind == "point":
        return no(f"the model's {model} puts all mass on one point, the guide's {guide} does not")
    if not _is_discrete(model):
        return no(f"the guide puts all mass on one point (Delta), where the model's {model} has no mass")
    if model.kind != "integers":
        return unknown("the guide's only value is not known to be one of the model's")
    value = guide.result[guide.site, "value"]
    return _sides(value, value, guide, model, f"value of {guide.site!r}", attained=False)


def _one_hots(guide, model):
    if guide.kind != model.kind:
        return no(f"the guide's {guide} and the model's {model} have no density in terms of each other")
    shapes = [s.fn.event_shape[-1] for s in (guide, model)]
    if shapes[0] != shapes[1]:
        return no(f"the guide has {shapes[0]} classes, the model {shapes[1]}")
    return _atoms(guide, model)


def _vectors(guide, model):
    if guide.kind == model.kind:
        if guide.kind != "_Multinomial":
            return YES
        counts = [s.ends.get("upper") for s in (guide, model)]
        same = None not in counts and (counts[0].number == counts[1].number or _both_points(*counts))
        if same:
            return _atoms(guide, model)
        return unknown("the total counts are not known to be the same")
    if (guide.kind, model.kind) in _SUBSETS:
        return YES
    if model.kind == "interval" and guide.kind in _OPEN_VECTORS:
        positive = guide.kind == "_PositiveOrderedVector"
        low = model.ends.get("lower")
        if "upper" not in model.ends and (low is None or (positive and low.interval.high <= 0)):
            return YES
    if guide.kind == "interval" and model.kind in _OPEN_VECTORS and model.fn.event_shape[-1:] == (1,):
        return unknown(f"the model's {model} is on {model.kind.strip('_')}")
    return no(
        f"the guide's {guide} is on {guide.kind.strip('_')}, the model's {model} on {model.kind.strip('_')}: no draw of the guide is sure "
        "to be in the model's support"
    )


def _both_points(first, second):
    return first.interval.is_point and first.interval == second.interval


# ---- ends


def _line(guide, model) -> Answer:
    answers = [_side(guide, model, side) for side in ("lower", "upper")]
    for verdict in (Verdict.INVALID, Verdict.UNKNOWN):
        for answer in answers:
            if answer.verdict == verdict:
                return answer
    return YES


def _side(guide, model, side) -> Answer:
    limit, end = (None if _is_infinite(s.ends.get(side), side) else s.ends.get(side) for s in (model, guide))
    if limit is None:
        return YES
    if end is None:
        if limit.interval.finite:
            return no(
                f"the guide's {guide} is not bounded, the model's {model} is",
                f"{guide.site!r} beyond {_bound(limit)}",
            )
        return unknown(f"the model's {model} may be bounded, the guide's {guide} is not")
    if side == "lower":
        return _sides(end, None, guide, model, f"lower end of {guide.site!r}")
    return _sides(None, end, guide, model, f"upper end of {guide.site!r}")


def _is_infinite(end, side):
    infinite = -np.inf if side == "lower" else np.inf
    return end is not None and end.interval.low == end.interval.high == infinite


def _bound(end):
    return f"{end.interval.low:g}" if end.interval.is_point else str(end.interval)


def _sides(low, high, guide, model, what, attained=True) -> Answer:
    """Is ``low`` at least the model's lower end, and ``high`` at most its upper one?"""
    order = Order(guide.result.interpreter, guide.result, model.result)
    for value, side in ((low, "lower"), (high, "upper")):
        limit = model.ends.get(side)
        if value is None or limit is None:
            continue
        small, large = (limit, value) if side == "lower" else (value, limit)
        if order.at_most(small, large) or _elementwise(guide, model, side, value):
            continue
        words = f"the {what} is {_bound(value)}, the {side} end of the model's {model} is {_bound(limit)}"
        if order.always_above(small, large) or (attained and order.may_be_above(small, large)):
            worst = value.interval.low if side == "lower" else value.interval.high
            return no(f"the guide reaches values outside: {words}", f"{guide.site!r} towards {worst:g}")
        return unknown(f"not proved to be inside: {words}")
    return YES


def _elementwise(guide, model, side, value) -> bool:
    """Both ends as arrays of numbers, compared one by one."""
    if any(
        type(s.fn).__name__.startswith("Mixture") for s in (guide, model)
    ):  # their last axis is no axis of the value
        return False
    arrays = [
        concrete(s.result.path, (s.site, side))
        for s in (guide, model)
        if (s.site, side) in s.result.path.outputs
    ]
    if len(arrays) < 2 or any(a is None for a in arrays):
        return False
    try:
        first, second = np.broadcast_arrays(*arrays)
    except ValueError:
        return False
    return bool(np.all(first >= second if side == "lower" else first <= second))


def latest(number: int, interpreters: list[Interpreter]) -> Abstract:
    """The value with this number, as one of the interpreters saw it last."""
    known = (i.latest[number] for i in interpreters if number in i.latest)
    return next(known, Abstract(iv.ANYTHING, {}, number))


class Order:
    """Which of two abstract values is the larger, for all values of the inputs or for some."""

    def __init__(self, interpreter: Interpreter, *results: Evaluated):
        self.numbers, self.interpreters = interpreter.numbers, [r.interpreter for r in results]
        self.moving = set()
        for result in results:
            sites = result.path.sites
            ended = {
                n for n in sites if (n, "lower") in result.path.outputs or (n, "upper") in result.path.outputs
            }
            self.moving |= {n for n in ended if not all(e.interval.is_point for e in _ends(result, n))}

    def at_most(self, small: Abstract, large: Abstract, depth: int = 6) -> bool:
        """Is ``small`` never above ``large``?"""
        if small.number == large.number or small.interval.high <= large.interval.low:
            return True
        if depth == 0:
            return False
        below = lambda a, b: self.at_most(a, b, depth - 1)  # noqa: E731
        name, operands = self._term(small)
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
        other, others = self._term(large)
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
        if value.interval.is_point:
            return set()
        term = self.numbers.terms.get(value.number)
        if term is None:
            return None
        if term[0] == "tag":
            name = term[1]
            return None if name.startswith("/plate/") or name in self.moving else {name}
        if term[0] == "constant":
            return set()
        if term[0] == "moved":
            return self._attained(self._latest(term[1]))
        name, operands = self._term(value)
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

    def _term(self, value):
        term = self.numbers.terms.get(value.number)
        if term is not None and term[0] == "moved":
            return self._term(self._latest(term[1]))
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
    "softplus",
    "erf",
    "sinh",
    "asinh",
    "atan",
)
_TIGHT = (*_INCREASING, "neg", "integer_pow", "square", "abs", "rsqrt", "slice", "reduce_max", "reduce_min")


def _ends(result, name):
    return [end for side in ("lower", "upper") if (end := result.get(name, side)) is not None]


# ---- atoms


def _atoms(guide, model) -> Answer:
    """Has each value of a discrete guide a positive probability in the model?"""
    fn = inflated_base(model.fn)
    name, arguments = type(fn).__name__, model.result.arguments(model.site)
    if "gate" in arguments and not arguments["gate"].interval.below(1):
        return unknown(f"the gate of the model's {type(model.fn).__name__} may be 1")
    if "logits" in arguments:
        if arguments["logits"].interval.finite:
            return YES
        zero = _concrete(model, "logits", np.isneginf)
    elif "rate" in arguments and name == "Poisson":
        return (
            YES
            if arguments["rate"].interval.positive
            else unknown("the rate of the model's Poisson may be zero")
        )
    elif "probs" in arguments:
        probs = arguments["probs"].interval
        if probs.positive and (probs.below(1) or name.startswith(("Categorical", "OneHot", "Multinomial"))):
            return YES
        if name == "BernoulliProbs":
            zero = _concrete(model, "probs", lambda p: np.stack([p == 1, p == 0], -1))
        else:
            zero = _concrete(model, "probs", lambda p: p == 0)
        if name in ("BinomialProbs", "GeometricProbs", "MultinomialProbs") and (zero is None or zero.any()):
            return unknown(f"a probability of the model's {name} may be 0 or 1")
    else:
        return YES
    if zero is not None and not zero.any():
        return YES
    if guide.fn.is_discrete and type(guide.fn) is type(model.fn) and _same_factor(guide, model):
        return YES
    if zero is None:
        return unknown(
            f"the model's {name} may give no probability to what the guide's {type(guide.fn).__name__} draws"
        )
    return _outside(guide, zero, name)


def _concrete(support, argument, test):
    value = concrete(support.result.path, (support.site, "argument", argument))
    return None if value is None else test(value)


def _outside(guide, zero, name) -> Answer:
    """Does the guide use a value that the model excludes: ``zero`` says which, along the last axis?"""
    excluded = np.flatnonzero(zero.reshape(-1, zero.shape[-1]).any(0))
    witness = f"{guide.site!r} = {int(excluded[0])}"
    arguments = guide.result.arguments(guide.site)
    used = None
    if "probs" in arguments:
        stack = lambda p: (
            np.stack([p < 1, p > 0], -1) if type(guide.fn).__name__ == "BernoulliProbs" else p > 0
        )
        used = _concrete(guide, "probs", stack)
        if used is None and arguments["probs"].interval.positive and arguments["probs"].interval.high <= 1:
            used = np.ones(zero.shape, bool)
    elif "logits" in arguments and arguments["logits"].interval.finite:
        used = np.ones(zero.shape, bool)
    if used is None:
        return unknown(f"the model's {name} gives no probability to {witness}, which the guide may draw")
    size = min(used.shape[-1], zero.shape[-1])
    both = np.logical_and(*np.broadcast_arrays(used[..., :size], zero[..., :size]))
    return (
        no(f"the model's {name} gives no probability to what the guide draws", witness) if both.any() else YES
    )


def _same_factor(guide, model) -> bool:
    """Where a probability of the model is ``c f`` with ``0 < c < 1``, and one of the guide has the factor ``f`` too, both vanish together."""
    order = Order(guide.result.interpreter, guide.result, model.result)
    ours, theirs = (s.result.arguments(s.site)["probs"] for s in (guide, model))
    if ours.number == theirs.number:
        return True
    if type(model.fn).__name__ != "BernoulliProbs":
        return False
    factors = [_factors(order, a) for a in (ours, theirs)]
    rest = list(factors[1])
    for factor in factors[0]:
        match = next((f for f in rest if f.number == factor.number), None)
        if match is not None:
            rest.remove(match)
    shared = len(rest) < len(factors[1])
    return shared and all(f.interval.within(iv.UNIT) for f in rest) and bool(rest)


def _factors(order, value):
    name, operands = order._term(value)
    if name == "mul":
        return [f for a in operands for f in _factors(order, a)]
    return [value]
