"""The tables of a record: claims and metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from vinb.tables import Table

# Words carry the verdict; the colours have a contrast of about 4 on white and on JupyterLab's dark theme.
_VERDICTS = {
    "held": ("✓ held", "#2e8b57"),
    "failed": ("✗ failed", "#e0483e"),
    "not-applicable": ("– not applicable", "#808080"),
    "known-miss": ("△ known miss", "#b07800"),
}
_COMPARISONS = {"at_least": "≥ {}", "at_most": "≤ {}", "within": "{} ± {}"}


def number(value: Any) -> str:
    """A number for reading: five significant digits; lists item by item; an empty text for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value)
    return f"{value:.5g}"


def tolerance_text(tolerance: Mapping[str, Any] | None) -> str:
    """What a claim asked of its measured value, in signs: ``≥ 0.2``, ``90 ± 1``."""
    if tolerance is None:
        return ""
    (kind, bound), *_ = tolerance.items()
    if kind == "holds":
        return "holds"
    bounds = bound if kind == "within" else [bound]
    return _COMPARISONS[kind].format(*map(number, bounds))


def claims_table(claims: Sequence[Mapping[str, Any]]) -> Table:
    """The claims of a record's ``result``, each with its measured value, tolerance and verdict."""
    rows, emphasis = [], {}
    with_reason = any(claim["reason"] for claim in claims)
    for i, claim in enumerate(claims):
        word, colour = _VERDICTS[claim["verdict"]]
        emphasis[i, 4] = f"color: {colour}; font-weight: bold; white-space: nowrap"
        row = [
            claim["name"],
            claim["statement"],
            number(claim["measured"]),
            tolerance_text(claim["tolerance"]),
            word,
        ]
        row.append(claim["source"] or "")
        rows.append([*row, claim["reason"] or ""] if with_reason else row)
    columns = ["claim", "statement", "measured", "asked", "verdict", "where in the paper"]
    return Table(
        [*columns, "why"] if with_reason else columns,
        rows,
        right=frozenset({2, 3}),
        caption=verdict_counts(claims),
        emphasis=emphasis,
    )


def verdict_counts(claims: Sequence[Mapping[str, Any]]) -> str:
    """``9 held, 1 known miss``: the verdicts counted, in words."""
    verdicts = [claim["verdict"] for claim in claims]
    plural = {v: "es" if v == "known-miss" and verdicts.count(v) > 1 else "" for v in _VERDICTS}
    counts = [f"{verdicts.count(v)} {v.replace('-', ' ')}{plural[v]}" for v in _VERDICTS if v in verdicts]
    return ", ".join(counts) or "no claims"


def metrics_table(metrics: Sequence[Mapping[str, Any]]) -> Table:
    """The metrics of a record's ``result``: the paper's number beside ours; empty columns are left out."""
    columns = ["metric", "paper", "ours", "unit", "setting", "where in the paper"]
    rows = [
        [
            metric["name"],
            number(metric["paper"]),
            number(metric["value"]) + (f" ± {metric['error']:.2g}" if metric["error"] is not None else ""),
            metric["unit"] or "",
            metric["setting"] or "",
            metric["source"] or "",
        ]
        for metric in metrics
    ]
    keep = [j for j in range(len(columns)) if j in (0, 2) or any(row[j] for row in rows)]
    right = frozenset(k for k, j in enumerate(keep) if j in (1, 2))
    return Table([columns[j] for j in keep], [[row[j] for j in keep] for row in rows], right=right)
