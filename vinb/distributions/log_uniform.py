"""The improper law that is uniform in the logarithm of the absolute value."""

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints


class ImproperLogUniform(dist.Distribution):
    """Density ``1 / |x|`` on the real line (kingma2015variational, section 3.3). It cannot be normalised, nor sampled.

    Unlike ``numpyro.distributions.LogUniform`` it has no ends and two signs.
    """

    support = constraints.real

    def __init__(self, *, validate_args: bool | None = None):
        super().__init__(validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        raise NotImplementedError(
            "ImproperLogUniform has no finite mass and cannot be sampled; use it as a prior's density alone"
        )

    def log_prob(self, value):
        return -jnp.log(jnp.abs(value))
