"""Where the axes of a JAX primitive's operands go: index j of an operand's axis reaches only index j of which output axis?

A rule takes the operands' shapes, the (first) output's shape and the primitive's parameters, and returns one table per
operand: entry ``i`` is the output axis that the operand's axis ``i`` becomes, or None where indices mix. An operand without
a table mixes on all its axes, and so does every operand of a primitive without a rule. Tables may be optimistic about sizes:
whoever applies them must drop an entry whose two axes differ in size, which is how broadcasts from 1, partial slices and
windows lose their axes.
"""

from collections.abc import Callable
from typing import Any

Shape = tuple[int, ...]
Table = list[int | None] | None


def _elementwise(shapes: list[Shape], out: Shape, params: dict[str, Any]) -> list[Table]:
    # Operands of another rank are scalars, which reach every element (or where a window starts).
    return [list(range(len(shape))) if len(shape) == len(out) else None for shape in shapes]


def _prefix(shapes: list[Shape], out: Shape, params: dict[str, Any]) -> list[Table]:
    return [list(range(len(shape))) for shape in shapes]


def _matrices(shapes: list[Shape], out: Shape, params: dict[str, Any]) -> list[Table]:
    return [[*range(len(shape) - 2), None, None] for shape in shapes]


def _without(removed: Callable, collapse: bool = False):
    """All operands keep all axes but some, which mix in place or (``collapse``) leave the shape."""

    def rule(shapes: list[Shape], out: Shape, params: dict[str, Any]) -> list[Table]:
        axes = removed(params)
        axes = {int(a) for a in (axes if isinstance(axes, (tuple, list)) else (axes,))}
        tables = []
        for shape in shapes:
            gone = {a % len(shape) for a in axes} if shape else set()
            kept = [a for a in range(len(shape)) if a not in gone]
            tables.append(
                [None if a in gone else (kept.index(a) if collapse else a) for a in range(len(shape))]
            )
        return tables

    return rule


def _broadcast_in_dim(shapes, out, params):
    return [list(params["broadcast_dimensions"])]


def _reshape(shapes, out, params):
    if params.get("dimensions") is not None:
        return [None]
    # Row-major order keeps an axis where as many elements lie before it as before, and its size is the same.
    places, before = {}, 1
    for axis, size in enumerate(out):
        places.setdefault((before, size), axis)
        before *= size
    table, before = [], 1
    for size in shapes[0]:
        table.append(places.get((before, size)) if before * size else None)
        before *= size
    return [table]


def _transpose(shapes, out, params):
    permutation = [int(p) for p in params["permutation"]]
    return [[permutation.index(axis) for axis in range(len(permutation))]]


def _stack(shapes, out, params):
    new = params["axis"] % len(out)
    return [[axis + (axis >= new) for axis in range(len(shape))] for shape in shapes]


def _pad(shapes, out, params):
    config = params["padding_config"]
    return [[axis if tuple(entry) == (0, 0, 0) else None for axis, entry in enumerate(config)]]


def _dot_general(shapes, out, params):
    contracted, batch = params["dimension_numbers"]
    tables, offset = [], len(batch[0])
    for shape, contract, batched in zip(shapes, contracted, batch, strict=False):
        table = [None] * len(shape)
        for axis, place in enumerate(batched):
            table[place] = axis
        free = [axis for axis in range(len(shape)) if axis not in contract and axis not in batched]
        for place, axis in enumerate(free):
            table[axis] = offset + place
        offset += len(free)
        tables.append(table)
    return tables


def _conv(shapes, out, params):
    numbers = params["dimension_numbers"]
    table = [None] * len(shapes[0])
    if params["batch_group_count"] == 1:
        table[numbers.lhs_spec[0]] = numbers.out_spec[0]
    return [table]


def _reduce_window(shapes, out, params):
    keys = ("window_dimensions", "window_strides", "base_dilation", "window_dilation", "padding")
    settings = zip(*(params[key] for key in keys), strict=True)
    table = [a if (*s[:4], *s[4]) == (1, 1, 1, 1, 0, 0) else None for a, s in enumerate(settings)]
    return [table if shape else None for shape in shapes]


def _gather(shapes, out, params):
    numbers = params["dimension_numbers"]
    operand, indices = shapes
    looked_up = [axis for axis in range(len(out)) if axis not in numbers.offset_dims]
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = [axis for axis in range(len(operand)) if axis not in dropped]
    table = [None] * len(operand)
    for axis, place in zip(windows, numbers.offset_dims, strict=True):
        table[axis] = place  # right where the window is the whole axis: its start is clamped to 0
    for axis, place in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        table[axis] = looked_up[place]
    return [table, [*looked_up[: len(indices) - 1], None]]


def _scatter(shapes, out, params):
    numbers = params["dimension_numbers"]
    operand, indices, updates = shapes
    batching = dict(
        zip(numbers.scatter_indices_batching_dims, numbers.operand_batching_dims, strict=True),
    )
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = iter([axis for axis in range(len(operand)) if axis not in dropped])
    positions = iter(range(len(indices)))
    table = [
        next(windows) if axis in numbers.update_window_dims else batching.get(next(positions))
        for axis in range(len(updates))
    ]
    return [list(range(len(operand))), [batching.get(axis) for axis in range(len(indices))], table]


_ELEMENTWISE = (
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil "
    "clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 "
    "expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt "
    "lt_to max min mul mulhi name ne neg nextafter not or polygamma population_count pow random_gamma_grad real "
    "reduce_precision regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeros_like zeta"
)
# Their full-size windows and single repetitions stay in place (a start that has nowhere to go is clamped to 0).
_IN_PLACE = ("slice", "dynamic_slice", "dynamic_update_slice", "tile")

_axes, _axis = (lambda params: params["axes"]), (lambda params: params["axis"])

AXIS_RULES: dict[str, Callable[[list[Shape], Shape, dict[str, Any]], list[Table]]] = {
    **dict.fromkeys((*_ELEMENTWISE.split(), *_IN_PLACE), _elementwise),
    **dict.fromkeys(
        ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_xor"),
        _without(_axes, collapse=True),
    ),
    **dict.fromkeys(("argmax", "argmin"), _without(_axes, collapse=True)),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split"), _without(_axis)),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"), _reduce_window
    ),
    **dict.fromkeys(
        ("scatter", *(f"scatter{sep}{op}" for sep in "-_" for op in ("add", "sub", "mul", "min", "max"))),
        _scatter,
    ),
    **dict.fromkeys(("cholesky", "triangular_solve"), _matrices),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _without(lambda params: params["dimension"]),
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "gather": _gather,
    "pad": _pad,
    "random_gamma": _prefix,
    "reduce": _without(lambda params: params["dimensions"], collapse=True),
    "reshape": _reshape,
    "rev": _without(lambda params: params["dimensions"]),
    "sort": _without(lambda params: params["dimension"]),
    "squeeze": _without(lambda params: params["dimensions"], collapse=True),
    "stack": _stack,
    "top_k": _without(lambda params: params.get("axis", -1)),
    "transpose": _transpose,
    "unstack": _without(_axis, collapse=True),
}
