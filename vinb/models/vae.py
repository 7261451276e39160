"""The variational auto-encoder: a deep latent Gaussian model and its recognition model, as NumPyro programs."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.contrib.module import eqx_module


class Dense(eqx.Module):
    """An affine map of the last axis. ``weight`` is stored as (inputs, outputs): a batch is multiplied without a transpose."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return x @ self.weight + self.bias


class TanhNetwork(eqx.Module):
    """Fully connected tanh layers and one affine head per output (kingma2014aevb, appendix C)."""

    hidden: tuple[Dense, ...]
    heads: tuple[Dense, ...]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> tuple[Float[Array, "*batch outputs"], ...]:
        for layer in self.hidden:
            x = jnp.tanh(layer(x))
        return tuple(head(x) for head in self.heads)


def glorot(inputs: int, outputs: int) -> tuple[float, float]:
    """Standard deviations of a layer's initial weights and biases: ``sqrt(2 / (inputs + outputs))`` and zero."""
    return (2 / (inputs + outputs)) ** 0.5, 0.0


def constant_scale(scale: float) -> Callable[[int, int], tuple[float, float]]:
    """The same standard deviation for all initial weights and biases."""
    return lambda inputs, outputs: (scale, scale)


class VAE(eqx.Module):
    """Latent ``z ~ N(0, I)``, data from a decoder network, guide ``z ~ N(loc(x), scale(x)^2)`` from an encoder network.

    ``model`` and ``guide`` are NumPyro programs of one argument ``x`` with sites ``z`` and ``x``, independent along the batch.
    Arrays held here are initial values; training changes the param sites ``encoder$params`` and ``decoder$params``.
    """

    encoder: TanhNetwork
    decoder: TanhNetwork
    latent_size: int = eqx.field(static=True)
    likelihood: str = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        key: jax.Array,
        data_size: int,
        latent_size: int,
        hidden_sizes: Sequence[int],
        *,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        init_scale: Callable[[int, int], tuple[float, float]] = glorot,
    ) -> "VAE":
        """Draw the networks' initial parameters.

        Args:
            key: typed PRNG key.
            data_size: number of observed variables (pixels).
            latent_size: number of latent variables (the paper's J or N_z).
            hidden_sizes: widths of the encoder's hidden layers from data to latents; the decoder mirrors them.
            likelihood: ``"bernoulli"`` for binary data; ``"gaussian"`` for data in (0, 1): mean through a sigmoid, and a free
                log variance per variable that depends on ``z``, so that the density is unbounded (kingma2014aevb, section 5).
            init_scale: a layer's ``(inputs, outputs)`` to the standard deviations of its initial weights and of its biases, which
                are normal around zero.

        Raises:
            ValueError: if a size is not positive or the likelihood is unknown.
        """
        for name, sizes in (
            ("data_size", [data_size]),
            ("latent_size", [latent_size]),
            ("hidden_sizes", list(hidden_sizes)),
        ):
            if not sizes or min(sizes) < 1:
                raise ValueError(f"{name} must be positive, got {sizes}")
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"likelihood must be 'bernoulli' or 'gaussian', got {likelihood!r}")
        widths = tuple(hidden_sizes)
        num_heads = 1 if likelihood == "bernoulli" else 2
        networks = (
            ((data_size, *widths, latent_size), 2),
            ((latent_size, *widths[::-1], data_size), num_heads),
        )
        return cls(*_networks(key, networks, init_scale), latent_size, likelihood)

    def encode(self, x: Float[Array, "*batch data"]) -> dist.Distribution:
        """The guide's distribution of ``z`` given ``x``."""
        return _posterior(self.encoder, x)

    def decode(self, z: Float[Array, "*batch latent"]) -> dist.Distribution:
        """The model's distribution of ``x`` given ``z``."""
        return _likelihood(self.decoder, z, self.likelihood)

    def model(self, x: Float[Array, "batch data"]):
        _check_data(x, self.likelihood)
        decoder = eqx_module("decoder", self.decoder)
        with numpyro.plate("batch", x.shape[0]):
            prior = dist.Normal(jnp.zeros(self.latent_size), 1.0).to_event(1)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", _likelihood(decoder, z, self.likelihood), obs=x)

    def guide(self, x: Float[Array, "batch data"]):
        encoder = eqx_module("encoder", self.encoder)
        with numpyro.plate("batch", x.shape[0]):
            numpyro.sample("z", _posterior(encoder, x))

    def with_params(self, params: dict) -> "VAE":
        """This VAE with the trained networks of ``params``, for :meth:`encode` and :meth:`decode`."""
        encoder = eqx.combine(params["encoder$params"], self.encoder)
        decoder = eqx.combine(params["decoder$params"], self.decoder)
        return VAE(encoder, decoder, self.latent_size, self.likelihood)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _networks(key, networks, init_scale):
    """A network for each ``(sizes, num_heads)``. One program and one draw for all, since compiling takes the time."""
    shapes = []
    for (*hidden, last, outputs), num_heads in networks:
        widths = [*hidden, last]
        shapes.append(([*itertools.pairwise(widths)], [(last, outputs)] * num_heads))
    noise = jax.random.normal(key, (sum((i + 1) * o for hidden, heads in shapes for i, o in hidden + heads),))

    def layer(inputs, outputs):
        nonlocal noise
        weight, bias, noise = jnp.split(noise, [inputs * outputs, (inputs + 1) * outputs])
        weight_scale, bias_scale = init_scale(inputs, outputs)
        return Dense(weight_scale * weight.reshape(inputs, outputs), bias_scale * bias)

    return [TanhNetwork(*(tuple(layer(*s) for s in part) for part in parts)) for parts in shapes]


def _check_data(x, likelihood):
    """A Bernoulli likelihood of grey levels is no probability; only values that are known while tracing can be seen."""
    if likelihood == "bernoulli" and not isinstance(x, jax.core.Tracer):
        odd = np.asarray(x)[~np.isin(x, (0, 1))]
        if odd.size:
            raise ValueError(
                f"x must hold zeros and ones for a Bernoulli likelihood, and it holds {odd[0]}; binarise it first "
                "(vinb.data.binarize_dynamic), or take likelihood='gaussian'"
            )


def _posterior(encoder, x):
    loc, log_var = encoder(x)
    return dist.Normal(loc, jnp.exp(0.5 * log_var)).to_event(1)


def _likelihood(decoder, z, likelihood):
    if likelihood == "bernoulli":
        (logits,) = decoder(z)
        return dist.Bernoulli(logits=logits).to_event(1)
    loc, log_var = decoder(z)
    return dist.Normal(jax.nn.sigmoid(loc), jnp.exp(0.5 * log_var)).to_event(1)
