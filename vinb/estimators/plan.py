"""What a program's strategies need: which costs depend on which sites, element by element, and which runs that takes.

Design notes. The program is traced once with marked values in place of draws. That gives, for every term of the cost
and for every site's own log density, the marks it depends on and the axes along which it does so element by element
(``vinb.analysis``). By composition each term gets all sites upstream of it. From that alone follow the credit of score
functions (the terms downstream, per element), the sites that enumeration must combine (those upstream of one term;
others share an axis of configurations, so that independent sites cost no more than one), and the alternatives that
measure-valued derivatives must try one by one (elements along axes that some term mixes; all others are moved in the
same run). Nothing is taken from plates: a plate whose elements do interact gets no credit per element.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np

from vinb.analysis import Level, dependence
from vinb.estimators.automatic import choose_pathwise, rough_params, smoothness_of
from vinb.estimators.run import Run, Site
from vinb.estimators.strategies import (
    Auto,
    Enumerate,
    Inline,
    MeasureValued,
    Pathwise,
    PathwiseWithBoundaries,
    ScoreFunction,
    Strategy,
)
from vinb.estimators.terms import Terms

Axes = tuple[int | None, ...]

MAX_CONFIGURATIONS = 2**16  # of the enumerated sites together
DEFAULT_CONFIGURATIONS = 16  # of a site enumerated by default
DEFAULT_TOTAL = 64  # of all sites enumerated by default


@dataclass
class Plan:
    """The analysis of one program.

    ``notes`` are what the program said about a site, by name. ``upstream[i]`` and ``parents[site]`` map the sites
    upstream of term ``i`` and of a site to the axes that carry their elements.
    ``colour[site]`` is the axis of configurations of an enumerated site, ``sizes[colour]`` its length.
    """

    sites: dict[str, Site]
    notes: dict[str, str]
    upstream: list[dict[str, Axes]]
    parents: dict[str, dict[str, Axes]]
    strategies: dict[str, tuple[Strategy, str]] = field(default_factory=dict)
    colour: dict[str, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    def strategy(self, identity: str) -> Strategy:
        if identity not in self.strategies:
            raise ValueError(
                f"sample site {identity!r} appeared in one run of the program and not in another: which sites a program has must "
                "not depend on chance or on state outside of it"
            )
        return self.strategies[identity][0]

    def of_kind(self, kind: type) -> list[str]:
        """The sites with a strategy of this kind that a term depends on, in the order of execution."""
        used = set().union(*self.upstream)
        return [s for s in self.sites if s in used and isinstance(self.strategy(s), kind)]

    def downstream(self, identity: str) -> list[int]:
        return [i for i, deps in enumerate(self.upstream) if identity in deps]

    def mixed(self, identity: str) -> tuple[int, ...]:
        """The element axes of a site, of size above one, that some term downstream does not keep apart."""
        shape = self.sites[identity].shape
        along = [self.upstream[i][identity] for i in self.downstream(identity)]
        return tuple(a for a, n in enumerate(shape) if n > 1 and any(axes[a] is None for axes in along))

    def num_mixed(self, identity: str) -> int:
        return math.prod(self.sites[identity].shape[a] for a in self.mixed(identity))

    def num_configurations(self, identity: str) -> int:
        return self.sites[identity].support_size ** self.num_mixed(identity)

    def support_indices(self, identity: str, configuration):
        """Which value each element takes in a (traced) configuration: an integer array of the site's shape."""
        site, mixed = self.sites[identity], self.mixed(identity)
        base, count = site.support_size, self.num_mixed(identity)
        digits = configuration // (base ** np.arange(count)) % base
        shape = [n if a in mixed else 1 for a, n in enumerate(site.shape)]
        return jax.numpy.broadcast_to(digits.reshape(shape), site.shape)


