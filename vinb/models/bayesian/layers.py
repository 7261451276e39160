"""Layers whose weights may be posteriors, and the ways to draw their outputs.

Design notes. A layer takes a batch and a mode, and every mode gives outputs of the same mean over draws. With plain arrays for
weights all modes are the same affine map. What distinguishes them is whether the noise of different examples is independent,
on which the variance of a minibatch's gradient depends (kingma2015variational, section 2.1), and what that costs.
"""

import itertools
import math
from typing import ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vinb.models.bayesian.posteriors import (
    CorrelatedNormal,
    DiagonalNormal,
    Posterior,
    is_posterior,
    mean_weights,
    sample_weights,
)

Mode = Literal["mean", "shared", "separate", "flipout", "local"]
Weights = Posterior | Array

MEMORY = 2**30  # bytes that "separate" needs beside its inputs and outputs, at most, also in a gradient
_OWN = np.uint32(
    2**32 - 1
)  # folded into keys for noise that sample_weights(network, key), which folds in small numbers, has not
_COPIES = (
    8  # arrays of a draw's size that are alive at once: bits, noise, weights, their gradients, a remainder's
)


@jax.custom_jvp
def _root(variance):
    """The square root, whose derivative at zero is zero, not infinite."""
    return jnp.sqrt(jnp.maximum(variance, 0.0))


@_root.defjvp
def _root_jvp(primals, tangents):
    root = _root(*primals)  # all that a gradient has to keep
    positive = root > 0
    return root, tangents[0] * jnp.where(positive, 0.5 / jnp.where(positive, root, 1.0), 0.0)


