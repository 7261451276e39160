"""What values a distribution of NumPyro may take: the kind of its support, an interval around it, its ends.

To be asked while the program is traced: supports are made of arrays, which are of no use once the trace is over.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import (
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    MixtureGeneral,
    TransformedDistribution,
    Unit,
    constraints,
)
from numpyro.distributions.discrete import ZeroInflatedLogits, ZeroInflatedProbs
from numpyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    SigmoidTransform,
    SoftplusTransform,
)

from vinb.analysis import intervals as iv
from vinb.analysis.intervals import Interval

INFLATED = (ZeroInflatedProbs, ZeroInflatedLogits)
WRAPPERS = (Independent, ExpandedDistribution, MaskedDistribution)


def unwrap(fn: Distribution) -> Distribution:
    """The distribution of one element: ``fn`` without ``to_event``, ``expand`` and ``mask``."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn


def masks_of(fn: Distribution) -> list:
    """The masks around a distribution, but for those that hide nothing."""
    masks = []
    while isinstance(fn, WRAPPERS):
        if isinstance(fn, MaskedDistribution) and fn._mask is not True:
            masks.append(fn._mask)
        fn = fn.base_dist
    return masks


def is_numeric(leaf):
    return hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)


def support_ends(base: Distribution) -> dict[str, Any]:
    """``lower`` and ``upper`` of the support, where it has them."""
    if is_monotone_image(base) and not base.event_dim:
        return _transformed_ends(base)
    if isinstance(base, MixtureGeneral):
        return _ends_around([unwrap(d) for d in base.component_distributions])
    try:
        support = element_support(base)
    except NotImplementedError:
        return {}
    ends = {"lower": 0, "upper": 1} if support is constraints.boolean else {}
    for side in ("lower", "upper"):
        bound = getattr(support, f"{side}_bound", None)
        if bound is not None and is_numeric(bound):
            ends[side] = bound
    return ends


def _ends_around(parts):
    """The ends of the least set that holds the supports of all parts: what is declared of a mixture need not."""
    ends = {}
    for side, least in (("lower", jnp.minimum), ("upper", jnp.maximum)):
        bounds = [support_ends(part).get(side) for part in parts]
        if not any(bound is None for bound in bounds):
            ends[side] = functools.reduce(least, bounds)
    return ends


def inflated_base(fn: Distribution) -> Distribution:
    """The distribution that some zeros were added to."""
    return fn.base_dist if isinstance(fn, INFLATED) else fn


_MONOTONE = (AffineTransform, ExpTransform, SigmoidTransform, SoftplusTransform)


def is_monotone_image(base: Distribution) -> bool:
    """Is it made of another by increasing and decreasing functions of single numbers?"""
    return type(base) is TransformedDistribution and all(
        isinstance(t, _MONOTONE) for t in transforms_of(base)
    )


def transforms_of(base):
    """The transforms of a distribution one by one."""
    parts = list(base.transforms)
    while any(isinstance(t, ComposeTransform) for t in parts):
        parts = [p for t in parts for p in (t.parts if isinstance(t, ComposeTransform) else [t])]
    return parts


def _transformed_ends(base):
    """NumPyro's support is the last transform's codomain; these are the images of the ends."""
    inner = support_ends(unwrap(base.base_dist))
    ends = [
        jnp.asarray(inner.get(side, infinite), float)
        for side, infinite in (("lower", -jnp.inf), ("upper", jnp.inf))
    ]
    for transform in transforms_of(base):
        # NumPyro keeps its sigmoid off 0 and 1, which numbers of infinite precision need not.
        image = jax.nn.sigmoid if isinstance(transform, SigmoidTransform) else transform
        ends = [image(end) for end in ends]
    return {"lower": jnp.minimum(*ends), "upper": jnp.maximum(*ends)}


def element_support(base: Distribution):
    """The constraint on one element."""
    support = base.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _plain(fn: Distribution) -> bool:
    """Is the declared support of what is transformed its whole support?"""
    return type(fn).__name__ != "TransformedDistribution"


def _fits(fn) -> bool:
    """Does the chain of transforms fill each codomain, so that the last one is the support?"""
    before = _peeled(fn.base_dist.support)
    for transform in transforms_of(fn):
        if not _alike(before, _peeled(transform.domain)):
            return False
        before = _peeled(transform.codomain)
    return support_kind(unwrap(fn.base_dist))[1]


def _peeled(constraint):
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _alike(first, second) -> bool:
    return type(first) is type(second) and not any(
        hasattr(first, end) and not np.array_equal(getattr(first, end), getattr(second, end))
        for end in ("lower_bound", "upper_bound")
        if isinstance(getattr(first, end, None), int | float)
    )


