"""A sum that remembers its terms."""

from numbers import Number

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.tree_util.register_pytree_node_class
class Terms:
    """A number that is kept as the sum of the entries of several arrays.

    Log densities are such sums, over sites and over independent elements. An expectation that is handed the sum whole
    must credit every random choice with all of it; kept apart, each choice is credited with what depends on it. Sums,
    differences and multiples stay apart; any other operation of ``jax.numpy`` sees the total, and so does ``array + terms`` with
    the array first: right, but the credit is lost.

    Args:
        arrays: the terms, of any shapes.
        ranks, baselines: set by ``jax.tree`` and by ``with_baseline``.
    """

    def __init__(self, *arrays, ranks=None, baselines=None):
        self.arrays = arrays
        # A batch axis that jax.vmap adds in front is not summed over.
        self.ranks = tuple(jnp.ndim(a) for a in arrays) if ranks is None else ranks
        self.baselines = ({},) * len(arrays) if baselines is None else baselines

    def tree_flatten(self):
        return (self.arrays, self.baselines), self.ranks

    @classmethod
    def tree_unflatten(cls, ranks, children):
        arrays, baselines = children
        return cls(*arrays, ranks=ranks, baselines=baselines)

    def total(self) -> Float[Array, "..."]:
        """The sum of all terms; batch axes that ``jax.vmap`` added stay."""
        sums = (jnp.sum(a, axis=tuple(range(-r, 0))) for a, r in zip(self.arrays, self.ranks, strict=True))
        return sum(sums, start=jnp.zeros(()))

    def __jax_array__(self):
        return self.total()

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.total(), dtype)

    def __float__(self):
        return float(self.total())

    def __repr__(self):
        shapes = ", ".join(str(jnp.shape(a)) for a in self.arrays)
        return f"Terms of shapes {shapes}" if shapes else "Terms(0)"

    @property
    def shape(self):
        return jax.eval_shape(self.total).shape

    @property
    def dtype(self):
        return jax.eval_shape(self.total).dtype

    def _map(self, function):
        return Terms(
            *map(function, self.arrays),
            ranks=self.ranks,
            baselines=jax.tree.map(function, self.baselines),
        )

    def __neg__(self):
        return self._map(jnp.negative)

    def __add__(self, other):
        if not isinstance(other, Terms):
            if isinstance(other, Number) and other == 0:  # as sum() starts
                return self
            if jnp.ndim(other):
                return self.total() + other
            other = Terms(jnp.asarray(other))
        return Terms(
            *self.arrays,
            *other.arrays,
            ranks=self.ranks + other.ranks,
            baselines=self.baselines + other.baselines,
        )

    __radd__ = __add__

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return -self + other

    def __mul__(self, factor):
        if isinstance(factor, Terms) or jnp.ndim(factor):
            return self.total() * jnp.asarray(factor)
        return self._scaled(lambda a: a * factor, factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor):
        if isinstance(divisor, Terms) or jnp.ndim(divisor):
            return self.total() / jnp.asarray(divisor)
        return self._scaled(lambda a: a / divisor, divisor)

    def _scaled(self, function, by):
        scaled = self._map(function)
        # What is no plain number may depend on the choice that a baseline must not depend on.
        if not isinstance(by, Number | np.ndarray):
            scaled.baselines = ({},) * len(self.arrays)
        return scaled

    def __rtruediv__(self, dividend):
        return dividend / self.total()

    def __pow__(self, exponent):
        return self.total() ** exponent
