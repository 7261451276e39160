"""The table of rules: for each primitive of JAX how smooth it is in its operands, and the interval of its values.

One line per primitive. The first entry is the strongest level that the primitive has jointly in all operands, or a function of
the operands' intervals to that level or to one level per operand; the second the rule of intervals. A primitive that is
in no table counts as not smooth (Level.ANY) in all operands. Control flow, calls, selections and whatever may
pass an operand on unchanged are in ``interpreter``. (lee2023smoothness, section on the abstract domain; the levels of JAX's
primitives are elementary calculus.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from vinb.analysis import intervals as iv
from vinb.analysis.abstract import Level
from vinb.analysis.intervals import ANYTHING, REAL, Interval

CONST, DIFF, LIP, CONT, ANY = Level


NONSINGULAR = "a matrix that is solved with, or whose determinant is taken, is not singular"


class Rule(NamedTuple):
    """``level``: see above. ``values(*intervals)`` or, where ``sized``, ``values(shapes, params, *intervals)``."""

    level: Level | Callable[..., Level | tuple[Level, ...]]
    values: Callable[..., Any]
    sized: bool = False
    assumption: str = ""


def when(test: Callable[..., bool], otherwise: Level = ANY) -> Callable[..., Level]:
    """DIFF where the operands' intervals pass the test."""
    return lambda *operands: DIFF if test(*operands) else otherwise


def positive(*operands: Interval) -> bool:
    return all(a.positive for a in operands)


def _inside(low, high):
    return lambda a: a.above(low) and a.below(high)


def _reduced(shapes, params):
    """How many elements meet in one."""
    return int(np.prod([shapes[0][axis] for axis in params["axes"]], dtype=float))


def _along(shapes, params):
    return shapes[0][params["axis"]]


def _contracted(shapes, params):
    (axes, _), _ = params["dimension_numbers"]
    return int(np.prod([shapes[0][axis] for axis in axes], dtype=float))


def _window(params):
    return int(np.prod(params["window_dimensions"], dtype=float))


def _filter_size(shapes, params):
    out_channels = shapes[1][params["dimension_numbers"].rhs_spec[0]]
    return int(np.prod(shapes[1], dtype=float)) // max(out_channels, 1)


def _sum_of(count):
    """The sum of ``count`` products, and of fewer at a border."""
    return lambda shapes, params, a, b: iv.hull(iv.times(iv.multiply(a, b), count(shapes, params)), iv.ZERO)


def _dot(shapes, params, a, b):
    return iv.times(iv.multiply(a, b), _contracted(shapes, params))


def _pow_level(a, b):
    if a.positive or (b.is_point and float(b.low).is_integer() and b.low >= 0):
        return DIFF
    if b.is_point and a.nonzero and float(b.low).is_integer():
        return DIFF
    if b.is_point and a.nonnegative and b.low > 0:
        return DIFF if b.low >= 1 else CONT
    return ANY


def _gathered(shapes, params, operand, indices):
    mode = str(params["mode"])
    if "FILL" in mode:
        bounds = [shapes[0][d] for d in params["dimension_numbers"].start_index_map]
        sizes = [params["slice_sizes"][d] for d in params["dimension_numbers"].start_index_map]
        room = min((n - s for n, s in zip(bounds, sizes, strict=True)), default=0)
        if not (indices.low >= 0 and indices.high <= room):
            return ANYTHING  # what lies outside is NaN
    return operand


def _first(*operands):
    return operands[0]


def _scattered(shapes, params, operand, indices, updates):
    return iv.hull(operand, updates)


def _scatter_added(shapes, params, operand, indices, updates):
    count = int(np.prod(shapes[2], dtype=float))
    return iv.add(operand, iv.hull(iv.ZERO, iv.times(updates, count))) if count else operand


def _remainder(a, b):
    return iv.hull(iv.ZERO, iv.minimum(a, iv.absolute(b))) if a.nonnegative and b.nonzero else ANYTHING


