"""Integrate some sites of a program out, by importance sampling."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import logsumexp

from vinb.estimators.checks import check_count
from vinb.estimators.frames import replicate
from vinb.estimators.terms import Terms
from vinb.programs.simulate import (
    Simulation,
    StochasticProgram,
    check_unscaled,
    latent_sites,
    log_density,
    scalar,
    simulate,
    site_terms,
    trace_with,
    unscaled_log_density,
)


class Marginal(StochasticProgram):
    """See :func:`marginal`."""

    def __init__(self, program, keep, proposal, num_particles):
        self.program, self.keep, self.proposal, self.num_particles = program, keep, proposal, num_particles

    def simulate(self, *args, **kwargs) -> Simulation:
        joint = simulate(self.program, *args, **kwargs)
        self._check(joint.trace)
        kept = self._kept(joint.values)
        auxiliary = {name: value for name, value in joint.values.items() if name not in self.keep}
        if self.proposal is None:
            first = self._without_prior(joint.trace)
        else:
            # The auxiliaries that came with the values are one of the particles: that makes the reciprocal unbiased.
            first = joint.log_density - self._density(self.proposal, auxiliary, kept, *args, **kwargs)
        log_weights = scalar(first)[None]
        if self.num_particles > 1:
            others = self._log_weights(kept, self.num_particles - 1, args, kwargs)
            log_weights = jnp.concatenate([log_weights, others])
        return Simulation(kept, Terms(logsumexp(log_weights) - jnp.log(self.num_particles)), {})

    def log_density(self, values: dict[str, Any], *args, **kwargs) -> Terms:
        kept = self._kept(values)
        if unknown := sorted(set(values) - set(kept)):
            raise ValueError(f"values has {unknown}, but the marginal keeps {sorted(kept)} alone")
        log_weights = self._log_weights(kept, self.num_particles, args, kwargs)
        return Terms(logsumexp(log_weights) - jnp.log(self.num_particles))

    def _log_weights(self, kept, num, args, kwargs):
        def one():
            if self.proposal is None:
                trace = trace_with(self.program, kept, *args, **kwargs)
                self._check(trace)
                return scalar(self._without_prior(trace))
            r = simulate(self.proposal, kept, *args, **kwargs)
            self._check(r.trace)
            joint = self._density(self.program, {**kept, **r.values}, *args, **kwargs)
            return scalar(joint - r.log_density)

        return replicate(one, num, name="auxiliary")()

    def _check(self, trace):
        if self.num_particles > 1:  # one particle is a difference, in which a scale is just a factor
            check_unscaled(trace)

    def _density(self, program, values, *args, **kwargs):
        density = log_density if self.num_particles == 1 else unscaled_log_density
        return density(program, values, *args, **kwargs)

    def _without_prior(self, trace):
        """Log density of the kept and of the observed sites: the joint's over that of the others, which were drawn from it."""
        own = set(latent_sites(trace)) - set(self.keep)
        sites = (s for n, s in trace.items() if s["type"] == "sample" and n not in own)
        return sum(map(site_terms, sites), start=Terms())

    def _kept(self, values):
        missing = [name for name in self.keep if name not in values]
        if missing:
            raise ValueError(f"keep names {missing}, but the program's latent sites are {sorted(values)}")
        return {name: values[name] for name in self.keep}


def marginal(
    program: Callable,
    *,
    keep: Sequence[str],
    proposal: Callable | None = None,
    num_particles: int = 1,
) -> Marginal:
    """The law of the sites ``keep`` of ``program``, the others integrated out by importance sampling (becker2024programmable).

    Its density is estimated, without bias, by ``1/M sum_m p(x, u_m) / r(u_m | x)``.

    Args:
        program: a NumPyro program; without observed sites it is a distribution.
        keep: names of the latent sites to keep.
        proposal: NumPyro program ``r(u | x)`` of the other latent sites, called with the dict of kept values and then the
            program's arguments. None: run the program with the kept values in place, which proposes from the prior of the others.
        num_particles: M.

    Returns:
        A program for ``simulate`` and ``log_density``, and so a guide or model for the objectives.

    Raises:
        ValueError: for a ``num_particles`` below one; when run, for a name in ``keep`` that is no latent site, and for a proposal
            with other sites than those to be integrated out.
    """
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if not keep:
        raise ValueError("keep is empty; name at least one latent site of the program")
    check_count(num_particles)
    return Marginal(program, keep, proposal, num_particles)
