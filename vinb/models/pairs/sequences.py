"""Pairs of time series, their steps unrolled: a deep Markov model and a mixed hidden Markov model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.ops.indexing import Vindex

from vinb.models.pairs.layers import dense, recurrent
from vinb.models.pairs.pair import Pair, sized


def dmm(scale: str) -> Pair:
    """A deep Markov model of polyphonic music: gated transitions and an emission network of ReLUs, and a guide with a ReLU network
    that runs backwards over the chords (lee2020verifiedsvi, lee2023smoothness).

    The recurrent network is a ``lax.scan`` over the sequences reversed. The first latent's predecessor is zero, as is the network's
    first state. ``annealing`` scales the densities of the latents.
    """
    steps, notes, latent, emission, transition, units, batch = sized(
        scale, small=(3, 5, 2, 4, 3, 4, 2), original=(160, 88, 100, 100, 200, 600, 20)
    )

    def model(x, lengths, annealing):
        e_in = dense("e_lin_z_to_hidden", latent, emission)
        e_mid = dense("e_lin_hidden_to_hidden", emission, emission)
        e_out = dense("e_lin_hidden_to_input", emission, notes)
        gate_in = dense("t_lin_gate_z_to_hidden", latent, transition)
        gate_out = dense("t_lin_gate_hidden_to_z", transition, latent)
        mean_in = dense("t_lin_proposed_mean_z_to_hidden", latent, transition)
        mean_out = dense("t_lin_proposed_mean_hidden_to_z", transition, latent)
        sig = dense("t_lin_sig", latent, latent)
        z_to_loc = dense("t_lin_z_to_loc", latent, latent)
        z = jnp.zeros((batch, latent))
        with numpyro.plate("sequences", batch):
            for t in range(1, steps + 1):
                lasts = lengths >= t
                gate = jax.nn.sigmoid(gate_out(jax.nn.relu(gate_in(z))))
                mean = mean_out(jax.nn.relu(mean_in(z)))
                loc = (1 - gate) * z_to_loc(z) + gate * mean
                spread = jax.nn.softplus(sig(jax.nn.relu(mean)))
                with handlers.scale(scale=annealing):
                    z = numpyro.sample(f"z_{t}", dist.Normal(loc, spread).to_event(1).mask(lasts))
                chord = jax.nn.sigmoid(e_out(jax.nn.relu(e_mid(jax.nn.relu(e_in(z))))))
                numpyro.sample(f"x_{t}", dist.Bernoulli(chord).to_event(1).mask(lasts), obs=x[:, t - 1])

    def guide(x, lengths, annealing):
        rnn = recurrent("rnn", notes, units, units)
        to_hidden = dense("c_lin_z_to_hidden", latent, units)
        to_loc = dense("c_lin_hidden_to_loc", units, latent)
        to_scale = dense("c_lin_hidden_to_scale", units, latent)

        def step(hidden, chord):
            hidden = jax.nn.relu(rnn(chord, hidden))
            return hidden, hidden

        # Row by row the sequence backwards, its padding left at the end; once more is back again.
        time = jnp.arange(steps)
        backwards = jnp.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)[..., None]
        chords = jnp.swapaxes(jnp.take_along_axis(x, backwards, 1), 0, 1)
        _, hidden = jax.lax.scan(step, jnp.zeros((batch, units)), chords)
        hidden = jnp.take_along_axis(jnp.swapaxes(hidden, 0, 1), backwards, 1)
        z = jnp.zeros((batch, latent))
        with numpyro.plate("sequences", batch), handlers.scale(scale=annealing):
            for t in range(1, steps + 1):
                combined = 0.5 * (jnp.tanh(to_hidden(z)) + hidden[:, t - 1])
                posterior = dist.Normal(to_loc(combined), jax.nn.softplus(to_scale(combined)))
                z = numpyro.sample(f"z_{t}", posterior.to_event(1).mask(lengths >= t))

    random = np.random.default_rng(0)
    x = (random.random((batch, steps, notes)) < 0.1).astype(np.float32)
    lengths = steps - np.arange(batch) % 2
    return Pair("dmm", model, guide, (x, lengths, 0.2))


def mhmm(scale: str) -> Pair:
    """A hidden Markov model of the movements of seals with random effects of group and individual on its transitions, and a
    mean-field guide for the effects (lee2023smoothness). An enumerating objective sums out the states.

    Steps and dives are zero-inflated: whether a value is zero is observed, and the law of the value masked where it is, which has
    the density of the original's mixture with a point mass. The original has 1800 times; here there are 180.
    """
    states, groups, individuals, times = sized(scale, small=(2, 2, 3, 3), original=(3, 2, 20, 180))

    def model(step, angle, omega, individual_mask, time_mask):
        def of_state(name, initial, constraint=constraints.real):
            return numpyro.param(name, initial, constraint=constraint)

        uneven = jnp.linspace(0.5, 1.5, states)
        step_zi = of_state("step_zi_param", jnp.ones((states, 2)))
        step_concentration = of_state("step_param_concentration", uneven, constraints.positive)
        step_rate = of_state("step_param_rate", uneven, constraints.positive)
        angle_concentration = of_state("angle_param_concentration", uneven, constraints.positive)
        angle_loc = of_state("angle_param_loc", uneven)
        omega_zi = of_state("omega_zi_param", jnp.ones((states, 2)))
        omega_concentration0 = of_state("omega_param_concentration0", uneven, constraints.positive)
        omega_concentration1 = of_state("omega_param_concentration1", uneven, constraints.positive)

        def zero_inflated(name, t, zero_logits, law, value):
            is_zero = value == 0
            numpyro.sample(f"{name}_zi_{t}", dist.Categorical(logits=zero_logits), obs=is_zero.astype(int))
            numpyro.sample(f"{name}_{t}", law.mask(~is_zero), obs=jnp.where(is_zero, 0.5, value))

        effect = dist.Normal(jnp.zeros(states**2), 1.0).to_event(1)
        with numpyro.plate("group", groups, dim=-1):
            eps_g = numpyro.sample("eps_g", effect)
            with (
                numpyro.plate("individual", individuals, dim=-2),
                handlers.mask(mask=individual_mask),
            ):
                gamma = eps_g + numpyro.sample("eps_i", effect)
                gamma = gamma.reshape(*gamma.shape[:-1], states, states)
                y = 0
                for t in range(1, times + 1):
                    with handlers.mask(mask=time_mask[..., t - 1]):
                        transition = dist.Categorical(logits=Vindex(gamma)[..., y, :])
                        y = numpyro.sample(f"y_{t}", transition, infer={"enumerate": "parallel"})
                        strides = dist.Gamma(step_concentration[y], step_rate[y])
                        zero_inflated("step", t, step_zi[y], strides, step[..., t - 1])
                        turns = dist.VonMises(angle_loc[y], angle_concentration[y])
                        numpyro.sample(f"angle_{t}", turns, obs=angle[..., t - 1])
                        dives = dist.Beta(omega_concentration1[y], omega_concentration0[y])
                        zero_inflated("omega", t, omega_zi[y], dives, omega[..., t - 1])

    def guide(step, angle, omega, individual_mask, time_mask):
        positive = {"constraint": constraints.positive}
        loc_g = numpyro.param("loc_group", jnp.zeros(states**2))
        scale_g = numpyro.param("scale_group", jnp.ones(states**2), **positive)
        loc_i = numpyro.param("loc_individual", jnp.zeros((groups, states**2)))
        scale_i = numpyro.param("scale_individual", jnp.ones((groups, states**2)), **positive)
        with numpyro.plate("group", groups, dim=-1):
            numpyro.sample("eps_g", dist.Normal(loc_g, scale_g).to_event(1))
            with (
                numpyro.plate("individual", individuals, dim=-2),
                handlers.mask(mask=individual_mask),
            ):
                numpyro.sample("eps_i", dist.Normal(loc_i, scale_i).to_event(1))

    random = np.random.default_rng(0)
    shape = (individuals, groups, times)
    is_zero = random.random((2, *shape)) < 0.2
    step, omega = np.where(is_zero, 0.0, random.uniform(0.1, 0.9, (2, *shape))).astype(np.float32)
    angle = random.uniform(-3, 3, shape).astype(np.float32)
    individual_mask = np.ones(shape[:2], bool)
    individual_mask[-1, -1] = False
    time_mask = np.arange(times) < times - np.arange(individuals)[:, None, None] % 2
    time_mask = np.broadcast_to(time_mask, shape)
    return Pair("mhmm", model, guide, (step, angle, omega, individual_mask, time_mask))