_LOG1P = iv.increasing(np.log1p)
_lgamma = lambda a: Interval(-0.12149, np.inf) if a.positive else ANYTHING  # noqa: E731
_UNIT_OPEN = Interval(-1.0, 1.0)

# In all operands together.
RULES: dict[str, Rule] = {
    # sums, products and shapes
    "add": Rule(DIFF, iv.add),
    "add_any": Rule(DIFF, iv.add),
    "sub": Rule(DIFF, iv.subtract),
    "mul": Rule(DIFF, iv.multiply),
    "neg": Rule(DIFF, iv.negate),
    "dot_general": Rule(DIFF, _dot, sized=True),
    "conv_general_dilated": Rule(DIFF, _sum_of(_filter_size), sized=True),
    "reduce_sum": Rule(DIFF, lambda s, p, a: iv.times(a, _reduced(s, p)), sized=True),
    "reduce_prod": Rule(DIFF, lambda s, p, a: iv.repeated_product(a, n) if (n := _reduced(s, p)) else iv.point(1), sized=True),
    "cumsum": Rule(DIFF, lambda s, p, a: iv.repeated(a, _along(s, p)), sized=True),
    "cumprod": Rule(DIFF, lambda s, p, a: iv.repeated_product(a, _along(s, p)), sized=True),
    "cumlogsumexp": Rule(DIFF, lambda s, p, a: iv.hull(a, iv.add(a, iv.point(np.log(max(_along(s, p), 1))))), sized=True),
    "reduce_window_sum": Rule(DIFF, lambda s, p, a: iv.hull(iv.ZERO, iv.times(a, _window(p))), sized=True),
    "concatenate": Rule(DIFF, iv.hull),
    "stack": Rule(DIFF, iv.hull),
    "pad": Rule(DIFF, iv.hull),
    "transpose": Rule(DIFF, _first),
    "reshape": Rule(DIFF, _first),
    "broadcast_in_dim": Rule(DIFF, _first),
    "rev": Rule(DIFF, _first),
    "slice": Rule(DIFF, _first),
    "split": Rule(DIFF, _first),
    "unstack": Rule(DIFF, _first),
    "real": Rule(DIFF, iv.constant(REAL)),
    "imag": Rule(DIFF, iv.constant(REAL)),
    "complex": Rule(DIFF, iv.constant(ANYTHING)),
    "conj": Rule(DIFF, iv.constant(ANYTHING)),
    "fft": Rule(DIFF, iv.constant(ANYTHING)),
    # elementary functions
    "exp": Rule(DIFF, iv.exp),
    "exp2": Rule(DIFF, iv.within(iv.POSITIVE, iv.increasing(np.exp2))),
    "expm1": Rule(DIFF, iv.within(Interval(-1.0), iv.increasing(np.expm1))),
    "sin": Rule(DIFF, iv.constant(iv.closed(-1, 1))),
    "cos": Rule(DIFF, iv.constant(iv.closed(-1, 1))),
    "tanh": Rule(DIFF, iv.within(_UNIT_OPEN, iv.increasing(np.tanh))),
    "sinh": Rule(DIFF, iv.increasing(np.sinh)),
    "cosh": Rule(DIFF, lambda a: iv.increasing(np.cosh)(iv.absolute(a))),
    "atan": Rule(DIFF, iv.increasing(np.arctan)),
    "asinh": Rule(DIFF, iv.increasing(np.arcsinh)),
    "logistic": Rule(DIFF, iv.within(iv.UNIT, iv.increasing(special.expit))),
    "erf": Rule(DIFF, iv.within(_UNIT_OPEN, iv.increasing(special.erf))),
    "erfc": Rule(DIFF, iv.within(Interval(0.0, 2.0), iv.decreasing(special.erfc))),
    "square": Rule(DIFF, iv.square),
    "bessel_i1e": Rule(DIFF, iv.constant(_UNIT_OPEN)),
    # differentiable on a part of the line
    "div": Rule(lambda a, b: (DIFF, DIFF if b.nonzero else ANY), iv.divide),
    "log": Rule(when(positive), iv.log),
    "log1p": Rule(when(lambda a: a.above(-1)), lambda a: iv.log(iv.add(a, iv.point(1))) if a.low < 0 else _LOG1P(a)),
    "sqrt": Rule(lambda a: DIFF if a.positive else CONT if a.nonnegative else ANY, iv.sqrt),
    "rsqrt": Rule(when(positive), lambda a: iv.reciprocal(iv.sqrt(a)) if a.positive else ANYTHING),
    "cbrt": Rule(when(lambda a: a.nonzero, CONT), iv.increasing(np.cbrt)),
    "pow": Rule(_pow_level, iv.real_power),
    "lgamma": Rule(when(positive), _lgamma),
    "digamma": Rule(when(positive), iv.increasing(special.digamma, iv.POSITIVE)),
    "polygamma": Rule(lambda m, x: (ANY, DIFF if x.positive else ANY), iv.constant(ANYTHING)),
    "zeta": Rule(lambda x, q: DIFF if x.above(1) and q.positive else ANY, iv.constant(ANYTHING)),
    **dict.fromkeys(
        ["igamma", "igammac"], Rule(when(positive), lambda a, x: iv.UNIT if positive(a, x) else ANYTHING)
    ),
    "regularized_incomplete_beta": Rule(
        when(lambda a, b, x: positive(a, b) and _inside(0, 1)(x)),
        lambda a, b, x: iv.UNIT if positive(a, b) and _inside(0, 1)(x) else ANYTHING,
    ),
    "erf_inv": Rule(when(_inside(-1, 1)), iv.increasing(special.erfinv, iv.closed(-1, 1))),
    "atanh": Rule(when(_inside(-1, 1)), iv.increasing(np.arctanh, iv.closed(-1, 1))),
    "asin": Rule(
        lambda a: DIFF if _inside(-1, 1)(a) else CONT if a.within(iv.closed(-1, 1)) else ANY,
        iv.increasing(np.arcsin, iv.closed(-1, 1)),
    ),
    "acos": Rule(
        lambda a: DIFF if _inside(-1, 1)(a) else CONT if a.within(iv.closed(-1, 1)) else ANY,
        iv.decreasing(np.arccos, iv.closed(-1, 1)),
    ),
    "acosh": Rule(when(lambda a: a.above(1)), iv.increasing(np.arccosh, Interval(1.0))),
    "atan2": Rule(when(lambda y, x: x.positive), iv.constant(iv.closed(-np.pi, np.pi))),
    "bessel_i0e": Rule(when(lambda a: a.nonzero, LIP), iv.constant(Interval(0.0, 1.0, True, False))),
    # kinks
    "reduce_max": Rule(LIP, _first),
    "reduce_min": Rule(LIP, _first),
    "cummax": Rule(LIP, _first),
    "cummin": Rule(LIP, _first),
    "reduce_window_max": Rule(LIP, iv.constant(REAL)),
    "reduce_window_min": Rule(LIP, iv.constant(REAL)),
    # steps
    "sign": Rule(ANY, iv.stepping(np.sign)),
    "floor": Rule(ANY, iv.stepping(np.floor)),
    "ceil": Rule(ANY, iv.stepping(np.ceil)),
    "round": Rule(ANY, iv.stepping(np.round)),
    "rem": Rule(ANY, _remainder),
    "reduce_and": Rule(ANY, _first),
    "reduce_or": Rule(ANY, _first),
    **dict.fromkeys(["argmax", "argmin"], Rule(ANY, lambda s, p, a: iv.closed(0, max(_reduced(s, p) - 1, 0)), sized=True)),
    "tan": Rule(ANY, iv.constant(REAL)),
    "iota": Rule(CONST, lambda s, p: iv.closed(0, max(p["shape"][p["dimension"]] - 1, 0)), sized=True),
    # places: smooth in what is moved, not in where it is moved to
    "gather": Rule(lambda a, i: (DIFF, ANY), _gathered, sized=True),
    "dynamic_slice": Rule(lambda a, *i: (DIFF, *[ANY] * len(i)), _first),
    "dynamic_update_slice": Rule(lambda a, u, *i: (DIFF, DIFF, *[ANY] * len(i)), lambda a, u, *i: iv.hull(a, u)),
    "scatter": Rule(lambda a, i, u: (DIFF, ANY, DIFF), _scattered, sized=True),
    "scatter-add": Rule(lambda a, i, u: (DIFF, ANY, DIFF), _scatter_added, sized=True),
    "scatter-sub": Rule(lambda a, i, u: (DIFF, ANY, DIFF), iv.constant(REAL)),
    "scatter-mul": Rule(lambda a, i, u: (DIFF, ANY, DIFF), iv.constant(REAL)),
    "scatter-max": Rule(lambda a, i, u: (LIP, ANY, LIP), _scattered, sized=True),
    "scatter-min": Rule(lambda a, i, u: (LIP, ANY, LIP), _scattered, sized=True),
    # linear algebra, where the matrix is as it must be
    "cholesky": Rule(DIFF, iv.constant(REAL), assumption="the argument of a Cholesky factorisation is positive definite"),
    "triangular_solve": Rule(DIFF, iv.constant(REAL), assumption=NONSINGULAR),
    # draws with a given key: implicit reparameterisation
    "random_gamma": Rule(
        lambda key, a: (ANY, DIFF if a.positive else ANY),
        lambda shapes, params, key, a: REAL if params.get("log_space") else iv.POSITIVE,
        sized=True,
    ),
}  # fmt: skip


