"""What the interpreter asks of a single equation of a jaxpr: its name, its parameters, the type of its result."""

import functools

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.scipy import special

from vinb.analysis import intervals as iv
from vinb.analysis.intervals import ANYTHING, Interval
from vinb.analysis.source import called_jaxpr


def name_of(eqn):
    inner = called_jaxpr(eqn)
    label = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return repr(label.func_name if label is not None else eqn.primitive.name)


def params_key(eqn):
    """A hashable for an equation's parameters; of a jaxpr among them its text and its constants, those of inner calls too."""
    items = []
    for key, value in eqn.params.items():
        if key in ("sharding", "out_sharding", "precision", "weak_type"):
            continue
        items.append((key, value if _is_plain(value) else (str(value), *map(_constants, _jaxprs(value)))))
    return tuple(items)


def _jaxprs(value):
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr | Jaxpr))
    return [leaf for leaf in leaves if isinstance(leaf, ClosedJaxpr | Jaxpr)]


def _constants(jaxpr):
    own = tuple(_content(c) for c in getattr(jaxpr, "consts", ()))
    inner = tuple(
        _constants(j)
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns
        for v in eqn.params.values()
        for j in _jaxprs(v)
    )
    return own, inner


def _content(constant):
    if isinstance(constant, jax.core.Tracer) or jax.dtypes.issubdtype(constant.dtype, jax.dtypes.extended):
        return id(constant)  # kept alive by its jaxpr
    return np.asarray(constant).tobytes(), str(constant.dtype)


# Functions of JAX that are calls by jit: their derivatives are too, under the same name.
_JITTED = {
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "ndtr": special.ndtr,
    "log_ndtr": special.log_ndtr,
}


def is_the_function(name: str, eqn) -> bool:
    """Is a call of JAX's function ``name`` that function, and not one of its derivatives?"""
    if eqn.primitive.name.startswith("custom_"):  # a derivative of these is another call
        return True
    avals = tuple(v.aval for v in eqn.invars)
    return name in _JITTED and len(eqn.outvars) == 1 and str(called_jaxpr(eqn)) in _texts(name, avals)


@functools.lru_cache(maxsize=256)
def _texts(name, avals):
    """The jaxpr of the function itself at these types."""
    try:
        traced = jax.make_jaxpr(_JITTED[name])(
            *(jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals)
        )
    except (TypeError, ValueError):
        return ()
    return tuple(str(called_jaxpr(eqn)) for eqn in traced.jaxpr.eqns if called_jaxpr(eqn) is not None)


def _is_plain(value):
    return value is None or (isinstance(value, bool | int | float | str | tuple) and not _holds_jaxpr(value))


def _holds_jaxpr(value):
    return isinstance(value, tuple) and any(
        not isinstance(v, int | str | bool | float | None | tuple) or _holds_jaxpr(v) for v in value
    )


def fitted(interval: Interval, aval) -> Interval:
    """What the type of a value says of it."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return ANYTHING
    if jax.numpy.issubdtype(dtype, np.bool_):
        return interval if interval in (iv.TRUE, iv.FALSE) else iv.BOOLEAN
    if jax.numpy.issubdtype(dtype, jax.numpy.integer):
        info = jax.numpy.iinfo(dtype)
        whole = iv.closed(int(info.min), int(info.max))
        if not interval.within(whole):  # it may wrap around
            return whole
        low, high = interval.low, interval.high
        low = np.floor(low) + 1 if interval.low_open or low != np.ceil(low) else low
        high = np.ceil(high) - 1 if interval.high_open or high != np.floor(high) else high
        return iv.closed(low, high) if low <= high else whole
    return interval
