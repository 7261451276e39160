"""`fit`: which data and which key each step gets, what is trained, what is compiled."""

import gc
import sys
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _training_worker import run_worker
from test_training import KEY, LOOPS, quadratic

from vinb import training


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


@pytest.mark.parametrize("loop", LOOPS)
def test_noise_and_orders_use_different_keys(loop, monkeypatch):
    """What is folded into the run's key: each step's number, and for the orders one that no step, an int32,
    can have. All else is folded into the key of the orders."""
    fold_in, folded = jax.random.fold_in, []

    def fold_in_and_note(key, number):
        def note(key, number):
            folded.append((tuple(key.tolist()), int(number)))

        jax.debug.callback(note, jax.random.key_data(key), number)
        return fold_in(key, number)

    monkeypatch.setattr(jax.random, "fold_in", fold_in_and_note)
    monkeypatch.setattr(sys.modules["vinb.training.fit"], "ORDERS_AT_ONCE", 80)  # two epochs at a time
    num_data = 37 if loop == "scan" else 38  # of this test only, so that no trace made before is used again
    training.fit(
        quadratic, jnp.zeros(2), optax.sgd(0.1), KEY, data=(jnp.ones((num_data, 2)),), batch_size=5,
        num_steps=20, loop=loop,
    )  # fmt: skip
    jax.effects_barrier()
    key = tuple(jax.random.key_data(KEY).tolist())
    numbers = {number for parent, number in folded if parent == key}
    (order,) = numbers - set(range(20))
    assert numbers >= set(range(20))
    assert order > np.iinfo(np.int32).max
    order_key = tuple(jax.random.key_data(fold_in(KEY, np.uint32(order))).tolist())
    assert {parent for parent, _ in folded} == {key, order_key}


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
        (dict(num_steps=None, num_epochs=0), "num_epochs must be an integer of at least 1; got 0"),
        (dict(num_steps=None, num_epochs=1.5), r"num_epochs must be an integer of at least 1; got 1\.5"),
        (dict(num_steps=0), "num_steps must be"),
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
    assert set(out["seen-all"]) == {16}  # all 64 data at every step
    for loop in LOOPS:
        assert out[f"{loop}-four-devices"] == 4
        np.testing.assert_allclose(out[f"{loop}-four"], out[f"{loop}-one"], rtol=1e-5, atol=1e-6)