class _Affine(eqx.Module):
    """What dense and convolutional layers share: all but the linear map itself."""

    weight: eqx.AbstractVar[Weights]
    bias: eqx.AbstractVar[Weights | None]
    axes: eqx.AbstractClassVar[tuple[str, ...]]

    def linear(self, x: Array, weight: Array) -> Array:
        """The map without its bias, of a batch."""
        raise NotImplementedError

    def __call__(
        self, x: Float[Array, "batch ..."], *, key: jax.Array | None = None, mode: Mode = "shared"
    ) -> Array:
        """The layer's output for a batch.

        Args:
            x: inputs, the batch along the first axis.
            key: for the noise; not needed by ``"mean"`` and by layers without posteriors.
            mode: ``"mean"``: the weights' means. ``"shared"``: one draw of the weights for all of the batch, that of
                ``sample_weights(layer, key)``. ``"separate"``: a draw per example, computed in chunks that need 1 GB at most.
                ``"flipout"``: one draw, its deviation from the mean with random signs of its own for each example's inputs and
                outputs (wen2018flipout): deviations of two examples are uncorrelated; needs independent weights that are
                symmetric around their mean. ``"local"``: outputs drawn from the normal law that normal weights give them
                (kingma2015variational, equation 6), independently; exact for dense layers, and for convolutions of the right
                mean and variance, without the covariance between positions. With :class:`CorrelatedNormal` noise multiplies
                the inputs instead (equation 11), which is exact for both.

        Raises:
            ValueError: for an unknown ``mode``, without the ``key`` that it needs, or for inputs of another rank.
            TypeError: for ``"flipout"`` with weights that are not independent, or inputs that are no floating-point numbers.
        """
        self._check(x)
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(map(repr, get_args(Mode)))}, got {mode!r}")
        if mode == "mean" or not any(map(is_posterior, (self.weight, self.bias))):
            return mean_weights(self)._apply(x)
        if key is None:
            raise ValueError(f"mode={mode!r} needs key= for the noise of the weights")
        return getattr(self, f"_{mode}")(x, key)

    def _check(self, x):
        if jnp.ndim(x) != len(self.axes):
            raise ValueError(
                f"x must be of shape [{', '.join(self.axes)}], got {jnp.shape(x)}; use jax.vmap over other axes"
            )
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(f"x must be floating-point numbers, got {jnp.result_type(x)}")

    def _apply(self, x):
        y = self.linear(x, self.weight)
        return y if self.bias is None else y + self.bias

    def _shared(self, x, key):
        return sample_weights(self, key)._apply(x)

    def _separate(self, x, key):
        @jax.checkpoint  # or a gradient would keep the noise of the whole batch
        def one(arguments):
            x, key = arguments
            return sample_weights(self, key)._apply(x[None])[0]

        size = sum(p.mean.nbytes for p in (self.weight, self.bias) if is_posterior(p))
        chunk = max(1, min(len(x), MEMORY // (_COPIES * size)))
        return jax.lax.map(one, (x, jax.random.split(key, len(x))), batch_size=chunk)

    def _flipout(self, x, key):
        if isinstance(self.weight, CorrelatedNormal):
            raise TypeError(
                "mode='flipout' needs independent weights, got CorrelatedNormal: use mode='local', which is exact for it"
            )
        keys = jax.random.split(key, 4)
        mean, drawn = mean_weights(self), sample_weights(self, keys[0])
        y = mean._apply(x)
        if is_posterior(self.weight):
            inputs = jax.random.rademacher(keys[1], (len(x), *self._channels(x)), x.dtype)
            outputs = jax.random.rademacher(keys[2], (len(x), *self._channels(y)), x.dtype)
            y = y + outputs * self.linear(inputs * x, drawn.weight - mean.weight)
        if is_posterior(self.bias):
            signs = jax.random.rademacher(keys[3], (len(x), *self._channels(y)), x.dtype)
            y = y + signs * (drawn.bias - mean.bias)
        return y

    def _channels(self, array):
        """Of the signs: one per channel, the same at all positions of a convolution."""
        return (1,) * (array.ndim - 2) + array.shape[-1:]

    def _local(self, x, key):
        if isinstance(self.weight, CorrelatedNormal):
            return self._noisy_inputs(x, key)
        mean, variance = self.moments(x)
        return mean + _root(variance) * jax.random.normal(key, mean.shape, mean.dtype)

    def _noisy_inputs(self, x, key):
        weight_key, bias_key = jax.random.split(key)
        scales = self.weight.scales(weight_key, len(x)).reshape(len(x), *self._channels(x))
        y = self.linear(x * scales, self.weight.loc)
        if not is_posterior(self.bias):
            return y if self.bias is None else y + self.bias
        noise = jax.random.normal(bias_key, (len(x), *self._channels(y)), y.dtype)
        return y + self.bias.mean + _root(self.bias.variance) * noise

    def moments(self, x: Float[Array, "batch ..."]) -> tuple[Array, Array]:
        """Mean and variance of the outputs for given inputs."""
        self._check(x)
        mean = mean_weights(self)._apply(x)
        variance = jnp.zeros_like(mean)
        if is_posterior(self.weight):
            variance = self._weight_variance(x)
        if is_posterior(self.bias):
            variance = variance + self.bias.variance
        return mean, variance

    def _weight_variance(self, x):
        return self.linear(x**2, self.weight.variance)


def _initial(key, shape, *, scale=0.01, loc_scale=None, log_scale=False, bayesian_bias=True):
    """Weight of ``shape`` and bias of a layer."""
    loc_scale = math.prod(shape[:-1]) ** -0.5 if loc_scale is None else loc_scale
    weight = DiagonalNormal.init(key, shape, loc_scale=loc_scale, scale=scale, log_scale=log_scale)
    if not bayesian_bias:
        return weight, jnp.zeros(shape[-1])
    return weight, DiagonalNormal.init(key, shape[-1:], loc_scale=0.0, scale=scale, log_scale=log_scale)


class BayesianDense(_Affine):
    """``x @ weight + bias``.

    Args:
        weight: posterior or array of shape ``[inputs, outputs]``.
        bias: posterior or array of shape ``[outputs]``, or None.
    """

    weight: Weights
    bias: Weights | None = None
    axes: ClassVar[tuple[str, ...]] = ("batch", "inputs")

    @classmethod
    def init(cls, key: jax.Array, inputs: int, outputs: int, **options) -> "BayesianDense":
        """Normal posteriors.

        Args:
            key: typed PRNG key.
            inputs, outputs: the layer's width.
            options: ``scale`` (0.01), of all weights to begin with; ``loc_scale``, the spread of the initial means of the
                weights (``1 / sqrt(n)`` for n inputs to an output), those of the biases being zero; ``log_scale``, see
                :class:`DiagonalNormal`; ``bayesian_bias`` (True), False for a plain array of biases.
        """
        return cls(*_initial(key, (inputs, outputs), **options))

    def linear(self, x, weight):
        return x @ weight


class BayesianConv(_Affine):
    """A two-dimensional convolution of images ``[batch, height, width, channels]``.

    Args:
        weight: posterior or array of shape ``[height, width, inputs, outputs]``.
        bias: posterior or array of shape ``[outputs]``, or None.
        strides: of the window.
        padding: as in ``jax.lax.conv_general_dilated``.
    """

    weight: Weights
    bias: Weights | None = None
    axes: ClassVar[tuple[str, ...]] = ("batch", "height", "width", "channels")
    strides: tuple[int, int] = eqx.field(static=True, default=(1, 1))
    padding: str = eqx.field(static=True, default="SAME")

    @classmethod
    def init(
        cls,
        key: jax.Array,
        inputs: int,
        outputs: int,
        window: tuple[int, int],
        *,
        strides: tuple[int, int] = (1, 1),
        padding: str = "SAME",
        **options,
    ) -> "BayesianConv":
        """Normal posteriors; ``options`` are those of :meth:`BayesianDense.init`."""
        return cls(*_initial(key, (*window, inputs, outputs), **options), strides, padding)

    def linear(self, x, weight):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, weight, self.strides, self.padding, dimension_numbers=numbers)

    def _weight_variance(self, x):
        if not isinstance(self.weight, CorrelatedNormal):
            return super()._weight_variance(x)
        # All taps of an input channel share its noise.
        loc = self.weight.loc
        through = jax.vmap(lambda x, w: self.linear(x[..., None], w[:, :, None]), (-1, 2))(x, loc)
        return jnp.einsum("k,k...->...", jnp.exp(self.weight.unit_log_alpha[:, 0]), through**2)


class BayesianMLP(eqx.Module):
    """Dense layers with rectified linear units between them.

    Args:
        layers: of :class:`BayesianDense`.
    """

    layers: tuple[BayesianDense, ...]

    @classmethod
    def init(cls, key: jax.Array, sizes: tuple[int, ...], **options) -> "BayesianMLP":
        """Layers of the given widths, inputs first; ``options`` are those of :meth:`BayesianDense.init`."""
        if len(sizes) < 2:
            raise ValueError(f"sizes must hold the number of inputs and of each layer's outputs, got {sizes}")
        keys = jax.random.split(key, len(sizes) - 1)
        pairs = zip(keys, itertools.pairwise(sizes), strict=True)
        return cls(tuple(BayesianDense.init(k, *widths, **options) for k, widths in pairs))

    def __call__(
        self, x: Float[Array, "batch inputs"], *, key: jax.Array | None = None, mode: Mode = "shared"
    ) -> Float[Array, "batch outputs"]:
        """The last layer's outputs, drawn as ``mode`` says (see the layers).

        With ``"shared"`` the weights are those of ``sample_weights(network, key)``, whose cost ``complexity(network, prior,
        key=key)`` measures; the other modes have noise of their own.
        """
        if mode == "shared" and key is not None:
            return sample_weights(self, key)(x, mode="mean")
        own = None if key is None else jax.random.fold_in(key, _OWN)
        for k, layer in enumerate(self.layers):
            x = jax.nn.relu(x) if k else x
            x = layer(x, key=None if own is None else jax.random.fold_in(own, k), mode=mode)
        return x


class BayesianLSTMCell(eqx.Module):
    """A long short-term memory cell.

    Its weights stay the same through a sequence, so it is called with arrays: draw once per sequence by ``sample_weights``.

    Args:
        inputs: posterior or array of shape ``[inputs, 4 hidden]``; gates in the order input, forget, candidate, output.
        recurrent: ``[hidden, 4 hidden]``.
        bias: ``[4 hidden]``.
    """

    inputs: Weights
    recurrent: Weights
    bias: Weights

    @classmethod
    def init(
        cls,
        key: jax.Array,
        inputs: int,
        hidden: int,
        *,
        scale: float,
        loc_scale: float,
        log_scale: bool = False,
    ):
        """Normal posteriors with means from ``N(0, loc_scale^2)``."""
        keys = jax.random.split(key, 3)
        shapes = ((inputs, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,))
        options = {"loc_scale": loc_scale, "scale": scale, "log_scale": log_scale}
        return cls(*(DiagonalNormal.init(k, shape, **options) for k, shape in zip(keys, shapes, strict=True)))

    def __call__(
        self,
        x: Float[Array, "batch inputs"],
        state: tuple[Float[Array, "batch hidden"], Float[Array, "batch hidden"]],
    ) -> tuple[Float[Array, "batch hidden"], Float[Array, "batch hidden"]]:
        """One step: the new hidden and cell state.

        Raises:
            TypeError: while its weights are posteriors.
        """
        if any(map(is_posterior, (self.inputs, self.recurrent, self.bias))):
            raise TypeError(
                "the cell's weights are posteriors, and a draw must stay the same through a sequence: call once "
                "sample_weights(cell, key) or mean_weights(cell), and step with what it returns"
            )
        hidden, cell = state
        enter, forget, candidate, leave = jnp.split(
            x @ self.inputs + hidden @ self.recurrent + self.bias, 4, axis=-1
        )
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        return jax.nn.sigmoid(leave) * jnp.tanh(cell), cell
