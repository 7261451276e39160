"""A BibTeX entry as people paste it: read, said in plain words, and added to ``notebooks/references.bib`` in that file's form."""

import re
from pathlib import Path
from typing import NamedTuple

_REQUIRED = ("title", "author", "year")
_SAME_PAPER = ("doi", "eprint")  # two entries that agree in one of these are about one paper
_KEY = r"[^\s\"#%'(),={}~\\]+"


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
        return _plain(self.fields.get(name, ""))

    def identifier(self, name: str) -> str:
        """A field that is an address or a number, such as a DOI, without LaTeX's braces and backslashes."""
        return re.sub(r"[{}]|\\(?=[_%&#~])", "", self.fields.get(name, "")).strip()

    def people(self) -> list[tuple[str, str]]:
        """First and last names of the authors, in plain words; the last is ``("", "others")`` where the entry says so."""
        from pybtex.bibtex.utils import split_name_list
        from pybtex.database import Person

        names = [Person(name) for name in split_name_list(self.fields.get("author", ""))]
        return [
            (
                _plain(" ".join([*name.first_names, *name.middle_names])),
                _plain(" ".join([*name.prelast_names, *name.last_names, *name.lineage_names])),
            )
            for name in names
        ]


def read(text: str) -> dict[str, Entry]:
    """The entries of a BibTeX text by key; their fields in lower case, title and people first, names with the last name first.

    Raises:
        ValueError: if it does not parse, or a key cannot be one.
    """
    from pybtex.database import parse_string
    from pybtex.exceptions import PybtexError

    try:
        found = parse_string(text, "bibtex").entries
    except PybtexError as error:
        raise ValueError(
            f"{error}. Values stand in braces, commas between them, and every brace is closed."
        ) from None
    entries = {}
    for key, entry in found.items():
        if not re.fullmatch(_KEY, key):
            raise ValueError(
                f"the key of @{entry.type} is {key!r}; write one such as @{entry.type}{{kingma2014aevb, ...}}."
            )
        rest = {name.lower(): " ".join(value.split()) for name, value in entry.fields.items()}
        title = {"title": rest.pop("title")} if "title" in rest else {}
        people = {role.lower(): " and ".join(map(str, names)) for role, names in entry.persons.items()}
        entries[key] = Entry(entry.type, key, title | people | rest)
    return entries


def parse(text: str) -> Entry:
    """The one entry of a BibTeX text, such as arXiv, doi.org or a publisher gives it.

    Raises:
        ValueError: if there is none or more than one, if it does not parse, or if it lacks a title, an author or a year.
    """
    try:
        found = read(text)
    except ValueError as error:
        raise ValueError(f"bibtex: {error}") from None
    if len(found) != 1:
        keys = f": {', '.join(found)}" if found else ""
        raise ValueError(f"bibtex: one entry is needed, {len(found) or 'none'} found{keys}.")
    (entry,) = found.values()
    if missing := [name for name in _REQUIRED if not entry.fields.get(name, "").strip()]:
        raise ValueError(f"bibtex: the entry {entry.key!r} lacks {' and '.join(missing)}.")
    return entry


def added(entry: Entry, file: Path) -> str:
    """The text of the file `file` with `entry` at its end.

    Raises:
        ValueError: if the file does not parse, has an entry of that key, or one about the same paper.
    """
    before = file.read_text(encoding="utf-8")
    try:
        known = read(before)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from None
    if entry.key in known:
        raise ValueError(
            f"bibtex: references.bib has an entry {entry.key!r} already; use it: --paper {entry.key}"
        )
    for key, other in known.items():
        for name in _SAME_PAPER:
            mine = _bare(entry.identifier(name))
            if mine and mine == _bare(other.identifier(name)):
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


def _plain(latex: str) -> str:
    from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db

    def unknown(node, l2tobj):
        """An argument's words, or the macro itself: nothing is left out."""
        arguments = [each for each in node.nodeargd.argnlist if each] if node.nodeargd else []
        return l2tobj.nodelist_to_text(arguments) if arguments else node.latex_verbatim()

    context = get_default_latex_context_db()
    context.set_unknown_macro_spec(MacroTextSpec("", simplify_repl=unknown))
    escaped = re.sub(r"(?<!\\)[%&]", r"\\\g<0>", latex)  # in BibTeX these are characters as others
    try:
        words = LatexNodes2Text(latex_context=context, math_mode="verbatim").latex_to_text(escaped)
    except Exception:  # whatever this makes the library say; the reader can still see what was meant
        words = latex
    return " ".join(words.split())
