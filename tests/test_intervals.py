"""Intervals: every rule of arithmetic against what numbers do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vinb.analysis import intervals as iv
from vinb.analysis.intervals import ANYTHING, Interval

ENDS = [-math.inf, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, math.inf]


def some_interval(random, positive=False):
    while True:
        low, high = sorted(random.choice(ENDS, 2))
        low_open, high_open = (bool(b) for b in random.integers(0, 2, 2))
        low_open, high_open = low_open or math.isinf(low), high_open or math.isinf(high)
        if low == high and (low_open or high_open or math.isinf(low)):
            continue
        if not positive or low >= 0:
            return Interval(float(low), float(high), low_open, high_open)


def some_points(random, interval, count=50):
    """Points of an interval, ends that belong to it and points near its ends among them."""
    low, high = max(interval.low, -1e3), min(interval.high, 1e3)
    points = [*random.uniform(low, high, count), low + 1e-9 * (high - low), high - 1e-9 * (high - low)]
    points += [0.0, -1e-6, 1e-6]
    points += [] if interval.low_open else [interval.low]
    points += [] if interval.high_open else [interval.high]
    inside = [p for p in points if holds(interval, p)]
    return np.array(inside)


def holds(interval, number, slack=0.0):
    low = number > interval.low - slack or (number == interval.low and not interval.low_open)
    high = number < interval.high + slack or (number == interval.high and not interval.high_open)
    return low and high


UNARY = {
    "negate": (iv.negate, np.negative), "square": (iv.square, np.square), "absolute": (iv.absolute, np.abs),
    "exp": (iv.exp, np.exp),
    "cube": (lambda a: iv.power(a, 3), lambda x: x**3),
    "fourth": (lambda a: iv.power(a, 4), lambda x: x**4),
    "inverse square": (lambda a: iv.power(a, -2), lambda x: x**-2.0), "reciprocal": (iv.reciprocal, lambda x: 1 / x),
    "log": (iv.log, np.log),
    "sqrt": (iv.sqrt, np.sqrt),
    "logistic": (iv.within(iv.UNIT, iv.increasing(special.expit)), special.expit),
    "erfc": (iv.within(Interval(0.0, 2.0), iv.decreasing(special.erfc)), special.erfc),
}  # fmt: skip
BINARY = {
    "add": (iv.add, np.add), "subtract": (iv.subtract, np.subtract), "multiply": (iv.multiply, np.multiply),
    "divide": (iv.divide, np.divide), "maximum": (iv.maximum, np.maximum), "minimum": (iv.minimum, np.minimum),
    "power": (iv.real_power, np.power),
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name):
    rule, fn = UNARY[name]
    random, tight = np.random.default_rng(0), 0
    for _ in range(150):
        a = some_interval(random)
        made = rule(a)
        with np.errstate(all="ignore"):
            values = fn(some_points(random, a))
        values = values[np.isfinite(values)]
        for value in values:  # an open end may be rounded to
            assert holds(made, value) or (value in (made.low, made.high)), (a, made, value)
        if made != ANYTHING and values.size and math.isfinite(made.low):
            tight += 1
            assert values.min() <= made.low + 0.05 * (1 + abs(made.low)) or made.low == made.high
    assert tight > 20 or name in ("log", "cube", "negate")


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_numbers(name):
    rule, fn = BINARY[name]
    random = np.random.default_rng(1)
    for _ in range(300):
        a, b = some_interval(random, positive=name == "power"), some_interval(random)
        made = rule(a, b)
        with np.errstate(all="ignore"):
            values = fn(some_points(random, a)[:, None], some_points(random, b)[None]).ravel()
        for value in values[np.isfinite(values)]:
            assert holds(made, value, 1e-9 * abs(value)) or value in (made.low, made.high), (
                a,
                b,
                made,
                value,
            )


def test_comparisons_are_decided_only_where_they_are():
    random, decided = np.random.default_rng(2), 0
    for _ in range(500):
        a, b = some_interval(random), some_interval(random)
        x, y = some_points(random, a)[:, None], some_points(random, b)[None]
        for rule, truth in ((iv.less, x < y), (iv.less_equal, x <= y), (iv.equal, x == y)):
            made = rule(a, b)
            decided += made != iv.BOOLEAN
            if made == iv.TRUE:
                assert truth.all(), (a, b, rule)
            if made == iv.FALSE:
                assert not truth.any(), (a, b, rule)
    assert decided > 200


def test_joins_and_loops():
    random = np.random.default_rng(3)
    for _ in range(300):
        a, b = some_interval(random), some_interval(random)
        both = iv.hull(a, b)
        assert a.within(both)
        assert b.within(both)
        wide = iv.widened(a, both)
        assert both.within(wide), (a, both, wide)
        common = iv.meet(a, b)
        for p in some_points(random, a):
            assert not holds(b, p) or holds(common, p)


def test_widening_ends():
    interval, rounds = iv.point(0), 0
    while True:
        new = iv.widened(interval, iv.hull(interval, iv.add(interval, iv.point(1))))
        if new == interval:
            break
        interval, rounds = new, rounds + 1
    assert rounds < 10
    assert interval == iv.NONNEGATIVE


def test_of_an_array():
    assert iv.of_array(np.array([[1.0, -2.0]])) == iv.closed(-2, 1)
    assert iv.of_array(np.array([True, False])) == iv.BOOLEAN
    assert iv.of_array(np.array([1.0, np.nan])) == ANYTHING
    assert not iv.of_array(np.array([1.0, -np.inf])).finite
    assert iv.of_array(jax.random.key(0)) == ANYTHING
    jax.make_jaxpr(lambda x: (iv.of_array(x) == ANYTHING) or 1 / 0)(jnp.ones(2))
