"""How smooth each log density of NumPyro is in its value and its arguments, and which values these may take.

A distribution that is in the table is taken as smooth as the table says (continuously differentiable in every argument where
nothing else is written), as long as each argument is proved to lie in the open domain that NumPyro declares for it. Of any
other distribution the jaxpr of its ``log_prob`` is interpreted. Ends of a support are steps, whatever the distribution.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from numpyro.distributions import (
    Distribution,
    MixtureGeneral,
    MixtureSameFamily,
    TransformedDistribution,
    constraints,
)
from numpyro.distributions.truncated import (
    LeftTruncatedDistribution,
    RightTruncatedDistribution,
    TwoSidedTruncatedDistribution,
)

from vinb.analysis import intervals as iv
from vinb.analysis.abstract import Abstract, Level, Levels, composed, join
from vinb.analysis.domains import INFLATED, unwrap
from vinb.analysis.interpreter import Interpreter
from vinb.analysis.intervals import Interval
from vinb.analysis.knowledge import knows

TRUNCATED = (LeftTruncatedDistribution, RightTruncatedDistribution, TwoSidedTruncatedDistribution)
DIFF, LIP, ANY = Level.DIFF, Level.LIP, Level.ANY
_MATRIX = "the covariance of a multivariate normal is positive definite"


class DensityCall(NamedTuple):
    """A call of a log density. Its operands: ``arguments`` by name, the ``ends`` of the support, all arrays, the value."""

    site: str
    fn: Distribution
    arguments: tuple[str, ...]
    ends: tuple[str, ...]
    computable: bool = True


class Signature(NamedTuple):
    value: Level = DIFF
    arguments: Mapping[str, Level] = MappingProxyType({})  # those that are not DIFF
    assumption: str = ""


_SMOOTH, _DISCRETE = Signature(), Signature(ANY)

SIGNATURES: dict[str, Signature] = {
    **dict.fromkeys(
        ["Normal", "LogNormal", "Exponential", "Gamma", "Beta", "BetaProportion", "Dirichlet", "Cauchy", "StudentT", "HalfNormal",
         "HalfCauchy", "InverseGamma", "Weibull", "Gumbel", "Logistic", "Chi2", "Gompertz", "Kumaraswamy", "Levy", "VonMises",
         "SoftLaplace", "GaussianRandomWalk", "Uniform", "LogUniform", "RelaxedBernoulliLogits"],
        _SMOOTH,
    ),
    **dict.fromkeys(
        ["BernoulliLogits", "BernoulliProbs", "CategoricalLogits", "CategoricalProbs", "OneHotCategorical", "Poisson",
         "BinomialLogits", "BinomialProbs", "GeometricLogits", "GeometricProbs", "MultinomialLogits", "MultinomialProbs",
         "BetaBinomial", "DirichletMultinomial", "GammaPoisson", "NegativeBinomial2", "NegativeBinomialLogits",
         "NegativeBinomialProbs"],
        _DISCRETE,
    ),
    "Laplace": Signature(LIP, {"loc": LIP}),
    "AsymmetricLaplace": Signature(LIP, {"loc": LIP, "asymmetry": LIP}),
    "MultivariateNormal": Signature(assumption=_MATRIX),
    "LowRankMultivariateNormal": _SMOOTH,
    "MultivariateStudentT": Signature(assumption=_MATRIX),
    "Delta": Signature(ANY, {"v": ANY}),
    "Unit": _SMOOTH,
}  # fmt: skip


def signature_of(fn: Distribution) -> Signature | None:
    """None where the log density has to be looked at. A subclass made elsewhere is another distribution."""
    if not knows("signatures"):
        return None
    # The tails are smooth in the ends and in the arguments of what is truncated.
    cls = type(fn.base_dist) if isinstance(fn, TRUNCATED) else type(fn)
    known = cls.__module__.startswith(("numpyro.distributions.", "vinb.distributions."))
    return SIGNATURES.get(cls.__name__) if known else None


class DivergenceCall(NamedTuple):
    """A call of a divergence in closed form. Its operands: the arguments of both distributions by name, then all arrays."""

    fns: tuple[Distribution, Distribution]
    arguments: tuple[tuple[str, ...], tuple[str, ...]]


def call_rule(call: "DensityCall | DivergenceCall"):
    """The rule of a call, for :class:`Interpreter`."""
    return density_rule(call) if isinstance(call, DensityCall) else divergence_rule(call)


def divergence_rule(call: DivergenceCall):
    """Divergences between smooth families are smooth in all arguments; others are looked at."""

    def rule(operands: list[Abstract], interpreter: Interpreter, eqn) -> list[Abstract] | None:
        if any(signature_of(fn) not in (_SMOOTH, _DISCRETE) for fn in call.fns):
            return None
        parts, start = [], 0
        for fn, names in zip(call.fns, call.arguments, strict=True):
            arguments = dict(zip(names, operands[start:], strict=False))
            start += len(names)
            parts += [composed(DIFF, a.levels, "") for a in arguments.values()]
            parts += [domain_levels(fn, name, a, type(fn).__name__) for name, a in arguments.items()]
        return [interpreter.result(eqn, operands, iv.REAL, join(parts))]

    return rule


def density_rule(call: DensityCall):
    """The rule of a call of this density, for :class:`Interpreter`: operands are its arguments, its ends, its arrays, its value."""
    signature = signature_of(call.fn)

    def rule(operands: list[Abstract], interpreter: Interpreter, eqn) -> list[Abstract] | None:
        count, num_ends = len(call.arguments), len(call.ends)
        arguments = dict(zip(call.arguments, operands[:count], strict=True))
        ends, value = operands[count : count + num_ends], operands[-1]
        site = type(call.fn).__name__ + (f" at site {call.site!r}" if call.site else "")
        parts = [
            composed(ANY, a.levels, f"end of the support of {site}") for a in ends if not _is_infinite(a)
        ]
        if not (call.site and interpreter.numbers("tag", call.site) == value.number) and not _is_inside(
            call, ends, value
        ):
            parts.append(composed(ANY, value.levels, f"value of {site}, not proved to be in the support"))
        parts += [domain_levels(call.fn, name, a, site) for name, a in arguments.items()]
        values = iv.REAL
        if not call.computable:
            parts += [composed(ANY, a.levels, f"{site} has no log_prob at given values") for a in operands]
        elif signature is None:
            (inner,) = interpreter.inside(eqn, operands)
            parts.append(inner.levels)
            values = inner.interval
        else:
            if signature.assumption and any(a.levels for a in arguments.values()):
                interpreter.assumptions.add(signature.assumption)
            parts += [
                composed(signature.arguments.get(name, DIFF), a.levels, f"{name} of {site}")
                for name, a in arguments.items()
            ]
            parts.append(composed(signature.value, value.levels, f"value of {site}"))
            if "log_factor" in arguments:
                values = arguments["log_factor"].interval
        return [interpreter.result(eqn, operands, values, join(parts))]

    return rule


def _is_infinite(end: Abstract) -> bool:
    return end.interval.is_point and math.isinf(end.interval.low)


def _is_inside(call: DensityCall, ends: list[Abstract], value: Abstract) -> bool:
    """Is a value at no end of a support, whatever the inputs are? A density jumps there."""
    named = dict(zip(call.ends, ends, strict=True))
    lower, upper = named.get("lower"), named.get("upper")
    above = lower is None or _is_infinite(lower) or value.interval.above(lower.interval.high)
    return above and (upper is None or _is_infinite(upper) or value.interval.below(upper.interval.low))


def domain_levels(fn: Distribution, name: str, argument: Abstract, site: str) -> Levels:
    """What follows for an argument that is not proved to lie in its domain."""
    constraint = constraint_of(fn, name)
    if not argument.levels or in_domain(constraint, argument.interval):
        return {}
    return composed(
        ANY, argument.levels, f"{name} of {site} is in {argument.interval}, not proved {_words(constraint)}"
    )


def owners(fn: Distribution) -> list[tuple[str, Distribution]]:
    """The distributions that declare its arguments, each with a prefix for their names: itself, and what it is made of."""
    found = [("", fn)]
    if isinstance(fn, (*TRUNCATED, *INFLATED)):
        found.append(("", fn.base_dist))
    elif isinstance(fn, TransformedDistribution):
        found += [("base.", d) for _, d in owners(unwrap(fn.base_dist))]
    elif isinstance(fn, MixtureSameFamily | MixtureGeneral):
        parts = getattr(fn, "component_distributions", None) or [fn.component_distribution]
        found += [("mixing.", d) for _, d in owners(unwrap(fn.mixing_distribution))]
        found += [(f"component{k}.", d) for k, part in enumerate(parts) for _, d in owners(unwrap(part))]
    return found


def constraint_of(fn: Distribution, name: str):
    """What NumPyro asks of an argument."""
    return next(
        type(o).arg_constraints[name.removeprefix(prefix)]
        for prefix, o in owners(fn)
        if name.startswith(prefix) and name.removeprefix(prefix) in type(o).arg_constraints
    )


def has_bounds(constraint) -> bool:
    """Does it ask for single numbers between ends, or for nothing at all? Of other constraints nothing is proved."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    bounded = hasattr(constraint, "lower_bound") or hasattr(constraint, "upper_bound")
    return bounded or type(constraint).__name__ in ("_Real", "_Dependent", "_Simplex", "_Boolean")


def in_domain(constraint, interval: Interval, *, closed: bool = False) -> bool:
    """Is an argument with this interval under a constraint of NumPyro? In its interior, unless ``closed``; probabilities may
    be 0 or 1."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    if constraint is constraints.simplex:
        return interval.nonnegative if closed else interval.positive
    if constraint is constraints.unit_interval:
        return interval.within(iv.CLOSED_UNIT)
    lower, upper = (_number(getattr(constraint, end, None)) for end in ("lower_bound", "upper_bound"))
    if constraint is constraints.circular:
        return True
    # Counts have no interior; GreaterThanEq is the name of those that have their end.
    closed = bool(getattr(constraint, "is_discrete", False)) or (closed and "Eq" in str(constraint))
    above = lower is None or interval.above(lower) or (closed and interval.low >= lower)
    return above and (upper is None or interval.below(upper) or (closed and interval.high <= upper))


def _number(end):
    return None if end is None else float(end)


def _words(constraint):
    if constraint is constraints.simplex:
        return "to be positive"
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    if getattr(constraint, "lower_bound", None) == 0 and getattr(constraint, "upper_bound", None) is None:
        return "to be positive"
    return f"to be in {constraint}"
