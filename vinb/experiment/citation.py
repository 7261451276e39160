"""BibTeX of a paper and of a record, and a record's provenance in words."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vinb.experiment import paths


def entries(text: str) -> dict[str, str]:
    """BibTeX entries of a file's text: key -> the entry as written."""
    found = {}
    for match in re.finditer(r"^@(\w+)\s*\{\s*([^,\s]+)\s*,", text, flags=re.MULTILINE):
        if match[1].lower() not in ("comment", "preamble", "string"):
            found[match[2]] = text[match.start() : _closing(text, text.index("{", match.start())) + 1]
    return found


def field(entry: str, name: str) -> str:
    """A field of a BibTeX entry without its braces, empty where the entry has none."""
    match = re.search(rf"^\s*{name}\s*=\s*", entry, flags=re.MULTILINE | re.IGNORECASE)
    if match is None:
        return ""
    if entry[match.end()] == "{":
        return re.sub(r"[{}]", "", entry[match.end() : _closing(entry, match.end())])
    return entry[match.end() :].split("\n")[0].strip().rstrip(",").strip('"')


def short(entry: str) -> str:
    """``Kingma & Welling (2014)``."""
    names = [person.split(",")[0].strip() for person in field(entry, "author").split(" and ")]
    authors = names[0] if len(names) == 1 else " & ".join(names) if len(names) == 2 else f"{names[0]} et al."
    return f"{authors} ({field(entry, 'year')})"


def references(root: Path | None) -> dict[str, str]:
    """All entries of the root's ``notebooks/references.bib``, else of the copy in the installed package."""
    for file in (
        *([root / "notebooks" / "references.bib"] if root is not None else []),
        Path(__file__).with_name("references.bib"),
    ):
        if file.is_file():
            return entries(file.read_text(encoding="utf-8"))
    return {}


def entry(key: str, root: Path | None) -> str:
    """The BibTeX entry of `key`; ValueError if references.bib has none."""
    known = references(root)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"paper: notebooks/references.bib has no entry {key!r}{hint} "
            f"Its keys: {', '.join(known) or 'none'}."
        )
    return known[key]


def bibtex(record: Any, figure: str | None = None) -> str:
    """BibTeX of the paper, of a record (or of one figure of it), and of the data sets it used.

    The record's entry names what identifies the run: notebook, preset, seed, overridden parameters, data
    checksums, versions, hashes of the code, parent commit.

    Args:
        record: a `Record` or `SavedRecord`.
        figure: name of one of its figures, such as ``"figure-4"``.

    Raises:
        ValueError: if the record has no such figure.
    """
    result, environment = record.result, record.environment
    chosen = find_figure(record, figure) if figure is not None else None
    title = field(record.bibtex_entry, "title") or result["notebook"]
    what = f"{chosen['name']} of the notebook" if chosen is not None else "the notebook"
    note = [f"preset {result['preset']}", f"seed {result['seed']}"]
    note += [f"{name}={json.dumps(result['parameters'][name])}" for name in result["overrides"]]
    note += [
        f"{package} {version}"
        for package, version in environment["packages"].items()
        if package in ("jax", "numpyro")
    ]
    note += [f"data {name} sha256 {checksum[:12]}" for name, checksum in result["data"].items()]
    if environment.get("notebook_hash"):
        note.append(f"notebook code {environment['notebook_hash'][:12]}")
    note.append(f"package code {environment['vinb_hash'][:12]}")
    if environment.get("commit"):
        note.append(f"commit {environment['commit'][:12]}")
    url = paths.source_url()
    fields = {
        "title": f"Reproduction of ``{title}'': {what} {_escape(result['notebook'])}"
        if record.bibtex_entry
        else f"Run of {what} {_escape(result['notebook'])}",
        "author": "{The vinb developers}",
        "year": environment["date"][:4],
        "howpublished": f"vinb {environment['vinb']}" + (f", \\url{{{url}}}" if url else ""),
        "note": _escape("; ".join(note)),
    }
    key = f"vinb-{result['notebook']}-{result['preset']}-{_fingerprint(result)[:8]}" + (
        f"-{chosen['name']}" if chosen else ""
    )
    own = (
        f"@misc{{{key},\n" + "".join(f"  {name:<12} = {{{value}}},\n" for name, value in fields.items()) + "}"
    )
    return "\n\n".join(filter(None, [record.bibtex_entry, own, *_data_entries(result["data"].values())]))


def provenance(record: Any, figure: str | None = None) -> str:
    """What a result (or one figure of it) came from, in full, as comments of BibTeX and LaTeX (``%``)."""
    result, environment = record.result, record.environment
    lines: list[tuple[str, str]] = []
    chosen = find_figure(record, figure) if figure is not None else None
    if chosen is not None:
        lines.append(("figure", f"{chosen['name']}: {chosen['caption']}"))
    lines.append(("notebook", f"{result['notebook']}, preset {result['preset']}, seed {result['seed']}"))
    for name, value in result["parameters"].items():
        mark = " (override)" if name in result["overrides"] else ""
        lines.append(("parameter", f"{name} = {json.dumps(value, ensure_ascii=False)}{mark}"))
    lines += [("data", f"{name} sha256 {checksum}") for name, checksum in result["data"].items()]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    lines.append(("versions", f"vinb {environment['vinb']}, python {environment['python']}, {packages}"))
    device = environment.get("device") or {}
    described = ", ".join(f"{key} {value}" for key, value in device.items() if isinstance(value, str | int))
    lines.append(
        (
            "machine",
            f"{environment['system']}, {environment['cores']} cores"
            + (f"; {described}" if described else ""),
        )
    )
    lines.append(
        (
            "code",
            f"notebook {environment.get('notebook_hash') or 'unknown'}, vinb {environment['vinb_hash']}",
        )
    )
    lines.append(("commit", environment.get("commit") or "none (not in git)"))
    lines.append(("date", environment["date"]))
    if path := getattr(record, "path", None):
        lines.append(("record", paths.shown(path)))
        if chosen is not None:
            lines.append(("file", paths.shown(path.parent / "figures" / f"{chosen['name']}.svg")))
    return "\n".join(f"% {label:<10} {' '.join(text.split())}" for label, text in lines)


def find_figure(record: Any, name: str) -> dict[str, Any]:
    """A figure of a record by its name (``figure-4``, also written ``Figure 4``)."""
    figures = {figure["name"]: figure for figure in record.result["figures"]}
    wanted = re.sub(r"[\s_.]+", "-", name.strip().lower())
    if wanted not in figures:
        near = difflib.get_close_matches(wanted, figures, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"figure: this record has no figure {name!r}.{hint} Its figures: {', '.join(figures) or 'none'}."
        )
    return figures[wanted]


def _data_entries(checksums: Iterable[str]) -> list[str]:
    """BibTeX of the data sets that have files of these checksums."""
    if not (used := set(checksums)):
        return []
    from vinb.data import DATASETS  # imports numpy

    return [d.citation for d in DATASETS.values() if any(file.sha256 in used for file in d.files)]


def _fingerprint(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _escape(text: str) -> str:
    return re.sub(r"([%&_#$])", r"\\\1", text.replace("{", "(").replace("}", ")"))


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"references.bib: the brace in {text[opening - 20 : opening + 40]!r} is never closed.")
