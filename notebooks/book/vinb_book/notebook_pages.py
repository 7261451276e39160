"""The notebooks' pages: their records, citations and described pictures; and when pages of records are made again."""

import base64
import hashlib
import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from vinb.experiment import citation, notebooks
from vinb_book.committed import SHOWN, records


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
