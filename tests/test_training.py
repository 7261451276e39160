"""The training loop: same numbers however it is cut into chunks, resumed or watched; faults found and
named."""

import gc
import sys
import warnings
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _training_worker import run_worker

from vinb import training
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


def test_auto_keeps_one_of_the_two():
    trained = training.run(noisy_step, walk_start(), 30)
    named = training.run(noisy_step, walk_start(), 30, loop=trained.loop)
    assert np.array_equal(trained.losses, named.losses)


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


# ---- fit


def record_batches(num_data, **options):
    """The data each step saw, from a 'loss' that leaves its batch in the gradient."""

    def loss(w, key, x):
        return jnp.sum(w * x)

    def update(gradient, state, params=None):
        row = state["row"]
        return jnp.zeros_like(gradient), {"seen": state["seen"].at[row].set(gradient), "row": row + 1}

    steps, size = options["num_steps"], options["batch_size"]
    seen = {"seen": jnp.zeros((steps, size)), "row": jnp.int32(0)}
    optimizer = optax.GradientTransformation(lambda params: seen, update)
    data = jnp.arange(num_data, dtype=jnp.float32)
    fitted = training.fit(loss, jnp.ones(size), optimizer, KEY, data=(data,), **options)
    return np.asarray(fitted.opt_state["seen"]).astype(int)


@pytest.mark.parametrize("loop", LOOPS)
def test_every_epoch_visits_a_fresh_permutation(loop):
    batches = record_batches(11, batch_size=3, num_steps=12, loop=loop)  # 3 steps an epoch, 2 data left over
    epochs = batches.reshape(4, 9)
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert set(epochs.ravel()) == set(range(11))  # the left-over ones change
    assert np.array_equal(batches, record_batches(11, batch_size=3, num_steps=12, loop=loop))


def test_order_across_blocks_of_epochs_does_not_depend_on_the_block(monkeypatch):
    plain = record_batches(11, batch_size=3, num_steps=30, loop="scan")
    monkeypatch.setattr(sys.modules["vinb.training.fit"], "ORDERS_AT_ONCE", 25)  # two epochs at a time
    assert np.array_equal(plain, record_batches(11, batch_size=3, num_steps=30, loop="scan"))


def test_without_shuffling_the_order_is_the_datas():
    batches = record_batches(7, batch_size=2, num_steps=4, shuffle=False, loop="scan")
    assert batches.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_permutation_is_uniform():
    for n in (1, 2, 17, 1000):
        assert sorted(np.asarray(training.permutation(KEY, n))) == list(range(n))
    orders = jax.vmap(lambda key: training.permutation(key, 4))(jax.random.split(KEY, 24000))
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.sum((counts - 1000) ** 2 / 1000) < 60  # chi-squared of 23 degrees of freedom: 1e-4 lies at 57


@pytest.mark.parametrize("loop", LOOPS)
def test_every_step_has_its_own_key(loop):
    """The losses are the noise itself: step t's is drawn with fold_in(key, t), and steps are uncorrelated."""

    def loss(w, key):
        return jax.random.normal(key) + 0 * w

    fitted = training.fit(loss, jnp.zeros(()), optax.sgd(0.1), KEY, num_steps=4000, loop=loop)
    noise = fitted.losses
    expected = jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(KEY, t)))(jnp.arange(4000))
    np.testing.assert_allclose(noise, expected, rtol=1e-5, atol=1e-6)
    assert abs(np.std(noise) - 1) < 0.06
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.08


def test_noise_and_orders_use_different_keys():
    """No step's key, for any possible step, is one an epoch's order is drawn from."""
    from vinb.training.fit import ORDER

    assert np.iinfo(np.int32).max < ORDER


def test_fit_trains_floating_arrays_of_a_module_only():
    net = eqx.nn.MLP(3, "scalar", 8, 1, key=jax.random.key(2))
    params = {"net": net, "steps": jnp.arange(3), "numpy": np.ones(2), "note": "fixed", "rate": 0.5}
    x = jax.random.normal(KEY, (64, 3))

    def loss(params, key, x):
        return (
            jnp.mean((jax.vmap(params["net"])(x) - x[:, 0]) ** 2) * params["rate"] + params["numpy"][0] ** 2
        )

    fitted = training.fit(loss, params, optax.adam(1e-2), KEY, data=(x,), num_steps=300, loop="scan")
    assert fitted.losses[-1] < 0.05 * fitted.losses[0]
    assert fitted.params["note"] == "fixed"
    assert fitted.params["net"].activation is net.activation
    assert list(fitted.params["steps"]) == [0, 1, 2]
    assert fitted.opt_state[0].count == 300
    assert np.isfinite(fitted.params["net"](jnp.ones(3)))


