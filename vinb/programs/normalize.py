"""Turn an unnormalised program into a distribution: the law of what an inference algorithm returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from vinb.estimators.checks import check_count
from vinb.estimators.frames import replicate
from vinb.estimators.strategies import Enumerate, Strategy
from vinb.estimators.terms import Terms
from vinb.programs.simulate import (
    Simulation,
    StochasticProgram,
    check_unscaled,
    hidden,
    scalar,
    simulate,
    unscaled_log_density,
)


@dataclass(frozen=True)
class SIR:
    """Sampling importance resampling: draw N values from ``proposal``, return one with probability proportional to its weight.

    Args:
        proposal: NumPyro program with the target's latent sites and arguments.
        num_particles: N; with one it is the proposal itself.
        index: how the choice among the particles is differentiated; ``Enumerate()`` sums over it.
    """

    proposal: Callable
    num_particles: int
    index: Strategy = field(default_factory=Enumerate)

    def __post_init__(self):
        check_count(self.num_particles)


def importance(proposal: Callable) -> SIR:
    """Importance sampling with one particle: the values are the proposal's."""
    return SIR(proposal, 1)


class Normalized(StochasticProgram):
    """See :func:`normalize`."""

    def __init__(self, program, algorithm):
        self.program, self.algorithm = program, algorithm

    def simulate(self, *args, **kwargs) -> Simulation:
        values, log_targets, log_weights = self._particles(self.algorithm.num_particles, args, kwargs)
        if self.algorithm.num_particles == 1:
            index = 0
        else:
            choice = dist.Categorical(logits=log_weights)
            with hidden():
                index = numpyro.sample("sir_index", choice, infer={"gradient": self.algorithm.index})
        log_evidence = logsumexp(log_weights) - jnp.log(self.algorithm.num_particles)
        return Simulation(
            jax.tree.map(lambda a: a[index], values), Terms(log_targets[index]) - log_evidence, {}
        )

    def log_density(self, values: dict[str, Any], *args, **kwargs) -> Terms:
        log_target = unscaled_log_density(self.program, values, *args, **kwargs)
        log_proposal = unscaled_log_density(self.algorithm.proposal, values, *args, **kwargs)
        first = scalar(log_target - log_proposal)[None]
        if self.algorithm.num_particles > 1:
            _, _, others = self._particles(self.algorithm.num_particles - 1, args, kwargs)
            first = jnp.concatenate([first, others])
        return log_target - (logsumexp(first) - jnp.log(self.algorithm.num_particles))

    def _particles(self, num, args, kwargs):
        def one():
            q = simulate(self.algorithm.proposal, *args, **kwargs)
            values = {name: value for name, value in q.values.items() if name not in q.auxiliary}
            check_unscaled(q.trace)
            log_target = scalar(unscaled_log_density(self.program, values, *args, **kwargs))
            return values, log_target, log_target - scalar(q.log_density)

        return replicate(one, num)()


def normalize(program: Callable, algorithm: SIR) -> Normalized:
    """The law of what ``algorithm`` returns when it is aimed at ``program`` (becker2024programmable; lew2023stochastic).

    Args:
        program: a NumPyro program with observed sites: an unnormalised density over its latent sites.
        algorithm: :class:`SIR` or :func:`importance`.

    Returns:
        A program for ``simulate`` and ``log_density``. With ``SIR`` of N particles as a guide, the evidence lower
        bound is the importance-weighted bound of N, draw by draw.

    Raises:
        TypeError: if ``algorithm`` is neither.
    """
    if not isinstance(algorithm, SIR):
        raise TypeError(
            f"algorithm must be SIR(proposal, num_particles) or importance(proposal), got {algorithm!r}"
        )
    return Normalized(program, algorithm)
