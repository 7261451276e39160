"""Objectives over a NumPyro model and guide, each a function ``(params, key, *args)`` to a scalar that is to be MAXIMISED."""

from vinb.objectives.elbo import elbo
from vinb.objectives.iwelbo import iwelbo
from vinb.objectives.wake_sleep import wake_sleep

__all__ = ["elbo", "iwelbo", "wake_sleep"]
