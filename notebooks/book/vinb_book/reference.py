"""The API reference: citations and fields of docstrings, arrays in signatures, pages of source."""

import importlib
import re
from functools import lru_cache
from pathlib import Path

from sphinx.application import Sphinx

from vinb.experiment import citation


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
