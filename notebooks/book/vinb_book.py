"""What the book makes of the committed records: figures, numbers, verdicts and citations, as Sphinx directives.

``{notebooks}``
    on the start page: per theme of ``vinb_themes`` the entry of the menu and a card for each notebook.
``{record} NAME``
    what a notebook's committed runs found, with files and citation. Put below the title of every notebook; figures
    and tables of runs that are not the one whose outputs the page shows are in ``{record-details} NAME``.
``{gallery}``
    every figure with its caption, files and citation.
``{known-misses}``, ``{results}``
    claims that did not reproduce, and every metric and claim.
``{record-figure} NAME FIGURE``
    one figure.

A page that uses one is built again when a record changes, comes or goes.
"""

import base64
import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from vinb.experiment import citation, figures, notebooks, saved
from vinb.experiment.parameters import PRESETS
from vinb.experiment.tables import claims_table, metrics_table, verdict_counts
from vinb.tables import Table

SHOWN = "cpu"  # the preset whose outputs are in the notebooks


# ---- what is committed


@lru_cache
def _load(file: Path, changed: float) -> saved.SavedRecord:
    return saved.load(file)


def records(source: Path, name: str) -> dict[str, saved.SavedRecord]:
    """Preset -> record of each committed run of a notebook, the paper's setting first."""
    files = {preset: source / name / preset / "record.json" for preset in reversed(PRESETS)}
    return {p: _load(file, file.stat().st_mtime) for p, file in files.items() if file.is_file()}


def titles(source: Path) -> dict[str, str]:
    """Name -> title of every notebook."""
    found = notebooks.discover(source.parent)
    return {name: notebooks.title(notebooks.read(path)) or name for name, path in found.items()}


def themes(given: dict[str, list[str]], names: list[str]) -> dict[str, list[str]]:
    """Theme -> notebooks; those in no theme under "More"."""
    listed = [name for group in given.values() for name in group]
    if odd := [name for name in listed if name not in names]:
        raise ValueError(f"vinb_themes in conf.py: there is no notebook {', '.join(odd)}.")
    groups = dict(given)
    if rest := [name for name in names if name not in listed]:
        groups["More"] = rest
    return groups


# ---- which claims speak about a metric


def places(text: str | None) -> set[str]:
    """The places of a paper that a source names: ``{"table 4", "table 8"}``; without a number, all its words."""
    if not text:
        return set()
    found = set()
    pattern = r"\b(table|figure|section|equation|theorem|appendix)s?\s+((?:\d[\d.]*|[A-Z]\b)(?:(?:, | and | to )\d[\d.]*)*)"
    # another paper's place, or one of the notebook itself ("here, section 5")
    other = re.match(r"(?:([A-Z]\w+)(?: and [A-Z]\w+)?(?: et al\.,?(?: \d{4})?| \d{4})|here,)", text)
    prefix = f"{other[1] or 'here'}: " if other else ""
    for kind, numbers in re.findall(pattern, text, re.IGNORECASE):
        for number in re.split(r", | and | to ", numbers):
            found.add(f"{prefix}{kind} {number.rstrip('.')}".lower())
    return found or {text.strip().lower()}


def claims_about(metric: dict, claims: list[dict]) -> list[dict]:
    """Claims about a metric: of its name, with its value among the measured ones, or about the same place."""

    def about(claim: dict) -> bool:
        measured = claim["measured"] if isinstance(claim["measured"], list) else [claim["measured"]]
        exact = isinstance(metric["value"], float) and not metric["value"].is_integer()
        return (
            claim["name"] == metric["name"]
            or (exact and metric["value"] in measured)
            or bool(places(metric["source"]) & places(claim["source"]))
        )

    return [claim for claim in claims if about(claim)]


def metrics_with_verdicts(record: saved.SavedRecord) -> Table:
    """The metrics' table with a column of the verdicts of the claims about each."""
    claims = record.result["claims"]
    metrics = record.result["metrics"]
    table = metrics_table(metrics)
    counts = [verdict_counts(about) if (about := claims_about(m, claims)) else "–" for m in metrics]
    rows = [[*row, count] for row, count in zip(table.rows, counts, strict=True)]
    return Table([*table.columns, "claims about it"], rows, right=table.right)


