"""Tables that read well in JupyterLab (light and dark), on the book's pages and in a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

# Words carry the verdict; the colours have a contrast of about 4 on white and on JupyterLab's dark theme.
_VERDICTS = {
    "held": ("✓ held", "#2e8b57"),
    "failed": ("✗ failed", "#e0483e"),
    "not-applicable": ("– not applicable", "#808080"),
    "known-miss": ("△ known miss", "#b07800"),
}
_COMPARISONS = {"at_least": "≥ {}", "at_most": "≤ {}", "within": "{} ± {}"}


@dataclass(frozen=True)
class Table:
    """Rows of text with an HTML and a plain rendering.

    Attributes:
        columns: headings.
        rows: text of each cell.
        right: indices of columns aligned to the right.
        caption: a line above.
        emphasis: (row, column) -> CSS of that cell.
        strong: indices of columns in bold.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()
    caption: str = ""
    emphasis: Mapping[tuple[int, int], str] = field(default_factory=dict)
    strong: frozenset[int] = frozenset()

    def _repr_html_(self) -> str:
        def cell(tag: str, row: int, column: int, text: str) -> str:
            style = f"text-align: {'right' if column in self.right else 'left'}"
            if column in self.strong:
                style += "; font-weight: bold"
            if extra := self.emphasis.get((row, column)):
                style += f"; {extra}"
            return f'<{tag} style="{style}">{escape(text)}</{tag}>'

        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        head = "".join(cell("th", -1, j, text) for j, text in enumerate(self.columns))
        body = "\n".join(
            "<tr>" + "".join(cell("td", i, j, text) for j, text in enumerate(row)) + "</tr>"
            for i, row in enumerate(self.rows)
        )
        return (
            f"<table>{caption}\n<thead><tr>{head}</tr></thead>\n"  # no colours: the theme's stay
            f"<tbody>\n{body}\n</tbody>\n</table>"
        )

    def __str__(self) -> str:
        wrapped = [[textwrap.wrap(text, 48) or [""] for text in row] for row in (self.columns, *self.rows)]
        widths = [max(len(line) for row in wrapped for line in row[j]) for j in range(len(self.columns))]
        lines = [self.caption] if self.caption else []
        for i, row in enumerate(wrapped):
            for k in range(max(len(cell) for cell in row)):
                texts = [cell[k] if k < len(cell) else "" for cell in row]
                aligned = (
                    text.rjust(w) if j in self.right else text.ljust(w)
                    for j, (text, w) in enumerate(zip(texts, widths, strict=True))
                )
                lines.append("  ".join(aligned).rstrip())
            if i == 0:
                lines.append("  ".join("-" * w for w in widths))
        return "\n".join(lines)

    __repr__ = __str__


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
    counts = [f"{verdicts.count(v)} {v.replace('-', ' ')}" for v in _VERDICTS if v in verdicts]
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
