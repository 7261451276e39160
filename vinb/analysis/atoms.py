"""Has every value of a discrete distribution, or what was observed of it, a positive probability?"""

import numpy as np

from vinb.analysis import intervals as iv
from vinb.analysis.domains import inflated_base
from vinb.analysis.order import Order
from vinb.analysis.sites import concrete
from vinb.analysis.verdicts import YES, Answer, Verdict, no, unknown

_CLASSES = ("Bernoulli", "Categorical", "OneHot")  # whose probabilities have an axis of classes
_ONE_SIDED = ("BinomialProbs", "GeometricProbs", "MultinomialProbs")
# Positive everywhere for all arguments in their domains.
_POSITIVE = (
    "BetaBinomial", "BetaNegativeBinomial", "DirichletMultinomial", "DiscreteUniform", "GammaPoisson", "NegativeBinomial2",
    "NegativeBinomialLogits", "BinomialLogits", "GeometricLogits", "MultinomialLogits",
)  # fmt: skip


def all_used(guide, model) -> Answer:
    """Has each value of a discrete guide a positive probability in the model?"""
    fn = inflated_base(model.fn)
    name, arguments = type(fn).__name__, model.result.arguments(model.site)
    if "gate" in arguments and not arguments["gate"].interval.below(1):
        return unknown(f"the gate of the model's {type(model.fn).__name__} may be 1")
    if name in _POSITIVE:
        return YES
    if name == "Poisson":
        return (
            YES
            if arguments["rate"].interval.positive
            else unknown("the rate of the model's Poisson may be zero")
        )
    if name in _ONE_SIDED:
        probs = arguments["probs"].interval
        return (
            YES
            if probs.positive and (probs.below(1) or name == "MultinomialProbs")
            else _one_sided(guide, model, name)
        )
    if not name.startswith(_CLASSES):
        return unknown(f"the probabilities of the model's {name} are not known to be positive")
    if "logits" in arguments:
        if arguments["logits"].interval.finite:
            return YES
        zero = _concrete(model, "logits", np.isneginf)
    else:
        probs = arguments["probs"].interval
        if probs.positive and (probs.below(1) or name != "BernoulliProbs"):
            return YES
        zero = _concrete(
            model, "probs", lambda p: np.stack([p == 1, p == 0], -1) if name == "BernoulliProbs" else p == 0
        )
    if zero is not None and not zero.any():
        return YES
    if guide.fn.is_discrete and type(guide.fn) is type(model.fn) and _same_factor(guide, model):
        return YES
    if zero is None:
        return unknown(
            f"the model's {name} may give no probability to what the guide's {type(guide.fn).__name__} draws"
        )
    return _outside(guide, zero, name)


def _one_sided(guide, model, name) -> Answer:
    """A law of counts whose probability of success is not known to be inside of (0, 1)."""
    certain = _concrete(model, "probs", lambda p: (p == 0) | ((p == 1) & (name != "MultinomialProbs")))
    arguments = guide.result.arguments(guide.site)
    mine, count = arguments.get("probs"), arguments.get("total_count")
    draws_both = (
        mine is not None and mine.interval.within(iv.UNIT) and (count is None or count.interval.low >= 1)
    )
    if certain is not None and certain.any() and draws_both and name != "MultinomialProbs":
        return no(f"a probability of the model's {name} is 0 or 1, none of the guide's is")
    return unknown(f"a probability of the model's {name} may be 0 or 1")


def ends_are_drawn(guide) -> bool:
    """Have the first and the last value of the guide a positive probability, as far as that is known?"""
    arguments = guide.result.arguments(guide.site)
    if "logits" in arguments:
        return arguments["logits"].interval.finite
    if "probs" not in arguments:
        return True
    probs, classes = arguments["probs"].interval, type(guide.fn).__name__.startswith("Categorical")
    if probs.positive and (classes or probs.below(1)):
        return True
    return bool(
        classes
        and (known := _concrete(guide, "probs", lambda p: p[..., [0, -1]] > 0)) is not None
        and known.all()
    )


def _concrete(support, argument, test):
    value = concrete(support.result.path, (support.site, "argument", argument))
    return None if value is None else test(value)


