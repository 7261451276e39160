"""Categorical distribution over one-hot vectors."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.util import lazy_property, validate_sample


class OneHotCategorical(dist.Distribution):
    """One of ``K`` categories, as a vector with a one at the category drawn and zeros elsewhere.

    Unlike the integer of ``numpyro.distributions.Categorical``, the vector can be relaxed and differentiated through:
    ``log_prob`` is linear in it, ``sum_k value_k log p_k``.

    Args:
        probs: probabilities, shape ``[*batch, K]``, each vector summing to one; or
        logits: unnormalised log probabilities of that shape.

    Raises:
        ValueError: unless exactly one of the two is given, with at least one axis.
    """

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.multinomial(1)
    has_enumerate_support = True
    pytree_data_fields = ("_given",)
    pytree_aux_fields = ("_name",)

    def __init__(
        self,
        probs: Float[Array, "*batch categories"] | None = None,
        logits: Float[Array, "*batch categories"] | None = None,
        *,
        validate_args: bool | None = None,
    ):
        if (probs is None) == (logits is None):
            raise ValueError("pass exactly one of probs and logits")
        self._name, self._given = ("probs", probs) if logits is None else ("logits", logits)
        shape = jnp.shape(self._given)
        if not shape:
            raise ValueError(f"{self._name} must have the categories as its last axis, got a number")
        setattr(self, self._name, self._given)  # where NumPyro looks for what to validate
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    # Lazy properties are what NumPyro takes for derived parameters: it does not look for them when it flattens the distribution.
    @lazy_property
    def probs(self) -> Float[Array, "*batch categories"]:
        """Probabilities."""
        return self._given if self._name == "probs" else jax.nn.softmax(self._given)

    @lazy_property
    def logits(self) -> Float[Array, "*batch categories"]:
        """Log probabilities as given, or the logarithm of ``probs``: minus infinity for an impossible category."""
        return self._given if self._name == "logits" else jnp.log(self._given)

    @property
    def log_probs(self) -> Float[Array, "*batch categories"]:
        """Normalised log probabilities."""
        return jax.nn.log_softmax(self.logits)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """One-hot vectors of the parameters' floating type."""
        category = jax.random.categorical(key, self.logits, shape=tuple(sample_shape) + self.batch_shape)
        return jax.nn.one_hot(category, self.event_shape[0], dtype=jnp.result_type(float, self.logits))

    @validate_sample
    def log_prob(self, value: Float[Array, "... categories"]) -> Float[Array, "..."]:
        """``sum_k value_k log p_k``, an impossible category counting only where its entry is not zero."""
        log_probs = self.log_probs
        return (value * jnp.where(jnp.isneginf(log_probs) & (value == 0), 0.0, log_probs)).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Float[Array, "categories ..."]:
        """All ``K`` vectors along a new first axis, over batch axes of size one unless ``expand``."""
        size = self.event_shape[0]
        values = jnp.eye(size, dtype=jnp.result_type(float, self.logits))
        values = values.reshape((size,) + (1,) * len(self.batch_shape) + (size,))
        return jnp.broadcast_to(values, (size, *self.batch_shape, size)) if expand else values

    def expand(self, batch_shape: tuple[int, ...]) -> "OneHotCategorical":
        """The same distribution with its parameters broadcast.

        NumPyro's wrapper for expanded distributions cannot enumerate vectors.
        """
        given = jnp.broadcast_to(self._given, (*batch_shape, *self.event_shape))
        return OneHotCategorical(**{self._name: given})

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy in nats."""
        log_probs = self.log_probs
        return -(jnp.exp(log_probs) * jnp.where(jnp.isneginf(log_probs), 0.0, log_probs)).sum(-1)

    @property
    def mean(self) -> Float[Array, "*batch categories"]:
        """The probabilities."""
        return jnp.asarray(self.probs)

    @property
    def variance(self) -> Float[Array, "*batch categories"]:
        """Variance of each entry."""
        return self.mean * (1 - self.mean)