# Functions of JAX that are written with comparisons or with primitives without a rule, by their name within JAX: level in each
# operand, and interval. A user's function of the same name is not meant (``source.library_function``).
def _softplus_values(a, b):
    return iv.maximum(a, b)._replace(high=np.inf, high_open=True, low_open=True)


LIBRARY: dict[str, Rule] = {
    "logaddexp": Rule(DIFF, lambda a, b: _softplus_values(a, b) if a.finite or b.finite else ANYTHING),
    "logaddexp2": Rule(DIFF, lambda a, b: _softplus_values(a, b) if a.finite or b.finite else ANYTHING),
    "xlogy": Rule(lambda x, y: DIFF if y.positive else ANY, lambda x, y: iv.multiply(x, iv.log(y)) if y.positive else ANYTHING),
    "xlog1py": Rule(
        lambda x, y: DIFF if y.above(-1) else ANY,
        lambda x, y: iv.multiply(x, iv.log(iv.add(y, iv.point(1)))) if y.above(-1) else ANYTHING,
    ),
    "ndtr": Rule(DIFF, iv.within(iv.UNIT, iv.increasing(special.ndtr))),
    "_ndtr": Rule(DIFF, iv.within(iv.UNIT, iv.increasing(special.ndtr))),
    "log_ndtr": Rule(DIFF, iv.within(Interval(high=0.0), iv.increasing(special.log_ndtr))),
    "_log_ndtr": Rule(DIFF, iv.within(Interval(high=0.0), iv.increasing(special.log_ndtr))),
    "leaky_relu": Rule(lambda x, *slope: (LIP, *[ANY] * len(slope)), iv.constant(REAL)),
    "elu": Rule(lambda x, *slope: (LIP, *[ANY] * len(slope)), iv.constant(REAL)),
    "selu": Rule(LIP, iv.constant(REAL)),
    "_det": Rule(DIFF, iv.constant(REAL), assumption=NONSINGULAR),
}  # fmt: skip