def _outside(guide, zero, name) -> Answer:
    """Does the guide use a value that the model excludes: ``zero`` says which, along the last axis?"""
    excluded = np.flatnonzero(zero.reshape(-1, zero.shape[-1]).any(0))
    witness = f"{guide.site!r} = {int(excluded[0])}"
    used = _used(guide)
    if used is None:
        return unknown(f"the model's {name} gives no probability to {witness}, which the guide may draw")
    size = min(used.shape[-1], zero.shape[-1])
    try:
        both = used[..., :size] & zero[..., :size]
    except ValueError:
        return unknown(f"the model's {name} gives no probability to {witness}, which the guide may draw")
    return (
        no(f"the model's {name} gives no probability to what the guide draws", witness) if both.any() else YES
    )


def _used(guide):
    """Which classes the guide draws, along the last axis; None where that is not known."""
    name, arguments = type(guide.fn).__name__, guide.result.arguments(guide.site)
    if not name.startswith(_CLASSES):
        return None
    two = name.startswith("Bernoulli")
    value = next((arguments[a] for a in ("probs", "logits") if a in arguments), None)
    everything = np.ones(2 if two else value.shape[-1:], bool)
    if "logits" in arguments:
        return everything if value.interval.finite else None
    used = _concrete(guide, "probs", lambda p: np.stack([p < 1, p > 0], -1) if two else p > 0)
    if used is None and value.interval.positive and (value.interval.below(1) or not two):
        return everything
    return used


def _same_factor(guide, model) -> bool:
    """Where a probability of the model is ``c f`` with ``0 < c < 1``, and one of the guide has the factor ``f`` too, both
    vanish together."""
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
        if match is not None and match.interval.within(iv.CLOSED_UNIT):
            rest.remove(match)
    shared = len(rest) < len(factors[1])
    return shared and all(f.interval.within(iv.UNIT) for f in rest) and bool(rest)


def _factors(order, value):
    name, operands = order.term(value)
    if name == "mul":
        return [f for a in operands for f in _factors(order, a)]
    return [value]


def observed_used(p, name, support, known) -> Answer:
    """The probability of what was observed."""
    arguments, kind = p.arguments(name), type(inflated_base(support.fn)).__name__
    if "gate" in arguments and not arguments["gate"].interval.below(1):
        return Answer(Verdict.UNKNOWN, f"the gate of {type(support.fn).__name__} may be 1")
    if kind in _POSITIVE:
        return YES
    if "logits" in arguments:
        if arguments["logits"].interval.finite:
            return YES
    elif "probs" in arguments:
        probs = arguments["probs"].interval
        if probs.positive and (probs.below(1) or not kind.startswith(("Bernoulli", "Binomial", "Geometric"))):
            return YES
        given = concrete(p.path, (name, "argument", "probs"))
        if given is not None and known is not None and kind == "BernoulliProbs":
            given, known = np.broadcast_arrays(given, known)
            impossible = ((known == 1) & (given == 0)) | ((known == 0) & (given == 1))
            if not impossible.any():
                return YES
            return Answer(
                Verdict.INVALID,
                "what was observed has probability zero",
                f"{name!r} = {float(known[impossible][0]):g}",
            )
        if given is not None and known is not None and kind == "CategoricalProbs":
            given, indices = _aligned(given, known)
            if (indices < 0).any() or (indices >= given.shape[-1]).any():
                return unknown("what was observed is no class")  # said already, unless it is masked
            taken = np.take_along_axis(given, indices, -1)
            if (taken > 0).all():
                return YES
            return Answer(Verdict.INVALID, "what was observed has probability zero")
        if (
            kind == "BernoulliProbs"
            and known is not None
            and ((probs.positive and (known == 1).all()) or (probs.below(1) and (known == 0).all()))
        ):
            return YES
    elif kind == "Poisson" and (
        arguments["rate"].interval.positive or (known is not None and (known == 0).all())
    ):
        return YES
    return Answer(Verdict.UNKNOWN, f"the probability of what was observed under {kind} may be zero")


def _aligned(probs, known):
    indices = np.asarray(known, int)[..., None]
    shape = np.broadcast_shapes(probs.shape[:-1], indices.shape[:-1])
    return np.broadcast_to(probs, (*shape, probs.shape[-1])), np.broadcast_to(indices, (*shape, 1))
