"""Checks of arguments that several rooms share."""

from numbers import Integral


def check_count(value: int, name: str = "num_particles") -> None:
    """Raise ValueError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
