"""Has what was observed a positive density, whatever was drawn before?"""

import contextlib

import numpy as np

from vinb.analysis.abstract import Abstract
from vinb.analysis.atoms import observed_used
from vinb.analysis.evaluate import Evaluated
from vinb.analysis.order import Order
from vinb.analysis.sites import concrete
from vinb.analysis.supports import Support
from vinb.analysis.verdicts import YES, Answer, Verdict, unknown


def observed_within(p: Evaluated, q: Evaluated, name: str, support: Support, value: Abstract) -> Answer:
    """Has what was observed a positive density, whatever was drawn before?"""
    if support.kind == "point":
        arguments = p.arguments(name)
        if arguments["v"].number != value.number:
            return unknown("the only value of a Delta is not known to be what was observed")
        return (
            YES
            if arguments["log_density"].interval.finite
            else unknown("the log density of a Delta may be minus infinity")
        )
    known = concrete(p.path, (name, "value"))
    if not support.kind or not support.exact:
        return Answer(Verdict.UNKNOWN, f"the support of {support} is not known")
    if support.kind in ("interval", "integers"):
        answer = _inside(p, q, name, support, value, known)
        if answer.verdict != Verdict.VALID or support.kind == "interval":
            return answer
    elif known is None or not _satisfies(support, known):
        return Answer(Verdict.UNKNOWN, f"what was observed is not known to be in the support of {support}")
    return observed_used(p, name, support, known)


def _inside(p, q, name, support, value, known) -> Answer:
    order = Order(p.interpreter, q, p)
    for side, end in support.ends.items():
        small, large = (end, value) if side == "lower" else (value, end)
        numbers = concrete(p.path, (name, side))
        if known is not None and numbers is not None:
            first, second = (numbers, known) if side == "lower" else (known, numbers)
            if np.all((first <= second) | ~_kept(p, name, np.broadcast_shapes(first.shape, second.shape))):
                continue
            return Answer(
                Verdict.INVALID,
                f"what was observed is outside of the support of {support}",
                f"{name!r} = {_worst_value(known, side):g}",
            )
        if order.at_most(small, large):
            continue
        why = f"what was observed is in {value.interval}, {support}"
        if order.always_above(small, large) or order.may_be_above(small, large):
            return Answer(
                Verdict.INVALID,
                f"what was observed is outside of the support for some draws: {why}",
                f"{side} end towards {end.interval.high if side == 'lower' else end.interval.low:g}",
            )
        return Answer(Verdict.UNKNOWN, f"what was observed is not proved to be in the support: {why}")
    if known is None and support.kind == "integers" and not p.path.sites[name].integral:
        return unknown("what was observed is not known to be a whole number")
    if known is not None and support.kind == "integers" and not np.all(known == np.round(known)):
        return Answer(
            Verdict.INVALID,
            "what was observed is no whole number",
            f"{name!r} = {known.ravel()[known.ravel() != np.round(known.ravel())][0]:g}",
        )
    return YES


def _kept(p, name, shape) -> np.ndarray:
    """Which elements of a value of single numbers are not masked, as far as that is known."""
    kept = np.ones(shape, bool)
    for what in p.path.outputs:
        if what[:2] == (name, "mask") and (mask := concrete(p.path, what)) is not None:
            with contextlib.suppress(ValueError):  # a mask of whole events
                kept = kept & mask
    return kept


def _worst_value(known, side):
    return float(np.min(known) if side == "lower" else np.max(known))


def _satisfies(support, known) -> bool:
    if support.kind == "one-hot":
        return bool(np.all((known == 0) | (known == 1)) and np.all(known.sum(-1) == 1))
    declared = support.fn.support
    try:
        return bool(np.all(np.asarray(declared(known))))
    except Exception:  # a constraint of abstract bounds
        return False
