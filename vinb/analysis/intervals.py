"""Intervals of real numbers with open or closed ends, and what functions of the table of rules make of them.

A value of an array program is described by one interval that holds all its elements. Real numbers, not floats: an open end is not
attained, so ``exp`` of anything is above zero, and an infinite end is open unless infinity itself is a value (a masked logit).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

_INF = math.inf


class Interval(NamedTuple):
    """All numbers from ``low`` to ``high``; ``low_open`` says that ``low`` is not among them."""

    low: float = -_INF
    high: float = _INF
    low_open: bool = True
    high_open: bool = True

    def __str__(self):
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"

    @property
    def positive(self) -> bool:
        return self.low > 0 or (self.low == 0 and self.low_open)

    @property
    def negative(self) -> bool:
        return self.high < 0 or (self.high == 0 and self.high_open)

    @property
    def nonnegative(self) -> bool:
        return self.low >= 0

    @property
    def nonpositive(self) -> bool:
        return self.high <= 0

    @property
    def nonzero(self) -> bool:
        return self.positive or self.negative

    @property
    def finite(self) -> bool:
        """Is infinity not among the values?"""
        return not (self.low == -_INF and not self.low_open) and not (
            self.high == _INF and not self.high_open
        )

    @property
    def is_point(self) -> bool:
        return self.low == self.high

    def above(self, number: float) -> bool:
        return self.low > number or (self.low == number and self.low_open)

    def below(self, number: float) -> bool:
        return self.high < number or (self.high == number and self.high_open)

    def within(self, other: "Interval") -> bool:
        """Is it a subset of ``other``?"""
        low = self.low > other.low or (self.low == other.low and (self.low_open or not other.low_open))
        high = self.high < other.high or (self.high == other.high and (self.high_open or not other.high_open))
        return low and high


REAL = Interval()
POSITIVE = Interval(0.0, _INF)
NONNEGATIVE = Interval(0.0, _INF, False)
UNIT = Interval(0.0, 1.0)
CLOSED_UNIT = Interval(0.0, 1.0, False, False)
ANYTHING = Interval(-_INF, _INF, False, False)  # infinities and NaN too
BOOLEAN = CLOSED_UNIT


def point(number: float) -> Interval:
    return Interval(float(number), float(number), False, False)


TRUE, FALSE, ZERO = point(1), point(0), point(0)


def closed(low: float, high: float) -> Interval:
    return Interval(float(low), float(high), False, False)


def of_array(array) -> Interval:
    """From the least to the largest element of a concrete array; ``ANYTHING`` where that is not known."""
    if isinstance(array, jax.core.Tracer) or (not hasattr(array, "dtype") and not np.isscalar(array)):
        return ANYTHING
    if hasattr(array, "dtype") and jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        return ANYTHING
    values = np.asarray(array)
    if values.dtype.kind not in "biuf" and not jax.numpy.issubdtype(values.dtype, np.floating):
        return ANYTHING
    if values.size == 0:
        return ZERO
    low, high = float(values.min()), float(values.max())
    return ANYTHING if math.isnan(low) or math.isnan(high) else closed(low, high)


def hull(*intervals: Interval) -> Interval:
    """The least interval that holds all of them."""
    low, low_open = min((i.low, i.low_open) for i in intervals)
    high, high_closed = max((i.high, not i.high_open) for i in intervals)
    return Interval(low, high, low_open, not high_closed)


def meet(first: Interval, second: Interval) -> Interval:
    """What both hold; ``first`` where they have nothing in common."""
    low, low_open = max((first.low, first.low_open), (second.low, second.low_open))
    high, high_closed = min((first.high, not first.high_open), (second.high, not second.high_open))
    if low > high:
        return first
    return Interval(low, high, low_open, not high_closed)


def widened(old: Interval, new: Interval) -> Interval:
    """``new`` with each end that moved out of ``old`` taken on to the next of -1, 0, 1 and infinity: a fixpoint is soon reached."""
    low = new.low, new.low_open
    high = new.high, new.high_open
    if low < (old.low, old.low_open):
        low = next(
            ((t, t == new.low and new.low_open) for t in (1.0, 0.0, -1.0) if t <= new.low),
            (-_INF, new.low > -_INF or new.low_open),
        )
    if (new.high, not new.high_open) > (old.high, not old.high_open):
        high = next(
            ((t, t == new.high and new.high_open) for t in (-1.0, 0.0, 1.0) if t >= new.high),
            (_INF, new.high < _INF or new.high_open),
        )
    return Interval(low[0], high[0], low[1], high[1])


# ---- arithmetic


def add(a: Interval, b: Interval) -> Interval:
    if not (a.finite and b.finite):
        return ANYTHING if a.low == b.high == -_INF or a.high == b.low == _INF else _add(a, b)
    return _add(a, b)


def _add(a, b):
    low, high = a.low + b.low, a.high + b.high
    low = -_INF if math.isnan(low) else low
    high = _INF if math.isnan(high) else high
    return Interval(
        low,
        high,
        _open(low, a.low, a.low_open, b.low, b.low_open),
        _open(high, a.high, a.high_open, b.high, b.high_open),
    )


def _open(result, x, x_open, y, y_open):
    if math.isinf(result):  # infinity is a value where one of the terms has it
        return not ((math.isinf(x) and not x_open) or (math.isinf(y) and not y_open))
    return x_open or y_open


def negate(a: Interval) -> Interval:
    return Interval(-a.high, -a.low, a.high_open, a.low_open)


def subtract(a: Interval, b: Interval) -> Interval:
    return add(a, negate(b))


def multiply(a: Interval, b: Interval) -> Interval:
    if not (a.finite or b.nonzero) or not (b.finite or a.nonzero):
        return ANYTHING  # infinity times zero
    ends = [_product(x, y) for x in _ends(a) for y in _ends(b)]
    low, high = min(v for v, _ in ends), max(v for v, _ in ends)
    low_open = all(o for v, o in ends if v == low)
    high_open = all(o for v, o in ends if v == high)
    # A zero inside one factor is attained whatever the other is.
    has_zero = not (a.nonzero and b.nonzero)
    return Interval(
        low, high, low_open and not (low == 0 and has_zero), high_open and not (high == 0 and has_zero)
    )


def _ends(a):
    """Both ends: value, openness, and on which side of it the interval lies."""
    return (a.low, a.low_open, 1), (a.high, a.high_open, -1)


def _product(first, second):
    (x, x_open, x_side), (y, y_open, y_side) = first, second
    if x == 0 and x_open and math.isinf(y) and not y_open:  # nothing but zero times infinity is not infinite
        return x_side * y, False
    if y == 0 and y_open and math.isinf(x) and not x_open:
        return y_side * x, False
    if x == 0 or y == 0:
        return 0.0, all(o for v, o in ((x, x_open), (y, y_open)) if v == 0)
    value = x * y
    if math.isinf(value):
        return value, not ((math.isinf(x) and not x_open) or (math.isinf(y) and not y_open))
    return value, x_open or y_open


def times(a: Interval, count: float) -> Interval:
    """``count`` times ``a``: a sum of so many elements."""
    return multiply(a, point(count)) if count else ZERO


def reciprocal(a: Interval) -> Interval:
    if not a.nonzero:
        return ANYTHING
    if a.negative:
        return negate(reciprocal(negate(a)))
    low = 0.0 if math.isinf(a.high) else 1 / a.high
    high = _INF if a.low == 0 else 1 / a.low
    return Interval(low, high, a.high_open, a.low_open or a.low == 0)


def divide(a: Interval, b: Interval) -> Interval:
    return multiply(a, reciprocal(b)) if b.nonzero else ANYTHING


def square(a: Interval) -> Interval:
    return power(a, 2)


def power(a: Interval, exponent: int) -> Interval:
    """An integer power."""
    if exponent < 0:
        return reciprocal(power(a, -exponent))
    if exponent == 0:
        return point(1)
    if exponent % 2:
        return increasing(lambda x: x**exponent)(a)
    size = absolute(a)
    return increasing(lambda x: x**exponent)(size)


def absolute(a: Interval) -> Interval:
    if a.nonnegative:
        return a
    if a.nonpositive:
        return negate(a)
    high, high_closed = max((a.high, not a.high_open), (-a.low, not a.low_open))
    return Interval(0.0, high, False, not high_closed)


def real_power(a: Interval, b: Interval) -> Interval:
    if b.is_point and float(b.low).is_integer():
        return power(a, int(b.low))
    if not a.nonnegative:
        return ANYTHING
    if b.is_point:
        exponent = abs(b.low)
        made = increasing(lambda x: x**exponent)(a)
        return made if b.low > 0 else reciprocal(made)
    if a.positive:
        return exp(multiply(b, log(a)))
    return NONNEGATIVE if b.nonnegative else ANYTHING


def increasing(fn: Callable[[float], float], domain: Interval = REAL) -> Callable[[Interval], Interval]:
    """The rule of an increasing function; outside of ``domain`` its values are not known."""

    def rule(a: Interval) -> Interval:
        if not a.within(Interval(domain.low, domain.high, False, False)):
            return ANYTHING
        low, high = _value(fn, a.low), _value(fn, a.high)
        if math.isnan(low) or math.isnan(high):
            return ANYTHING
        if low == high and not a.is_point and math.isfinite(low):  # floats are saturated, numbers are not
            return Interval(math.nextafter(low, -_INF), math.nextafter(high, _INF))
        return Interval(low, high, a.low_open, a.high_open)

    return rule


def stepping(fn: Callable[[float], float]) -> Callable[[Interval], Interval]:
    """The rule of an increasing step function: the value at an open end may be attained next to it."""

    def rule(a: Interval) -> Interval:
        low, high = _value(fn, a.low), _value(fn, a.high)
        if math.isnan(low) or math.isnan(high):
            return ANYTHING
        return Interval(low, high, math.isinf(low) and a.low_open, math.isinf(high) and a.high_open)

    return rule


def decreasing(fn: Callable[[float], float], domain: Interval = REAL) -> Callable[[Interval], Interval]:
    rule = increasing(lambda x: -fn(x), domain)
    return lambda a: negate(rule(a)) if rule(a) != ANYTHING else ANYTHING


def _value(fn, x):
    with np.errstate(all="ignore"):
        try:
            return float(fn(np.float64(x)))
        except (OverflowError, ValueError, ZeroDivisionError):
            return math.nan


def constant(interval: Interval) -> Callable[..., Interval]:
    """The rule of a function with these values whatever the operands are."""
    return lambda *_: interval


def within(values: Interval, rule: Callable[[Interval], Interval]) -> Callable[[Interval], Interval]:
    """``rule``, and rounding or underflow never leads to the ends of ``values`` or beyond."""

    def bounded(a: Interval) -> Interval:
        made = rule(a)
        if made == ANYTHING or not a.finite:
            return hull(meet(made, Interval(values.low, values.high, False, False)))
        low_open = made.low_open or made.low <= values.low
        high_open = made.high_open or made.high >= values.high
        return Interval(max(made.low, values.low), min(made.high, values.high), low_open, high_open)

    return bounded


exp = within(POSITIVE, increasing(np.exp))
_log = increasing(lambda x: np.log(x) if x > 0 else -_INF, NONNEGATIVE)
sqrt = increasing(np.sqrt, NONNEGATIVE)


def log(a: Interval) -> Interval:
    made = _log(a)  # the logarithm of zero is a value of floats
    return made._replace(low_open=a.low_open) if a.low == 0 and made != ANYTHING else made


def maximum(a: Interval, b: Interval) -> Interval:
    low, low_open = max((a.low, a.low_open), (b.low, b.low_open))
    high, high_closed = max((a.high, not a.high_open), (b.high, not b.high_open))
    return Interval(low, high, low_open, not high_closed)


def minimum(a: Interval, b: Interval) -> Interval:
    return negate(maximum(negate(a), negate(b)))


# ---- comparisons: TRUE, FALSE, or BOOLEAN where it is not decided


def less(a: Interval, b: Interval) -> Interval:
    if a.high < b.low or (a.high == b.low and (a.high_open or b.low_open)):
        return TRUE
    return FALSE if a.low >= b.high else BOOLEAN


def less_equal(a: Interval, b: Interval) -> Interval:
    if a.high <= b.low:
        return TRUE
    return FALSE if a.low > b.high or (a.low == b.high and (a.low_open or b.high_open)) else BOOLEAN


def equal(a: Interval, b: Interval) -> Interval:
    if a.is_point and b.is_point and a.low == b.low:
        return TRUE
    apart = FALSE in (less_equal(a, b), less_equal(b, a))
    return FALSE if apart else BOOLEAN


def negation(a: Interval) -> Interval:
    return {TRUE: FALSE, FALSE: TRUE}.get(a, BOOLEAN)


def repeated(a: Interval, count: int) -> Interval:
    """A sum of one to ``count`` elements, as a running sum has."""
    return hull(a, times(a, count)) if count else ZERO


def repeated_product(a: Interval, count: int) -> Interval:
    """A product of one to ``count`` elements."""
    if count <= 1:
        return a
    if a.positive and a.high <= 1:
        return Interval(0.0, a.high, True, a.high_open)
    if a.nonnegative:
        high = a.high if a.high <= 1 else _INF
        low = a.low if a.low >= 1 else 0.0
        return Interval(low, high, a.low_open or (low == 0 and a.positive), a.high_open or high == _INF)
    if absolute(a).high <= 1:
        return closed(-1, 1)
    return REAL if a.finite else ANYTHING
