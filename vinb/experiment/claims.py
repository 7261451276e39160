"""Claims: a statement of the paper, what was measured, and a verdict."""

import math
from collections.abc import Sequence
from typing import Any

from vinb.experiment.tables import number, tolerance_text


class ClaimsFailed(AssertionError):
    """At least one claim failed; raised after the record was written."""

    def _render_traceback_(self) -> list[str]:
        return [f"ClaimsFailed: {self}"]


def claim(
    name: str,
    statement: str,
    measured: Any,
    *,
    source: str | None,
    applicable: bool,
    reason: str | None,
    known_miss: str | None,
    **comparisons: Any,
) -> dict[str, Any]:
    """A claim as the record stores it; see `Record.claim`. `comparisons` that are None were not given."""
    where = f"claim {name!r}"
    text(where, "statement", statement)
    given = {kind: bound for kind, bound in comparisons.items() if bound is not None}
    if len(given) > 1 or (applicable and not given):
        got = ", ".join(given) or "none"
        raise ValueError(f"{where}: give exactly one of {', '.join(comparisons)}; got {got}.")
    if not applicable and not reason:
        raise ValueError(f"{where}: not applicable needs a reason=, a sentence that says why.")
    measured = None if measured is None else plain(where, "measured", measured)
    if measured is None and applicable and "holds" not in given:
        raise ValueError(f"{where}: measured is None; give a number or a list of numbers.")
    if isinstance(measured, list) and not measured:
        raise ValueError(f"{where}: measured is an empty list, of which anything would hold.")
    tolerance = _tolerance(where, given)
    if not applicable:
        verdict, why = "not-applicable", reason
    elif _satisfied(measured, tolerance):
        verdict, why = "held", None  # a miss that is no longer one: the evidence must go from the notebook
    elif known_miss:
        verdict, why = "known-miss", known_miss
    else:
        verdict, why = "failed", None
    return {
        "name": name,
        "statement": statement,
        "measured": measured,
        "tolerance": tolerance,
        "verdict": verdict,
        "source": source,
        "reason": why,
    }


def failures(claims: Sequence[dict[str, Any]]) -> str:
    """A line for each failed claim; empty if none failed."""
    failed = [c for c in claims if c["verdict"] == "failed"]
    lines = []
    for c in failed:
        seen = (
            ""
            if c["measured"] is None
            else f": measured {number(c['measured'])}, asked {tolerance_text(c['tolerance'])}"
        )
        lines.append(f"  {c['name']}: {c['statement']}{seen}")
    return f"{len(failed)} of {len(claims)} claims failed\n" + "\n".join(lines) if failed else ""


def plain(where: str, argument: str, value: Any) -> Any:
    """A finite Python number or a list of them, from numbers, numpy or jax scalars and arrays."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple) or (hasattr(value, "ndim") and value.ndim > 0):
        return [plain(where, argument, item) for item in value]
    if not isinstance(value, float):
        if not hasattr(value, "item"):
            raise TypeError(
                f"{where}: {argument} must be a number or a list of numbers; got a {type(value).__name__}."
            )
        narrow = str(getattr(value, "dtype", "")) in ("float32", "float16", "bfloat16")
        value = value.item()
        if narrow and math.isfinite(value):
            value = _shortest(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {argument} is {value}; a record holds finite numbers only.")
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{where}: {argument} must be a real number; got {value!r}.")
    return value


def text(where: str, argument: str, value: Any) -> str:
    """`value` if it is a text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {argument} must be a text that is not empty; got {value!r}.")
    return value


def _shortest(value: float) -> float:
    """A float32 with the digits that identify it (0.1, not 0.10000000149)."""
    import numpy as np

    return float(str(np.float32(value)))


def _tolerance(where: str, given: dict[str, Any]) -> dict[str, Any] | None:
    if not given:
        return None
    ((kind, bound),) = given.items()
    if kind == "within":
        if not isinstance(bound, list | tuple) or len(bound) != 2:
            raise ValueError(f"{where}: within= takes (target, tolerance); got {bound!r}.")
        bound = plain(where, kind, bound)
        if bound[1] < 0:
            raise ValueError(f"{where}: within=: the tolerance {bound[1]} is negative.")
        return {kind: bound}
    bound = plain(where, kind, bound)
    if kind == "holds" and not isinstance(bound, bool):
        raise TypeError(f"{where}: holds= takes True or False; got {bound!r}.")
    return {kind: bound}


def _satisfied(measured: Any, tolerance: dict[str, Any]) -> bool:
    ((kind, bound),) = tolerance.items()
    if kind == "holds":
        return bound
    values = measured if isinstance(measured, list) else [measured]
    if any(isinstance(value, list) for value in values):
        return all(_satisfied(value, tolerance) for value in values)
    if kind == "at_least":
        return all(value >= bound for value in values)
    if kind == "at_most":
        return all(value <= bound for value in values)
    return all(abs(value - bound[0]) <= bound[1] for value in values)
