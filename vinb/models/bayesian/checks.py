"""Checks and small functions that the files of this room share."""

import jax.numpy as jnp
import numpy as np


def inverse_softplus(y: float) -> float:
    """The ``x`` with ``log(1 + exp(x)) = y``."""
    return y + jnp.log(-jnp.expm1(-y))


def check_shapes_broadcast(name: str, shape: tuple, other: str, target: tuple) -> None:
    """Raise ValueError unless ``shape`` broadcasts to ``target``."""
    try:
        fits = np.broadcast_shapes(shape, target) == tuple(target)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(shape)}, which does not broadcast to that of {other}, {tuple(target)}"
        )
