"""How smooth a NumPyro program's log density is in each draw and parameter, and which guide sites may be pathwise
(lee2023smoothness).

Design notes. The soundness claim: where the report says that a set of inputs is at level L or better, the log density is
jointly L in them on the product of their open supports and constraints, for all values of the other inputs, provided that the
program's jaxpr does not depend on anything else, that the tables in ``rules`` and ``signatures`` are right, and that the
assumptions in the report hold. Numbers are real: an ``exp`` does not round to zero. What is written with a comparison, as
``jnp.where(z > 0, z, 0)``, counts as a jump even where its sides meet: say ``jax.nn.relu``, ``jnp.maximum`` or ``abs``
instead.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from numpyro.distributions import TransformedDistribution

from vinb.analysis.abstract import Level, Levels, Reach, composed, join, moved_levels, substituted, without
from vinb.analysis.evaluate import Evaluated, evaluate
from vinb.analysis.sites import trace_paths
from vinb.tables import Table, Tabled


@dataclass(frozen=True)
class SiteSmoothness:
    """One sample site: how its log density depends on each input, and how its distribution's arguments do."""

    name: str
    distribution: str
    observed: bool
    line: str
    levels: Levels
    arguments: Levels
    assigned: bool = False
    reparameterised: bool = False


@dataclass(frozen=True, repr=False)
class SmoothnessReport(Tabled):
    """What :func:`smoothness` found.

    Attributes:
        levels: of the program's log density in each latent site and each parameter, by name.
        causes: for those that are not differentiable, the operation that made them so, with its line.
        sites: by name, see :class:`SiteSmoothness`.
        params: names of the parameters.
        assumptions: what the levels rest on, beyond the tables of rules.
        unknown_primitives: primitives of JAX without a rule, with the line where one stands.
        stopped: inputs whose dependence passes a ``stop_gradient``, which automatic differentiation does not follow.
    """

    levels: dict[str, Level]
    causes: dict[str, str]
    sites: dict[str, SiteSmoothness]
    params: tuple[str, ...]
    assumptions: tuple[str, ...]
    unknown_primitives: dict[str, str]
    stopped: frozenset[str]

    def smooth(self, level: Level) -> frozenset[str]:
        """The inputs in which the log density is jointly ``level`` or better."""
        return frozenset(name for name, found in self.levels.items() if found <= level)

    def table(self) -> Table:
        rows = []
        for name, level in self.levels.items():
            site = self.sites.get(name)
            kind = "parameter" if site is None else site.distribution
            rows.append((name, kind, str(level), self.causes.get(name, "")))
        notes = [*self.assumptions]
        notes += [f"{p!r} at {line} has no rule" for p, line in self.unknown_primitives.items()]
        caption = "; ".join(["log density, jointly in all inputs at a level or better", *notes])
        return Table(("input", "distribution", "log density is", "because of"), rows, caption=caption)


def smoothness(
    program: Callable, args: tuple = (), kwargs: dict | None = None, *, max_paths: int = 64
) -> SmoothnessReport:
    """How smooth the log density of a NumPyro program is in its latent sites and its parameters.

    The program is traced and its jaxpr interpreted; nothing is drawn and nothing computed.

    Args:
        program: a NumPyro program, with its observed values.
        args, kwargs: its arguments.
        max_paths: how many ways of Python branches on draws are followed; what they depend on is not smooth.

    Returns:
        A :class:`SmoothnessReport`; show it in a notebook.

    Raises:
        ValueError: where the program needs the concrete value of a draw while it is traced, or has more than ``max_paths`` ways.
    """
    paths = [evaluate(path) for path in trace_paths(program, args, kwargs, max_paths=max_paths)]
    sites: dict[str, SiteSmoothness] = {}
    for result in paths:
        branching = _branching(result)
        for name in result.path.sites:
            found = _site(result, name, branching)
            if name in sites:
                old = sites[name]
                found = replace(
                    found,
                    levels=join([old.levels, found.levels]),
                    arguments=join([old.arguments, found.arguments]),
                    reparameterised=found.reparameterised and old.reparameterised,
                )
            sites[name] = found
    params = tuple(dict.fromkeys(name for result in paths for name in result.path.params))
    tags = {tag: p.name for result in paths for p in result.path.params.values() for tag in p.tags}
    sites = {
        name: replace(site, levels=_merged(site.levels, tags), arguments=_merged(site.arguments, tags))
        for name, site in sites.items()
    }
    # A site that only some paths have is as rough as the branch.
    total = join(
        [*(site.levels for site in sites.values()), *(_merged(_branching(result), tags) for result in paths)]
    )
    inputs = [*(n for n, site in sites.items() if not site.observed and not site.assigned), *params]
    levels = {name: total.get(name, Reach(Level.CONST)).level for name in inputs}
    return SmoothnessReport(
        levels,
        {name: total[name].cause for name in inputs if name in total and total[name].level > Level.DIFF},
        sites,
        params,
        tuple(sorted(set().union(*(r.interpreter.assumptions for r in paths)))),
        {
            name: line
            for r in paths
            for name, line in r.interpreter.unknown.items()
            if _is_blamed(name, total)
        },
        frozenset(name for name, reach in total.items() if reach.stopped),
    )


def _is_blamed(primitive, levels):
    return any(f"{primitive!r} at" in reach.cause for reach in levels.values())


