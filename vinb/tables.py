"""Tables that read well in JupyterLab (light and dark), on the book's pages and in a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape


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


class Tabled:
    """What is shown as its table: printed, at a prompt, and in a notebook."""

    def table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
