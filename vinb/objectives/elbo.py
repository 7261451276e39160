"""The evidence lower bound of a NumPyro model and guide."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Kumaraswamy

from vinb.analysis import dependence
from vinb.analysis.domains import masks_of
from vinb.analysis.sites import divergence_of
from vinb.estimators import Expectation, Terms, expectation
from vinb.estimators.elements import unwrap
from vinb.estimators.frames import current
from vinb.estimators.run import Run
from vinb.estimators.surrogates import constants
from vinb.programs import Simulation, StochasticProgram, detached, latent_sites, log_density, simulate
from vinb.programs.simulate import site_terms, trace_at

KL = Literal["auto", "analytic", "monte-carlo", "sticking-the-landing"]


def elbo(
    model: Callable, guide: Callable, *, kl: KL = "auto", num_particles: int = 1, has_state: bool = False
) -> Expectation:
    """Evidence lower bound ``E_q[log p(x, z) - log q(z)]``, to be maximised (kingma2014aevb, equations 2 and 3).

    Args:
        model: NumPyro program of ``p(x, z)``; its observed sites must be given by its arguments.
        guide: NumPyro program of ``q(z)`` with the model's latent site names and arguments; how each of its sites is
            differentiated is the site's strategy, see :func:`vinb.estimators.expectation`.
        kl: how the divergence from the prior is estimated.
            ``"auto"``: site by site in closed form (kingma2014aevb, equation 7) where NumPyro knows it and where no
            parameter of the site's prior depends on the site or on what the guide draws from it; by the samples
            otherwise. ``explain`` reports the choice.
            ``"analytic"``: the same, but an error where the closed form is not to be had.
            ``"monte-carlo"``: by the same samples as the rest (kingma2014aevb, equation 6).
            ``"sticking-the-landing"``: value as ``"monte-carlo"``, gradient without the explicit score of ``q``, whose
            expectation is zero (roeder2017stl); zero variance where a reparameterised ``q`` is the exact posterior.
        num_particles: runs that are averaged (kingma2014aevb's L).
        has_state: see :func:`vinb.estimators.expectation`.

    Returns:
        A function ``(params, key, *args)`` to an unbiased estimate of the bound, summed over the data in ``args``; its
        gradient is an unbiased estimate of the bound's gradient. ``params`` holds the unconstrained parameters of both
        programs (``vinb.estimators.init((model, guide), key, *args)``).

    Raises:
        ValueError: for an unknown ``kl`` or a ``num_particles`` below one; and, when called, for sites that model and guide do
            not share, for strategies that do not fit, and under ``"analytic"`` where there is no closed form.
    """
    kinds = ("analytic", "auto", "monte-carlo", "sticking-the-landing")
    if kl not in kinds:
        raise ValueError(f"kl must be one of {', '.join(map(repr, kinds))}, got {kl!r}")

    def program(*args, **kwargs):
        q = simulate(guide, *args, **kwargs)
        if isinstance(model, StochasticProgram) or isinstance(guide, StochasticProgram):
            if kl == "analytic":
                raise ValueError(
                    "kl='analytic': the density of marginal and normalize has no closed form; pass 'auto'"
                )
            return log_density(model, model_values(q), *args, **kwargs) - _log_guide(
                guide, q, kl, args, kwargs
            )
        p = trace_at(model, model_values(q), *args, **kwargs)
        divergences = {}
        if kl in ("auto", "analytic"):
            divergences = _divergences(model, guide, q, p, args, kwargs, required=kl == "analytic")
        log_p = sum((site_terms(p[n]) for n in _sampled(p) if n not in divergences), start=Terms())
        if kl == "sticking-the-landing":
            return log_p - _log_guide(guide, q, kl, args, kwargs)
        log_q = sum(
            (site_terms(q.trace[n]) for n in _sampled(q.trace) if n not in divergences), start=Terms()
        )
        return log_p - log_q - sum(divergences.values(), start=Terms())

    return expectation(program, num_particles=num_particles, has_state=has_state)


def model_values(q: Simulation) -> dict:
    """What a guide drew for its model: its latent sites without auxiliary ones."""
    return {name: value for name, value in q.values.items() if name not in q.auxiliary}


def _sampled(trace):
    return [name for name, site in trace.items() if site["type"] == "sample"]


def _log_guide(guide, q, kl, args, kwargs):
    if kl != "sticking-the-landing":
        return q.log_density
    if isinstance(guide, StochasticProgram):
        raise ValueError(
            "kl='sticking-the-landing' needs a guide with a known density; pass 'auto' for marginal and normalize"
        )
    args, kwargs = constants((args, kwargs))
    with detached():
        return log_density(guide, q.values, *args, **kwargs)


# ---- closed forms


def _divergences(model, guide, q, p, args, kwargs, required):
    """Divergences in closed form by site, where they may take the place of the samples' log ratio."""
    found, reasons, feedback = {}, {}, None
    for name in model_values(q):
        prior, posterior = p[name], q.trace[name]
        if not _same_scale(prior["scale"], posterior["scale"]):
            reasons[name] = "model and guide scale it differently"
            continue
        if not _same_masks(prior["fn"], posterior["fn"]):
            reasons[name] = "model and guide are not known to mask it alike"
            continue
        shapes = [(site["fn"].batch_shape, site["fn"].event_shape) for site in (prior, posterior)]
        if shapes[0] != shapes[1]:
            reasons[name] = f"it has shapes {shapes[0]} in the model and {shapes[1]} in the guide"
            continue
        if jnp.shape(posterior["value"]) != posterior["fn"].shape():
            reasons[name] = "it has a sample_shape of its own"
            continue
        if isinstance(unwrap(posterior["fn"]), Kumaraswamy):
            reasons[name] = "NumPyro's divergence from Kumaraswamy is a truncated series"
            continue
        try:
            divergence = divergence_of(posterior["fn"], prior["fn"])
        except NotImplementedError:
            kinds = [type(site["fn"]).__name__ for site in (posterior, prior)]
            reasons[name] = f"NumPyro has no divergence from {kinds[0]} to {kinds[1]}"
            continue
        # In a loop of the guide a step may be drawn from the step that comes after it in the model.
        if "_drawn_in_loop" in posterior["infer"] or not _in_order(name, q.trace, p):
            feedback = _feedback(model, guide, args, kwargs) if feedback is None else feedback
            if feedback[name]:
                reasons[name] = (
                    f"the model's {name!r} depends on {feedback[name]!r}, which the guide draws from it"
                )
                continue
        if prior["scale"] is not None:
            divergence = prior["scale"] * divergence
        found[name] = Terms(divergence)
    if required and reasons:
        name, reason = next(iter(reasons.items()))
        raise ValueError(
            f"kl='analytic' is not possible at site {name!r}: {reason}. Pass kl='auto' or 'monte-carlo'"
        )
    notes = {name: "divergence in closed form" for name in found}
    notes |= {name: f"divergence by samples: {reason}" for name, reason in reasons.items()}
    if current() is not None:
        current().notes.update(notes)
    return found


def _same_scale(first, second):
    return _same(1.0 if first is None else first, 1.0 if second is None else second)


def _same_masks(first, second):
    first, second = masks_of(first), masks_of(second)
    return len(first) == len(second) and all(map(_same, first, second))


def _same(first, second):
    """Are two numbers or arrays known to be equal?"""
    if first is second:
        return True
    if isinstance(first, jax.core.Tracer) or isinstance(second, jax.core.Tracer):
        return False
    return np.array_equal(*np.broadcast_arrays(first, second))


def _in_order(name, guide_trace, model_trace):
    """Does the guide draw before ``name`` all that the model does? Then nothing that follows from it can reach its prior."""
    before = {
        label: _before(name, trace) for label, trace in (("guide", guide_trace), ("model", model_trace))
    }
    return before["model"] <= before["guide"]


def _before(name, trace):
    names = list(latent_sites(trace))
    return set(names[: names.index(name)])


def _feedback(model, guide, args, kwargs):
    """For each latent site one that its prior depends on although the guide draws it from the site, or None."""
    outer, sites = current(), {}

    def traced():
        run = Run("analyse", outer.params, outer.key, constrained=outer.constrained)
        with run:
            q = simulate(guide, *args, **kwargs)
            p = trace_at(model, model_values(q), *args, **kwargs)
        sites.update({identity: site.name for identity, site in run.sites.items()})
        own = {name: (record["log_prob"], record["drawn"]) for name, record in run.records.items()}
        priors = {name: _numbers(p[name]["fn"]) for name in model_values(q)}
        return own, priors

    own, priors = dependence(traced)()
    result = {}
    for name, arrays in priors.items():
        reached = set().union(*(set(a) for a in arrays))
        pending = list(reached)
        while pending:  # up to everything that the prior's parameters come from
            new = set().union(*own.get(pending.pop(), ())) - reached
            reached |= new
            pending.extend(new)
        if name in {sites[identity] for identity in reached}:
            direct = sorted({sites[identity] for a in arrays for identity in a})
            result[name] = name if name in direct else direct[0]
        else:
            result[name] = None
    return result


def _numbers(fn):
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(fn)]