# ---- words


def of_the_paper(figure: str) -> bool:
    """Whether a figure is named after one of the paper's."""
    return re.match(r"(figures?|tables?)-\d", figure) is not None


def caption(figure: dict) -> str:
    """A figure's caption without its label, where it begins with that."""
    text = figure["caption"].removeprefix(f"{figures.label(figure['name'])}: ")
    return text[:1].upper() + text[1:]


def anchor(record: saved.SavedRecord, figure: str) -> str:
    """A figure's place in its notebook's page: among the outputs, or among the figures of another run."""
    return f"{record.preset}-{figure}"


def setting(record: saved.SavedRecord) -> str:
    """``preset cpu, seed 0``."""
    return f"preset {record.preset}, seed {record.seed}"


def fence(language: str, text: str) -> list[str]:
    return [f"```{language}", *text.splitlines(), "```"]


# ---- directives


class FromRecords(SphinxDirective):
    """A directive that is Markdown made of records, parsed where it stands."""

    @property
    def source(self) -> Path:
        return Path(self.env.srcdir)

    def groups(self) -> dict[str, list[str]]:
        return themes(self.config.vinb_themes, list(titles(self.source)))

    def committed(self, name: str) -> dict[str, saved.SavedRecord]:
        self.env.note_dependency(str(self.source / f"{name}.ipynb"))
        found = records(self.source, name)
        for record in found.values():
            self.env.note_dependency(str(record.path))
        return found

    def parse(self, lines: list[str]) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def path(self, record: saved.SavedRecord, file: str) -> str:
        return "/" + (record.path.parent / file).relative_to(self.source).as_posix()

    def link(self, name: str, text: str, anchor: str = "") -> nodes.Node:
        """A link to a notebook's page, to a place in it where `anchor` is given."""
        node = pending_xref(
            "",
            refdomain="std",
            reftype="doc",
            refdoc=self.env.docname,
            reftarget=f"/{name}",
            refexplicit=True,
        )
        node += nodes.inline("", text)
        if not anchor:
            return node
        uri = self.env.app.builder.get_relative_uri(self.env.docname, name)
        return nodes.reference("", text, internal=True, refuri=f"{uri}#{anchor}")

    def figure(self, record: saved.SavedRecord, figure: dict, *, link: bool) -> nodes.Element:
        """A figure's picture, a link to its place in the notebook's page if asked."""
        self.env.note_dependency(str(record.path.parent / "figures" / f"{figure['name']}.png"))
        image = nodes.image(
            uri=self.path(record, f"figures/{figure['name']}.png"), alt=figure["alt"], loading="lazy"
        )
        holder = nodes.container(classes=["vinb-figure"])
        if link:
            reference = self.link(record.notebook, "", anchor(record, figure["name"]))
            reference += image
            paragraph = nodes.paragraph()
            paragraph += reference
            holder += paragraph
        else:
            holder += image
        return holder

    def files(self, record: saved.SavedRecord, figure: str | None = None) -> str:
        """Download links: the figure's PNG and SVG, and the record."""
        kinds = [] if figure is None else [("PNG", f"figures/{figure}.png"), ("SVG", f"figures/{figure}.svg")]
        links = [*kinds, ("record", "record.json")]
        return " · ".join(f"{{download}}`{text} <{self.path(record, file)}>`" for text, file in links)

    def cite(self, record: saved.SavedRecord, figure: str | None = None) -> list[str]:
        title = f"BibTeX of {figures.label(figure)}" if figure is not None else f"BibTeX, {setting(record)}"
        return [f"::::{{dropdown}} {title}", *fence("bibtex", citation.bibtex(record, figure)), "::::"]


