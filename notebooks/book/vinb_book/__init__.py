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

from sphinx.application import Sphinx

from vinb_book import directives, notebook_pages, reference


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("vinb_themes", {}, "env", dict)
    for name, directive in {
        "notebooks": directives.Notebooks,
        "record": directives.RecordSummary,
        "record-details": directives.RecordDetails,
        "record-figure": directives.RecordFigure,
        "gallery": directives.Gallery,
        "known-misses": directives.KnownMisses,
        "results": directives.Results,
    }.items():
        app.add_directive(name, directive)
    app.connect("env-get-outdated", notebook_pages.came_or_went)
    app.connect("source-read", notebook_pages.prepare_notebook)
    app.connect("doctree-read", notebook_pages.describe_images)
    app.connect("autodoc-skip-member", reference.no_numbered_fields)
    app.connect("autodoc-process-docstring", reference.prepare_docstring)
    app.connect("autodoc-process-signature", reference.prepare_signature)
    app.connect("viewcode-follow-imported", reference.only_ours)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