def _kind(support) -> str:
    if support is constraints.dependent:
        return ""
    name = type(support).__name__
    if name == "_Real" or hasattr(support, "lower_bound") or hasattr(support, "upper_bound"):
        if name == "_Multinomial":
            return name
        return "integers" if support.is_discrete else "interval"
    return "integers" if name == "_Boolean" else name


def static_interval(fn: Distribution) -> Interval:
    """What the values of a distribution lie in, whatever its arguments are."""
    try:
        support = element_support(fn)
    except (NotImplementedError, AttributeError):
        return iv.REAL
    if is_one_hot(fn):
        return iv.CLOSED_UNIT
    return closed_interval(support) if fn.is_discrete else open_interval(support)


def is_one_hot(fn: Distribution) -> bool:
    return type(fn).__name__.startswith("OneHotCategorical")


_NAMED: tuple[tuple[Any, Interval], ...] = (
    (constraints.simplex, iv.UNIT),
    (constraints.sphere, iv.closed(-1, 1)),
    (constraints.corr_cholesky, iv.closed(-1, 1)),
    (constraints.corr_matrix, iv.closed(-1, 1)),
    (constraints.positive_ordered_vector, iv.POSITIVE),
    (constraints.softplus_positive, iv.POSITIVE),
    (constraints.boolean, iv.BOOLEAN),
)


def open_interval(constraint) -> Interval:
    """Almost all values under a constraint of NumPyro: ends are left out."""
    interval = closed_interval(constraint)
    if bool(getattr(constraint, "is_discrete", False)):
        return interval
    if constraint is constraints.corr_matrix or constraint is constraints.corr_cholesky:
        return interval  # a diagonal of ones
    return interval._replace(low_open=True, high_open=True)


def closed_interval(constraint) -> Interval:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    for known, interval in _NAMED:
        if type(constraint) is type(known):
            return interval
    if type(constraint) is type(constraints.multinomial(1)):
        bound = iv.of_array(constraint.upper_bound)
        return iv.closed(0, bound.high) if bound != iv.ANYTHING else iv.NONNEGATIVE
    ends = [getattr(constraint, name, None) for name in ("lower_bound", "upper_bound")]
    low, high = (iv.of_array(end) if end is not None else iv.REAL for end in ends)
    low = -iv.REAL.high if low == iv.ANYTHING else low.low
    high = iv.REAL.high if high == iv.ANYTHING else high.high
    return Interval(low, high, low == -iv.REAL.high, high == iv.REAL.high)


def support_kind(fn: Distribution) -> tuple[str, bool]:
    """``interval`` or ``integers``, ``point``, ``factor``, ``one-hot``, the name of a set of vectors, or an empty string
    where it is not known; and whether it is the whole support, or only a set around it is known."""
    if isinstance(fn, Delta):
        return "point", True
    if isinstance(fn, Unit):  # of numpyro.factor
        return "factor", True
    if is_one_hot(fn):
        return "one-hot", True
    if is_monotone_image(fn) and not fn.event_dim:
        kind, exact = support_kind(unwrap(fn.base_dist))
        return ("interval", exact) if kind == "interval" else ("", False)
    if isinstance(fn, MixtureGeneral):
        kinds = {support_kind(unwrap(d)) for d in fn.component_distributions}
        if len(kinds) != 1 or not kinds <= {("interval", True), ("integers", True)}:
            return "", False
        return next(iter(kinds))[0], _all_alike(fn)
    try:
        support = element_support(fn)
    except (NotImplementedError, AttributeError, AssertionError):
        return "", False
    if type(fn) is TransformedDistribution and support_kind(unwrap(fn.base_dist))[0] in (
        "",
        "integers",
        "point",
        "one-hot",
    ):
        return "", False  # its codomain says nothing of where the draws are
    if type(fn).__name__.startswith("Hurdle") and not support.is_discrete:
        return "", False  # a point mass beside a density
    trusted = not type(fn).__name__.startswith("Hurdle") and "Censored" not in type(fn).__name__
    return _kind(support), trusted and (_plain(fn) or _fits(fn))


def _all_alike(mixture):
    """Have all components one support, of plain numbers?"""
    first, *others = (_peeled(unwrap(d).support) for d in mixture.component_distributions)
    ends = [getattr(first, name, None) for name in ("lower_bound", "upper_bound")]
    return all(end is None or isinstance(end, int | float) for end in ends) and all(
        _alike(first, o) for o in others
    )