class Notebooks(FromRecords):
    """Per theme: the menu's entry and cards."""

    def run(self) -> list[nodes.Node]:
        known, references = titles(self.source), citation.references(self.source.parent)
        found = []
        for theme, names in self.groups().items():
            lines = ["```{toctree}", ":hidden:", f":caption: {theme}", "", *names, "```", ""]
            lines += [f"**{theme}**", "", "::::{grid} 1 1 2 2", ":gutter: 3", ""]
            for name in names:
                lines += [f":::{{grid-item-card}} {known[name]}", f":link: /{name}", ":link-type: doc", ""]
                for record in list(self.committed(name).values())[:1]:
                    entry = references.get(record.result["paper"] or "")
                    lines += [f"{citation.short(entry)}. " if entry else ""]
                    lines += [f"*{verdict_counts(record.result['claims'])}*"]
                lines += [":::", ""]
            found += self.parse([*lines, "::::"])
        return found


class RecordSummary(FromRecords):
    """Below a notebook's title: what its committed runs found."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        found = self.committed(name)
        if not found:
            return self.parse([":::{note}", "No run of this notebook is committed.", ":::"])
        lines = [":::::{admonition} What the committed runs found", ":class: note vinb-record", ""]
        for record in found.values():
            claims = verdict_counts(record.result["claims"])
            lines += [f"- At {setting(record)}: {claims}. Files: {self.files(record)}"]
        lines += [
            "",
            f"Run it yourself: `make run NOTEBOOK={name}`, about half a minute at preset smoke.",
            "",
        ]
        for record in found.values():
            lines += [*self.cite(record), ""]
        return self.parse([*lines, ":::::"])


class RecordDetails(FromRecords):
    """At a notebook's end: figures and tables of the runs whose outputs the page does not show."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        found: list[nodes.Node] = []
        for preset, record in self.committed(name).items():
            if preset == SHOWN:
                continue
            part = section(f"The run at {setting(record)}", f"run-{preset}")
            for figure in record.result["figures"]:
                picture = self.figure(record, figure, link=False)
                picture["ids"].append(anchor(record, figure["name"]))
                part += picture
                part += self.parse([f"**{figures.label(figure['name'])}.** {caption(figure)}"])
                part += self.parse([self.files(record, figure["name"])])
            part += tables(record)
            found.append(part)
        return found


