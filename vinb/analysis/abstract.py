"""What the interpreter knows of a value of a program: an interval that holds it, and how smooth it is in each input."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NamedTuple

from vinb.analysis import intervals
from vinb.analysis.intervals import Interval


class Level(IntEnum):
    """How smooth a function is in an input, from the strongest to what is not shown to be smooth at all (lee2023smoothness)."""

    CONST = 0
    DIFF = 1  # continuously differentiable
    LIP = 2  # locally Lipschitz
    CONT = 3
    ANY = 4

    def __str__(self):
        return _WORDS[self]

    __format__ = lambda self, spec: format(str(self), spec)  # noqa: E731


_WORDS = {
    Level.CONST: "constant",
    Level.DIFF: "differentiable",
    Level.LIP: "locally Lipschitz",
    Level.CONT: "continuous",
    Level.ANY: "not shown to be continuous",
}


class Reach(NamedTuple):
    """The level of a value in one input, what took it there, and whether a stopped gradient is on the way."""

    level: Level
    cause: str = ""
    stopped: bool = False


Levels = Mapping[str, Reach]  # an input that is missing: CONST


def join(maps: Iterable[Levels]) -> dict[str, Reach]:
    """The weaker level in each input."""
    joined: dict[str, Reach] = {}
    for levels in maps:
        for name, reach in levels.items():
            known = joined.get(name)
            if known is None:
                joined[name] = reach
            elif known != reach:
                worse = reach if reach.level > known.level else known
                joined[name] = worse._replace(stopped=known.stopped or reach.stopped)
    return joined


def composed(level: Level, levels: Levels, cause: str) -> dict[str, Reach]:
    """Levels of a function that is jointly ``level`` in an operand with ``levels``."""
    if level == Level.CONST:
        return {}
    return {
        name: reach
        if reach.level >= level
        else Reach(level, cause if level > Level.DIFF else "", reach.stopped)
        for name, reach in levels.items()
    }


def without(levels: Levels, *names: str) -> dict[str, Reach]:
    return {name: reach for name, reach in levels.items() if name not in names}


def substituted(levels: Levels, moved: Mapping[str, Levels]) -> dict[str, Reach]:
    """``levels`` with what the inputs in ``moved`` are made of in their place."""
    parts = [composed(levels[n].level, inner, levels[n].cause) for n, inner in moved.items() if n in levels]
    return join([without(levels, *moved), *parts])


def moved_levels(made_of: Mapping[str, Levels], moving: set[str]) -> dict[str, Levels]:
    """Levels of each moving input in those that are held, from what it is made of: in the order in which they are drawn."""
    moved: dict[str, Levels] = {}
    for name, levels in made_of.items():
        if name in moving:
            moved[name] = substituted(levels, moved)
    return moved


class Axes(NamedTuple):
    """An array that is another one with axes of size one added, removed or repeated: ``places[k]`` is where the k-th axis (of those
    larger than one) of the array with number ``number`` lies; all other axes repeat it."""

    number: int
    places: tuple[int, ...]


class Shifted(NamedTuple):
    """A value known to be ``base - shift`` (kind ``sum``) or ``base * exp(-shift)`` (kind ``product``).

    With it ``logsumexp``, ``softmax`` and their like are as smooth as they are, although they subtract a maximum: what is added
    back, or divided out, was never there.
    """

    kind: str
    base: "Abstract"
    shift: Axes


@dataclass(frozen=True)
class Abstract:
    """Of an array: the interval of its elements, its levels in the inputs, a number that equal values share, its shape."""

    interval: Interval
    levels: Levels = field(default_factory=dict)
    number: int = -1
    shape: tuple[int, ...] = ()
    shifted: Shifted | None = None

    @property
    def size(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def decided(self) -> bool | None:
        """The truth of a boolean, where it is decided."""
        return {intervals.TRUE: True, intervals.FALSE: False}.get(self.interval)

    def same_as(self, other: "Abstract") -> bool:
        """Nothing new, for a fixpoint."""
        mine = {name: reach.level for name, reach in self.levels.items()}
        return self.interval == other.interval and mine == {n: r.level for n, r in other.levels.items()}

    def with_levels(self, levels: Levels) -> "Abstract":
        return replace(self, levels=levels, shifted=None)


class Numbers:
    """Numbers of values, equal for values that are computed alike from equal values (value numbering)."""

    def __init__(self):
        self._known: dict[Any, int] = {}
        self._kept: list[Any] = []
        self.terms: dict[int, tuple] = {}

    def __call__(self, *term) -> int:
        try:
            number = self._known.get(term)
        except TypeError:  # a parameter that cannot be hashed
            term = tuple(t if _hashable(t) else str(t) for t in term)
            number = self._known.get(term)
        if number is None:
            number = self._known[term] = len(self._known)
            self.terms[number] = term
        return number

    def keep(self, thing) -> int:
        """``id`` of something that is kept alive."""
        self._kept.append(thing)
        return id(thing)


def _hashable(thing) -> bool:
    try:
        hash(thing)
    except TypeError:
        return False
    return True
