"""Attend, infer, repeat: images as an unknown number of objects at unknown places, as NumPyro programs (eslami2016air)."""

import functools
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.contrib.module import eqx_module
from numpyro.handlers import trace

from vinb.estimators.sites import Params, site_keys, unconstrained_params
from vinb.models.vae import Dense

_EPS = 1e-4  # keeps the presence bits' probabilities off 0 and 1, hence their logarithms finite
_SMALLEST_SCALE = (
    1e-6  # float32 draws of a scale do hit zero, and its reciprocal would be the end of a training run
)


def place(
    glimpse: Float[Array, "*batch height width"], where: Float[Array, "*batch 3"], canvas_size: int
) -> Float[Array, "*batch canvas canvas"]:
    """Draw a glimpse onto an empty square canvas.

    ``where = (s, x, y)`` maps canvas to glimpse coordinates, ``(s u + x, s v + y)`` with u to the right and v down: the glimpse
    is as large as ``1 / s`` of the canvas and centred at ``(-x / s, -y / s)``. Coordinates -1 and 1 are the CENTRES of the border
    pixels (PyTorch's ``align_corners=True``): on n pixels u lies at pixel ``(u + 1) (n - 1) / 2``. Interpolation is bilinear and
    the image zero outside. The authors' scripts take ``((u + 1) (n - 1) - 1) / 2``, half a pixel off, and repeat the border.

    A bilinear sampler without rotation is separable: two matrices of hat functions, ``rows @ glimpse @ columns.T``.
    """
    scale, x, y = (where[..., i, None] for i in range(3))
    grid = jnp.linspace(-1.0, 1.0, canvas_size)
    rows = _hats(scale * grid + y, glimpse.shape[-2])
    columns = _hats(scale * grid + x, glimpse.shape[-1])
    return rows @ glimpse @ jnp.swapaxes(columns, -1, -2)


def extract(
    image: Float[Array, "*batch height width"], where: Float[Array, "*batch 3"], glimpse_size: int
) -> Float[Array, "*batch glimpse glimpse"]:
    """Read the glimpse that :func:`place` would draw at ``where``: the inverse transform, ``((u - x) / s, (v - y) / s)``.

    Scales below 1e-6 in size are taken as 1e-6.
    """
    scale, x, y = (where[..., i, None] for i in range(3))
    scale = jnp.where(jnp.abs(scale) < _SMALLEST_SCALE, _SMALLEST_SCALE, scale)
    grid = jnp.linspace(-1.0, 1.0, glimpse_size)
    rows = _hats((grid - y) / scale, image.shape[-2])
    columns = _hats((grid - x) / scale, image.shape[-1])
    return rows @ image @ jnp.swapaxes(columns, -1, -2)


def _hats(coordinates, num_pixels):
    """[..., points, pixels]: weights of linear interpolation at coordinates in [-1, 1]."""
    position = (coordinates + 1) * (0.5 * (num_pixels - 1))
    return jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - jnp.arange(num_pixels)))


class LeakyNetwork(eqx.Module):
    """Affine layers with leaky ReLUs in between."""

    layers: tuple[Dense, ...]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        for layer in self.layers[:-1]:
            x = jax.nn.leaky_relu(layer(x))
        return self.layers[-1](x)


class Recognition(eqx.Module):
    """The guide's networks: an LSTM cell, its head for one object's presence and place, and an encoder of glimpses.

    The cell's input is the image and the previous object's latents; the image's part is the same at every step and most of the
    arithmetic, so it is a layer of its own.
    """

    image: Dense
    recurrent: Float[Array, "latents_and_hidden gates"]
    head: Dense
    encoder: LeakyNetwork

    def step(self, image_gates, latents, hidden, cell):
        """One step of the LSTM: its new hidden and cell state."""
        gates = image_gates + jnp.concatenate([latents, hidden], -1) @ self.recurrent
        enter, forget, candidate, leave = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        return jax.nn.sigmoid(leave) * jnp.tanh(cell), cell


