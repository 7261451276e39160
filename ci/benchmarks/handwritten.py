"""The benchmarked steps written by hand in plain JAX: what a single-file program of each case would have.

Parameters are a dict of arrays with the names that every other system uses too. Each loss is minus a bound, summed
over the batch. Imports nothing but jax and numpy, for it runs in genjax's environment as well.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

STEP_SIZE = 1e-6


@dataclass(frozen=True)
class Case:
    """`loss(params, key, data)`; `params` by name and `data` are numpy arrays of float32. `precise` is a loss whose
    gradient has the same mean and less noise, if there is one.
    """

    name: str
    loss: Any
    params: dict[str, np.ndarray]
    data: np.ndarray
    precise: Any = None


# ---- networks


def layers(random, sizes):
    """Weights and biases of affine layers, `sizes` giving name, inputs and outputs."""
    params = {}
    for name, inputs, outputs in sizes:
        params[f"{name}_w"] = random.normal(size=(inputs, outputs)) / np.sqrt(inputs)
        params[f"{name}_b"] = 0.01 * random.normal(size=outputs)
    return {name: array.astype(np.float32) for name, array in params.items()}


def affine(params, name, x):
    return x @ params[f"{name}_w"] + params[f"{name}_b"]


def encode(params, x):
    """Location and scale of the guide."""
    out = affine(params, "encoder_out", jax.nn.leaky_relu(affine(params, "encoder_in", x)))
    loc, raw = jnp.split(out, 2, axis=-1)
    return loc, jax.nn.softplus(raw)


def encode_bits(params, x):
    return affine(params, "encoder_out", jax.nn.leaky_relu(affine(params, "encoder_in", x)))


def decode(params, z):
    return affine(params, "decoder_out", jax.nn.leaky_relu(affine(params, "decoder_in", z)))


def networks(random, pixels, hidden, heads, latents):
    sizes = [("encoder_in", pixels, hidden), ("encoder_out", hidden, heads)]
    return layers(random, [*sizes, ("decoder_in", latents, hidden), ("decoder_out", hidden, pixels)])


def bernoulli(x, logits):
    """Log probability, per element."""
    return x * logits - jnp.maximum(logits, 0) - jnp.log1p(jnp.exp(-jnp.abs(logits)))


def images(random, batch, pixels):
    return (random.random((batch, pixels)) < 0.3).astype(np.float32)


# ---- a variational auto-encoder: one reparameterised sample, divergence in closed form


def vae_loss(params, key, x):
    loc, scale = encode(params, x)
    z = loc + scale * jax.random.normal(key, loc.shape)
    divergence = 0.5 * (loc**2 + scale**2 - 1) - jnp.log(scale)
    return jnp.sum(divergence) - jnp.sum(bernoulli(x, decode(params, z)))


def vae(batch, pixels=784, hidden=200, latents=10):
    random = np.random.RandomState(0)
    params = networks(random, pixels, hidden, 2 * latents, latents)
    return Case(f"vae, batch {batch}", vae_loss, params, images(random, batch, pixels))


# ---- binary latents: the score function, credit per datum


def score_loss(params, key, x):
    logits = encode_bits(params, x)
    z = (jax.random.uniform(key, logits.shape) < jax.nn.sigmoid(logits)).astype(x.dtype)
    log_q = jnp.sum(bernoulli(z, logits), -1)
    # Against fair coins, so that a bound is about zero: without a baseline the noise grows with its size.
    fair = (x.shape[-1] - z.shape[-1]) * jnp.log(2.0)
    log_p = jnp.sum(bernoulli(x, decode(params, z)), -1) + fair
    bound = log_p - log_q
    return -jnp.sum(bound + stop_gradient(bound) * (log_q - stop_gradient(log_q)))


def score(batch=128, pixels=196, hidden=200, latents=20):
    random = np.random.RandomState(1)
    params = networks(random, pixels, hidden, latents, latents)
    return Case(f"score function, batch {batch}", score_loss, params, images(random, batch, pixels))


# ---- a mixture of normals with a guide of the assignments, which are summed out


def mixture_loss(params, key, x):
    log_q = jax.nn.log_softmax(affine(params, "guide", x))
    scale = jnp.exp(params["log_scale"])
    residual = (x[:, None] - params["means"]) / scale
    log_x = jnp.sum(-0.5 * residual**2 - params["log_scale"] - 0.5 * jnp.log(2 * jnp.pi), -1)
    log_p = jax.nn.log_softmax(params["weights"]) + log_x
    return -jnp.sum(jnp.exp(log_q) * (log_p - log_q))


def mixture(batch=1000, dimensions=8, components=10):
    random = np.random.RandomState(2)
    means = random.normal(size=(components, dimensions)).astype(np.float32)
    params = layers(random, [("guide", dimensions, components)])
    params |= {"means": means, "log_scale": np.zeros(dimensions, np.float32)}
    params["weights"] = 0.1 * random.normal(size=components).astype(np.float32)
    x = means[random.randint(components, size=batch)] + random.normal(size=(batch, dimensions))
    return Case(f"enumerated mixture, {batch} data", mixture_loss, params, x.astype(np.float32))


# ---- the importance-weighted bound of each datum


PARTICLES = 50


def iwelbo_loss(params, key, x):
    loc, scale = encode(params, x)
    noise = jax.random.normal(key, (PARTICLES, *loc.shape))
    z = loc + scale * noise
    log_prior_ratio = jnp.sum(-0.5 * z**2 + 0.5 * noise**2 + jnp.log(scale), -1)
    log_weight = log_prior_ratio + jnp.sum(bernoulli(x, decode(params, z)), -1)
    return -jnp.sum(logsumexp(log_weight, 0) - jnp.log(PARTICLES))


def iwelbo(batch=16, pixels=784, hidden=200, latents=10):
    random = np.random.RandomState(3)
    params = networks(random, pixels, hidden, 2 * latents, latents)
    return Case(f"iwelbo, {PARTICLES} particles", iwelbo_loss, params, images(random, batch, pixels))


# ---- what is measured


def train(gradient, params, keys, *data):
    """A step of gradient descent per key; `gradient(params, key, *data)` gives loss and gradient."""

    def step(params, key):
        loss, slope = gradient(params, key, *data)
        return {name: value - STEP_SIZE * slope[name] for name, value in params.items()}, loss

    return jax.lax.scan(step, params, keys)


def projections(gradient, direction):
    """[parameters]: each array's inner product with `direction`, in units of that direction's square."""
    return jnp.stack(
        [
            jnp.vdot(gradient[name], d) / jnp.maximum(jnp.vdot(d, d), 1e-30)
            for name, d in sorted(direction.items())
        ]
    )


def checked(gradient, params, data, direction, draws, seed):
    """Projections [draws, parameters] of independent gradients."""
    keys = jax.random.split(jax.random.key(seed), draws)
    one = lambda key: projections(gradient(params, key, *data)[1], direction)  # noqa: E731
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys), np.float64)
