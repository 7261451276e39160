"""What the interpreter asks of a single equation of a jaxpr: its name, its parameters, the type of its result."""

import jax
import numpy as np

from vinb.analysis import intervals as iv
from vinb.analysis.intervals import ANYTHING, Interval
from vinb.analysis.source import called_jaxpr


def name_of(eqn):
    inner = called_jaxpr(eqn)
    label = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return repr(label.func_name if label is not None else eqn.primitive.name)


def params_key(eqn):
    """A hashable for an equation's parameters."""
    items = []
    for key, value in eqn.params.items():
        if key in ("sharding", "out_sharding", "precision", "preferred_element_type", "weak_type"):
            continue
        items.append((key, value if _is_plain(value) else str(value)))
    return tuple(items)


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
        return iv.closed(low, high) if low <= high else interval
    return interval
