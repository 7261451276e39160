"""Which sites of a program may be pathwise: what ``Auto`` does (lee2023smoothness, the selective pathwise gradient)."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpyro

from vinb.analysis.abstract import Level, Levels, join, moved_levels, substituted, without
from vinb.analysis.evaluate import between, narrowed
from vinb.analysis.interpreter import Interpreter
from vinb.analysis.intervals import REAL
from vinb.analysis.signatures import call_rule
from vinb.analysis.sites import opaque_densities
from vinb.estimators.terms import Terms

_STOPPED = "a stop_gradient hides from automatic differentiation what depends on it"
ENOUGH = Level.LIP  # derivatives are right almost everywhere


@dataclass(frozen=True)
class Smoothness:
    """Levels in the sites and the parameters: of the cost, of each site's density, of what each site's law is made of."""

    cost: Levels
    densities: dict[str, Levels]
    made_of: dict[str, Levels]


def smoothness_of(program: Callable[[], Terms], make_run: Callable, *, branches: bool = True) -> Smoothness:
    """Trace ``program`` in a run of mode ``analyse`` and interpret it; without ``branches`` comparisons do not count."""
    intervals: dict = {}
    discrete: set[str] = set()

    def traced():
        run = make_run()
        run.intervals = intervals
        with run:
            cost = program()
        discrete.update(run.discrete)
        return cost.arrays, {
            name: (record["log_prob"], record["made_of"], record["ends"])
            for name, record in run.records.items()
        }

    with opaque_densities() as calls, numpyro.validation_enabled(False):
        closed, shapes = jax.make_jaxpr(traced, return_shape=True)()
    rules = {label: call_rule(call) for label, call in calls.items()}

    def interpret(intervals):
        interpreter = Interpreter(lambda name: intervals.get(name, REAL), calls=rules, branches=branches)
        return jax.tree.unflatten(jax.tree.structure(shapes), interpreter.run(closed, []))

    def narrower(result, old):
        return {
            name: between(ends.get("lower"), ends.get("upper"), old[name], name in discrete)
            for name, (_, _, ends) in result[1].items()
        }

    terms, records = narrowed(interpret, narrower, intervals)
    return Smoothness(
        join(term.levels for term in terms),
        {name: density.levels for name, (density, _, _) in records.items()},
        {name: join(m.levels for m in made_of) for name, (_, made_of, _) in records.items()},
    )


def choose_pathwise(
    found: Smoothness, candidates: list[str], pathwise: list[str], scored: list[str]
) -> dict[str, str]:
    """Why each candidate cannot be pathwise; an empty string for one that can.

    Args:
        found: see :func:`smoothness_of`.
        candidates: reparameterised sites that may be pathwise.
        pathwise: sites that are.
        scored: sites that are not: their densities are differentiated.
    """
    reasons: dict[str, str] = {}
    while True:
        moving = [
            name for name in found.made_of if (name in candidates and name not in reasons) or name in pathwise
        ]
        held = [name for name in (*scored, *reasons) if name in found.densities]
        # Everything that is differentiated, with the moving sites still as inputs.
        used = {"the cost": found.cost} | {
            f"the density of {n!r}": without(found.densities[n], n) for n in held
        }
        used |= {f"what {n!r} is drawn from": found.made_of[n] for n in moving}
        rough = {
            name: f"{what} is {reach.level} in it: {reach.cause}" if reach.level > ENOUGH else _STOPPED
            for what, levels in used.items()
            for name, reach in levels.items()
            if reach.level > ENOUGH or reach.stopped
        }
        new = {name: rough[name] for name in moving if name in candidates and name in rough}
        for name in moving:  # moved by what it cannot follow smoothly
            bad = [
                n
                for n, reach in found.made_of[name].items()
                if reach.level > ENOUGH and n.startswith("/param/")
            ]
            if name in candidates and name not in new and bad:
                reach = found.made_of[name][bad[0]]
                new[name] = f"what it is drawn from is {reach.level} in {_param(bad[0])!r}: {reach.cause}"
        if not new:
            return reasons | {name: "" for name in candidates if name not in reasons}
        reasons |= new


def rough_params(found: Smoothness, pathwise: list[str], scored: list[str]) -> dict[str, str]:
    """Parameters in which something that is differentiated is not smooth: there no estimator is sure to be unbiased."""
    moved = moved_levels(found.made_of, set(pathwise))
    total = join(
        substituted(levels, moved)
        for levels in [found.cost, *(found.densities[n] for n in scored if n in found.densities)]
    )
    return {
        _param(name): f"{reach.level}: {reach.cause}"
        for name, reach in total.items()
        if name.startswith("/param/") and reach.level > ENOUGH
    }


def _param(name: str) -> str:
    return name.removeprefix("/param/").rsplit("#", 1)[0]
