"""Run a NumPyro program forwards, or score given values with it: the first two of the verbs that objectives are made of.

Design notes. The verbs are called inside the program of a ``vinb.estimators.expectation``, which supplies randomness
and parameters; their sites do not show to what is outside but the expectation. Outside of one, NumPyro's handlers
``seed`` and ``substitute`` do.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions.util import is_identically_one
from numpyro.primitives import Messenger

from vinb.estimators.elements import site_log_densities
from vinb.estimators.frames import current
from vinb.estimators.terms import Terms


class Simulation(NamedTuple):
    """A run of a program: its latent values by site, its log density (scales and observed sites included) and its NumPyro trace.

    ``auxiliary`` names the latent sites that belong to the program alone (``infer={"is_auxiliary": True}``, as the
    joint site of NumPyro's automatic guides): a model need not have them.
    """

    values: dict[str, Array]
    log_density: Terms
    trace: dict[str, Any]
    auxiliary: frozenset[str] = frozenset()


class StochasticProgram:
    """A program whose density is only estimated: what ``marginal`` and ``normalize`` return.

    The two methods keep one contract each (lew2023stochastic, definitions 3.1 and 3.2): ``log_density`` returns
    ``log w`` with
    ``E[w] = p(values)``; ``simulate`` returns values and a ``log_density`` ``log w`` with
    ``E[1 / w given values] = 1 / p(values)``. With them bounds stay bounds: a guide that is simulated and a model that
    is scored both err on the low side.
    """

    def simulate(self, *args, **kwargs) -> Simulation:
        raise NotImplementedError

    def log_density(self, values: dict[str, Array], *args, **kwargs) -> Terms:
        raise NotImplementedError


def latent_sites(trace: dict[str, Any]) -> dict[str, Any]:
    """The sites of a NumPyro trace that are random and not observed."""
    return {
        name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]
    }


def site_terms(site: dict[str, Any]) -> Terms:
    """What one sample site of a trace adds to the log density at its value (scales, masks and plates included)."""
    return Terms(site_log_densities(site["fn"], site["value"], site["scale"]))


def trace_log_density(trace: dict[str, Any]) -> Terms:
    """Log density of a trace: the sum over its sample sites."""
    return sum((site_terms(s) for s in trace.values() if s["type"] == "sample"), start=Terms())


def simulate(program: Callable, *args, **kwargs) -> Simulation:
    """Run ``program`` with fresh randomness.

    Args:
        program: a NumPyro program, or the result of ``marginal`` or ``normalize``.
        args, kwargs: the program's arguments.

    Returns:
        A :class:`Simulation`; for ``marginal`` and ``normalize`` its ``log_density`` is an estimate, unbiased for the
        reciprocal.
    """
    if isinstance(program, StochasticProgram):
        return program.simulate(*args, **kwargs)
    with hidden(), handlers.trace() as trace:
        program(*args, **kwargs)
    latent = latent_sites(trace)
    values = {name: site["value"] for name, site in latent.items()}
    auxiliary = frozenset(name for name, site in latent.items() if site["infer"].get("is_auxiliary"))
    return Simulation(values, trace_log_density(trace), trace, auxiliary)


def log_density(program: Callable, values: dict[str, Array], *args, **kwargs) -> Terms:
    """Log density of ``program`` at the latent ``values``.

    Args:
        program: as in :func:`simulate`.
        values: a value for each latent site.
        args, kwargs: the program's arguments.

    Returns:
        The sum of the log densities of all sample sites, kept apart; for ``marginal`` and ``normalize`` the logarithm
        of an unbiased estimate of the density.

    Raises:
        ValueError: if ``values`` lacks a latent site of the program or has one that it does not (an observed one, say), or if a
            plate would subsample outside of an expectation.
    """
    if isinstance(program, StochasticProgram):
        return program.log_density(values, *args, **kwargs)
    return trace_log_density(trace_at(program, values, *args, **kwargs))


def unscaled_log_density(program: Callable, values: dict[str, Array], *args, **kwargs) -> Terms:
    """:func:`log_density` for use in a weight: refuses scaled sites, whose weights bound nothing."""
    if isinstance(program, StochasticProgram):
        return program.log_density(values, *args, **kwargs)
    trace = trace_at(program, values, *args, **kwargs)
    check_unscaled(trace)
    return trace_log_density(trace)


def check_unscaled(trace: dict[str, Any]) -> None:
    """Raise ValueError if a sample site of a trace is scaled."""
    for name, site in trace.items():
        if site["type"] == "sample" and site["scale"] is not None and not is_identically_one(site["scale"]):
            raise ValueError(
                f"site {name!r} has a scale of {site['scale']}: the logarithm of an average of scaled weights bounds nothing. "
                "Remove numpyro.handlers.scale or the subsampling plate, and scale the bound on the minibatch instead."
            )


def trace_at(program: Callable, values: dict[str, Array], *args, **kwargs) -> dict[str, Any]:
    """The NumPyro trace of ``program`` with its latent sites at ``values``; see :func:`log_density`."""
    with hidden(), handlers.trace() as trace, _forced(values=values), handlers.substitute(data=values):
        program(*args, **kwargs)
    latent = set(latent_sites(trace))
    if missing := latent - set(values):  # in a branch or a loop, where they were drawn
        raise ValueError(_missing(sorted(missing)[0], values))
    unknown = sorted(set(values) - latent)
    if unknown:
        raise ValueError(
            f"values has {unknown}, but the program has no such latent sites; it has {sorted(latent)}. "
            "A model and its guide must use the same names, and a guide must not sample what the model observes."
        )
    return trace


def trace_with(program: Callable, values: dict[str, Array], *args, **kwargs) -> dict[str, Any]:
    """The NumPyro trace of ``program`` with some latent sites at ``values`` and the others drawn."""
    with hidden(), handlers.trace() as trace, handlers.substitute(data=values):
        program(*args, **kwargs)
    return trace


def hidden():
    run = current()
    return contextlib.nullcontext() if run is None else run.scope()


class _forced(Messenger):
    """Refuse what was given no value, naming the site."""

    def __init__(self, fn=None, *, values):
        self.values = values
        super().__init__(fn)

    def process_message(self, msg):
        if msg["value"] is not None:
            return
        if msg["type"] == "plate" and current() is None:
            raise ValueError(
                f"plate {msg['name']!r} would subsample at random while a density is computed, and not what the values were drawn "
                "with; compute it within the program of an expectation, where a plate's name decides the subsample"
            )
        if msg["type"] == "sample" and msg["name"] not in self.values:
            raise ValueError(_missing(msg["name"], self.values))


def _missing(name, values):
    return (
        f"values has no entry for the latent site {name!r}; it has {sorted(values)}. "
        "A guide must sample every latent site of its model."
    )


def scalar(log_weight) -> Array:
    """A log density as one number: what nonlinear objectives work with."""
    return log_weight.total() if isinstance(log_weight, Terms) else jnp.asarray(log_weight)
