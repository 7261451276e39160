"""Is a lower bound finite? How fast log densities grow in the guide's draws, against the guide's tails (lee2020verifiedsvi).

Design notes. The bound needs ``E_q |log q - log p|`` to be finite. A value's growth in the draws is one of five classes,
closed under sums and products: bounded, linear, polynomial, exponential of a linear function, and faster or not known; beside
it stands the class of the value's reciprocal. Both follow from what the value was computed from (``abstract.Numbers``). A
normal guide whose mean and standard deviation are bounded integrates all classes but the last; one whose own are polynomial
has all moments. Near an end at zero a density like ``s^(a-1)`` integrates ``s^-k`` only for ``a > k``: a scale that the guide
draws near zero makes the bound infinite.
"""

import math
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from vinb.analysis.abstract import Abstract, Numbers
from vinb.analysis.evaluate import Evaluated, evaluate
from vinb.analysis.intervals import Interval
from vinb.analysis.order import Order, latest
from vinb.analysis.sites import SiteInfo, concrete, trace_paths
from vinb.analysis.support import compatible, draws_of, verdict_of
from vinb.analysis.verdicts import Finding, SupportReport, Verdict


class Growth(IntEnum):
    """How fast a value grows in the guide's draws."""

    BOUNDED = 0
    LINEAR = 1
    POLYNOMIAL = 2
    EXPONENTIAL = 3  # at most exp of something linear
    UNKNOWN = 4

    def __str__(self):
        return ("bounded", "linear", "polynomial", "exponential", "of unknown growth")[self]


B, L, P, E, U = Growth


class Size(NamedTuple):
    """The growth of a value and of its reciprocal."""

    value: Growth
    reciprocal: Growth


def times(a: Growth, b: Growth) -> Growth:
    if U in (a, b):
        return U
    if B in (a, b):
        return max(a, b)
    return E if E in (a, b) else P


def _squared(a: Growth) -> Growth:
    return times(a, a)


class Growths:
    """The growth of the values of one model and guide."""

    def __init__(self, numbers: Numbers, results: list[Evaluated], draws: set[str]):
        self.numbers, self.results, self.draws = numbers, results, draws
        self.known: dict[int, Size] = {}

    def of(self, value: Abstract) -> Size:
        """See :class:`Size`."""
        number = value.number
        if number not in self.known:
            self.known[number] = Size(U, U)  # for a value that is part of itself, in a loop
            self.known[number] = _narrowed(self._of(value), value.interval)
        return self.known[number]

    def _of(self, value: Abstract) -> Size:
        if not set(value.levels) & self.draws:
            return Size(B, B if value.interval.nonzero else U)  # a number, once the parameters are given
        term = self.numbers.terms.get(value.number)
        if term is None:
            return Size(U, U)
        if term[0] == "tag":
            return Size(L, U)
        if term[0] in ("moved", "slice"):
            return self.of(self.latest(term[1]))
        if (
            len(term) < 2
            or not isinstance(term[1], tuple)
            or not all(isinstance(p, tuple) and len(p) == 2 for p in term[1])
        ):
            return Size(U, U)
        operands = [self.latest(number) for number, _ in term[1]]
        rule, sizes, intervals = (
            _RULES.get(term[0]),
            [self.of(a) for a in operands],
            [a.interval for a in operands],
        )
        if term[0] == "integer_pow":
            return _integer_power(sizes[0], dict(term[5])["y"])
        return rule(sizes, intervals) if rule else Size(U, U)

    def latest(self, number) -> Abstract:
        return latest(number, [r.interpreter for r in self.results])


def _narrowed(size: Size, interval: Interval) -> Size:
    """With what the interval says: values between two numbers are bounded."""
    value, reciprocal = size
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        value = B
    if interval.low > 0 or interval.high < 0:
        reciprocal = B
    return Size(value, reciprocal)


def _sum(sizes, intervals):
    one_sign = all(i.positive for i in intervals) or all(i.negative for i in intervals)
    return Size(max(s.value for s in sizes), min(s.reciprocal for s in sizes) if one_sign else U)


def _difference(sizes, intervals):
    return Size(max(s.value for s in sizes), U)


