"""Checkpoints of the training loop: a killed run resumes exactly, one of another run is refused."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _training_worker import resumable, run_worker
from test_training import KEY, LOOPS, arrays, noisy_step, quadratic, same, walk_start

from vinb import training
from vinb.training.checkpoint import read, save


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    path = tmp_path / "run.ckpt"
    process = run_worker("resumable", path, 0.2)
    try:
        deadline = time.monotonic() + 60
        while not path.exists() or read(path)[0]["step"] < 60:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert 60 <= read(path)[0]["step"] < 200
    resumed, whole = resumable(path, 0), resumable(None, 0)
    assert same(arrays(resumed.state), arrays(whole.state))
    assert np.array_equal(resumed.losses, whole.losses)
    assert np.array_equal(resumed.evaluations["loss"], whole.evaluations["loss"])
    assert list(resumed.evaluations["at"]) == list(range(0, 201, 10))
    again = resumable(path, 0)  # finished: nothing is left to do
    assert same(arrays(again.state), arrays(whole.state))
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


@pytest.mark.parametrize("loop", LOOPS)
def test_checkpoint_keeps_keys_and_small_floats_and_may_be_extended(tmp_path, loop):
    def step(state, t):
        inner, loss = noisy_step(state[0], t)
        return (inner, (state[1] + loss).astype(jnp.bfloat16)), loss

    start = (walk_start(), jnp.bfloat16(0))
    path = tmp_path / "folder" / "run.ckpt"
    training.run(step, start, 10, loop=loop, checkpoint=path)
    longer = training.run(step, start, 25, loop="auto", checkpoint=path, checkpoint_every=4)
    whole = training.run(step, start, 25, loop=loop)
    assert longer.loop == loop  # "auto" keeps to what the checkpoint was made with
    assert np.array_equal(longer.losses, whole.losses)
    assert same(arrays(longer.state), arrays(whole.state))
    with pytest.raises(training.CheckpointMismatch, match="beyond num_steps=20"):
        training.run(step, start, 20, loop=loop, checkpoint=path)


def test_two_processes_may_write_one_checkpoint(tmp_path, monkeypatch):
    """While one process has written its temporary file, but not renamed it, another saves and is done."""
    path, sync = tmp_path / "run.ckpt", os.fsync

    def sync_and_be_overtaken(handle):
        sync(handle)
        monkeypatch.setattr(os, "fsync", sync)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 2**22 + 1)  # beyond the largest pid of Linux
            save(path, {}, 2, [jnp.ones(3)], np.zeros(2, np.float32), [], {}, 0.0)
        assert read(path)[0]["step"] == 2

    monkeypatch.setattr(os, "fsync", sync_and_be_overtaken)
    save(path, {}, 1, [jnp.zeros(3)], np.zeros(2, np.float32), [], {}, 0.0)
    assert read(path)[0]["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "run.ckpt", {}, 1, [jnp.zeros(3)], np.zeros(2, np.float32), [], {}, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_time_based_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr("vinb.training.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    path, steps = tmp_path / "run.ckpt", []

    def step(state, t):
        return state + 1.0, jnp.where(t == 30, jnp.nan, 0.0)

    with pytest.raises(training.Diverged):
        training.run(step, jnp.zeros(()), 40, loop="scan", checkpoint=path, max_chunk_seconds=1e-9)
    steps.append(read(path)[0]["step"])
    assert steps == [30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(key=jax.random.key(6)), "key is"),
        (dict(data=(jnp.ones((31, 2)),)), "number of data is 30 there and 31 here"),
        (dict(data=(2 * jnp.ones((30, 2)),)), "data is"),
        (dict(batch_size=6), "batch_size is 5 there and 6 here"),
        (dict(params=jnp.zeros(3), data=(jnp.ones((30, 3)),)), "state is"),
        (dict(params=jnp.ones(2)), "initial state is"),
        (dict(optimizer=optax.sgd(0.2)), "program is"),
        (dict(loop="step"), "loop is scan there and step here"),
        (dict(evaluate_at=[0, 3]), "evaluated at steps"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    def go(params, optimizer, key, **options):
        training.fit(quadratic, params, optimizer, key, checkpoint=tmp_path / "c", **options)

    given = dict(
        params=jnp.zeros(2), optimizer=optax.sgd(0.1), key=KEY, data=(jnp.ones((30, 2)),), loop="scan"
    )
    given |= dict(batch_size=5, num_steps=4, evaluate=lambda w, t: {"w": w[0]}, evaluate_at=[2])
    go(**given)
    with pytest.raises(training.CheckpointMismatch, match=message):
        go(**{**given, **change})


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:-3] + b"abc", lambda b: b"no", lambda b: b""]
)
def test_damaged_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path / "c"
    training.run(noisy_step, walk_start(), 5, loop="scan", checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(training.CheckpointMismatch, match="damaged"):
        training.run(noisy_step, walk_start(), 5, loop="scan", checkpoint=path)