class RecordFigure(FromRecords):
    """One figure with a caption and a link to its notebook."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        name, wanted = self.arguments
        record = next(iter(self.committed(name).values()), None)
        if record is None:
            raise self.error(f"record-figure: no run of {name} is committed.")
        figure = citation.find_figure(record, wanted)
        caption = (
            f"*{figures.label(wanted)} of {paper} in the notebook {{doc}}`/{name}`.*"
            if (paper := record.bibtex_entry and citation.short(record.bibtex_entry))
            else f"*{figures.label(wanted)} of the notebook {{doc}}`/{name}`.*"
        )
        return [self.figure(record, figure, link=True), *self.parse([caption])]


class Gallery(FromRecords):
    """Every figure of every committed record."""

    def run(self) -> list[nodes.Node]:
        known, found = titles(self.source), []
        for theme, names in self.groups().items():
            theme_section = section(theme)
            for name in names:
                for record in list(self.committed(name).values())[:1]:
                    theme_section += self.notebook(record, known[name])
            found.append(theme_section)
        return found

    def notebook(self, record: saved.SavedRecord, title: str) -> nodes.section:
        part = section(title, f"gallery-{record.notebook}")
        paper = f"{citation.short(record.bibtex_entry)}, " if record.bibtex_entry else ""
        paragraph = nodes.paragraph()
        paragraph += [
            nodes.Text(f"{paper}{setting(record)}. "),
            self.link(record.notebook, "The notebook"),
        ]
        part += paragraph
        cards = nodes.container(classes=["vinb-cards"])
        for figure in record.result["figures"]:
            card = nodes.container(classes=["vinb-card"])
            card += self.figure(record, figure, link=True)
            kind = "" if of_the_paper(figure["name"]) else " (ours)"
            card += self.parse([f"**{figures.label(figure['name'])}{kind}.** {caption(figure)}"])
            card += self.parse([self.files(record, figure["name"])])
            card += self.parse(self.cite(record, figure["name"]))
            cards += card
        part += cards
        return part


class KnownMisses(FromRecords):
    """Claims that did not reproduce, with the evidence."""

    def run(self) -> list[nodes.Node]:
        found = []
        for names in self.groups().values():
            for name in names:
                for record in self.committed(name).values():
                    for claim in record.result["claims"]:
                        if claim["verdict"] == "known-miss":
                            found.append(self.miss(record, claim))
        return found or [nodes.paragraph("", "None: every claim that a committed run could show was held.")]

    def miss(self, record: saved.SavedRecord, claim: dict) -> nodes.section:
        part = section(
            f"{record.notebook}: {claim['name']}", f"miss-{record.notebook}-{record.preset}-{claim['name']}"
        )
        part += nodes.paragraph("", claim["statement"])
        fields = nodes.field_list()
        (row,) = claims_table([claim]).rows
        place = [self.link(record.notebook, f"{record.notebook}, {setting(record)}")]
        for name, content in (
            ("Measured", [nodes.Text(row[2])]),
            ("Asked", [nodes.Text(row[3])]),
            ("In the paper", [nodes.Text(row[5])]),
            ("Notebook", place),
        ):
            if name == "Notebook" or content[0].astext():
                body = nodes.paragraph()
                body += content
                fields += nodes.field("", nodes.field_name("", name), nodes.field_body("", body))
        part += fields
        part += nodes.paragraph("", claim["reason"])
        return part


class Results(FromRecords):
    """Every metric and every claim, notebook by notebook."""

    def run(self) -> list[nodes.Node]:
        known, found, entries = titles(self.source), [], nodes.bullet_list()
        for names in self.groups().values():
            for name in names:
                for record in self.committed(name).values():
                    part = section(f"{known[name]}, {setting(record)}", f"results-{name}-{record.preset}")
                    to = nodes.reference("", part[0].astext(), internal=True, refuri=f"#{part['ids'][0]}")
                    entries += nodes.list_item("", nodes.paragraph("", "", to))
                    paragraph = nodes.paragraph()
                    paragraph += [self.link(name, name), nodes.Text(": ")]
                    paragraph += nodes.Text(verdict_counts(record.result["claims"]) + ".")
                    part += paragraph
                    part += tables(record)
                    found.append(part)
        return [entries, *found] if found else []


def tables(record: saved.SavedRecord) -> Iterator[nodes.Node]:
    """Metrics with verdicts, and claims."""
    if record.result["metrics"]:
        yield table_node(metrics_with_verdicts(record), "Metrics")
    if record.result["claims"]:
        table = claims_table(record.result["claims"])
        yield table_node(Table(table.columns, table.rows, right=table.right), "Claims")


def section(title: str, identity: str = "") -> nodes.section:
    part = nodes.section(ids=[nodes.make_id(identity or title)])
    part += nodes.title("", title)
    return part


def table_node(table: Table, title: str) -> nodes.table:
    """A `Table` as a node of the document, so that the search finds its words."""
    node = nodes.table("", nodes.title("", title), classes=["vinb-table", "colwidths-auto"])
    group = nodes.tgroup(cols=len(table.columns))
    group += [nodes.colspec(colwidth=1) for _ in table.columns]
    for holder, rows in ((nodes.thead(), [table.columns]), (nodes.tbody(), table.rows)):
        for cells in rows:
            row = nodes.row()
            for j, text in enumerate(cells):
                aligned = ["vinb-right"] if j in table.right else []
                row += nodes.entry("", nodes.paragraph("", text, classes=aligned))
            holder += row
        group += holder
    node += group
    return node


# ---- the notebooks' pages


def prepare_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """Before a notebook is parsed: its record below the title, its citation keys as links."""
    if docname not in notebooks.discover(Path(app.srcdir).parent) or not source[0].lstrip().startswith("{"):
        return
    nb = json.loads(source[0])
    keys = citation.references(Path(app.srcdir).parent)
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            text = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            cell["source"] = re.sub(
                r"`([\w-]+)`", lambda m: f"`{m[1]}` {{cite:p}}`{m[1]}`" if m[1] in keys else m[0], text
            )
    nb["cells"].insert(1, _markdown_cell("record", [f"```{{record}} {docname}", "```"]))
    nb["cells"].append(_markdown_cell("record-details", [f"```{{record-details}} {docname}", "```"]))
    source[0] = json.dumps(nb)


def _markdown_cell(identity: str, lines: list[str]) -> dict:
    return {"cell_type": "markdown", "id": identity, "metadata": {}, "source": "\n".join(lines)}


def describe_images(app: Sphinx, doctree: nodes.document) -> None:
    """After parsing: pictures in outputs get their alternative text, and an anchor by the figure's name."""
    docname = app.env.docname
    path = Path(app.srcdir) / f"{docname}.ipynb"
    if not path.is_file():
        return
    described = {}  # by the picture's hash, after which MyST-NB names its file
    for cell in notebooks.read(path)["cells"]:
        for output in cell.get("outputs", ()):
            if png := output.get("data", {}).get("image/png"):
                alt = output["metadata"].get("image/png", {}).get("alt", "")
                text = "".join(output["data"].get("text/plain", ""))
                described[hashlib.sha256(base64.b64decode("".join(png))).hexdigest()] = text, alt
    for image in list(doctree.findall(nodes.image)):
        if (stem := Path(image["uri"]).stem) in described:
            text, image["alt"] = described[stem]
            image["loading"] = "lazy"
            if named := re.match(r"\[([a-z0-9-]+): ", text):
                # Not an identity of the picture: the link to its full size would get the same.
                image.replace_self([nodes.target("", "", ids=[f"{SHOWN}-{named[1]}"]), image])


