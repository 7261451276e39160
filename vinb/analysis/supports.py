"""Supports of distributions as sets up to null sets, and whether one lies within another (lee2020verifiedsvi)."""

from dataclasses import dataclass, replace

import numpy as np
from numpyro.distributions import Distribution

from vinb.analysis.abstract import Abstract
from vinb.analysis.atoms import all_used, ends_are_drawn
from vinb.analysis.evaluate import Evaluated
from vinb.analysis.order import Order
from vinb.analysis.sites import concrete
from vinb.analysis.verdicts import YES, Answer, Verdict, no, unknown

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
        return (
            f"{name} on {{{low}, ..., {high}}}" if self.kind == "integers" else f"{name} on ({low}, {high})"
        )

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
    if not guide.exact:
        return _of_a_part(guide, model)
    if guide.kind in _LINE and model.kind in _LINE:
        answer = _line(guide, model)
        if answer.verdict == Verdict.INVALID and not ends_are_drawn(guide):
            return unknown(f"{answer.why}; but it may not draw its first or last value")
        return answer if answer is not YES or not all(discrete) else all_used(guide, model)
    return _vectors(guide, model)


def _of_a_part(guide, model) -> Answer:
    """Only a set around the guide's support is known: what lies within the model's is right, what does not need not be wrong."""
    answer = within(replace(guide, exact=True), model)
    return answer if answer.verdict == Verdict.VALID else unknown(answer.why)


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
    value, known = guide.result[guide.site, "value"], concrete(guide.result.path, (guide.site, "value"))
    whole = guide.result.path.sites[guide.site].integral or (
        known is not None and np.all(known == np.round(known))
    )
    if model.kind != "integers" or not whole:
        return unknown("the guide's only value is not known to be one of the model's")
    answer = _sides(value, value, guide, model, f"value of {guide.site!r}", attained=False)
    return answer if answer.verdict != Verdict.VALID else all_used(guide, model)


def _one_hots(guide, model):
    if "_Multinomial" in (guide.kind, model.kind):
        return unknown(
            f"whether the guide's {guide} and the model's {model} have the same values is not looked at"
        )
    if guide.kind != model.kind:
        return no(f"the guide's {guide} and the model's {model} have no density in terms of each other")
    shapes = [s.fn.event_shape[-1] for s in (guide, model)]
    if shapes[0] != shapes[1]:
        return no(f"the guide has {shapes[0]} classes, the model {shapes[1]}")
    return all_used(guide, model)


def _vectors(guide, model):
    if guide.kind == model.kind:
        if guide.kind != "_Multinomial":
            return YES
        counts = [s.ends.get("upper") for s in (guide, model)]
        same = None not in counts and (counts[0].number == counts[1].number or _both_points(*counts))
        if same:
            return all_used(guide, model)
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
    sets = [s.kind.strip("_") for s in (guide, model)]
    return no(
        f"the guide's {guide} is on {sets[0]}, the model's {model} on {sets[1]}, where a draw of the guide need not lie"
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
