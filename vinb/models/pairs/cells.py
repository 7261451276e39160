"""scANVI: counts of gene transcripts in cells of a few types."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

from vinb.distributions import OneHotCategorical
from vinb.models.pairs.layers import batch_norm, dense
from vinb.models.pairs.pair import Pair, sized


def scanvi(scale: str) -> Pair:
    """Cells' transcript counts from their type ``y``, two latent layers and a library size, by networks with ReLU and batch
    normalisation (lee2023smoothness). Cells have no label here; given labels, the guide has the classifier's loss as a factor."""
    genes, labels, latent, narrow, wide, batch = sized(
        scale, small=(6, 3, 2, 4, 5, 5), original=(21932, 4, 10, 50, 100, 100)
    )
    factor = 1 / (100 * 21932)  # of all densities: one over the original's counts in a batch
    epsilon = 0.005
    classifier_weight = 0.01

    def network(name, inputs, hidden, outputs):
        fc_1, fc_2 = dense(f"{name}_fc_1", inputs, hidden), batch_norm(f"{name}_fc_2", hidden)
        fc_4, fc_5 = dense(f"{name}_fc_4", hidden, outputs), batch_norm(f"{name}_fc_5", outputs)
        return lambda *x: fc_5(fc_4(jax.nn.relu(fc_2(fc_1(jnp.concatenate(x, -1))))))

    def model(x, y=None):
        z2_decoder = network("z2_decoder", latent + labels, narrow, 2 * latent)
        x_decoder = network("x_decoder", latent, wide, 2 * genes)
        theta = numpyro.param("inverse_dispersion", jnp.full(genes, 10.0), constraint=constraints.positive)
        with numpyro.plate("batch", batch), handlers.scale(scale=factor):
            z1 = numpyro.sample("z1", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            y = numpyro.sample("y", OneHotCategorical(logits=jnp.zeros(labels)), obs=y)
            loc, spread = jnp.split(z2_decoder(z1, y), 2, -1)
            z2 = numpyro.sample("z2", dist.Normal(loc, jax.nn.softplus(spread)).to_event(1))
            library = numpyro.sample("l", dist.LogNormal(jnp.full(1, 7.2), 0.333).to_event(1))
            gate_logits, mean = jnp.split(x_decoder(z2), 2, -1)
            mean = library * jax.nn.softmax(mean)
            counts = dist.NegativeBinomialLogits(theta, jnp.log(mean + epsilon) - jnp.log(theta + epsilon))
            zero_inflated = dist.ZeroInflatedDistribution(counts, gate_logits=gate_logits)
            numpyro.sample("x", zero_inflated.to_event(1), obs=x)

    def guide(x, y=None):
        z2l_encoder = network("z2l_encoder", genes, wide, 2 * (latent + 1))
        classifier = network("classifier", latent, narrow, labels)
        z1_encoder = network("z1_encoder", latent + labels, narrow, 2 * latent)
        with numpyro.plate("batch", batch), handlers.scale(scale=factor):
            loc, spread = jnp.split(z2l_encoder(jnp.log1p(x)), 2, -1)
            spread = jax.nn.softplus(spread)
            numpyro.sample("l", dist.LogNormal(loc[:, -1:], spread[:, -1:]).to_event(1))
            z2 = numpyro.sample("z2", dist.Normal(loc[:, :-1], spread[:, :-1]).to_event(1))
            types = OneHotCategorical(logits=classifier(z2))
            if y is None:
                y = numpyro.sample("y", types)
            else:
                numpyro.factor("classification_loss", -classifier_weight * types.log_prob(y))
            loc, spread = jnp.split(z1_encoder(z2, y), 2, -1)
            numpyro.sample("z1", dist.Normal(loc, jax.nn.softplus(spread)).to_event(1))

    return Pair("scanvi", model, guide, (np.random.default_rng(0).poisson(0.5, (batch, genes)),))
