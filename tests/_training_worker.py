"""What tests/test_training.py runs in processes of its own: a run that is killed, and a run on four
devices."""

import os
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vinb import training


def run_worker(*arguments, **environment):
    """Starts this file as a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "VINB_PROGRESS": "0", **environment},
    )


def resumable(path, pause):
    """A small `fit` with data, noise and evaluations; `pause` makes each evaluation slow enough to be killed
    in."""
    keys = jax.random.split(jax.random.key(3), 3)
    data = jax.random.normal(keys[0], (230, 4))
    net = eqx.nn.MLP(4, 1, 8, 1, key=keys[1])

    def loss(net, key, x):
        x = x + 0.1 * jax.random.normal(key, x.shape)
        return jnp.mean((jax.vmap(net)(x)[:, 0] - jnp.sin(x.sum(1))) ** 2)

    def evaluate(net, t):
        time.sleep(pause)
        return {"at": t, "loss": loss(net, keys[2], data)}

    return training.fit(
        loss,
        net,
        optax.adam(1e-2),
        jax.random.key(7),
        data=(data,),
        batch_size=20,
        num_steps=200,
        loop="scan",
        evaluate=evaluate,
        evaluate_at=range(0, 201, 10),
        checkpoint=path,
        checkpoint_every=15 if path else None,
    )


def on_mesh(out):
    """The same fit on one device and on four."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
    x = jax.random.normal(jax.random.key(0), (64, 5))
    seen = []

    def loss(w, key, x):
        jax.debug.inspect_array_sharding(x, callback=lambda s: seen.append(s.shard_shape(x.shape)[0]))
        return jnp.mean((x @ w - x[:, 0] - 0.1 * jax.random.normal(key, x.shape[:1])) ** 2)

    options = dict(data=(x,), batch_size=16, num_epochs=5)
    results = {}
    for loop in ("scan", "step"):
        for name, where in (("one", None), ("four", mesh)):
            w = jnp.zeros(5)
            fitted = training.fit(
                loss, w, optax.adam(0.1), jax.random.key(1), mesh=where, loop=loop, **options
            )
            results[f"{loop}-{name}"] = np.asarray(fitted.params)
            results[f"{loop}-{name}-devices"] = len(fitted.params.sharding.device_set)
    results["seen"], seen = seen, []
    training.fit(loss, w, optax.adam(0.1), jax.random.key(1), data=(x,), num_steps=2, mesh=mesh, loop="scan")
    np.savez(out, **results, **{"seen-all": seen})


if __name__ == "__main__":
    if sys.argv[1] == "resumable":
        resumable(sys.argv[2], float(sys.argv[3]))
    else:
        on_mesh(sys.argv[2])
