"""What is committed, which claims speak about which number, and the words for it."""

import re
from functools import lru_cache
from pathlib import Path

from vinb.experiment import figures, notebooks, saved
from vinb.experiment.parameters import PRESETS
from vinb.experiment.tables import metrics_table, verdict_counts
from vinb.tables import Table

SHOWN = "cpu"  # the preset whose outputs are in the notebooks


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
