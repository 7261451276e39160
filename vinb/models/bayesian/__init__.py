"""Bayesian neural networks: posteriors and priors of weights, layers and the ways to draw their outputs, the cost of weights
in nats.

Design notes. Posteriors stand in a network where its arrays would (``posteriors``). A prior is not part of a layer: one prior often
serves a whole network and may be fitted to all of its posteriors, so ``complexity(network, prior)`` brings the two together,
and fixed priors have no leaves that an optimiser could move.
"""

from vinb.models.bayesian.complexity import (
    Complexity,
    complexity,
    kl_log_uniform,
    kl_log_uniform_exact,
    kl_normal_laplace,
    kl_weights,
    warm_up,
)
from vinb.models.bayesian.layers import BayesianConv, BayesianDense, BayesianLSTMCell, BayesianMLP
from vinb.models.bayesian.posteriors import (
    CorrelatedNormal,
    Delta,
    DiagonalNormal,
    Masked,
    MultiplicativeNormal,
    Posterior,
    is_posterior,
    mask,
    mean_weights,
    posteriors,
    project,
    projected,
    sample_weights,
    signal_to_noise,
)
from vinb.models.bayesian.priors import (
    EmpiricalLaplace,
    EmpiricalNormal,
    LaplacePrior,
    LearnedMixture,
    LearnedNormal,
    LogUniformPrior,
    NormalPrior,
    Prior,
    ScaleMixturePrior,
    UniformPrior,
)
from vinb.models.bayesian.propagation import (
    MomentTable,
    dense_moments,
    quadrature_moments,
    relu_moments,
    threshold_moments,
)

__all__ = [
    "BayesianConv",
    "BayesianDense",
    "BayesianLSTMCell",
    "BayesianMLP",
    "Complexity",
    "CorrelatedNormal",
    "Delta",
    "DiagonalNormal",
    "EmpiricalLaplace",
    "EmpiricalNormal",
    "LaplacePrior",
    "LearnedMixture",
    "LearnedNormal",
    "LogUniformPrior",
    "Masked",
    "MomentTable",
    "MultiplicativeNormal",
    "NormalPrior",
    "Posterior",
    "Prior",
    "ScaleMixturePrior",
    "UniformPrior",
    "complexity",
    "dense_moments",
    "is_posterior",
    "kl_log_uniform",
    "kl_log_uniform_exact",
    "kl_normal_laplace",
    "kl_weights",
    "mask",
    "mean_weights",
    "posteriors",
    "project",
    "projected",
    "quadrature_moments",
    "relu_moments",
    "sample_weights",
    "signal_to_noise",
    "threshold_moments",
    "warm_up",
]
