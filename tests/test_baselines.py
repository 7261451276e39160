"""Baselines: what they predict after what they have seen, as pure functions of their state."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vinb.estimators.baselines import Constant, LeaveOneOut, MovingAverage, Network

KEY = jax.random.key(0)


def mlp(out_size="scalar", in_size=2):
    return eqx.nn.MLP(in_size, out_size, width_size=16, depth=1, key=jax.random.key(1))


def test_constant_predicts_its_value_and_learns_nothing():
    baseline = Constant(3.5)
    state = baseline.init(KEY, (4,))
    assert jax.tree.leaves(state) == []
    assert baseline.predict(state, None, (4,)) == 3.5
    assert jax.tree.leaves(baseline.update(state, None, jnp.ones(4))) == []
    np.testing.assert_array_equal(Constant([1.0, 2.0]).predict((), None, (3, 2)), [1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"value of shape \(3,\) does not broadcast to the site's elements \(2,\)"
    ):
        Constant([1.0, 2.0, 3.0]).init(KEY, (2,))
    with pytest.raises(ValueError, match=r"does not broadcast"):  # it would broadcast the elements instead
        Constant([1.0, 2.0, 3.0]).init(KEY, (1,))


@pytest.mark.parametrize("runs", [(), (5,)])
@pytest.mark.parametrize("per_element", [False, True])
def test_moving_average_is_the_weighted_mean_of_the_costs_so_far(per_element, runs):
    baseline, shape, decay = MovingAverage(decay=0.8, per_element=per_element), (2, 3), 0.8
    costs = np.random.default_rng(0).normal(7.0, 1.0, (6, *runs, *shape)).astype(np.float32)

    @jax.jit
    def learn(costs):  # the state keeps its structure through scan
        def step(state, cost):
            return baseline.update(state, None, cost), baseline.predict(state, None, shape)

        state = baseline.init(KEY, shape)
        state, predictions = jax.lax.scan(step, state, costs)
        return jnp.concatenate([predictions, baseline.predict(state, None, shape)[None]])

    predictions = learn(costs)
    means = costs.mean(tuple(range(1, costs.ndim - 2 * per_element)))
    assert predictions.shape == (7, *means.shape[1:])
    np.testing.assert_array_equal(predictions[0], 0)
    np.testing.assert_allclose(predictions[1], means[0], rtol=1e-5)
    for n in range(1, 7):
        weights = decay ** np.arange(n)[::-1]
        np.testing.assert_allclose(predictions[n], np.average(means[:n], 0, weights), rtol=1e-5)


def test_moving_average_leaves_out_costs_that_are_not_finite():
    update = jax.jit(lambda baseline, state, cost: baseline.update(state, None, cost), static_argnums=0)
    together, apart = MovingAverage(0.5), MovingAverage(0.5, per_element=True)
    first, broken = jnp.array([2.0, 4.0]), jnp.array([jnp.inf, 10.0])
    state = update(together, update(together, together.init(KEY, (2,)), first), broken)
    np.testing.assert_allclose(together.predict(state, None, (2,)), (0.5 * 3 + 10) / 1.5)
    state = update(apart, update(apart, apart.init(KEY, (2,)), first), broken)
    np.testing.assert_allclose(apart.predict(state, None, (2,)), [2.0, (0.5 * 4 + 10) / 1.5])
    np.testing.assert_array_equal(update(apart, state, jnp.full(2, jnp.nan)), state)


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_moving_average_refuses_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        MovingAverage(decay)


@pytest.mark.parametrize("runs", [(), (3,)])
@pytest.mark.parametrize(
    ("shape", "out_size", "batch_ndims"), [((), "scalar", None), ((8,), "scalar", None), ((8, 2), 2, 1)]
)
def test_network_learns_the_conditional_mean_of_the_cost(shape, out_size, batch_ndims, runs):
    baseline = Network(mlp(out_size), optimizer=optax.adam(1e-2), batch_ndims=batch_ndims)
    rows = shape if batch_ndims is None else shape[:batch_ndims]

    def mean(inputs):
        first = jnp.sin(inputs[..., 0]) + inputs[..., 1]
        return first if batch_ndims is None else jnp.stack([first, -first], -1)

    @jax.jit
    def learn(key):
        def step(state, key):
            key_inputs, key_noise = jax.random.split(key)
            inputs = jax.random.normal(key_inputs, (*runs, *rows, 2))
            cost = mean(inputs) + 0.1 * jax.random.normal(key_noise, (*runs, *shape))
            one = inputs[0] if runs else inputs
            before = baseline.predict(state, one, shape)
            assert before.shape == shape
            return baseline.update(state, inputs, cost), ((before - mean(one)) ** 2).mean()

        return jax.lax.scan(step, baseline.init(KEY, shape), jax.random.split(key, 1500))

    state, errors = learn(jax.random.key(2))
    assert jax.tree.structure(state) == jax.tree.structure(baseline.init(KEY, shape))
    assert errors[-300:].mean() < 0.1 * errors[:20].mean()


def test_network_update_is_one_optimiser_step_on_the_squared_error():
    network, shape = eqx.nn.Linear(2, "scalar", key=jax.random.key(3)), (4,)
    inputs = jax.random.normal(jax.random.key(4), (4, 2))
    cost = jnp.array([1.0, -2.0, jnp.nan, 3.0])  # what is not finite is left out
    baseline = Network(network, optimizer=optax.sgd(0.1))

    @jax.jit
    def both(inputs, cost):
        seen = jnp.array([0, 1, 3])
        loss = lambda n: jnp.mean((jax.vmap(n)(inputs[seen]) - cost[seen]) ** 2)  # noqa: E731
        gradient = eqx.filter_grad(loss)(network)
        wanted = jax.tree.map(lambda w, g: w - 0.1 * g, network, gradient)
        state = baseline.update(baseline.init(KEY, shape), inputs, cost)
        return jax.vmap(wanted)(inputs), baseline.predict(state, inputs, shape)

    wanted, got = both(inputs, cost)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_network_passes_no_gradient_to_its_inputs_and_leaves_itself_untouched():
    baseline = Network(mlp())
    before = jax.tree.map(np.array, eqx.filter(baseline.network, eqx.is_array))
    state = baseline.init(KEY, (3,))
    inputs = jnp.ones((3, 2))
    by_inputs = jax.jit(jax.grad(lambda x: baseline.predict(state, x, (3,)).sum()))(inputs)
    np.testing.assert_array_equal(by_inputs, 0)
    new = jax.jit(lambda *args: baseline.update(*args))(state, inputs, jnp.ones(3))
    moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(new[0]), jax.tree.leaves(state[0]), strict=True)]
    assert any(moved)
    after = eqx.filter(baseline.network, eqx.is_array)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


def test_network_says_what_does_not_fit():
    baseline = Network(mlp())
    state = baseline.init(KEY, (3,))
    with pytest.raises(ValueError, match=r"has no inputs: pass inputs=.*baseline_input"):
        baseline.predict(state, None, (3,))
    with pytest.raises(ValueError, match=r"leading axes \(3,\).*shape \(2,\).*batch_ndims"):
        baseline.predict(state, jnp.ones(2), (3,))
    wide = Network(mlp(out_size=1))
    state = wide.init(KEY, (3,))
    with pytest.raises(ValueError, match=r"shape \(3,\); the network gave \(3, 1\).*out_size='scalar'"):
        wide.predict(state, jnp.ones((3, 2)), (3,))
    with pytest.raises(ValueError, match=r"batch_ndims must lie between 0 and 1"):
        Network(mlp(), batch_ndims=2).init(KEY, (3,))


def test_leave_one_out_is_a_marker():
    assert LeaveOneOut() == LeaveOneOut()
    assert jax.tree.leaves(vars(LeaveOneOut())) == []
