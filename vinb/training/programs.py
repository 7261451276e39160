"""The compiled programs behind the training loop: many steps in one program ("scan"), or one step at a time
("step").

A state is split into its arrays, which the programs carry, and everything else (functions, strings, Python
numbers, the tree's structure), which is fixed when the program is built. Programs are kept for the last few
(step, structure) pairs, so that calling `run` or `fit` again with the same functions and shapes does not
compile again.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

# Losses one chunk can hold. It is part of the compiled program, so it is fixed rather than the chunk's
# length.
CAPACITY = 16384


class ById:
    """Makes any object a cache key by its identity, for those that cannot be hashed (modules holding
    arrays)."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, ById) and self.value is other.value


def hashable(value):
    """``value`` itself, or ``ById(value)`` where it has no hash. `unwrapped` undoes it."""
    try:
        hash(value)
    except TypeError:
        return ById(value)
    return value


def unwrapped(value):
    return value.value if isinstance(value, ById) else value


class Structure(NamedTuple):
    """What a state is besides its arrays. ``fixed`` has (type, value) per leaf, None where the leaf is an
    array."""

    treedef: Any
    fixed: tuple
    paths: tuple[str, ...]

    def names(self) -> list[str]:
        """Paths of the array leaves."""
        return [path for path, fixed in zip(self.paths, self.fixed, strict=True) if fixed is None]

    def join(self, arrays):
        """The state with these arrays."""
        arrays = iter(arrays)
        return jax.tree.unflatten(
            self.treedef, [next(arrays) if fixed is None else unwrapped(fixed[1]) for fixed in self.fixed]
        )


def is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_array(leaf, dtype=None):
    """A jax array that is not weakly typed, so that it has the same type before and after a step."""
    leaf = jnp.asarray(leaf)
    return leaf if is_key(leaf) else jax.lax.convert_element_type(leaf, dtype or leaf.dtype)


def is_array(leaf) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray | np.generic)