def test_several_seeds_in_one_fit():
    """A leading axis on the parameters and a sum: every seed trains as it would alone."""
    x = jax.random.normal(KEY, (40, 3))
    w = jax.random.normal(jax.random.key(9), (4, 3))

    def together(w, key, x):
        return jnp.sum(jax.vmap(quadratic, in_axes=(0, None, None))(w, key, x))

    options = dict(data=(x,), batch_size=10, num_epochs=5, loop="scan")
    fitted = training.fit(together, w, optax.adam(0.05), KEY, **options)
    alone = training.fit(quadratic, w[2], optax.adam(0.05), KEY, **options)
    np.testing.assert_allclose(fitted.params[2], alone.params, rtol=1e-5)


@pytest.mark.parametrize("loop", LOOPS)
def test_calling_again_does_not_compile_again(loop):
    traced = []

    def loss(w, key, x):
        traced.append(1)
        return quadratic(w, key, x)

    optimizer, x = optax.adam(0.1), jnp.ones((30, 2))
    first = training.fit(loss, jnp.zeros(2), optimizer, KEY, data=(x,), batch_size=5, num_steps=10, loop=loop)
    count = len(traced)
    again = training.fit(
        loss, jnp.ones(2), optimizer, jax.random.key(8), data=(2 * x,), batch_size=5, num_steps=25, loop=loop
    )
    assert len(traced) == count
    assert again.compile_seconds < first.compile_seconds / 2
    assert not np.array_equal(again.losses[:10], first.losses)


def test_programs_of_old_functions_are_let_go():
    references = []
    for _ in range(10):
        constant = np.ones(3)

        def step(state, t, constant=constant):
            return state + constant, 0.0

        training.run(step, jnp.zeros(3), 2, loop="scan")
        references.append(weakref.ref(step))
        del step
    gc.collect()
    assert [reference() is None for reference in references[:2]] == [True, True]


def test_compiled_step_costs_what_a_hand_written_one_does():
    sizes, n, size = (64, 128, 10), 2000, 50
    keys = jax.random.split(KEY, 2)
    params = [0.1 * jax.random.normal(k, (a, b)) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)]
    x, optimizer = jax.random.normal(KEY, (n, 64)), optax.adam(1e-3)

    def loss(params, key, x):
        h = jnp.tanh(x @ params[0]) + jax.random.normal(key, (x.shape[0], 128))
        return jnp.mean((h @ params[1]) ** 2)

    def step(state, t, key, order, x):
        batch = x[jax.lax.dynamic_slice(order, (t % (n // size) * size,), (size,))]
        value, gradient = jax.value_and_grad(loss)(state[0], jax.random.fold_in(key, t), batch)
        updates, opt_state = optimizer.update(gradient, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), value

    state = (params, optimizer.init(params))

    def epoch(state, t, key, order, x):
        return jax.lax.scan(lambda s, i: step(s, i, key, order, x), state, t + jnp.arange(n // size))

    for loop, function in (("scan", epoch), ("step", step)):
        by_hand = jax.jit(function, donate_argnums=0).lower(state, 0, KEY, jnp.arange(n), x).compile()
        fitted = training.fit(
            loss, params, optimizer, KEY, data=(x,), batch_size=size, num_steps=2, loop=loop
        )
        assert fitted.flops <= 1.02 * by_hand.cost_analysis()["flops"]
        assert fitted.temp_bytes <= 1.02 * by_hand.memory_analysis().temp_size_in_bytes + 1024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(data=(jnp.ones((4, 2)), jnp.ones(5))), "leading axis"),
        (dict(data=jnp.ones((4, 2))), "tuple of arrays"),
        (dict(batch_size=5), "batch_size=5 is more than the 4"),
        (dict(batch_size=0), "batch_size"),
        (dict(data=(), batch_size=2), "without data"),
        (dict(num_epochs=3), "exactly one"),
        (dict(num_steps=None), "exactly one"),
        (dict(data=(), num_steps=None, num_epochs=2), "num_epochs needs data"),
        (dict(key=0), r"jax.random.key\(seed\)"),
        (dict(params={"n": 3}), "no floating-point array"),
        (dict(batch_size=3, mesh=jax.sharding.Mesh(np.asarray(jax.devices() * 2), ("data",))), "multiple"),
    ],
)
def test_bad_arguments_of_fit(options, message):
    given = {"params": jnp.zeros(2), "key": KEY, "data": (jnp.ones((4, 2)),), "num_steps": 3, **options}
    params, key = given.pop("params"), given.pop("key")
    with pytest.raises((ValueError, TypeError), match=message):
        training.fit(quadratic, params, optax.sgd(0.1), key, **given)


def test_mesh_gives_the_numbers_of_one_device(tmp_path):
    flags = "--xla_force_host_platform_device_count=4"
    run_worker("mesh", tmp_path / "out.npz", XLA_FLAGS=flags).wait(120)
    out = np.load(tmp_path / "out.npz")
    assert set(out["seen"]) == {16, 4}  # rows of a batch of 16 per device, without and with the mesh
    for loop in LOOPS:
        assert out[f"{loop}-four-devices"] == 4
        np.testing.assert_allclose(out[f"{loop}-four"], out[f"{loop}-one"], rtol=1e-5, atol=1e-6)


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
