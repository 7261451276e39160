"""Objectives over a NumPyro model and guide, each a function ``(params, key, *args)`` to a scalar that is to be MAXIMISED.

They are programs over the verbs of ``vinb.programs``, made into functions by ``vinb.estimators.expectation``: read
them as models for your own. With :class:`SVILoss` each is a loss of ``numpyro.infer.SVI``.
"""

from vinb.objectives.elbo import elbo
from vinb.objectives.hierarchical import diwhvi, hvi, iwhvi
from vinb.objectives.importance import iwelbo, renyi
from vinb.objectives.svi import SVILoss
from vinb.objectives.symmetric import symmetric_kl, symmetric_kl_over_data
from vinb.objectives.wake import forward_kl, reweighted_wake_sleep, sleep, wake_phi, wake_sleep, wake_theta

__all__ = [
    "SVILoss",
    "diwhvi",
    "elbo",
    "forward_kl",
    "hvi",
    "iwelbo",
    "iwhvi",
    "renyi",
    "reweighted_wake_sleep",
    "sleep",
    "symmetric_kl",
    "symmetric_kl_over_data",
    "wake_phi",
    "wake_sleep",
    "wake_theta",
]
