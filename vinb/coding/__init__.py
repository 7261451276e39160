"""What data and weights cost to send: description lengths, what weights can be left out, how much evidence a difference is.

Design notes. Functions of arrays, or of NumPyro distributions; nothing here knows of networks (``vinb.models.bayesian`` applies it
to them). Lengths are in nats until :func:`bits`.
"""

from vinb.coding.description import (
    BayesFactor,
    DescriptionLength,
    MixtureCode,
    bayes_factor,
    bits,
    description_length,
    misfit_length,
    mixture_code,
    value_length,
)
from vinb.coding.pruning import (
    SAFE_THRESHOLD,
    PruningPoint,
    decibels,
    keep,
    pruning_curve,
    relative_density,
    signal_to_noise,
    threshold,
)

__all__ = [
    "SAFE_THRESHOLD",
    "BayesFactor",
    "DescriptionLength",
    "MixtureCode",
    "PruningPoint",
    "bayes_factor",
    "bits",
    "decibels",
    "description_length",
    "keep",
    "misfit_length",
    "mixture_code",
    "pruning_curve",
    "relative_density",
    "signal_to_noise",
    "threshold",
    "value_length",
]
