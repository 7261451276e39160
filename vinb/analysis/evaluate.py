"""A traced program's outputs as abstract values, with the inputs' intervals as narrow as their supports say."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from vinb.analysis import intervals as iv
from vinb.analysis.abstract import Abstract, Numbers
from vinb.analysis.domains import open_interval
from vinb.analysis.interpreter import Interpreter
from vinb.analysis.intervals import Interval
from vinb.analysis.signatures import call_rule
from vinb.analysis.sites import Path, SiteInfo

T = TypeVar("T")


@dataclass
class Evaluated:
    """The abstract values of a path's outputs, by what they are; the interpreter that made them; what its inputs were taken
    to be."""

    path: Path
    values: dict[tuple, Abstract]
    interpreter: Interpreter
    intervals: dict[str, Interval | Abstract] = field(default_factory=dict)

    def __getitem__(self, output: tuple) -> Abstract:
        return self.values[output]

    def get(self, *output) -> Abstract | None:
        return self.values.get(output)

    @functools.cached_property
    def _arguments(self) -> dict[str, dict[str, Abstract]]:
        found: dict[str, dict[str, Abstract]] = {}
        for output, value in self.values.items():
            if output[1] == "argument":
                found.setdefault(output[0], {})[output[2]] = value
        return found

    def arguments(self, site: str) -> dict[str, Abstract]:
        """The arguments of a site's distribution, by name."""
        return self._arguments.get(site, {})


def evaluate(
    path: Path, numbers: Numbers | None = None, known: Mapping[str, Interval | Abstract] | None = None
) -> Evaluated:
    """Interpret a path.

    Args:
        path: of :func:`vinb.analysis.sites.trace_paths`.
        numbers: shared by paths whose values are to be compared.
        known: intervals of sites whose values come from another program, or these values.
    """
    numbers = Numbers() if numbers is None else numbers
    given = dict(known or {})
    intervals = {name: site.interval for name, site in path.sites.items() if not site.observed} | given
    for param in path.params.values():
        intervals |= dict.fromkeys(param.tags, open_interval(param.constraint))
    moving = [name for name in path.sites if name not in given and not path.sites[name].observed]
    moving = [name for name in moving if (name, "lower") in path.outputs or (name, "upper") in path.outputs]
    return narrowed(
        lambda intervals: _evaluate(path, numbers, intervals),
        lambda result, old: {name: _support_interval(result, path.sites[name], old[name]) for name in moving},
        intervals,
    )


def narrowed(interpret: Callable[[dict], T], narrower: Callable[[T, dict], dict], intervals: dict) -> T:
    """``interpret(intervals)``, again with narrower intervals as long as it gives some: the ends of a site's support may follow
    from another site's draw."""
    for _ in range(len(intervals) + 1):
        result = interpret(intervals)
        found = narrower(result, intervals)
        if all(intervals[name] == interval for name, interval in found.items()):
            break
        intervals = intervals | found
    return result


def _evaluate(path, numbers, intervals) -> Evaluated:
    interpreter = Interpreter(
        lambda name: intervals.get(name, _plate_interval(name)),
        untracked=lambda name: name.startswith("/plate/"),
        calls={label: call_rule(call) for label, call in path.densities.items()},
        numbers=numbers,
    )
    key = interpreter.unknown_input(())
    outs = interpreter.run(path.jaxpr, [key])
    return Evaluated(path, {what: outs[k] for what, k in path.outputs.items()}, interpreter, intervals)


def _plate_interval(name):
    if name.startswith("/plate/"):
        return iv.closed(0, int(name.rsplit("/", 1)[1]) - 1)
    return iv.REAL


def _support_interval(result, site: SiteInfo, old: Interval) -> Interval:
    return between(result.get(site.name, "lower"), result.get(site.name, "upper"), old, site.discrete)


def between(lower: Abstract | None, upper: Abstract | None, old: Interval, is_discrete: bool) -> Interval:
    """An interval of draws narrowed to what the ends of their support can be."""
    low = (lower.interval.low, not is_discrete) if lower is not None else (old.low, old.low_open)
    high = (upper.interval.high, not is_discrete) if upper is not None else (old.high, old.high_open)
    found = Interval(low[0], high[0], low[1] or low[0] == -iv.REAL.high, high[1] or high[0] == iv.REAL.high)
    return iv.meet(old, found)
