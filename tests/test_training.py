"""The training loop: same numbers however it is cut into chunks, resumed or watched; faults found and
named."""

import warnings
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vinb import training
from vinb.training import programs
from vinb.training.programs import is_key

LOOPS = ("scan", "step")
KEY = jax.random.key(5)


def noisy_step(state, t):
    """A random walk that carries a typed key, an integer, and a string that is no array."""
    key, noise_key = jax.random.split(state["key"])
    x = 0.9 * state["x"] + jax.random.normal(noise_key, state["x"].shape) * jnp.cos(t)
    return {"x": x, "key": key, "count": state["count"] + 1, "name": state["name"]}, jnp.sum(x**2)


def walk_start():
    return {"x": jnp.linspace(0, 1, 3), "key": jax.random.key(1), "count": jnp.int32(0), "name": "walk"}


def same(a, b):
    """Bitwise equality of two trees, typed keys included."""
    leaves = [[jax.random.key_data(x) if is_key(x) else x for x in tree] for tree in (a, b)]
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(*leaves, strict=True))


def arrays(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def quadratic(w, key, x):
    return jnp.mean((x @ w - 1.0) ** 2)


# ---- run


@pytest.mark.parametrize("loop", LOOPS)
def test_run_takes_the_steps_and_leaves_the_callers_arrays(loop):
    state = walk_start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "donated buffers were not usable" among others
        trained = training.run(noisy_step, state, 20, loop=loop)
    expected, losses = walk_start(), []
    for t in range(20):
        expected, loss = noisy_step(expected, t)
        losses.append(loss)
    np.testing.assert_allclose(trained.losses, np.asarray(losses), rtol=1e-6)
    np.testing.assert_allclose(trained.state["x"], expected["x"], rtol=1e-6)
    assert trained.losses.shape == (20,)
    assert trained.losses.dtype == np.float32
    assert int(trained.state["count"]) == 20
    assert trained.state["name"] == "walk"
    assert trained.loop == loop
    assert same(arrays(state), arrays(walk_start()))  # reading a donated array would raise
    assert trained.seconds > 0
    assert trained.flops > 0


@pytest.mark.parametrize("loop", LOOPS)
def test_results_do_not_depend_on_chunks_or_evaluations(loop):
    seen = []

    def evaluate(state, t):
        seen.append(state["x"])
        return {"count": state["count"], "t": t}

    plain = training.run(noisy_step, walk_start(), 60, loop=loop)
    tiny = training.run(noisy_step, walk_start(), 60, loop=loop, max_chunk_seconds=1e-9)
    watched = training.run(
        noisy_step, walk_start(), 60, loop=loop, evaluate=evaluate, evaluate_at=[60, 0, 7, 8]
    )
    for other in (tiny, watched):
        assert np.array_equal(plain.losses, other.losses)
        assert same(arrays(plain.state), arrays(other.state))
    assert list(watched.evaluation_steps) == [0, 7, 8, 60]
    assert list(watched.evaluations["count"]) == [0, 7, 8, 60] == list(watched.evaluations["t"])
    assert np.isfinite(np.stack(seen)).all()  # what evaluate was given is never donated afterwards


def test_auto_measures_and_keeps_one_of_the_two():
    trained = training.run(noisy_step, walk_start(), 30)
    named = training.run(noisy_step, walk_start(), 30, loop=trained.loop)
    assert np.array_equal(trained.losses, named.losses)


@pytest.mark.parametrize("faster", LOOPS)
def test_auto_keeps_the_faster_of_the_two_and_measures_once(faster, monkeypatch):
    compiled, measured = programs.compiled, []

    def compiled_and_noted(*arguments):
        measured.append(arguments[1])
        return compiled(*arguments)

    monkeypatch.setattr(programs, "compiled", compiled_and_noted)
    monkeypatch.setattr(
        "vinb.training.loop._seconds_per_step", lambda advance: 1.0 if measured[-1] == faster else 2.0
    )

    def step(state, t):  # a new function, so that nothing was measured for it before
        return noisy_step(state, t)

    trained = training.run(step, walk_start(), 5)
    assert trained.loop == measured[-1] == faster
    assert set(measured[:-1]) == set(LOOPS)
    measured.clear()
    assert training.run(step, walk_start(), 5).loop == faster
    assert measured == [faster]


@pytest.mark.parametrize("loop", LOOPS)
def test_chunks_grow_up_to_max_chunk_seconds_and_shrink_where_steps_get_slower(loop, monkeypatch):
    """On a clock of our own, on which a step takes 1/128 s up to step 2000 and 1/8 s from there on."""
    clock, chunks, compiled = [0.0], [], programs.compiled

    def on_our_clock(*arguments):
        program = compiled(*arguments)

        def advance(arrays, t, count, shared):
            seconds = count / 128 if t < 2000 else count / 8
            clock[0] += seconds
            chunks.append((count, seconds))
            return program.advance(arrays, t, count, shared)

        return program._replace(advance=advance)

    monkeypatch.setattr(programs, "compiled", on_our_clock)
    monkeypatch.setattr("vinb.training.loop.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    training.run(noisy_step, walk_start(), 2300, loop=loop, max_chunk_seconds=1.0)
    counts = [count for count, _ in chunks]
    assert counts[:4] == [1, 8, 64, 115]  # 0.9 s are 115.2 steps
    assert set(counts[-20:-1]) == {7}  # 7.2 steps
    assert [seconds > 1 for _, seconds in chunks].count(True) == 1  # the one that first met the slow steps


def test_large_inputs_go_through_data():
    def step(total, t, x, y):
        return total + x[t], y[t]

    x, y = jnp.arange(5.0), jnp.arange(5.0) ** 2
    trained = training.run(step, jnp.float32(0), 5, data=(x, y), loop="scan")
    assert float(trained.state) == 10
    assert list(trained.losses) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda s, t: ({"x": s["x"]}, 0.0), "same structure"),
        (lambda s, t: ({**s, "x": s["x"][:2]}, 0.0), r"state\['x'\] from float32\[3\] to float32\[2\]"),
        (lambda s, t: ({**s, "x": s["x"].astype(jnp.float16)}, 0.0), "float16"),
        (lambda s, t: ({**s, "name": t}, 0.0), r"state\['name'\], which is no array \(str\)"),
        (lambda s, t: (s, s["x"]), r"real scalar; got float32\[3\]"),
    ],
)
def test_a_step_that_changes_types_is_refused(step, message):
    with pytest.raises(TypeError, match=message):
        training.run(step, walk_start(), 3, loop="scan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_steps=0), "num_steps"),
        (dict(num_steps=2.5), "num_steps"),
        (dict(loop="epoch"), "'auto', 'scan' or 'step'; got 'epoch'"),
        (dict(evaluate=lambda s, t: {}, evaluate_at=[11]), "evaluate_at must lie in 0..num_steps=10"),
        (dict(evaluate=lambda s, t: {}, evaluate_at=[2.5]), r"evaluate_at must .* integers; got \[2\.5\]"),
        (dict(evaluate=lambda s, t: {}, evaluate_at=5), "evaluate_at must .* integers; got 5"),
        (dict(evaluate_at=[1]), "go together"),
        (dict(checkpoint_every=3), "checkpoint="),
        (dict(max_chunk_seconds=0), "max_chunk_seconds"),
        (dict(evaluate=lambda s, t: 3.0, evaluate_at=[1]), "dict of scalars"),
        (dict(evaluate=lambda s, t: {"x": s["x"]}, evaluate_at=[1]), "scalars"),
        (dict(evaluate=lambda s, t: {f"at{t}": 0}, evaluate_at=[1, 2]), "names must agree"),
    ],
)
def test_bad_arguments_of_run(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        training.run(noisy_step, walk_start(), **{"num_steps": 10, "loop": "scan", **options})


# ---- divergence


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("bad", [0, 1, 23, 39])
@pytest.mark.parametrize("where", ["loss", "state", "unseen"])
def test_divergence_names_the_first_bad_step(loop, bad, where):
    """The loss goes NaN; or the state does and the next loss with it; or a part of the state no loss depends
    on."""

    def step(state, t):
        x, extra = state
        poison = jnp.where(t == bad, jnp.nan, 0.0)
        loss = jnp.sum(x) + (poison if where == "loss" else 0)
        x = x + 1 + (poison if where == "state" else 0)
        return (x, extra + (poison if where == "unseen" else 0)), loss

    start = (jnp.zeros(2), jnp.zeros(()))
    with pytest.raises(training.Diverged, match=f"diverged at step {bad}: ") as caught:
        training.run(step, start, 40, loop=loop)
    error = caught.value
    assert error.step == bad
    assert np.isnan(error.loss) if where == "loss" else error.loss == 2 * bad
    assert list(error.state[0]) == [bad, bad]
    assert list(error.losses) == [2 * t for t in range(bad)]
    assert "smaller step size" in str(error)
    assert ("[1]" in str(error)) == (where == "unseen")


def test_infinities_that_were_there_at_the_start_are_no_divergence():
    def step(state, t):
        best, x = state
        return (jnp.minimum(best, jnp.where(t < 5, jnp.inf, x)), x * 0.5), x

    trained = training.run(step, (jnp.float32(jnp.inf), jnp.float32(1)), 10, loop="scan")
    assert float(trained.state[0]) == 0.5**9


# ---- progress


def test_progress_clears_itself_and_leaves_stderr_alone(capsys, monkeypatch):
    from vinb.training.progress import bar

    for setting, shown in (("0", False), ("1", True)):
        monkeypatch.setenv("VINB_PROGRESS", setting)
        line = bar(10, show="net", delay=0, interval=0)
        line.update(3)
        line.close()
        out, err = capsys.readouterr()
        assert err == ""
        assert bool(out) == shown
    assert "net" in out
    assert "3/10" in out
    assert out.endswith("\r")
    assert out.split("\r")[-2].strip() == ""


def test_progress_is_silent_where_stdout_is_no_terminal(capsys):
    from vinb.training.progress import bar

    bar(10, delay=0, interval=0).update(3)
    assert capsys.readouterr() == ("", "")
