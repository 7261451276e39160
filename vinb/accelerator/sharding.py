"""Device meshes, and arrays split or copied over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jax import Device
    from jax.sharding import Mesh


def mesh(axis: str = "data", devices: Sequence[Device] | None = None) -> Mesh:
    """A one-dimensional device mesh, over which `shard_batch` splits a batch.

    One cpu as several devices, to try it out: ``XLA_FLAGS=--xla_force_host_platform_device_count=4``. Several
    hosts: start the same program on each, with these lines before anything else that uses jax, and the rest
    as on one host::

        jax.distributed.initialize(coordinator_address="host0:1234", num_processes=2, process_id=...)
        accelerator.configure()
        mesh = accelerator.mesh()                      # spans all hosts
        params = accelerator.replicate(params, mesh)
        batch = accelerator.shard_batch(batch, mesh)   # each host passes the same whole batch

    On clusters jax knows (Slurm, Open MPI, TPU pods) ``initialize()`` needs no arguments. Every process runs
    the same steps with the same seed; a result that is replicated is read with ``jax.device_get`` on any of
    them, and one process (``jax.process_index() == 0``) writes files.

    Args:
        axis: the mesh axis' name.
        devices: None for all devices of all processes.

    Raises:
        ValueError: for an empty list of devices.
    """
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices=[] must name at least one device; pass None for all of them")
    return Mesh(np.asarray(devices), (axis,), axis_types=(AxisType.Auto,))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Splits the leading axis of every array of ``batch`` evenly over all devices of `mesh`.

    Works inside ``jit`` (as a sharding constraint) and outside (as a copy to the devices; with several processes
    each passes the same whole batch).

    Args:
        batch: a pytree of arrays (other leaves stay as they are), each [batch, ...] with the batch a multiple of the
            number of devices.
        mesh: from ``mesh()``.

    Returns:
        the batch, of the same structure.

    Raises:
        ValueError: for an array without a leading axis or of a size the devices do not divide.
    """
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def place(path, leaf):
        if not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        if leaf.ndim == 0 or leaf.shape[0] % mesh.size:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}; its leading axis must be a "
                f"multiple of the mesh's {mesh.size} devices: choose such a batch size"
            )
        return _place(leaf, sharding)

    return jax.tree_util.tree_map_with_path(place, batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of every array of ``tree`` on each device of `mesh`; other leaves stay as they are.

    Works inside and outside ``jit`` like `shard_batch`, also for typed keys.

    Args:
        tree: a pytree of arrays; with several processes each passes the same values.
        mesh: from ``mesh()``.

    Returns:
        the tree, of the same structure.
    """
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: _place(leaf, sharding) if isinstance(leaf, jax.Array | np.ndarray) else leaf, tree
    )


def _place(leaf, sharding):
    import jax

    if isinstance(leaf, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # device_put takes no keys to other processes
        data = jax.device_put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, sharding)
