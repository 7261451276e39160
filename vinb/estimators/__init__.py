"""How to differentiate an expectation: strategies per sample site, baselines, and measured variances."""

from vinb.estimators.baselines import Constant, LeaveOneOut, MovingAverage, Network
from vinb.estimators.expectation import Expectation, expectation, with_baseline
from vinb.estimators.explain import Comparison, explain, gradient_variance
from vinb.estimators.measure_valued import Derivative
from vinb.estimators.moments import Moments, moments
from vinb.estimators.sites import Params, constrain, init, site_keys, unconstrained_params
from vinb.estimators.strategies import (
    Auto,
    Enumerate,
    GumbelSoftmax,
    Inline,
    MeasureValued,
    Pathwise,
    PathwiseWithBoundaries,
    ScoreFunction,
    StraightThrough,
    Strategy,
    strategies,
)
from vinb.estimators.surrogates import score_function, straight_through
from vinb.estimators.terms import Terms

__all__ = [
    "Auto",
    "Comparison",
    "Constant",
    "Derivative",
    "Enumerate",
    "Expectation",
    "GumbelSoftmax",
    "Inline",
    "LeaveOneOut",
    "MeasureValued",
    "Moments",
    "MovingAverage",
    "Network",
    "Params",
    "Pathwise",
    "PathwiseWithBoundaries",
    "ScoreFunction",
    "StraightThrough",
    "Strategy",
    "Terms",
    "constrain",
    "expectation",
    "explain",
    "gradient_variance",
    "init",
    "moments",
    "score_function",
    "site_keys",
    "straight_through",
    "strategies",
    "unconstrained_params",
    "with_baseline",
]
