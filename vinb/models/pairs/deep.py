"""Pairs with networks over independent data: auto-encoders, plain, semi-supervised and conditional, and a deep exponential
family."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from vinb.distributions import OneHotCategorical
from vinb.models.pairs.layers import dense
from vinb.models.pairs.pair import Pair, sized


def vae(scale: str) -> Pair:
    """A variational auto-encoder of binary images with one softplus layer each way (lee2020verifiedsvi, lee2023smoothness)."""
    pixels, hidden, latent, batch = sized(scale, small=(16, 5, 2, 3), original=(784, 400, 50, 256))

    def model(x):
        fc1, fc21 = dense("decoder_fc1", latent, hidden), dense("decoder_fc21", hidden, pixels)
        with numpyro.plate("data", batch):
            z = numpyro.sample("latent", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            image = jax.nn.sigmoid(fc21(jax.nn.softplus(fc1(z))))
            numpyro.sample("obs", dist.Bernoulli(image).to_event(1), obs=x)

    def guide(x):
        fc1 = dense("encoder_fc1", pixels, hidden)
        fc21, fc22 = dense("encoder_fc21", hidden, latent), dense("encoder_fc22", hidden, latent)
        values = jax.nn.softplus(fc1(x))
        with numpyro.plate("data", batch):
            numpyro.sample("latent", dist.Normal(fc21(values), jnp.exp(fc22(values))).to_event(1))

    return Pair("vae", model, guide, (_binary_images(batch, pixels),))


def ssvae(scale: str) -> Pair:
    """The semi-supervised auto-encoder: an image from its label and a style (lee2020verifiedsvi, lee2023smoothness), here of
    images without labels. Labels are one-hot vectors."""
    return _ssvae("ssvae", scale, supervised=False)


def ssvae_unsupervised(scale: str) -> Pair:
    """:func:`ssvae` under the name that it has among the pairs of lee2020verifiedsvi."""
    return ssvae(scale)._replace(name="ssvae_unsupervised")


def ssvae_supervised(scale: str) -> Pair:
    """:func:`ssvae` of images with labels: ``y`` is observed, and the guide has no encoder of labels."""
    return _ssvae("ssvae_supervised", scale, supervised=True)


def _ssvae(name, scale, supervised):
    pixels, labels, hidden, latent, batch = sized(
        scale, small=(16, 3, 5, 2, 4), original=(784, 10, 500, 50, 200)
    )

    def model(xs, ys):
        fst, snd = dense("decoder_fst", latent + labels, hidden), dense("decoder_snd", hidden, pixels)
        with numpyro.plate("data", batch):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            y = numpyro.sample("y", OneHotCategorical(np.full(labels, 1 / labels)), obs=ys)
            image = jax.nn.sigmoid(snd(jax.nn.softplus(fst(jnp.concatenate([z, y], -1)))))
            numpyro.sample("x", dist.Bernoulli(image).to_event(1), obs=xs)

    def guide(xs, ys):
        with numpyro.plate("data", batch):
            if ys is None:
                fst, snd = dense("encoder_y_fst", pixels, hidden), dense("encoder_y_snd", hidden, labels)
                probs = jax.nn.softmax(snd(jax.nn.softplus(fst(xs))))
                ys = numpyro.sample("y", OneHotCategorical(probs))
            fst = dense("encoder_z_fst", pixels + labels, hidden)
            out1, out2 = (dense(f"encoder_z_out{i}", hidden, latent) for i in (1, 2))
            values = jax.nn.softplus(fst(jnp.concatenate([xs, ys], -1)))
            numpyro.sample("z", dist.Normal(out1(values), jnp.exp(out2(values))).to_event(1))

    ys = np.eye(labels, dtype=np.float32)[np.arange(batch) % labels] if supervised else None
    return Pair(name, model, guide, (_binary_images(batch, pixels), ys))


def cvae(scale: str) -> Pair:
    """A conditional auto-encoder that fills in the hidden pixels of images, by a prior, a recognition and a generation network of
    ReLUs (lee2023smoothness).

    The original guide uses the recognition network if it is given the whole images and else the prior network, and its analysis
    covers both; here images come in both kinds. The fixed network that makes a first guess at hidden pixels is data; hidden pixels
    are selected by a mask.
    """
    pixels, hidden, latent, batch = sized(scale, small=(16, 5, 2, 4), original=(784, 500, 200, 128))

    def encoder(name):
        fc1, fc2 = dense(f"{name}_fc1", pixels, hidden), dense(f"{name}_fc2", hidden, hidden)
        fc31, fc32 = (dense(f"{name}_fc3{i}", hidden, latent) for i in (1, 2))

        def encode(images):
            values = jax.nn.relu(fc2(jax.nn.relu(fc1(images))))
            return fc31(values), jnp.exp(fc32(values))

        return encode

    def model(xs, is_hidden, first_guess, ys, is_whole):
        prior = encoder("prior_net")
        widths = (latent, hidden, hidden, pixels)
        fc1, fc2, fc3 = (dense(f"gener_net_fc{i}", *widths[i - 1 : i + 1]) for i in (1, 2, 3))
        with numpyro.plate("data", batch):
            loc, spread = prior(jnp.where(is_hidden, first_guess, xs))
            z = numpyro.sample("z", dist.Normal(loc, spread).to_event(1))
            image = jax.nn.sigmoid(fc3(jax.nn.relu(fc2(jax.nn.relu(fc1(z))))))
            seen = is_hidden & is_whole[:, None]
            numpyro.sample("y", dist.Bernoulli(image).mask(seen).to_event(1), obs=ys)

    def guide(xs, is_hidden, first_guess, ys, is_whole):
        prior, recognition = encoder("prior_net"), encoder("recog_net")
        without = prior(jnp.where(is_hidden, first_guess, xs))
        given = recognition(jnp.where(is_hidden, ys, xs))
        loc, spread = (jnp.where(is_whole[:, None], *each) for each in zip(given, without, strict=True))
        with numpyro.plate("data", batch):
            numpyro.sample("z", dist.Normal(loc, spread).to_event(1))

    ys = _binary_images(batch, pixels)
    is_hidden = np.broadcast_to(np.arange(pixels) >= pixels // 4, ys.shape)
    first_guess = np.full_like(ys, 0.3)
    is_whole = np.arange(batch) % 4 > 0
    return Pair("cvae", model, guide, (np.where(is_hidden, 0, ys), is_hidden, first_guess, ys, is_whole))


def sgdef(scale: str) -> Pair:
    """A sparse gamma deep exponential family of three layers over Poisson pixels, and a mean-field gamma guide
    (lee2020verifiedsvi, lee2023smoothness). Its rates are reciprocals of matrix products of positive numbers."""
    top, mid, bottom, pixels, images = sized(scale, small=(4, 3, 2, 9, 4), original=(100, 40, 15, 4096, 320))
    weights = {"top": (top, mid), "mid": (mid, bottom), "bottom": (bottom, pixels)}
    units = {"top": top, "mid": mid, "bottom": bottom}

    def weights_plate(layer):
        inputs, outputs = weights[layer]
        return numpyro.plate(f"w_{layer}_plate", inputs * outputs)

    def model(x):
        w = {}
        for layer, shape in weights.items():
            with weights_plate(layer):
                w[layer] = numpyro.sample(f"w_{layer}", dist.Gamma(0.1, 0.3)).reshape(shape)
        with numpyro.plate("data", images):
            z = numpyro.sample("z_top", dist.Gamma(0.1, jnp.full(top, 0.1)).to_event(1))
            z = numpyro.sample("z_mid", dist.Gamma(0.1, 0.1 / (z @ w["top"])).to_event(1))
            z = numpyro.sample("z_bottom", dist.Gamma(0.1, 0.1 / (z @ w["mid"])).to_event(1))
            numpyro.sample("obs", dist.Poisson(z @ w["bottom"]).to_event(1), obs=x)

    def posterior(kind, layer, *shape):
        alpha = jax.nn.softplus(numpyro.param(f"log_alpha_{kind}_q_{layer}", jnp.full(shape, 0.5)))
        mean = jax.nn.softplus(numpyro.param(f"log_mean_{kind}_q_{layer}", jnp.zeros(shape)))
        return dist.Gamma(alpha, alpha / mean)

    def guide(x):
        for layer, (inputs, outputs) in weights.items():
            with weights_plate(layer):
                numpyro.sample(f"w_{layer}", posterior("w", layer, inputs * outputs))
        with numpyro.plate("data", images):
            for layer, size in units.items():
                numpyro.sample(f"z_{layer}", posterior("z", layer, images, size).to_event(1))

    return Pair("sgdef", model, guide, (np.random.default_rng(0).poisson(3.0, (images, pixels)),))


def _binary_images(batch, pixels):
    return (np.random.default_rng(0).random((batch, pixels)) < 0.3).astype(np.float32)