def make_plan(program: Callable, make_run: Callable[[], Run]) -> Plan:
    """Analyse ``program`` (a function without arguments) in a run of mode ``analyse``."""
    sites, notes = {}, {}

    def traced():
        with make_run() as run:
            cost = as_terms(program())
        sites.update(run.sites)
        notes.update(run.notes)
        return cost.arrays, run.records

    terms, records = dependence(traced)()
    direct = {}
    for name, record in records.items():
        # A draw may depend on what its density does not: where a uniform one lies, for one.
        hidden = {s: (None,) * len(sites[s].shape) for s in record["drawn"]}
        direct[name] = {s: axes for s, axes in (hidden | record["log_prob"]).items() if s != name}
    for found in (*terms, *direct.values()):  # the steps of a loop are not told apart
        found.update({s: (None,) * len(sites[s].shape) for s in found if sites[s].looped})
    _close_loops(direct, sites)
    parents = {}
    for name in sites:  # a site's parents come before it, but for those in its loop
        parents[name] = _close(direct[name], sites, parents)
    plan = Plan(sites, notes, [_close(deps, sites, parents) for deps in terms], parents)
    _choose(plan)
    if any(isinstance(site.requested, Auto) for site in sites.values()):
        _choose_automatically(plan, smoothness_of(lambda: as_terms(program()), make_run))
    if with_boundaries := _check_boundaries(plan):
        found = smoothness_of(lambda: as_terms(program()), make_run, branches=False)
        for name in with_boundaries:
            reach = found.cost.get(name)
            if reach is not None and reach.level > Level.CONT:
                note = f"apart from its branches the cost is {reach.level} in it: {reach.cause}"
                site = sites[name].name
                notes[site] = f"{notes[site]}; {note}" if site in notes else note
    _forget_alignment(plan)
    _colour(plan)
    return plan


def as_terms(cost) -> Terms:
    if isinstance(cost, Terms):
        return cost
    cost = jax.numpy.asarray(cost)
    if cost.shape != ():
        raise ValueError(
            f"the program of an expectation must return a scalar, got an array of shape {cost.shape}; return its sum, or "
            "vinb.estimators.Terms(array) to give each entry its own credit"
        )
    if jax.numpy.iscomplexobj(cost):
        raise ValueError(f"the program of an expectation must return a real number, got {cost.dtype}")
    return Terms(cost)


def _close_loops(direct, sites):
    """Add to the parents of each site in a loop those of its parents in a loop, which may come later in the step."""
    looped = [name for name in sites if sites[name].looped]
    for between in looped:  # Warshall's algorithm
        for name in looped:
            if between in direct[name] and between != name:
                found = {k: (None,) * len(sites[k].shape) for k in direct[between] if k != name}
                direct[name] = direct[name] | found


def _close(direct, sites, parents):
    """All sites upstream, from those that something depends on directly."""
    found = dict(direct)
    for name, axes in direct.items():
        for ancestor, its_axes in parents.get(name, {}).items():
            composed = tuple(None if a is None else axes[a] for a in its_axes)
            known = found.get(ancestor)
            if known is not None:
                composed = tuple(a if a == b else None for a, b in zip(known, composed, strict=True))
            found[ancestor] = composed
    # Two element axes on one axis of the term: the second would be lost.
    for name, axes in found.items():
        found[name] = tuple(None if a in axes[:k] else a for k, a in enumerate(axes))
    return {name: found[name] for name in sites if name in found}


def _choose(plan):
    total = 1
    for name, site in plan.sites.items():
        strategy = site.requested
        if isinstance(strategy, Auto):
            if site.reparameterised:
                plan.strategies[name] = strategy, "to be chosen"
                continue
            strategy = None  # as by default
        if site.looped and isinstance(strategy, Enumerate | MeasureValued):
            raise ValueError(
                f"site {name!r} is inside NumPyro's scan, where {strategy} is not possible; use Pathwise() or ScoreFunction() (in "
                "normalize: SIR(..., index=ScoreFunction())), or write the loop out in Python"
            )
        if strategy is not None:
            plan.strategies[name] = strategy, "chosen"
            if isinstance(strategy, Enumerate) and plan.num_configurations(name) > MAX_CONFIGURATIONS:
                raise ValueError(_too_many(plan, name))
            continue
        if site.reparameterised:
            plan.strategies[name] = Pathwise(), "reparameterised (smoothness of the cost is not checked)"
        elif site.support_size is None or site.looped:
            why = "inside a scan" if site.looped else "neither reparameterised nor of finite support"
            plan.strategies[name] = ScoreFunction(), why
        elif plan.num_configurations(name) > DEFAULT_CONFIGURATIONS:
            why = f"{site.support_size}^{plan.num_mixed(name)} combinations are too many to enumerate by default"
            plan.strategies[name] = ScoreFunction(), why
        elif total * plan.num_configurations(name) > DEFAULT_TOTAL and _conflicts(plan, name):
            plan.strategies[name] = ScoreFunction(), "too many combinations with the sites enumerated already"
        else:
            if _conflicts(plan, name) or total == 1:
                total *= plan.num_configurations(name)
            plan.strategies[name] = Enumerate(), "small finite support"


