"""Reading a BibTeX entry as people paste it, and adding it to ``notebooks/references.bib`` in that file's form."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vinb.experiment import citation

_REQUIRED = ("title", "author", "year")
_SAME_PAPER = ("doi", "eprint")  # two entries that agree in one of these are about one paper
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


class Entry(NamedTuple):
    """One BibTeX entry: its kind (``article``), its key, and its fields in order, with the braces inside them."""

    kind: str
    key: str
    fields: dict[str, str]

    def __str__(self) -> str:
        """The entry in the form of references.bib: one field a line, in braces, aligned."""
        width = max(map(len, self.fields))
        lines = [f"  {name:<{width}} = {{{value}}}" for name, value in self.fields.items()]
        return f"@{self.kind}{{{self.key},\n" + ",\n".join(lines) + "\n}"


def parse(text: str) -> Entry:
    """The one entry of a BibTeX text, such as arXiv, doi.org or a publisher gives it; what is outside of it is a comment.

    Raises:
        ValueError: if there is none or more than one, if it does not parse, or if it lacks a title, an author or a year.
    """
    found = list(_entries(text))
    if len(found) != 1:
        keys = f": {', '.join(entry.key for entry in found)}" if found else ""
        raise ValueError(f"bibtex: one entry is needed, {len(found) or 'none'} found{keys}.")
    (entry,) = found
    if missing := [name for name in _REQUIRED if not entry.fields.get(name, "").strip()]:
        raise ValueError(f"bibtex: the entry {entry.key!r} lacks {' and '.join(missing)}.")
    return entry


def added(entry: Entry, file: Path) -> str:
    """The text of the file `file` with `entry` at its end.

    Raises:
        ValueError: if the file has an entry of that key, or one about the same paper.
    """
    before = file.read_text(encoding="utf-8")
    known = citation.entries(before)
    if entry.key in known:
        raise ValueError(
            f"bibtex: references.bib has an entry {entry.key!r} already; use it: --paper {entry.key}"
        )
    for key, other in known.items():
        for name in _SAME_PAPER:
            mine = _bare(entry.fields.get(name, ""))
            if mine and mine == _bare(citation.field(other, name)):
                raise ValueError(
                    f"bibtex: references.bib has this paper ({name} {mine}) as {key!r}; use it: --paper {key}"
                )
    return f"{before.rstrip()}\n\n{entry}\n".lstrip()


def _bare(identifier: str) -> str:
    """A DOI or arXiv number without the address, prefix or version that some write with it."""
    return re.sub(
        r"^(https?://(dx\.)?doi\.org/|https?://arxiv\.org/abs/|arxiv:|doi:)\s*|v\d+$",
        "",
        identifier.strip().lower(),
    )


def _entries(text: str) -> Iterator[Entry]:
    position = 0
    while found := re.compile(r"@\s*(\w+)\s*([{(])").search(text, position):
        kind = found[1].lower()
        if kind in ("string", "preamble"):
            raise ValueError(f"bibtex: @{kind} is not understood; write its words into the entry itself.")
        if found[2] == "(":
            raise ValueError(f"bibtex: write @{kind} with braces, @{kind}{{key, ...}}.")
        position = _closing(text, found.end() - 1)
        if kind != "comment":
            yield _entry(kind, text[found.end() : position - 1])


def _entry(kind: str, inside: str) -> Entry:
    head = re.match(r"\s*([^\s,{}()=\"#%~\\]+)\s*,", inside)
    if head is None:
        raise ValueError(f"bibtex: @{kind} has no key; write @{kind}{{key, title = {{...}}, ...}}.")
    fields, position = {}, head.end()
    while rest := inside[position:].strip():
        name = re.compile(r"\s*([A-Za-z][\w-]*)\s*=\s*").match(inside, position)
        if name is None:
            raise ValueError(
                f"bibtex: {head[1]}: name = {{value}} was expected where it says {_brief(rest)}."
            )
        value, position = _value(inside, name.end(), f"{head[1]}: {name[1]}")
        if name[1].lower() in fields:
            raise ValueError(f"bibtex: {head[1]}: {name[1]} is there twice.")
        fields[name[1].lower()] = " ".join(value.split())
        if separator := re.compile(r"\s*,").match(inside, position):
            position = separator.end()
        elif inside[position:].strip():
            raise ValueError(f"bibtex: {head[1]}: a comma is missing before {_brief(inside[position:])}.")
    return Entry(kind, head[1], fields)


def _value(text: str, start: int, where: str) -> tuple[str, int]:
    """The value that begins at `start`, and where it ends."""
    if text[start : start + 1] == "{":
        end = _closing(text, start)
        return text[start + 1 : end - 1], end
    if text[start : start + 1] == '"':
        depth = 0
        for i in range(start + 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if text[i] == '"' and depth == 0:
                return text[start + 1 : i], i + 1
        raise ValueError(f"bibtex: {where}: the quotation mark is never closed.")
    word = re.compile(r"\w+").match(text, start)
    if word is None or not (word[0].isdigit() or word[0].lower() in _MONTHS):
        raise ValueError(f"bibtex: {where}: put the value {_brief(text[start:])} in braces.")
    return word[0], word.end()


def _closing(text: str, opening: int) -> int:
    """Just behind the brace that closes the one at `opening`."""
    depth = 0
    for i in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(
        f"bibtex: the brace in {_brief(text[max(opening - 20, 0) : opening + 20])} is never closed."
    )


def _brief(text: str) -> str:
    first = " ".join(text.split())
    return repr(first if len(first) <= 40 else f"{first[:37]}...")