def prepare_docstring(app: Sphinx, what, name, obj, options, lines: list[str]) -> None:
    """Citation keys in docstrings as links; two fields described at once as two."""
    file = Path(app.srcdir) / "references.bib"
    known = _citation_keys(file, file.stat().st_mtime)
    found = []
    for line in lines:
        both = re.match(r":(ivar|param) (\w+), (\w+): (.*)", line)
        parts = [f":{both[1]} {both[i]}: {both[4]}" for i in (2, 3)] if both else [line]
        found += [known.sub(r":cite:t:`\1`", part) for part in parts]
    lines[:] = found


@lru_cache
def _citation_keys(file: Path, changed: float) -> re.Pattern:
    keys = citation.references(file.parents[1])
    return re.compile(rf"(?<![`\w]):?\b({'|'.join(map(re.escape, keys))})\b(?!`)")


def no_numbered_fields(app: Sphinx, what, name, obj, skip, options) -> bool | None:
    """Leaves out fields that Python describes by their number alone; the class describes them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number ") else None


def prepare_signature(app: Sphinx, what, name, obj, options, signature, returns):
    """``Float[Array, "batch"]`` as it is written, where autodoc names the class that ``Array`` is."""
    return tuple(text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returns))


def only_ours(app: Sphinx, module: str, attribute: str) -> str | None:
    """Pages of source for the package alone, not for what it takes from others."""
    defined = getattr(getattr(importlib.import_module(module), attribute, None), "__module__", module)
    return None if str(defined).startswith("vinb.") else module


def came_or_went(app: Sphinx, env, added, changed, removed) -> list[str]:
    """Pages made of records, when a notebook or a record came or went: they could not depend on what was not there."""
    source = Path(app.srcdir)
    there = sorted(
        f"{name}/{preset}"
        for name in notebooks.discover(source.parent)
        for preset in ("", *records(source, name))
    )
    before, env.vinb_there = getattr(env, "vinb_there", there), there
    if there == before:
        return []
    return [
        name
        for name in env.found_docs
        if any(str(file).endswith(".ipynb") for file in env.dependencies.get(name, ()))
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("vinb_themes", {}, "env", dict)
    for name, directive in {
        "notebooks": Notebooks,
        "record": RecordSummary,
        "record-details": RecordDetails,
        "record-figure": RecordFigure,
        "gallery": Gallery,
        "known-misses": KnownMisses,
        "results": Results,
    }.items():
        app.add_directive(name, directive)
    app.connect("env-get-outdated", came_or_went)
    app.connect("source-read", prepare_notebook)
    app.connect("doctree-read", describe_images)
    app.connect("autodoc-skip-member", no_numbered_fields)
    app.connect("autodoc-process-docstring", prepare_docstring)
    app.connect("autodoc-process-signature", prepare_signature)
    app.connect("viewcode-follow-imported", only_ours)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