def _product(sizes, intervals):
    value, reciprocal = sizes[0]
    for size in sizes[1:]:
        value, reciprocal = times(value, size.value), times(reciprocal, size.reciprocal)
    return Size(value, reciprocal)


def _quotient(sizes, intervals):
    a, b = sizes
    return Size(times(a.value, b.reciprocal), times(a.reciprocal, b.value))


def _exp(sizes, intervals):
    (a,), (i,) = sizes, intervals
    grown = B if a.value == B else E if a.value <= L else U
    return Size(B if i.high < math.inf else grown, B if i.low > -math.inf else grown)


def _log(sizes, intervals):
    (a,) = sizes
    return Size(L if max(a) <= E else U, U)


def _either(sizes, intervals):
    """Elements of several arrays."""
    return Size(max(s.value for s in sizes), max(s.reciprocal for s in sizes))


def _expm1(sizes, intervals):
    return Size(_exp(sizes, intervals).value, U)


def _log1p(sizes, intervals):
    (a,), (i,) = sizes, intervals
    return Size(L if a.value <= E and i.low > -1 else U, U)


def _softplus(sizes, intervals):
    """``logaddexp(a, b)``, which is positive where one of them is at least zero."""
    grown = max(s.value for s in sizes)
    positive = any(i.low >= 0 for i in intervals)
    return Size(grown, (B if grown == B else E if grown <= L else U) if positive else U)


def _integer_power(a: Size, exponent: int) -> Size:
    powered = Size(*((b if abs(exponent) == 1 else _squared(b)) for b in a)) if exponent else Size(B, B)
    return Size(powered.reciprocal, powered.value) if exponent < 0 else powered


def _logistic(sizes, intervals):
    (a,) = sizes
    return Size(B, B if a.value == B else E if a.value <= L else U)


def _largest(sizes, intervals):
    return Size(max(s.value for s in sizes), max(s.reciprocal for s in sizes))


def _same(sizes, intervals):
    return sizes[0]


def _power(sizes, intervals):
    (a,) = sizes[:1]
    return Size(_squared(a.value), _squared(a.reciprocal))


def _bounded(sizes, intervals):
    return Size(B, U)


_RULES: dict[str, Callable] = {
    **dict.fromkeys(["add", "add_any"], _sum),
    **dict.fromkeys(["concatenate", "stack"], _either),
    **dict.fromkeys(["sub", "pad", "scatter-add"], _difference),
    **dict.fromkeys(["mul", "dot_general"], _product),
    "div": _quotient,
    **dict.fromkeys(["exp", "exp2"], _exp),
    "expm1": _expm1,
    "log": _log,
    "log1p": _log1p,
    **dict.fromkeys(["logaddexp"], _softplus),
    "logistic": _logistic,
    **dict.fromkeys(["tanh", "sin", "cos", "erf", "sign"], _bounded),
    **dict.fromkeys(["neg", "abs", "reduce_sum", "reduce_max", "reduce_min", "transpose", "rev", "gather", "dynamic_slice", "sqrt",
                     "split", "cumsum", "sort"], _same),
    **dict.fromkeys(["square", "integer_pow"], _power),
    **dict.fromkeys(["max", "min", "select_n", "clamp"], _largest),
}  # fmt: skip


# ---- log densities


def density_growth(growths: Growths, result: Evaluated, name: str) -> Growth:
    """How fast ``|log p|`` of a site grows; UNKNOWN for distributions that the rules do not cover."""
    site, arguments = result.path.sites[name], result.arguments(name)
    if type(site.fn).__name__ == "BernoulliProbs":
        return _log_odds(growths, arguments["probs"])
    size = {a: growths.of(v) for a, v in arguments.items()} | {"value": growths.of(result[name, "value"])}
    rule = _DENSITIES.get(type(site.fn).__name__)
    return rule(size) if rule is not None else U


def _log_odds(growths: Growths, probs: Abstract) -> Growth:
    if probs.interval.low > 0 and probs.interval.high < 1:
        return B
    term = growths.numbers.terms.get(probs.number)
    while term is not None and term[0] == "moved":
        term = growths.numbers.terms.get(term[1])
    return (
        growths.of(growths.latest(term[1][0][0])).value if term is not None and term[0] == "logistic" else U
    )