def split(state) -> tuple[list[jax.Array], Structure]:
    """The arrays of ``state``, and the rest. NumPy arrays count as arrays, Python numbers do not."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(state)
    # The type belongs to the key because 1 == True == 1.0.
    fixed = tuple(None if is_array(leaf) else (type(leaf), hashable(leaf)) for _, leaf in flat)
    paths = tuple(jax.tree_util.keystr(path) for path, _ in flat)
    return [as_array(leaf) for _, leaf in flat if is_array(leaf)], Structure(treedef, fixed, paths)


@jax.jit
def copy(arrays):
    return [jnp.copy(array) for array in arrays]


@jax.jit
def no_losses():
    return jnp.full(CAPACITY, jnp.nan, jnp.float32)


@jax.jit
def finite(arrays):
    """[number of arrays]: is it free of NaN and infinities? True for what is not floating (integers,
    keys)."""
    inexact = [not is_key(array) and jnp.issubdtype(array.dtype, jnp.inexact) for array in arrays]
    ok = [
        jnp.all(jnp.isfinite(array)) if check else True for array, check in zip(arrays, inexact, strict=True)
    ]
    return jnp.asarray(ok, bool)


def _checked(new_state, structure: Structure, arrays) -> list:
    """The arrays of what a step returned, after checking that it is a state like the one that went in."""
    leaves, treedef = jax.tree.flatten(new_state)
    if treedef != structure.treedef:
        raise TypeError(
            "step must return a state of the same structure as the one it was given.\n"
            f"  given:    {structure.treedef}\n  returned: {treedef}"
        )
    result, old_arrays = [], iter(arrays)
    for path, fixed, leaf in zip(structure.paths, structure.fixed, leaves, strict=True):
        if fixed is not None:
            if leaf is not unwrapped(fixed[1]) and (is_array(leaf) or leaf != unwrapped(fixed[1])):
                raise TypeError(
                    f"step changed state{path}, which is no array ({fixed[0].__name__}) and hence fixed. "
                    "Give it as a jax array, e.g. jnp.asarray(...), if steps are to update it."
                )
            continue
        old, new = next(old_arrays), jnp.asarray(leaf)
        if new.shape != old.shape or new.dtype != old.dtype:
            raise TypeError(
                f"step changed the type of state{path} from {old.dtype}{list(old.shape)} to "
                f"{new.dtype}{list(new.shape)}; a step must keep shapes and dtypes."
            )
        result.append(as_array(new, old.dtype))
    return result


class Programs:
    """The jitted functions for one step function and one kind of state.

    ``loop(arrays, start, count, shared, data) -> (arrays, losses)`` takes ``count`` steps, a number known only at
    run time. Its arrays are not donated, since the chunk is replayed from them if it diverges.
    ``single(carry, shared, data) -> carry`` takes one, its carry (arrays, losses, index, t) donated: a copy.
    ``shared`` is ``context(t // period, data)``, what a block of ``period`` steps shares (permutations), or None.
    """

    def __init__(self, step, context, structure, shardings):
        self.faster = {}  # what loop="auto" measured, by the shapes of the arrays

        def one(arrays, t, shared, data):
            new_state, loss = step(structure.join(arrays), t, shared, data)
            loss = jnp.asarray(loss)
            if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
                raise TypeError(f"the loss must be a real scalar; got {loss.dtype}{list(loss.shape)}.")
            return _checked(new_state, structure, arrays), loss.astype(jnp.float32)

        def record(losses, loss, index):
            return jax.lax.dynamic_update_index_in_dim(losses, loss, index, 0)

        def loop(arrays, start, count, shared, data):
            def body(t, carry):
                arrays, loss = one(carry[0], t, shared, data)
                return arrays, record(carry[1], loss, t - start)

            return jax.lax.fori_loop(start, start + count, body, (arrays, no_losses()))

        def single(carry, shared, data):
            arrays, losses, index, t = carry
            arrays, loss = one(arrays, t, shared, data)
            return arrays, record(losses, loss, index), index + 1, t + 1

        out = list(shardings) if any(shardings) else None
        self.loop = jax.jit(loop, out_shardings=(out, None))
        self.single = jax.jit(single, donate_argnums=0, out_shardings=(out, None, None, None))
        self.context = None if context is None else jax.jit(context)


@functools.lru_cache(maxsize=8)
def _programs(step, context, structure, shardings):
    return Programs(step, context, structure, shardings)


def programs(step, context, structure, arrays) -> Programs:
    """The programs of this step, built at most once while they are among the last eight asked for."""
    # A state spread over devices stays so; on one device jax may decide (uncommitted arrays can follow the
    # data).
    shardings = tuple(
        None if isinstance(array.sharding, jax.sharding.SingleDeviceSharding) else array.sharding
        for array in arrays
    )
    return _programs(step, context, structure, shardings)


class Compiled(NamedTuple):
    """``advance(arrays, t, count, shared) -> (arrays, losses)``; the arrays given to it survive."""

    advance: Any
    context: Any  # block -> shared
    flops: float | None
    temp_bytes: int | None
    text: Any  # () -> the program as StableHLO


def compiled(programs: Programs, loop: str, arrays, data) -> Compiled:
    """Compiles for arrays and data of these shapes; quick if that was done before."""
    scalar = functools.partial(jnp.asarray, dtype=jnp.int32)
    zero = scalar(0)
    context, shared = (lambda block: None), None
    if programs.context is not None:
        make = programs.context.lower(zero, data).compile()
        context, shared = (lambda block: make(scalar(block), data)), make(zero, data)
    if loop == "scan":
        lowered = programs.loop.lower(arrays, zero, zero, shared, data)
        program = lowered.compile()

        def advance(arrays, t, count, shared):
            return program(arrays, scalar(t), scalar(count), shared, data)

    else:
        lowered = programs.single.lower((arrays, no_losses(), zero, zero), shared, data)
        program = lowered.compile()

        def advance(arrays, t, count, shared):
            carry = (
                copy(arrays),
                no_losses(),
                scalar(0),
                scalar(t),
            )  # donated, so nothing in it may be used again
            for _ in range(count):
                carry = program(carry, shared, data)
            return carry[0], carry[1]

    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    temp_bytes = None if memory is None else memory.temp_size_in_bytes
    return Compiled(advance, context, cost.get("flops"), temp_bytes, lowered.as_text)