class AIR(eqx.Module):
    """A canvas is a sum of up to ``max_steps`` objects, each present or not, at a place, with a look.

    ``model`` and ``guide`` are NumPyro programs of one argument ``x``, a batch of images in [0, 1], independent along the plate
    ``data``. Step t has the sites ``present_t`` (Bernoulli), ``where_t`` (scale and position, see :func:`place`) and ``what_t``;
    the image is ``x ~ N(sum_t present_t place(decoder(what_t), where_t), likelihood_scale^2)``. Absent objects keep their latents'
    priors. Arrays held here are initial values; training changes the param sites ``decoder$params`` and ``recognition$params``.

    ``AIR.paper(key)`` is the setting of becker2024programmable (figure 7), ``AIR.lite(key)`` a small one for 28 x 28 canvases.
    """

    recognition: Recognition
    decoder: LeakyNetwork
    canvas_size: int = eqx.field(static=True)
    glimpse_size: int = eqx.field(static=True)
    presence_prior: tuple[float, ...] = eqx.field(static=True)
    where_loc: tuple[float, float, float] = eqx.field(static=True)
    where_scale: tuple[float, float, float] = eqx.field(static=True)
    relative_where: bool = eqx.field(static=True)
    likelihood_scale: float = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        key: jax.Array,
        *,
        canvas_size: int,
        glimpse_size: int,
        what_size: int,
        rnn_size: int,
        hidden_size: int,
        presence_prior: Sequence[float],
        where_loc: tuple[float, float, float] = (3.0, 0.0, 0.0),
        where_scale: tuple[float, float, float] = (0.2, 1.0, 1.0),
        relative_where: bool = False,
        likelihood_scale: float = 0.3,
        presence_bias: float = 0.0,
        decoder_bias: float = 0.0,
    ) -> "AIR":
        """Draw the networks' initial parameters: uniform within ``1 / sqrt(inputs)``, those of the LSTM ``1 / sqrt(rnn_size)``.

        Args:
            key: typed PRNG key.
            canvas_size, glimpse_size: sides of an image and of an object's own image, in pixels.
            what_size: number of latents of an object's look.
            rnn_size, hidden_size: width of the LSTM, and of the hidden layer of encoder and decoder.
            presence_prior: prior probability that object t is present, whatever the others are; its length is ``max_steps``.
            where_loc, where_scale: prior of scale and position.
            relative_where: the guide's place is relative to its prior: location added, scale multiplied by the prior's. Without
                it the initial scale is about zero, and glimpses are all of the image or a point of it.
            likelihood_scale: standard deviation of a pixel.
            presence_bias, decoder_bias: added to the initial biases of the presence logit and of the decoder's output, to begin
                with objects that are likely and dark.

        Raises:
            ValueError: for a size that is not positive, a glimpse or canvas below 2 pixels, a prior probability outside (0, 1), or
                a standard deviation that is not positive.
        """
        sizes = {"what_size": what_size, "rnn_size": rnn_size, "hidden_size": hidden_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        for name, size in (("canvas_size", canvas_size), ("glimpse_size", glimpse_size)):
            if size < 2:
                raise ValueError(f"{name} must be at least 2 pixels, got {size}")
        if not presence_prior or not all(0 < p < 1 for p in presence_prior):
            raise ValueError(
                f"presence_prior must hold a probability between 0 and 1 for each step, got {presence_prior}"
            )
        if len(where_loc) != 3 or len(where_scale) != 3 or not all(s > 0 for s in where_scale):
            raise ValueError(
                "where_loc and where_scale must hold three numbers (scale, x, y), the latter positive; "
                f"got {where_loc} and {where_scale}"
            )
        if not likelihood_scale > 0:
            raise ValueError(f"likelihood_scale must be positive, got {likelihood_scale}")
        recognition, decoder = _networks(
            key,
            (canvas_size**2, glimpse_size**2, what_size, rnn_size, hidden_size),
            (presence_bias, decoder_bias),
        )
        return cls(
            recognition,
            decoder,
            canvas_size,
            glimpse_size,
            tuple(presence_prior),
            tuple(where_loc),
            tuple(where_scale),
            relative_where,
            likelihood_scale,
        )

    @classmethod
    def paper(cls, key: jax.Array, max_steps: int = 3) -> "AIR":
        """The setting of becker2024programmable for canvases of 50 x 50 pixels with digits of about 21; 1 to 3 steps."""
        return cls.init(
            key,
            canvas_size=50,
            glimpse_size=20,
            what_size=50,
            rnn_size=256,
            hidden_size=200,
            presence_prior=_presence_prior(max_steps),
        )

    @classmethod
    def lite(cls, key: jax.Array, max_steps: int = 3) -> "AIR":
        """A small setting for canvases of 28 x 28 pixels with digits of about 10, which learns to count within seconds: 30 epochs
        of 2,000 images in batches of 64 by Adam with step size 3e-3; 1 to 3 steps.

        The likelihood is narrower than the paper's: a thin digit of 10 pixels, a one above all, holds so little light that at a
        standard deviation of 0.3 it does not pay for a second object.
        """
        return cls.init(
            key,
            canvas_size=28,
            glimpse_size=12,
            what_size=10,
            rnn_size=64,
            hidden_size=64,
            presence_prior=_presence_prior(max_steps),
            where_loc=(2.3, 0.0, 0.0),
            relative_where=True,
            likelihood_scale=0.2,
            decoder_bias=-2.0,
        )

    @property
    def max_steps(self) -> int:
        return len(self.presence_prior)

    @property
    def what_size(self) -> int:
        return self.decoder.layers[0].weight.shape[0]

    def model(self, x: Float[Array, "batch canvas canvas"]):
        self._check_images(x)
        decoder = eqx_module("decoder", self.decoder)
        where_prior = dist.Normal(jnp.array(self.where_loc), jnp.array(self.where_scale)).to_event(1)
        what_prior = dist.Normal(jnp.zeros(self.what_size), 1.0).to_event(1)
        canvas = 0.0
        with numpyro.plate("data", x.shape[0]):
            for t, probability in enumerate(self.presence_prior):
                present = numpyro.sample(f"present_{t}", dist.Bernoulli(probs=probability))
                where = numpyro.sample(f"where_{t}", where_prior)
                what = numpyro.sample(f"what_{t}", what_prior)
                canvas = canvas + self._object(decoder, present, where, what)
            numpyro.sample("x", dist.Normal(canvas, self.likelihood_scale).to_event(2), obs=x)

    def guide(self, x: Float[Array, "batch canvas canvas"]):
        self._check_images(x)
        networks = eqx_module("recognition", self.recognition)
        batch = x.shape[0]
        image_gates = networks.image(x.reshape(batch, -1))
        hidden = cell = jnp.zeros((batch, networks.recurrent.shape[1] // 4), x.dtype)
        where, what = jnp.zeros((batch, 3), x.dtype), jnp.zeros((batch, self.what_size), x.dtype)
        present = jnp.ones(batch, x.dtype)
        with numpyro.plate("data", batch):
            for t in range(self.max_steps):
                latents = jnp.concatenate([where, what, present[:, None]], axis=-1)
                hidden, cell = networks.step(image_gates, latents, hidden, cell)
                logit, loc, scale = jnp.split(networks.head(hidden), [1, 4], axis=-1)
                # An object can be present only if the one before it is.
                probability = (_EPS + jax.nn.sigmoid(logit[:, 0]) * present) / (1 + 1.01 * _EPS)
                present = numpyro.sample(f"present_{t}", dist.Bernoulli(probs=probability))
                present = jnp.asarray(present, x.dtype)
                where = numpyro.sample(f"where_{t}", self._where(loc, jax.nn.softplus(scale)))
                what_loc, what_scale = jnp.split(networks.encoder(self._glimpse(x, where)), 2, axis=-1)
                what_posterior = dist.Normal(what_loc, jax.nn.softplus(what_scale)).to_event(1)
                what = numpyro.sample(f"what_{t}", what_posterior)

    def render(self, values: dict[str, Array]) -> Float[Array, "batch canvas canvas"]:
        """The mean image for the latents ``values``, by site name as a run of the guide has them (see :meth:`with_params`)."""
        sites = (
            [values[f"{name}_{t}"] for name in ("present", "where", "what")] for t in range(self.max_steps)
        )
        return sum(self._object(self.decoder, *site) for site in sites)

    def count_accuracy(
        self,
        params: Params,
        key: jax.Array,
        x: Float[Array, "images canvas canvas"],
        counts: Int[Array, " images"],
        *,
        batch_size: int = 500,
    ) -> Float[Array, ""]:
        """Share of images of which one draw of the guide says the right number of objects: the sum of its presence bits.

        Args:
            params: unconstrained values of the guide's param sites.
            key: typed PRNG key.
            x: images in [0, 1].
            counts: how many objects each of them has.
            batch_size: images that are in work at the same time.

        Raises:
            ValueError: if the images are not of the canvas's size, there is not one count for each, or ``batch_size`` is below 1.
            TypeError: if the images are not floats.
        """
        self._check_images(x)
        if not len(x) or jnp.shape(counts) != (len(x),):
            raise ValueError(
                f"counts must have one entry per image, [{len(x)}] of at least 1, got the shape {list(jnp.shape(counts))}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return _count_accuracy(self, params, key, x, counts, min(batch_size, len(x)))

    def with_params(self, params: Params) -> "AIR":
        """This AIR with the trained networks of ``params``, for :meth:`render`."""
        return eqx.tree_at(
            lambda air: (air.recognition, air.decoder),
            self,
            (
                eqx.combine(params["recognition$params"], self.recognition),
                eqx.combine(params["decoder$params"], self.decoder),
            ),
        )

    def _object(self, decoder, present, where, what):
        glimpse = jax.nn.sigmoid(decoder(what)).reshape(
            *what.shape[:-1], self.glimpse_size, self.glimpse_size
        )
        return jnp.asarray(present, glimpse.dtype)[..., None, None] * place(glimpse, where, self.canvas_size)

    def _glimpse(self, x, where):
        return extract(x, where, self.glimpse_size).reshape(*x.shape[:-2], -1)

    def _where(self, loc, scale):
        if self.relative_where:
            prior_scale = jnp.array(self.where_scale)
            return dist.Normal(loc + jnp.array(self.where_loc), scale * prior_scale).to_event(1)
        return dist.Normal(loc, scale).to_event(1)

    def _check_images(self, x):
        expected = (self.canvas_size, self.canvas_size)
        if jnp.ndim(x) != 3 or jnp.shape(x)[1:] != expected:
            raise ValueError(
                f"x must have the shape [batch, {expected[0]}, {expected[1]}], got {list(jnp.shape(x))}"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x must hold floats in [0, 1], not {x.dtype}; divide grey levels by 255")


def _presence_prior(max_steps):
    """The first ``max_steps`` of becker2024programmable's prior probabilities."""
    if not 1 <= max_steps <= 3:
        raise ValueError(f"max_steps must be 1, 2 or 3, got {max_steps}; AIR.init takes any presence_prior")
    return (0.05, 0.05**2.3, 0.05**5)[:max_steps]


@functools.partial(jax.jit, static_argnums=5)
def _count_accuracy(air, params, key, x, counts, batch_size):
    num_batches = -(-len(x) // batch_size)
    padded = jnp.pad(x, ((0, num_batches * batch_size - len(x)), (0, 0), (0, 0)))

    def summed_presence(index):
        batch = jax.lax.dynamic_slice_in_dim(padded, index * batch_size, batch_size)
        guide = unconstrained_params(air.guide, params=params)
        sites = trace(site_keys(guide, key=jax.random.fold_in(key, index))).get_trace(batch)
        return sum(sites[f"present_{t}"]["value"] for t in range(air.max_steps))

    sums = jax.lax.map(summed_presence, jnp.arange(num_batches)).reshape(-1)[: len(x)]
    return jnp.mean(sums == counts, dtype=jnp.float32)


@functools.partial(jax.jit, static_argnums=1)
def _networks(key, sizes, biases):
    """The networks' initial parameters. One program and one draw for all, since compiling takes the time."""
    canvas, glimpse, what, rnn, hidden = sizes
    presence_bias, decoder_bias = biases
    recurrent = (3 + what + 1 + rnn, 4 * rnn)
    dense = [
        (canvas, 4 * rnn),
        (rnn, 7),
        (glimpse, hidden),
        (hidden, 2 * what),
        (what, hidden),
        (hidden, glimpse),
    ]
    total = math.prod(recurrent) + sum((inputs + 1) * outputs for inputs, outputs in dense)
    noise = jax.random.uniform(key, (total,), minval=-1.0, maxval=1.0)

    def draw(fan_in, *shape):
        nonlocal noise
        values, noise = jnp.split(noise, [math.prod(shape)])
        return fan_in**-0.5 * values.reshape(shape)

    image, head, *others = (
        Dense(draw(fan_in, inputs, outputs), draw(fan_in, outputs))
        for (inputs, outputs), fan_in in zip(dense, (rnn, rnn, glimpse, hidden, what, hidden), strict=True)
    )
    head = Dense(head.weight, head.bias.at[0].add(presence_bias))
    others[-1] = Dense(others[-1].weight, others[-1].bias + decoder_bias)
    recognition = Recognition(image, draw(rnn, *recurrent), head, LeakyNetwork(tuple(others[:2])))
    return recognition, LeakyNetwork(tuple(others[2:]))