def _log_of(size: Size) -> Growth:
    return B if max(size) == B else L if max(size) <= E else U


def _located(power: int):
    """Of a location family with tails like ``exp(-|z|^power)``; of 0 like a power."""

    def rule(size):
        distance = times(max(size["value"].value, size["loc"].value), size["scale"].reciprocal)
        far = (
            _squared(distance)
            if power == 2
            else distance
            if power == 1
            else min(distance, L)
            if distance <= E
            else U
        )
        return max(far, _log_of(size["scale"]))

    return rule


def _logits(size):
    return size["logits"].value


def _classes(size):
    return _log_of(size["probs"]) if "probs" in size else size["logits"].value


def _rate(size):
    return max(
        times(size["rate"].value, size["value"].value),
        size["rate"].value,
        times(size["value"].value, _log_of(size["rate"])),
    )


_DENSITIES: dict[str, Callable] = {
    "Normal": _located(2),
    "Laplace": _located(1),
    **dict.fromkeys(["Logistic", "SoftLaplace"], _located(1)),
    "Cauchy": _located(0),
    **dict.fromkeys(["BernoulliLogits", "CategoricalLogits"], _logits),
    **dict.fromkeys(["CategoricalProbs", "MultinomialProbs", "OneHotCategorical"], _classes),
    **dict.fromkeys(["Poisson", "Exponential"], _rate),
    "Uniform": lambda size: B if size["low"].value == size["high"].value == B else U,
    "Unit": lambda size: size["log_factor"].value,
}


# ---- tails of the guide


def _integrates(growths: Growths, result: Evaluated, site: SiteInfo) -> Growth:
    """The fastest growth in this site's draw that its law integrates."""
    kind, arguments = type(site.fn).__name__, result.arguments(site.name)
    if kind == "Normal":
        own = max(growths.of(arguments[a]).value for a in ("loc", "scale"))
        return E if own == B else P if own <= P else B
    if math.isfinite(site.interval.low) and math.isfinite(site.interval.high):
        return E
    if kind == "Uniform":
        own = max(growths.of(arguments[a]).value for a in ("low", "high"))
        return E if own == B else P if own <= P else B
    return B


# The power of the density at zero, where it is ``s^(a-1)``: infinite where it is flatter than any power.
_AT_ZERO: dict[str, Callable[[dict[str, Abstract]], Interval]] = {
    **dict.fromkeys(["HalfNormal", "HalfCauchy", "Exponential"], lambda a: Interval(1.0, 1.0, False, False)),
    **dict.fromkeys(["LogNormal", "InverseGamma"], lambda a: Interval(math.inf, math.inf, False, False)),
    **dict.fromkeys(["Gamma", "Weibull"], lambda a: a["concentration"].interval),
    "Beta": lambda a: a["concentration1"].interval,
    "Uniform": lambda a: (
        Interval(1.0, 1.0, False, False)
        if a["low"].interval.high <= 0
        else Interval(math.inf, math.inf, False, False)
    ),
}
# The power of the reciprocal of an argument in minus the log density.
_POLES = {
    ("Normal", "scale"): 2,
    ("Laplace", "scale"): 1,
    ("Logistic", "scale"): 1,
    ("SoftLaplace", "scale"): 1,
}


def integrability(
    model: Callable, guide: Callable, args: tuple = (), kwargs: dict | None = None
) -> SupportReport:
    """Check that the lower bound of a model and a guide is finite, as far as there are rules for it.

    Args:
        model, guide: NumPyro programs of the same arguments, whose supports match (:func:`vinb.analysis.support_match`).
        args, kwargs: their arguments, with the data.

    Returns:
        A report. ``VALID``: every log density grows no faster than the guide's tails integrate, so the bound is finite for
        all parameters. ``INVALID``: the guide draws a scale so near to zero that the bound is minus infinity, for some
        parameters at least. ``UNKNOWN``: neither; most models with other than normal guides.

    Raises:
        ValueError: as :func:`vinb.analysis.smoothness`.
    """
    guides, models = trace_paths(guide, args, kwargs), trace_paths(model, args, kwargs)
    pairs = [found for g in guides for m in models if (found := _of_pair(g, m)) is not None]
    return SupportReport(
        verdict_of(pairs),
        tuple(dict.fromkeys(f for found in pairs for f in found)),
        (len(models), len(guides)),
        subject="integrability",
    )


