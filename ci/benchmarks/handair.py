"""A step of attend-infer-repeat by hand in plain JAX: the bound and its gradient by three estimators.

The networks, constants and initial values are those of `vinb.models.AIR`; nothing else of vinb is used. The presence
bits' gradients are measure-valued (one more forward pass per bit, that bit flipped), by the score function with
the cost from the bit on, or by the sum over all bits' values.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from handwritten import Case
from jax.lax import stop_gradient

EPS = 1e-4


@dataclass(frozen=True)
class Setting:
    """What of an AIR is no parameter."""

    canvas: int
    glimpse: int
    what: int
    rnn: int
    presence_prior: tuple[float, ...]
    where_loc: tuple[float, ...]
    where_scale: tuple[float, ...]
    relative: bool
    scale: float


def dense(layer, x):
    return x @ layer.weight + layer.bias


def network(layers, x):
    return dense(layers[1], jax.nn.leaky_relu(dense(layers[0], x)))


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi)


def log_bit(bit, probability):
    return bit * jnp.log(probability) + (1 - bit) * jnp.log1p(-probability)


def hats(coordinates, pixels):
    position = (coordinates + 1) * (0.5 * (pixels - 1))
    return jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - jnp.arange(pixels)))


def transform(images, scale, x, y, pixels):
    """Images seen through `(scale u + x, scale v + y)`, bilinearly."""
    grid = jnp.linspace(-1.0, 1.0, pixels)
    rows = hats(scale[:, None] * grid + y[:, None], images.shape[1])
    columns = hats(scale[:, None] * grid + x[:, None], images.shape[2])
    return rows @ images @ columns.swapaxes(1, 2)


def noise_of(setting, key, batch):
    def step(key):
        first, second, third = jax.random.split(key, 3)
        bits = jax.random.uniform(first, (batch,))
        return bits, jax.random.normal(second, (batch, 3)), jax.random.normal(third, (batch, setting.what))

    return [step(key) for key in jax.random.split(key, len(setting.presence_prior))]


def start(params, setting, x):
    recognition, _ = params
    batch = x.shape[0]
    hidden = jnp.zeros((batch, setting.rnn))
    latents = jnp.concatenate([jnp.zeros((batch, 3 + setting.what)), jnp.ones((batch, 1))], 1)
    return dense(recognition.image, x.reshape(batch, -1)), (
        hidden,
        hidden,
        latents,
        jnp.zeros_like(x),
        jnp.zeros(batch),
    )


def propose(params, setting, x, gates, carry, noise):
    """All of a step that does not depend on its bit: the bit's probability, and the rest."""
    recognition, decoder = params
    hidden, cell, latents, canvas, cost = carry
    mixed = gates + jnp.concatenate([latents, hidden], 1) @ recognition.recurrent
    enter, forget, candidate, leave = jnp.split(mixed, 4, 1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
    out = dense(recognition.head, hidden)
    probability = (EPS + jax.nn.sigmoid(out[:, 0]) * latents[:, -1]) / (1 + 1.01 * EPS)
    prior_loc, prior_scale = jnp.array(setting.where_loc), jnp.array(setting.where_scale)
    loc, scale = out[:, 1:4], jax.nn.softplus(out[:, 4:])
    if setting.relative:
        loc, scale = loc + prior_loc, scale * prior_scale
    where = loc + scale * noise[1]
    zoom = jnp.where(jnp.abs(where[:, 0]) < 1e-6, 1e-6, where[:, 0])
    look = transform(x, 1 / zoom, -where[:, 1] / zoom, -where[:, 2] / zoom, setting.glimpse)
    what_loc, raw = jnp.split(network(recognition.encoder.layers, look.reshape(x.shape[0], -1)), 2, 1)
    what_scale = jax.nn.softplus(raw)
    what = what_loc + what_scale * noise[2]
    glimpse = jax.nn.sigmoid(network(decoder.layers, what)).reshape(-1, setting.glimpse, setting.glimpse)
    picture = transform(glimpse, where[:, 0], where[:, 1], where[:, 2], setting.canvas)
    weight = jnp.sum(log_normal(where, prior_loc, prior_scale) - log_normal(where, loc, scale), 1)
    weight += jnp.sum(log_normal(what, 0.0, 1.0) - log_normal(what, what_loc, what_scale), 1)
    return probability, (hidden, cell, where, what, picture, weight, canvas, cost)


def apply(prior, probability, rest, bit):
    hidden, cell, where, what, picture, weight, canvas, cost = rest
    cost = cost + weight + log_bit(bit, prior) - log_bit(bit, probability)
    latents = jnp.concatenate([where, what, bit[:, None]], 1)
    return hidden, cell, latents, canvas + bit[:, None, None] * picture, cost


def finish(setting, x, carry):
    return carry[4] + jnp.sum(log_normal(x, carry[3], setting.scale), (1, 2))


def run(params, setting, noise, x):
    """Bound of each image; of each step probability, bit and what came before it; and the image's gates."""
    gates, carry = start(params, setting, x)
    steps = []
    for t, prior in enumerate(setting.presence_prior):
        probability, rest = propose(params, setting, x, gates, carry, noise[t])
        bit = (noise[t][0] < probability) * 1.0
        steps.append((probability, bit, rest))
        carry = apply(prior, probability, rest, bit)
    return finish(setting, x, carry), steps, gates


# ---- minus the bound, summed over the batch, by estimator of the bits


def measure_valued(params, setting, noise, x):
    bound, steps, gates = run(params, setting, noise, x)
    total, params, gates = bound, stop_gradient(params), stop_gradient(gates)
    for t, (probability, bit, rest) in enumerate(steps):
        carry = apply(setting.presence_prior[t], stop_gradient(probability), stop_gradient(rest), 1 - bit)
        for later in range(t + 1, len(noise)):
            chance, then = propose(params, setting, x, gates, carry, noise[later])
            carry = apply(setting.presence_prior[later], chance, then, (noise[later][0] < chance) * 1.0)
        difference = (2 * bit - 1) * (bound - finish(setting, x, carry))
        total = total + (probability - stop_gradient(probability)) * stop_gradient(difference)
    return -jnp.sum(total)


def score_function(params, setting, noise, x):
    bound, steps, _ = run(params, setting, noise, x)
    total = bound
    for probability, bit, rest in steps:
        log_q = log_bit(bit, probability)
        total = total + stop_gradient(bound - rest[-1]) * (log_q - stop_gradient(log_q))
    return -jnp.sum(total)


def enumerated(params, setting, noise, x):
    """The batch doubles at each step, so that what comes before a bit is computed once."""
    gates, carry = start(params, setting, x)
    log_q = jnp.zeros(len(x))
    for t, prior in enumerate(setting.presence_prior):
        tiled = jax.tree.map(lambda a, n=2**t: jnp.concatenate([a] * n), (x, gates, noise[t]))
        probability, rest = propose(params, setting, tiled[0], tiled[1], carry, tiled[2])
        probability, rest, log_q = jax.tree.map(lambda a: jnp.concatenate([a, a]), (probability, rest, log_q))
        bit = (jnp.arange(len(log_q)) >= len(log_q) // 2) * 1.0
        log_q = log_q + log_bit(bit, probability)
        carry = apply(prior, probability, rest, bit)
    bounds = finish(setting, jnp.concatenate([x] * 2 ** len(noise)), carry)
    return -jnp.sum(bounds * jnp.exp(log_q))


ESTIMATORS = {"MeasureValued": measure_valued, "ScoreFunction": score_function, "Enumerate": enumerated}


# ---- the case


def arrays(tree):
    """The arrays of vinb's networks, as the dict that the benchmark's steps take."""
    return {f"array_{i:02d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


@functools.cache
def small():
    """The AIR of the benchmark."""
    from vinb.models import AIR

    return AIR.lite(jax.random.key(0))


def air(estimator, batch=64):
    """The step of a small AIR with one of `ESTIMATORS`."""
    model = small()
    networks = (model.recognition, model.decoder)
    structure = jax.tree.structure(networks)
    setting = Setting(
        model.canvas_size,
        model.glimpse_size,
        model.what_size,
        model.recognition.recurrent.shape[1] // 4,
        model.presence_prior,
        model.where_loc,
        model.where_scale,
        model.relative_where,
        model.likelihood_scale,
    )

    def loss_of(function):
        def loss(params, key, x):
            tree = jax.tree.unflatten(structure, [params[name] for name in sorted(params)])
            return function(tree, setting, noise_of(setting, key, x.shape[0]), x)

        return loss

    # Thin strokes on black, as far as the work is concerned.
    x = (np.random.RandomState(4).random((batch, model.canvas_size, model.canvas_size)) ** 8).astype(
        np.float32
    )
    return Case(
        f"AIR, {estimator}, batch {batch}",
        loss_of(ESTIMATORS[estimator]),
        arrays(networks),
        x,
        loss_of(measure_valued),  # the least noisy of those that are cheap
    )
