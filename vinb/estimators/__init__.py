"""How to differentiate an expectation: parameters and keys of programs, surrogate costs, and measured moments of estimators."""

from vinb.estimators.moments import Moments, moments
from vinb.estimators.sites import Params, constrain, init, site_keys, unconstrained_params
from vinb.estimators.surrogates import score_function, straight_through

__all__ = [
    "Moments",
    "Params",
    "constrain",
    "init",
    "moments",
    "score_function",
    "site_keys",
    "straight_through",
    "unconstrained_params",
]
