"""Run a NumPyro program forwards, or score given values with it: the first two of the verbs that objectives are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.handlers import substitute
from numpyro.infer.util import compute_log_probs
from numpyro.primitives import Messenger

from vinb.estimators.sites import Params, site_keys, unconstrained_params


class Simulation(NamedTuple):
    """A run of a program: its latent values by site, its log density (scales and observed sites included) and its NumPyro trace."""

    values: dict[str, Array]
    log_density: Float[Array, ""]
    trace: dict[str, Any]


def latent_sites(trace: dict[str, Any]) -> dict[str, Any]:
    """The sites of a NumPyro trace that are random and not observed."""
    return {
        name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]
    }


def site_log_density(site: dict[str, Any]) -> Float[Array, ""]:
    """Log density of one sample site of a trace at its value, summed and scaled (``numpyro.handlers.scale``, plates)."""
    log_prob = site["fn"].log_prob(site["value"])
    return jnp.sum(log_prob if site["scale"] is None else site["scale"] * log_prob)


def simulate(program: Callable, params: Params, key: jax.Array, *args, **kwargs) -> Simulation:
    """Run ``program`` with fresh randomness.

    Args:
        program: a NumPyro program.
        params: unconstrained values of its param sites (entries for other programs are ignored).
        key: typed PRNG key; each site draws with its own fold of it.
        args, kwargs: the program's arguments.

    Returns:
        A :class:`Simulation`.
    """
    keyed = site_keys(unconstrained_params(program, params=params), key=key)
    log_probs, trace = compute_log_probs(keyed, args, kwargs, {})
    values = {name: site["value"] for name, site in latent_sites(trace).items()}
    return Simulation(values, sum(log_probs.values(), start=0.0), trace)


def log_density(
    program: Callable, params: Params, values: dict[str, Array], *args, **kwargs
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Log density of ``program`` at the latent ``values``, and the trace it was read from.

    Args:
        program, params, args, kwargs: as in :func:`simulate`.
        values: a value for each latent site.

    Raises:
        ValueError: if ``values`` lacks a latent site of the program or has one that it does not (an observed one, say), if
            ``params`` lacks a param site, or if a plate would subsample at random.
    """
    forced = _Forced(substitute(unconstrained_params(program, params=params), data=values), values=values)
    log_probs, trace = compute_log_probs(forced, args, kwargs, {})
    unknown = sorted(set(values) - set(latent_sites(trace)))
    if unknown:
        raise ValueError(
            f"values has {unknown}, but the program has no such latent sites; it has {sorted(latent_sites(trace))}. "
            "A model and its guide must use the same names, and a guide must not sample what the model observes."
        )
    return sum(log_probs.values(), start=0.0), trace


class _Forced(Messenger):
    """Refuse what was given no value, naming the site, instead of NumPyro's complaint about a missing seed."""

    def __init__(self, fn, *, values):
        self.values = values
        super().__init__(fn)

    def process_message(self, msg):
        if msg["value"] is not None or msg["type"] not in ("sample", "plate"):
            return
        if msg["type"] == "plate":
            raise ValueError(
                f"plate {msg['name']!r} would subsample at random while a density is computed; pass the minibatch as an "
                "argument of the program instead, and scale its sites with numpyro.handlers.scale if they stand for more data."
            )
        if msg["name"] not in self.values:
            raise ValueError(
                f"values has no entry for the latent site {msg['name']!r}; it has {sorted(self.values)}. "
                "A guide must sample every latent site of its model."
            )