def _branching(result: Evaluated) -> Levels:
    """What a path's Python branches depend on."""
    return join(
        composed(Level.ANY, value.levels, f"a branch at {result.path.lines[output[1]]}")
        for output, value in result.values.items()
        if output[0] == "branch"
    )


def _site(result: Evaluated, name: str, branching: Levels) -> SiteSmoothness:
    site = result.path.sites[name]
    density = result[name, "density"].levels
    arguments = [a.levels for a in result.arguments(name).values()]
    if site.assigned:
        weight = result.arguments(name).get("log_density")
        density, arguments = {} if weight is None else weight.levels, [result[name, "value"].levels]
    elif not arguments:  # those of a mixture or a transformed distribution
        arguments = [without(density, name)]
    return SiteSmoothness(
        name,
        type(site.fn).__name__,
        site.observed,
        site.line,
        join([density, branching]),
        join([*arguments, branching]),
        site.assigned,
        not site.observed and _is_reparameterised(site.fn),
    )


def _is_reparameterised(fn) -> bool:
    """As NumPyro says; of a class that declares nothing it says yes without a reason."""
    return bool(fn.has_rsample) and (bool(fn.arg_constraints) or type(fn) is TransformedDistribution)


def _merged(levels: Levels, tags: dict[str, str]) -> Levels:
    """With the arrays of one parameter taken together."""
    return join({tags.get(name, name): reach} for name, reach in levels.items())


# ---- selection


@dataclass(frozen=True, repr=False)
class Selection(Tabled):
    """Which sites of a guide may be reparameterised.

    Attributes:
        sites: those that may.
        certified: is the gradient of the parameters unbiased then? Not where the density itself is not smooth in one.
        failed: what is in the way of a certificate; empty if nothing is.
        reasons: for every latent site of the guide, why it was taken or not.
        model, guide: the reports that this rests on.
        level: what was asked for.
    """

    sites: frozenset[str]
    certified: bool
    failed: str
    reasons: dict[str, str]
    model: SmoothnessReport
    guide: SmoothnessReport
    level: Level

    def table(self) -> Table:
        rows = [
            (name, "pathwise" if name in self.sites else "score function", reason)
            for name, reason in self.reasons.items()
        ]
        word = "unbiased" if self.certified else f"no certificate: {self.failed}"
        return Table(("site", "gradient", "why"), rows, caption=f"{self.level} is enough; {word}")


def select_pathwise(
    model: Callable,
    guide: Callable,
    args: tuple = (),
    kwargs: dict | None = None,
    *,
    level: Level = Level.LIP,
) -> Selection:
    """Choose the sites of a guide whose samples may be differentiated (lee2023smoothness, the selective pathwise gradient).

    Args:
        model, guide: NumPyro programs of the same arguments.
        args, kwargs: their arguments.
        level: what the densities must be in a site's value: ``Level.LIP``, for which derivatives are right almost everywhere,
            or ``Level.DIFF``.

    Returns:
        A :class:`Selection`.

    Raises:
        ValueError: for another ``level``, and as :func:`smoothness`.
    """
    if level not in (Level.LIP, Level.DIFF):
        raise ValueError(f"level must be Level.LIP or Level.DIFF, got {level!r}")
    p, q = smoothness(model, args, kwargs), smoothness(guide, args, kwargs)
    return _select(p, q, level)


def _select(p: SmoothnessReport, q: SmoothnessReport, level: Level) -> Selection:
    latent = [name for name, site in q.sites.items() if not site.observed]
    params = dict.fromkeys([*p.params, *q.params])
    fixed = {name for name in latent if q.sites[name].assigned}
    made_of = {name: site.arguments for name, site in q.sites.items()}
    total = substituted(join(_total(report) for report in (p, q)), moved_levels(made_of, fixed))
    reasons, chosen = {}, []
    for name in latent:
        if name in fixed:
            reasons[name] = "assigned, not drawn"
        elif not q.sites[name].reparameterised:
            reasons[name] = f"{q.sites[name].distribution} is not reparameterised"
        elif (reach := total.get(name, Reach(Level.CONST))).level > level:
            reasons[name] = f"{reach.level}: {reach.cause}"
        elif reach.stopped:
            reasons[name] = "a stop_gradient hides from automatic differentiation what depends on it"
        else:
            reasons[name] = f"densities are {reach.level} in it"
            chosen.append(name)
    rough = [name for name in params if total.get(name, Reach(Level.CONST)).level > level]
    failed = ""
    if rough:
        failed = f"the densities are {total[rough[0]].level} in the parameter {rough[0]!r}: {total[rough[0]].cause}"
    # With the chosen sites moving along: what they are made of must be smooth in the parameters too.
    while chosen and not failed:  # without a certificate there is nothing to keep
        moved = moved_levels(made_of, set(chosen) | fixed)
        bad = [
            (site, name)
            for site in chosen
            for name in params
            if moved[site].get(name, Reach(Level.CONST)).level > level
        ]
        if not bad:
            break
        site, name = bad[0]
        reasons[site] = f"its arguments are {moved[site][name].level} in {name!r}: {moved[site][name].cause}"
        chosen.remove(site)
    return Selection(frozenset(chosen), not failed, failed, reasons, p, q, level)


def _total(report: SmoothnessReport) -> Levels:
    return join(site.levels for site in report.sites.values())