def _choose_automatically(plan, found):
    kinds = {name: strategy for name, (strategy, _) in plan.strategies.items()}
    candidates = [n for n, s in kinds.items() if isinstance(s, Auto)]
    # The circle is cut somewhere: only a periodic cost is continuous there, and that is not proved.
    cut = [n for n in candidates if plan.sites[n].distribution == "VonMises"]
    for name in cut:
        plan.strategies[name] = ScoreFunction(), "the cost is not shown to be periodic"
    candidates = [n for n in candidates if n not in cut]
    pathwise = [n for n, s in kinds.items() if isinstance(s, Inline)]
    scored = [n for n in kinds if n not in candidates and n not in pathwise]
    for name, reason in choose_pathwise(found, candidates, pathwise, scored).items():
        if reason:
            plan.strategies[name] = ScoreFunction(), reason
        else:
            plan.strategies[name] = (
                Pathwise(),
                "reparameterised, and the cost is shown to be smooth enough in it",
            )
    pathwise = [n for n, (s, _) in plan.strategies.items() if isinstance(s, Inline)]
    for name, reason in rough_params(found, pathwise, [n for n in kinds if n not in pathwise]).items():
        plan.notes[f"parameter {name!r}"] = f"parameter {name!r}: the cost is {reason}"


def _check_boundaries(plan) -> list[str]:
    """The sites whose boundaries are searched for."""
    kinds = {name: strategy for name, (strategy, _) in plan.strategies.items()}
    with_boundaries = [n for n, s in kinds.items() if isinstance(s, PathwiseWithBoundaries)]
    others = [n for n, s in kinds.items() if not isinstance(s, Inline)]
    if with_boundaries and others:
        raise ValueError(
            f"site {with_boundaries[0]!r} has {kinds[with_boundaries[0]]}, which needs all sites of the program to be pathwise, "
            f"but site {others[0]!r} has {kinds[others[0]]}; use ScoreFunction() at the sites that branches depend on"
        )
    return with_boundaries


def _too_many(plan, name):
    site = plan.sites[name]
    return (
        f"Enumerate() at site {name!r} would have to run {site.support_size}^{plan.num_mixed(name)} combinations: its elements, of "
        f"shape {site.shape}, meet in one term of the cost. If they do not interact, keep the cost apart: return what "
        "vinb.programs.log_density gives or a sum of unsummed arrays in vinb.estimators.Terms; else use MeasureValued() or "
        "ScoreFunction()"
    )


def _enumerated(plan):
    return [n for n, (s, _) in plan.strategies.items() if isinstance(s, Enumerate)]


def _conflicts(plan, name):
    """The enumerated sites that must have axes of their own beside ``name``: those upstream of the same term."""
    return [
        other
        for other in _enumerated(plan)
        if other != name and any(name in deps and other in deps for deps in plan.upstream)
    ]


def _forget_alignment(plan):
    """An axis along which one term mixes the elements of an enumerated or moved site is treated as mixed by all terms: its
    configurations are those of all elements together, whatever a term keeps apart."""
    special = [n for n, (s, _) in plan.strategies.items() if isinstance(s, Enumerate | MeasureValued)]
    mixed = {name: plan.mixed(name) for name in special}
    for found in (*plan.upstream, *plan.parents.values()):
        for name in found.keys() & mixed.keys():
            found[name] = tuple(None if a in mixed[name] else t for a, t in enumerate(found[name]))


def _colour(plan):
    for name in plan.of_kind(Enumerate):
        taken = {plan.colour[n] for n in _conflicts(plan, name) if n in plan.colour}
        plan.colour[name] = next(c for c in range(len(plan.sites)) if c not in taken)
    number = 1 + max(plan.colour.values(), default=-1)
    plan.sizes = [
        max(plan.num_configurations(n) for n, k in plan.colour.items() if k == c) for c in range(number)
    ]
    if (total := math.prod(plan.sizes)) > MAX_CONFIGURATIONS:
        raise ValueError(
            f"Enumerate() at the sites {sorted(plan.colour)}, which meet in one term of the cost, would have to run {total:,} "
            f"combinations; at most {MAX_CONFIGURATIONS:,} are allowed. If the cost is a sum, return its terms apart, as "
            "vinb.estimators.Terms(first, second, ...); else use MeasureValued() or ScoreFunction() at some of them"
        )
