"""Attend, infer, repeat, as the two papers analyse it; :class:`vinb.models.AIR` is the one to train."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from vinb.models.air import place
from vinb.models.pairs.layers import dense, lstm
from vinb.models.pairs.pair import Pair, sized


def air(scale: str) -> Pair:
    """Images as up to three objects, each present only if the one before it is (lee2020verifiedsvi, lee2023smoothness).

    Place and look of an object are masked by its presence. The guide reads glimpses at the inverse of ``z_where``, which divides by
    its first component, unguarded. The network of baselines has no part in either density; an observation with a constant density,
    the authors' device, makes the guide depend on it. The sampler is :func:`vinb.models.air.place`.
    """
    canvas, window, what, units, hidden, batch = sized(
        scale, small=(10, 6, 3, 4, 5, 2), original=(50, 28, 50, 256, 200, 64)
    )
    steps = 3
    where_loc, where_scale = np.array([3.0, 0.0, 0.0]), np.array([0.2, 1.0, 1.0])
    at_least = np.cumsum(0.01 ** np.arange(steps, -1.0, -1))[::-1]  # a truncated geometric number of objects
    presence = at_least[1:] / at_least[:-1]

    def network(name, inputs, outputs):
        l1, l2 = dense(f"{name}_l1", inputs, hidden), dense(f"{name}_l2", hidden, outputs)
        return lambda x: l2(jax.nn.relu(l1(x)))

    def model(x):
        decode = network("decode", what, window**2)
        image, z_pres = jnp.zeros((batch, canvas, canvas)), jnp.ones(batch)
        with numpyro.plate("data", batch):
            for t in range(1, steps + 1):
                z_pres = numpyro.sample(f"z_pres_{t}", dist.Bernoulli(presence[t - 1] * z_pres))
                where = dist.Normal(where_loc, where_scale).to_event(1)
                z_where = numpyro.sample(f"z_where_{t}", where.mask(z_pres))
                look = dist.Normal(jnp.zeros(what), 1.0).to_event(1)
                z_what = numpyro.sample(f"z_what_{t}", look.mask(z_pres))
                glimpse = jax.nn.sigmoid(decode(z_what) - 2).reshape(batch, window, window)
                image = image + z_pres[:, None, None] * place(glimpse, z_where, canvas)
            numpyro.sample("obs", dist.Normal(image, 0.3).to_event(2), obs=x)

    def guide(x):
        inputs = canvas**2 + 3 + what + 1
        rnn, bl_rnn = lstm("rnn", inputs, units), lstm("bl_rnn", inputs, units)
        predict, bl_predict = network("predict", units, 7), network("bl_predict", units, 1)
        encode = network("encode", window**2, 2 * what)

        def initial(name, size):
            return jnp.broadcast_to(numpyro.param(name, jnp.zeros(size)), (batch, size))

        state = initial("h_init", units), initial("c_init", units)
        bl_state = initial("bl_h_init", units), initial("bl_c_init", units)
        z_where, z_what = initial("z_where_init", 3), initial("z_what_init", what)
        z_pres = jnp.ones(batch)
        pixels = x.reshape(batch, -1)
        with numpyro.plate("data", batch):
            for t in range(1, steps + 1):
                latents = jnp.concatenate([z_where, z_what, z_pres[:, None]], -1)
                state = rnn(jnp.concatenate([pixels, latents], -1), state)
                detached = jax.lax.stop_gradient(latents)
                bl_state = bl_rnn(jnp.concatenate([pixels, detached], -1), bl_state)
                baseline = bl_predict(bl_state[0])[:, 0] * z_pres
                numpyro.sample(
                    f"baseline_{t}",
                    dist.Normal(baseline - baseline, 1.0),
                    obs=jnp.zeros(batch),
                    infer={"is_auxiliary": True},
                )
                logit, loc, spread = jnp.split(predict(state[0]), [1, 4], -1)
                probability = jax.nn.sigmoid(logit[:, 0]) * z_pres
                z_pres = numpyro.sample(f"z_pres_{t}", dist.Bernoulli(probability))
                where = dist.Normal(loc + where_loc, jax.nn.softplus(spread) * where_scale).to_event(1)
                z_where = numpyro.sample(f"z_where_{t}", where.mask(z_pres))
                inverse = jnp.concatenate([jnp.ones((batch, 1)), -z_where[:, 1:]], -1) / z_where[:, :1]
                loc, spread = jnp.split(encode(place(x, inverse, window).reshape(batch, -1)), 2, -1)
                look = dist.Normal(loc, jax.nn.softplus(spread)).to_event(1)
                z_what = numpyro.sample(f"z_what_{t}", look.mask(z_pres))

    x = np.random.default_rng(0).random((batch, canvas, canvas), np.float32)
    return Pair("air", model, guide, (x,))
