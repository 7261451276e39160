"""A BibTeX entry as people paste it: read, said in plain words, and added to ``notebooks/references.bib`` in that file's form."""

import re
from pathlib import Path
from typing import NamedTuple

from vinb.experiment import citation

_REQUIRED = ("title", "author", "year")
_SAME_PAPER = ("doi", "eprint")  # two entries that agree in one of these are about one paper


class Entry(NamedTuple):
    """One BibTeX entry: its kind (``article``), its key, and its fields, with the braces inside them."""

    kind: str
    key: str
    fields: dict[str, str]

    def __str__(self) -> str:
        """The entry in the form of references.bib: one field a line, in braces, aligned."""
        width = max(map(len, self.fields))
        lines = [f"  {name:<{width}} = {{{value}}}" for name, value in self.fields.items()]
        return f"@{self.kind}{{{self.key},\n" + ",\n".join(lines) + "\n}"

    def plain(self, name: str) -> str:
        """A field in plain words, empty if there is none; formulas stay as they are."""
        from pylatexenc.latex2text import LatexNodes2Text

        words = LatexNodes2Text(math_mode="verbatim", keep_comments=True)
        return " ".join(words.latex_to_text(self.fields.get(name, "")).split())


def parse(text: str) -> Entry:
    """The one entry of a BibTeX text, such as arXiv, doi.org or a publisher gives it; what is outside of it is a comment.

    Raises:
        ValueError: if there is none or more than one, if it does not parse, or if it lacks a title, an author or a year.
    """
    from pybtex.database import parse_string
    from pybtex.exceptions import PybtexError

    try:
        found = parse_string(text, "bibtex").entries
    except PybtexError as error:
        raise ValueError(f"bibtex: {error}.") from None
    if len(found) != 1:
        keys = f": {', '.join(found)}" if found else ""
        raise ValueError(f"bibtex: one entry is needed, {len(found) or 'none'} found{keys}.")
    (entry,) = found.values()
    people = {role: " and ".join(map(str, persons)) for role, persons in entry.persons.items()}
    fields = {name.lower(): " ".join(value.split()) for name, value in entry.fields.items()}
    fields = {name: fields.pop(name) for name in ("title",) if name in fields} | people | fields
    if missing := [name for name in _REQUIRED if not fields.get(name, "").strip()]:
        raise ValueError(f"bibtex: the entry {entry.key!r} lacks {' and '.join(missing)}.")
    return Entry(entry.type, entry.key, fields)


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
