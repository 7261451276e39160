"""`fit`: minimises a loss with an optax optimiser over shuffled batches of data that stay on the device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, UInt32

from vinb import accelerator
from vinb.training.loop import Trained, drive, require_count
from vinb.training.programs import as_array, hashable, is_array, is_key, unwrapped

# Steps use fold_in(key, t) with t below 2**31; the epochs' orders hang off this one, which no step can have.
ORDER = np.uint32(2**32 - 1)

# Small data: the orders of several epochs are drawn together, so that a chunk can span them.
ORDERS_AT_ONCE = 2**17


@dataclass(frozen=True)
class Fitted(Trained):
    """What `fit` returns: `Trained`, whose ``state`` is ``(params, opt_state)``."""

    @property
    def params(self) -> Any:
        return self.state[0]

    @property
    def opt_state(self) -> Any:
        return self.state[1]


def permutation(key: Key[Array, ""], num_data: int) -> UInt32[Array, " num_data"]:
    """A random order of 0..num_data-1, as sorting by independent 32-bit numbers gives it.

    XLA on CPU sorts single numbers about five times faster than pairs, so each round packs some random bits
    above the present position and sorts that; being stable, the rounds together order by all their bits
    (radix sort).
    """
    position_bits = max(1, (num_data - 1).bit_length())
    mask = jnp.uint32(2**position_bits - 1)
    rounds = -(-32 // (32 - position_bits))
    positions = jnp.arange(num_data, dtype=jnp.uint32)
    order = positions
    for round_key in jax.random.split(key, rounds):
        noise = jax.random.bits(round_key, (num_data,), jnp.uint32) & ~mask
        order = order[jax.lax.sort(noise | positions) & mask]
    return order


@dataclass(frozen=True)
class _Orders:
    """The permutations of the epochs of a block, ``[epochs, num_data]``."""

    epochs: int
    num_data: int
    mesh: Mesh | None

    def __call__(self, block, data):
        key = jax.random.fold_in(data[0], ORDER)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(
            block * self.epochs + jnp.arange(self.epochs)
        )
        orders = jax.vmap(permutation, in_axes=(0, None))(keys, self.num_data)
        return orders if self.mesh is None else accelerator.replicate(orders, self.mesh)


@dataclass(frozen=True)
class _Step:
    """One optimiser step. Two of these with the same fields are equal, and so share their compiled
    programs."""

    loss: Any
    optimizer: Any
    batch_size: int | None  # None: all data at every step
    steps_per_epoch: int
    mesh: Mesh | None

    def __call__(self, state, t, orders, data):
        (params, opt_state), (key, data) = state, data
        trainable, rest = eqx.partition(params, eqx.is_inexact_array)
        batch = self.batch(t, orders, data)

        def loss(trainable):
            return unwrapped(self.loss)(eqx.combine(trainable, rest), jax.random.fold_in(key, t), *batch)

        value, gradient = jax.value_and_grad(loss)(trainable)
        updates, opt_state = unwrapped(self.optimizer).update(gradient, opt_state, trainable)
        state = eqx.combine(optax.apply_updates(trainable, updates), rest), opt_state
        return state if self.mesh is None else accelerator.replicate(state, self.mesh), value

    def batch(self, t, orders, data):
        rows = data if self.batch_size is None else self.rows(t, orders, data)
        if self.mesh is None:
            return rows
        # Not accelerator.shard_batch, which splits over all axes of a mesh: here the others are the loss's own.
        split = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))
        return jax.lax.with_sharding_constraint(rows, split)

    def rows(self, t, orders, data):
        begin = t % self.steps_per_epoch * self.batch_size
        if orders is None:
            return [jax.lax.dynamic_slice_in_dim(x, begin, self.batch_size) for x in data]
        epoch = t // self.steps_per_epoch % orders.shape[0]
        chosen = jax.lax.dynamic_slice(orders, (epoch, begin), (1, self.batch_size))[0]
        # Without this mode XLA checks every index and fills in NaN: six times slower on CPU.
        return [x.at[chosen].get(mode="promise_in_bounds") for x in data]


def fit(
    loss: Callable,
    params: Any,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    data: tuple = (),
    batch_size: int | None = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    mesh: Mesh | None = None,
    shuffle: bool = True,
    loop: str = "auto",
    evaluate: Callable | None = None,
    evaluate_at=(),
    checkpoint=None,
    checkpoint_every: int | None = None,
    progress: bool | str | None = None,
    max_chunk_seconds: float = 2.0,
) -> Fitted:
    """Minimises ``loss(params, key, *batch)`` over ``params``.

    Args:
        loss: returns the real scalar to minimise. At step t it gets the key ``jax.random.fold_in(key, t)`` and a batch: one
            array ``[batch_size, ...]`` per array of ``data``. An objective to maximise: return its negative. Several seeds
            at once: give ``params`` a leading axis and return the sum over it of a vmapped loss.
        params: any pytree, Equinox modules included. Only floating-point arrays are trained; the rest stays.
        optimizer: from optax. For a second call not to compile again, give the same ``loss`` and ``optimizer`` objects.
        key: a typed key, ``jax.random.key(seed)``. It decides all randomness, so that a resumed run repeats it exactly.
        data: arrays with a common leading axis N, kept on the device as they are (uint8 stays uint8). An epoch is
            ``N // batch_size`` steps over a fresh random order, which depends on ``key`` and the epoch's number; what is
            left over at its end is not used in that epoch. ``data=()``: ``loss(params, key)``.
        batch_size: None means all data at every step, in their own order; an epoch is then one step.
        num_steps: how many steps; give either this or ``num_epochs``.
        num_epochs: how many times over the data.
        mesh: spreads each batch over the devices along the mesh's first axis, which must divide ``batch_size``; data and
            parameters are replicated. Sums over devices differ from one device's in the last bits.
        shuffle: False visits the data in their own order.
        loop: this and the following as in `vinb.training.run`.
        evaluate: ``evaluate(params, t)`` returns a dict of real scalars.
        evaluate_at: the steps after which it is called.
        checkpoint: a file to resume from and to write.
        checkpoint_every: steps between checkpoints.
        progress: whether to show the progress line.
        max_chunk_seconds: about how long the compiled loop runs before Python looks at it.

    Returns:
        `Fitted`, with ``params`` and ``opt_state`` beside the fields of `Trained`.

    Raises:
        ValueError: for an argument out of range, or arguments that do not fit together.
        TypeError: for a key that is none, data that are no tuple, and other wrong types.
        Diverged: as in `run`; its ``state`` is ``(params, opt_state)``.
        CheckpointMismatch: if the checkpoint is damaged or belongs to another run.
    """
    if not (isinstance(key, jax.Array) and is_key(key) and key.shape == ()):
        raise TypeError(f"key must be one typed key, jax.random.key(seed); got {key!r:.60}.")
    data = tuple(as_array(x) for x in _sequence(data))
    num_data = _num_data(data, batch_size)
    steps_per_epoch = num_data // batch_size if batch_size else 1
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(
            f"give exactly one of num_steps and num_epochs; got num_steps={num_steps!r}, "
            f"num_epochs={num_epochs!r}."
        )
    if num_epochs is not None:
        require_count("num_epochs", num_epochs)
        if not data:
            raise ValueError("num_epochs needs data; without data give num_steps.")
        num_steps = num_epochs * steps_per_epoch
    if mesh is not None:
        devices = mesh.shape[mesh.axis_names[0]]
        rows = batch_size or num_data
        if rows % devices:
            raise ValueError(f"batch_size={rows} must be a multiple of the mesh's {devices} devices.")

    params = jax.tree.map(lambda leaf: as_array(leaf) if is_array(leaf) else leaf, params)
    trainable = eqx.filter(params, eqx.is_inexact_array)
    if not jax.tree.leaves(trainable):
        raise ValueError("params holds no floating-point array to train.")
    state, inputs = (params, jax.jit(optimizer.init)(trainable)), (key, data)
    if mesh is not None:
        state, inputs = accelerator.replicate((state, inputs), mesh)

    shuffled = shuffle and batch_size is not None
    epochs = max(1, ORDERS_AT_ONCE // num_data) if shuffled else 0
    trained = drive(
        _Step(hashable(loss), hashable(optimizer), batch_size, steps_per_epoch, mesh),
        state,
        num_steps,
        data=inputs,
        context=_Orders(epochs, num_data, mesh) if shuffled else None,
        period=epochs * steps_per_epoch if shuffled else None,
        describe={
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "number of data": num_data,
            "batch_size": batch_size,
            "shuffle": shuffle,
        },
        loop=loop,
        evaluate=None if evaluate is None else lambda state, t: evaluate(state[0], t),
        evaluate_at=evaluate_at,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        max_chunk_seconds=max_chunk_seconds,
    )
    return Fitted(**{field.name: getattr(trained, field.name) for field in fields(Trained)})


def _sequence(data) -> tuple:
    if not isinstance(data, tuple | list):
        raise TypeError(f"data must be a tuple of arrays, (x,) for a single one; got {type(data).__name__}.")
    return tuple(data)


def _num_data(data, batch_size) -> int:
    """The data's common leading axis, after checking it and ``batch_size``."""
    lengths = [x.shape[0] if x.ndim else None for x in data]
    if len(set(lengths)) > 1 or None in lengths:
        raise ValueError(
            f"the arrays of data must share their leading axis; got shapes {[x.shape for x in data]}."
        )
    num_data = lengths[0] if lengths else 0
    if batch_size is None:
        return num_data
    if not data:
        raise ValueError(f"batch_size={batch_size} without data; leave it out or give data=(x, ...).")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1; got {batch_size!r}.")
    if batch_size > num_data:
        raise ValueError(f"batch_size={batch_size} is more than the {num_data} data points.")
    return num_data
