"""Directives that are made of records, and the tables they show."""

from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.util.docutils import SphinxDirective

from vinb.experiment import citation, figures, saved
from vinb.experiment.tables import claims_table, verdict_counts
from vinb.tables import Table
from vinb_book.committed import (
    SHOWN,
    anchor,
    caption,
    fence,
    metrics_with_verdicts,
    of_the_paper,
    records,
    setting,
    themes,
    titles,
)


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
            f"Run it yourself, at preset smoke: `make run NOTEBOOK={name}`.",
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
        words = (
            f"*{figures.label(wanted)} of {paper} in the notebook {{doc}}`/{name}`.*"
            if (paper := record.bibtex_entry and citation.short(record.bibtex_entry))
            else f"*{figures.label(wanted)} of the notebook {{doc}}`/{name}`.*"
        )
        return [self.figure(record, figure, link=True), *self.parse([words])]


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
