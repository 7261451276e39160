"""Bounds for guides with auxiliary variables, whose own density is an integral."""

from collections.abc import Callable, Sequence

from vinb.estimators import Expectation
from vinb.objectives.elbo import elbo
from vinb.objectives.importance import iwelbo
from vinb.programs import marginal


def hvi(
    model: Callable, guide: Callable, *, keep: Sequence[str], proposal: Callable | None = None
) -> Expectation:
    """Hierarchical variational inference: the bound ``E[log p(x, z) + log r(u | z) - log q(u, z)]`` (ranganath2016hierarchical).

    Args:
        model: NumPyro program of ``p(x, z)``.
        guide: NumPyro program of ``q(u, z)``.
        keep: names of the model's latent sites z; the guide's other sites are u.
        proposal: NumPyro program ``r(u | z)``, called with the dict of kept values and then the guide's arguments; the guide's
            own prior of u by default. Its parameters may be trained: add it to ``init((model, guide, ...))``.

    Returns:
        A function ``(params, key, *args)`` to an unbiased estimate of a lower bound of the log evidence, to be maximised.

    Raises:
        ValueError: as :func:`vinb.programs.marginal` and :func:`elbo`.
    """
    return iwhvi(model, guide, keep=keep, proposal=proposal, num_auxiliary=1)


def iwhvi(
    model: Callable,
    guide: Callable,
    *,
    keep: Sequence[str],
    proposal: Callable | None = None,
    num_auxiliary: int,
) -> Expectation:
    """Importance-weighted hierarchical variational inference: the guide's density from M auxiliary particles
    (sobolev2019iwhvi). It rises with M to the evidence lower bound of the exact marginal guide. Arguments as for
    :func:`hvi`."""
    return elbo(model, marginal(guide, keep=keep, proposal=proposal, num_particles=num_auxiliary))


def diwhvi(
    model: Callable,
    guide: Callable,
    *,
    keep: Sequence[str],
    proposal: Callable | None = None,
    num_particles: int,
    num_auxiliary: int,
) -> Expectation:
    """Doubly importance-weighted hierarchical variational inference: :func:`iwelbo` of ``num_particles`` over the
    guide of :func:`iwhvi` (sobolev2019iwhvi). Arguments as there."""
    guide = marginal(guide, keep=keep, proposal=proposal, num_particles=num_auxiliary)
    return iwelbo(model, guide, num_particles=num_particles)
