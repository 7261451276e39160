"""Baselines for score-function sites: predictions of the cost that take variance out of the gradient.

A baseline is a description; what it has learnt is its state, a pytree of arrays that the caller carries from call to call.
Anything may be predicted from except the site's own sample and what depends on it: then the gradient stays unbiased.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float

State = Any
"""What a baseline has learnt: a pytree of arrays, ``()`` for one that does not learn."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same number for every sample.

    Args:
        value: a number, or an array that broadcasts to the site's elements; ``jax.numpy`` must make it outside of the program.
    """

    value: Any

    def init(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> State:
        """No state."""
        _check_broadcast("value", np.shape(self.value), shape)
        return ()

    def predict(self, state: State, inputs: Any, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The constant."""
        return jnp.asarray(self.value)

    def update(self, state: State, inputs: Any, cost: Float[Array, "..."]) -> State:
        """Nothing is learnt."""
        return state


@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """Exponential moving average of the costs of earlier calls (mnih2014nvil, the input-independent baseline).

    The average is divided by the sum of its weights, so that after the first update it is the first cost and not
    ``1 - decay`` times it; before that it is 0. Costs that are not finite are left out.

    Args:
        decay: weight of the past, at least 0 and below 1.
        per_element: one average per element of the site; otherwise one for all of them together.

    Raises:
        ValueError: if ``decay`` is out of range.
    """

    decay: float = 0.99
    per_element: bool = False

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay!r}")

    def init(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> State:
        """Sum and weight, both zero.

        Args:
            key: not used.
            shape: of the site's elements.
            dtype: of the costs.
        """
        zeros = jnp.zeros(shape if self.per_element else (), dtype)
        return zeros, zeros

    def predict(self, state: State, inputs: Any, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The average, of shape ``shape`` or ``()``."""
        total, weight = state
        return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)

    def update(self, state: State, inputs: Any, cost: Float[Array, "..."]) -> State:
        """The state after one call's ``cost``, ``[*shape]`` or ``[runs, *shape]``: its mean over what is not kept apart."""
        total, weight = state
        axes = tuple(range(jnp.ndim(cost) - total.ndim))
        finite = jnp.isfinite(cost)
        seen = finite.any(axes)
        mean = jnp.where(finite, cost, 0).sum(axes) / jnp.maximum(finite.sum(axes), 1)
        return tuple(
            jnp.where(seen, self.decay * old + (1 - self.decay) * new, old).astype(old.dtype)
            for old, new in ((total, mean), (weight, 1.0))
        )


class Network(eqx.Module):
    """A network from inputs that are known before the site is drawn to a prediction of its cost (mnih2014nvil).

    It is trained by a regression of its own, one step of ``optimizer`` on the mean squared error per call, and its parameters are
    part of the state: they never mix with those of the expectation. The network given here is only the initial one.

    The inputs are the ``baseline_input`` of the site's ``infer`` dict, or what ``inputs`` makes of the program's arguments. They
    must not depend on the site's own sample.

    Args:
        network: an Equinox module from one element's inputs to a number (``out_size="scalar"`` in ``equinox.nn.MLP``), or to
            an array for the remaining elements if ``batch_ndims`` is given.
        inputs: a function of the program's arguments, or None for ``infer={"baseline_input": ...}``.
        optimizer: an Optax optimiser.
        batch_ndims: number of leading axes of ``inputs`` over which the network is mapped; by default all axes of the site's
            elements.
    """

    network: Callable
    inputs: Callable | None = eqx.field(static=True, default=None)
    optimizer: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-3))
    batch_ndims: int | None = eqx.field(static=True, default=None)

    def init(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> State:
        """The network's arrays and the optimiser's state.

        Args:
            key: not used, the network comes initialised.
            shape: of the site's elements.
            dtype: of the costs; the network keeps its own.
        """
        if self.batch_ndims is not None and not 0 <= self.batch_ndims <= len(shape):
            raise ValueError(
                f"batch_ndims must lie between 0 and {len(shape)}, the number of axes of the site's elements {shape}; "
                f"got {self.batch_ndims!r}"
            )
        weights = eqx.filter(self.network, eqx.is_inexact_array)
        # An array without entries tells update() the shape of one run.
        return weights, self.optimizer.init(weights), jnp.zeros((0, *shape), dtype)

    def predict(self, state: State, inputs: Any, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The predicted cost of each element.

        Args:
            state: of :meth:`init` or :meth:`update`.
            inputs: a pytree of arrays whose leading axes are those of the site's elements.
            shape: of the site's elements.

        Returns:
            An array of shape ``shape``; no gradient flows into ``inputs``.

        Raises:
            ValueError: if the inputs' leading axes or the network's output do not fit ``shape``.
        """
        return self._predict(state[0], inputs, shape)

    def update(self, state: State, inputs: Any, cost: Float[Array, "..."]) -> State:
        """One optimiser step of the regression on ``cost``; costs that are not finite are left out.

        Args:
            state: of :meth:`init` or :meth:`update`.
            inputs: as for :meth:`predict`; if ``cost`` has an axis of runs, every leaf has it too.
            cost: ``[*shape]`` or ``[runs, *shape]``.
        """
        weights, optimizer_state, template = state
        shape = template.shape[1:]
        finite = jnp.isfinite(cost)

        def loss(weights):
            predict = lambda inputs: self._predict(weights, inputs, shape)  # noqa: E731
            prediction = (predict if jnp.ndim(cost) == len(shape) else jax.vmap(predict))(inputs)
            error = jnp.where(finite, prediction - jnp.where(finite, cost, 0), 0)
            return (error**2).sum() / jnp.maximum(finite.sum(), 1)

        gradient = jax.grad(loss)(weights)
        updates, optimizer_state = self.optimizer.update(gradient, optimizer_state, weights)
        return optax.apply_updates(weights, updates), optimizer_state, template

    def _predict(self, weights, inputs, shape):
        if inputs is None:
            raise ValueError(
                "the Network baseline has no inputs: pass inputs=<function of the program's arguments>, or set "
                "infer={'baseline_input': ...} at the site"
            )
        ndims = len(shape) if self.batch_ndims is None else self.batch_ndims
        leading = tuple(shape[:ndims])
        for leaf in jax.tree.leaves(inputs):
            if jnp.shape(leaf)[:ndims] != leading:
                raise ValueError(
                    f"inputs of the Network baseline must have leading axes {leading}, those of the site's elements; got an array "
                    f"of shape {jnp.shape(leaf)}. Set batch_ndims if the network serves several elements at once."
                )
        network = eqx.combine(weights, self.network)
        for _ in range(ndims):
            network = jax.vmap(network)
        prediction = network(stop_gradient(inputs))
        if jnp.shape(prediction) != tuple(shape):
            raise ValueError(
                f"the Network baseline must predict one number per element, shape {tuple(shape)}; the network gave "
                f"{jnp.shape(prediction)}. In equinox.nn.MLP one number is out_size='scalar'."
            )
        return prediction


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """The mean cost of the other runs of the same call (mnih2016vimco): needs ``num_particles`` of at least 2, keeps no state.

    A marker: the expectation computes it, since it alone sees all runs.
    """


def _check_broadcast(name, given, shape):
    try:
        fits = np.broadcast_shapes(given, shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} of shape {given} does not broadcast to the site's elements {tuple(shape)}")
