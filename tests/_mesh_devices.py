"""Run by test_accelerator.py in a process of its own: a training-like step on several devices against one.

Usage: _mesh_devices.py                      the devices of this process (XLA_FLAGS makes several)
       _mesh_devices.py PORT NUMBER PROCESS  one of NUMBER processes that meet at 127.0.0.1:PORT
Prints the results as JSON.
"""

import json
import sys

import jax

if len(sys.argv) > 1:
    port, number, process = map(int, sys.argv[1:])
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=number, process_id=process)

import jax.numpy as jnp
import numpy as np

from vinb import accelerator

summary = accelerator.configure(platform="cpu", compilation_cache=False)
rng = np.random.default_rng(0)
params = {
    "w": rng.normal(size=(20, 8)).astype(np.float32),
    "v": rng.normal(size=(8,)).astype(np.float32),
    "key": jax.random.key(3),
    "name": "static",
}
batch = (rng.normal(size=(32, 20)).astype(np.float32), rng.normal(size=(32,)).astype(np.float32))


def step(params, key, batch):
    """A gradient step with noise, so that the random bits have to agree as well."""

    def loss(params):
        inputs, targets = batch
        noise = 0.1 * jax.random.normal(key, inputs.shape)
        return jnp.mean((jnp.tanh((inputs + noise) @ params["w"]) @ params["v"] - targets) ** 2)

    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value


def train(mesh, batch, place_inside=lambda batch: batch):
    placed = accelerator.replicate(params, mesh)
    assert placed.pop("name") == "static"
    key = placed.pop("key")
    compiled = jax.jit(lambda params, key, batch: step(params, key, place_inside(batch)))
    losses = []
    for t in range(5):
        placed, value = compiled(placed, jax.random.fold_in(key, t), batch)
        losses.append(float(value))
    return losses, {name: np.asarray(jax.device_get(leaf)).ravel().tolist() for name, leaf in placed.items()}


alone = train(accelerator.mesh(devices=jax.local_devices()[:1]), batch)
mesh = accelerator.mesh()
outside = accelerator.shard_batch(batch, mesh)
sharded_outside = train(mesh, outside)
whole = accelerator.replicate(batch, mesh)
sharded_inside = train(mesh, whole, lambda batch: accelerator.shard_batch(batch, mesh))
placed_inside = jax.jit(lambda batch: accelerator.shard_batch(batch, mesh))(whole)

message = None
try:
    accelerator.shard_batch({"x": np.zeros((31, 2))}, mesh)
except ValueError as error:
    message = str(error)

print(
    json.dumps(
        {
            "summary": str(summary),
            "devices": mesh.size,
            "rows_outside": sorted(shard.data.shape[0] for shard in outside[0].addressable_shards),
            "rows_inside": sorted(shard.data.shape[0] for shard in placed_inside[0].addressable_shards),
            "alone": alone,
            "outside": sharded_outside,
            "inside": sharded_inside,
            "message": message,
        }
    )
)
