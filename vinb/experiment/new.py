"""``vinb new``: a notebook from a template that runs, to write one's own over."""

import difflib
import json
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from vinb.experiment import bibliography, citation
from vinb.experiment.paths import write_atomic

TEMPLATE = Path(__file__).with_name("template.ipynb")
_NO_PAPER = (
    "> **To do:** Here: authors, *title*, venue, year, link, and the citation key of the paper, which "
    "`experiment.begin(..., paper=)` below takes too. Its BibTeX entry goes into `notebooks/references.bib`."
)


@dataclass(frozen=True)
class New:
    """What `create` wrote.

    Attributes:
        notebook: its path.
        key: the paper's BibTeX key, or None.
        references: the bibliography, where an entry was added to it, else None.
        row: the notebook's row for the table of README.md.
    """

    notebook: Path
    key: str | None
    references: Path | None
    row: str


def create(
    name: str, root: Path, *, paper: str | None = None, bibtex: str | None = None, title: str | None = None
) -> New:
    """Writes ``<root>/notebooks/<name>.ipynb``.

    Args:
        name: lower-case letters, digits and underscores, beginning with a letter.
        root: the folder that holds ``notebooks/``.
        paper: key of the paper in ``notebooks/references.bib``.
        bibtex: instead of `paper`, the text of the paper's BibTeX entry, which is added there.
        title: the notebook's heading (default: the paper's title, else the name in words).

    Raises:
        ValueError: for a name of another form, or an entry that is unknown, there already or broken.
        FileExistsError: if something of that name is in ``notebooks/``.

    Nothing is written then.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        near = near if near[:1].isalpha() and not keyword.iskeyword(near) else f"paper_{near}".strip("_")
        raise ValueError(
            f"NAME: lower-case letters, digits and underscores, a letter first; got {name!r}, try {near!r}."
        )
    if paper is not None and bibtex is not None:
        raise ValueError("paper and bibtex exclude each other: bibtex adds the entry and takes its key.")
    folder = root / "notebooks"
    taken = [path for path in folder.iterdir() if path.name.lower().split(".")[0] == name]
    if taken:
        raise FileExistsError(f"NAME: notebooks/{taken[0].name} is there already; choose another name.")
    references, text, entry = folder / "references.bib", None, None
    if bibtex is not None:
        entry = bibliography.parse(bibtex)
        text = bibliography.added(entry, references)
    elif paper is not None:
        entry = _known(paper, root)
    # The entry goes first: a notebook whose paper is not in the bibliography would not run.
    content = _filled(name, entry, title)
    if text is not None:
        before = references.read_bytes()
        write_atomic(references, text)
    try:
        write_atomic(folder / f"{name}.ipynb", content)
    except BaseException:
        if text is not None:
            write_atomic(references, before)
        raise
    row = f"| [{name}](notebooks/{name}.ipynb) | {_row(entry)} | what it reproduces |"
    return New(
        folder / f"{name}.ipynb",
        entry.key if entry is not None else None,
        references if text is not None else None,
        row,
    )


def next_steps(new: New) -> str:
    """What to do with a new notebook, as lines for a terminal."""
    name = new.notebook.stem
    later = sorted(path.stem for path in new.notebook.parent.glob("*.ipynb") if path.stem > name)
    place = f"above that of {later[0]}" if later else "at its end"
    steps = (
        ("make lab", 'write yours over the example; what to write where begins with "To do:"'),
        (f"vinb run {name} --preset smoke", "try it, whenever you like; then without --preset"),
        (
            f"ruff format notebooks/{name}.ipynb",
            "before outputs are tied to the code; ruff check finds the rest",
        ),
        (
            f"make notebooks NOTEBOOKS={name}",
            'keep outputs, record and figures; says which "To do:" are left',
        ),
        (f"make expected NOTEBOOKS={name}", f"keep the numbers of a smoke run in tests/expected/{name}.json"),
        ("README.md", f"put the row below into the table of notebooks, {place}"),
        ("make test", "all tests, this notebook among them"),
    )
    width = max(len(command) for command, _ in steps)
    lines = [f"  {i}. {command:<{width}}  {words}" for i, (command, words) in enumerate(steps, 1)]
    return "\n".join(["It runs as it is. What to do next:", *lines, "", new.row])


def _known(key: str, root: Path) -> bibliography.Entry:
    known = citation.references(root)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3)
        words = re.findall(
            r"[a-z]{4,}", key.lower()
        )  # of a key people remember an author or a word of the title
        near += [each for each in known if each not in near and any(word in each for word in words)]
        hint = f" Near ones: {', '.join(near[:5])}." if near else ""
        raise ValueError(
            f"--paper: notebooks/references.bib has no entry {key!r}.{hint} To add one, pass --bibtex FILE."
        )
    try:
        return bibliography.read(known[key])[key]
    except ValueError as error:
        raise ValueError(f"--paper: the entry {key!r} of notebooks/references.bib: {error}") from None


def _filled(name: str, entry: bibliography.Entry | None, title: str | None) -> str:
    """The template's JSON with its placeholders filled in."""
    heading = " ".join((title or "").split())
    heading = heading or (entry.plain("title") if entry else name.replace("_", " ").capitalize())
    nb = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    for cell, placeholder, value in (
        ("title", "{{paper}}", _NO_PAPER if entry is None else _source(entry)),
        ("title", "{{title}}", heading),
        ("begin", 'notebook="my_paper"', f'notebook="{name}"'),
        ("begin", "paper=None", "paper=None" if entry is None else f'paper="{entry.key}"'),
    ):
        (found,) = (each for each in nb["cells"] if each["id"] == cell)
        before, after = "".join(found["source"]).split(placeholder)  # it is there exactly once
        found["source"] = f"{before}{value}{after}".splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def _source(entry: bibliography.Entry) -> str:
    """The line below the heading: authors, title, venue, year, link and key."""
    authors = _listed([" ".join(filter(None, person)) for person in entry.people()])
    venue = next(
        filter(None, (entry.plain(name) for name in ("journal", "booktitle", "publisher", "school"))), ""
    )
    parts = [authors, f"*{entry.plain('title')}*", venue, entry.plain("year")]
    eprint, doi, url = map(entry.identifier, ("eprint", "doi", "url"))
    if eprint:
        parts.append(f"[arXiv:{eprint}](https://arxiv.org/abs/{eprint})")
    elif doi:
        parts.append(f"[doi:{doi}](https://doi.org/{doi})")
    elif url:
        parts.append(f"<{url}>")
    return f"{', '.join(filter(None, parts))}. Citation key `{entry.key}`."


def _row(entry: bibliography.Entry | None) -> str:
    """The paper in the table of README.md."""
    if entry is None:
        return "Authors, *Title*, year"
    names = [last for _, last in entry.people()]
    names = [names[0], "others"] if len(names) > 3 else names
    parts = [_listed(names), f"*{entry.plain('title')}*", entry.plain("year")]
    return ", ".join(filter(None, parts))


def _listed(names: list[str]) -> str:
    *most, last = names or [""]
    if not most:
        return last
    return f"{', '.join(most)} et al." if last == "others" else f"{', '.join(most)} and {last}"