def _of_pair(guide_path, model_path) -> list[Finding] | None:
    """None for two ways that are not taken together."""
    numbers = Numbers()
    q = evaluate(guide_path, numbers)
    p = evaluate(model_path, numbers, draws_of(q))
    if not compatible(p, q):
        return None
    latent = {name: site for name, site in q.path.sites.items() if not site.observed and not site.assigned}
    growths = Growths(numbers, [q, p], set(latent))
    findings = []
    bearable = min((_integrates(growths, q, site) for site in latent.values()), default=E)
    for result, label in ((p, "model"), (q, "guide")):
        for name, site in result.path.sites.items():
            if site.hidden:
                continue
            if site.assigned:
                weight = result.arguments(name).get("log_density")
                if weight is not None and growths.of(weight).value > bearable:
                    why = f"its log density in the {label} is {growths.of(weight).value}"
                    findings.append(Finding(name, "integrability", why, Verdict.UNKNOWN, "", site.line))
                continue
            pole = _pole(p, name, q, latent) if label == "model" and site.observed else None
            if pole is not None:
                findings.append(pole)
                continue
            grown = density_growth(growths, result, name)
            if grown > bearable:
                why = f"its log density in the {label} is {grown}, and the guide is known to integrate what is {bearable}"
                findings.append(Finding(name, "integrability", why, Verdict.UNKNOWN, "", site.line))
    return findings


def _pole(result: Evaluated, name: str, q: Evaluated, latent) -> Finding | None:
    """A scale that is a draw of the guide, up to a factor, and may be near zero."""
    site = result.path.sites[name]
    if not _is_certain(result, name, q):
        return None
    for argument, value in result.arguments(name).items():
        power = _POLES.get((type(site.fn).__name__, argument))
        source = _up_to_a_factor(result, value) if power else None
        if source not in latent:
            continue
        drawn = latent[source]
        rule = _AT_ZERO.get(type(drawn.fn).__name__)
        if rule is None:
            continue
        at_zero = rule(q.arguments(source))
        if at_zero.low > power or (at_zero.low == power and at_zero.low_open):
            continue
        verdict = Verdict.INVALID if at_zero.low <= power else Verdict.UNKNOWN
        why = (
            f"{argument} of {type(site.fn).__name__} is {source!r}, whose density in the guide is like s^(a-1) near zero with a = "
            f"{at_zero.low:g}{'' if at_zero.is_point else ' or more'}, and the bound needs a > {power}"
        )
        return Finding(name, "integrability", why, verdict, f"{source!r} towards 0", site.line)
    return None


def _is_certain(p: Evaluated, name: str, q: Evaluated) -> bool:
    """Does nothing make up for a pole of what was observed: no mask, no factor, no observation that the location meets?"""
    site, outputs = p.path.sites[name], p.path.outputs
    others = [s for s in p.path.sites.values() if s.kind == "factor"]
    if others or any(what[:2] == (name, "mask") for what in outputs) or 0 in site.shape:
        return False
    arguments = p.arguments(name)
    if "loc" not in arguments:
        return True
    value, loc = p[name, "value"], arguments["loc"]
    known = [concrete(p.path, what) for what in ((name, "value"), (name, "argument", "loc"))]
    if None not in [None if k is None else 0 for k in known]:
        return bool(np.any(known[0] != known[1]))
    return not value.levels and bool(set(loc.levels) & set(Order(q.interpreter, q, p).free))


def _up_to_a_factor(result: Evaluated, value: Abstract) -> str | None:
    """The input that a value is, times a number."""
    terms, latest = result.interpreter.numbers.terms, result.interpreter.latest
    while True:
        term = terms.get(value.number)
        if term is None:
            return None
        if term[0] == "tag":
            return term[1]
        if term[0] == "moved":
            value = latest[term[1]]
            continue
        if term[0] != "mul":
            return None
        operands = [latest[number] for number, _ in term[1]]
        moving = [a for a in operands if not (a.interval.is_point and a.interval.nonzero)]
        if len(moving) != 1:
            return None
        (value,) = moving
