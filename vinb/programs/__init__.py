"""Verbs on NumPyro programs, for use in the program of an expectation.

``simulate`` runs a program, ``log_density`` scores values with it, ``marginal`` integrates some of its sites out,
``normalize`` makes it a distribution through an inference algorithm. ``replicate`` runs a program several times at
once, ``detached`` cuts gradients, ``evaluate`` runs a program for its
result.
"""

from vinb.estimators.frames import detached, evaluate, replicate
from vinb.programs.marginal import marginal
from vinb.programs.normalize import SIR, importance, normalize
from vinb.programs.simulate import Simulation, StochasticProgram, latent_sites, log_density, scalar, simulate

__all__ = [
    "SIR",
    "Simulation",
    "StochasticProgram",
    "detached",
    "evaluate",
    "importance",
    "latent_sites",
    "log_density",
    "marginal",
    "normalize",
    "replicate",
    "scalar",
    "simulate",
]
