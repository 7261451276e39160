"""Reading records back: `load`, and `compare` for a table of several."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinb.experiment.record import SCHEMA
from vinb.experiment.tables import claims_table, metrics_table
from vinb.tables import Table

if TYPE_CHECKING:
    import pandas

_RESULT = {
    "notebook": str,
    "preset": str,
    "seed": int,
    "parameters": dict,
    "overrides": list,
    "metrics": list,
    "claims": list,
    "figures": list,
    "data": dict,
}
_ITEMS = {
    "metrics": {"name", "value", "unit", "paper", "source", "setting", "error"},
    "claims": {"name", "statement", "measured", "tolerance", "verdict", "source", "reason"},
    "figures": {"name", "caption", "alt"},
}
_VERDICTS = ("held", "failed", "not-applicable", "known-miss")


@dataclass(frozen=True)
class SavedRecord:
    """A record read from a file: ``result``, ``environment`` and the paper's ``bibtex_entry``."""

    path: Path
    result: Mapping[str, Any]
    environment: Mapping[str, Any]
    bibtex_entry: str

    @property
    def notebook(self) -> str:
        return self.result["notebook"]

    @property
    def preset(self) -> str:
        return self.result["preset"]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.result["parameters"]

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> value."""
        return {metric["name"]: metric["value"] for metric in self.result["metrics"]}

    @property
    def verdicts(self) -> dict[str, str]:
        """Claim -> verdict."""
        return {claim["name"]: claim["verdict"] for claim in self.result["claims"]}

    def metrics_table(self) -> Table:
        return metrics_table(self.result["metrics"])

    def claims_table(self) -> Table:
        return claims_table(self.result["claims"])

    def bibtex(self, figure: str | None = None) -> str:
        """BibTeX of the paper and of this record; see `vinb.experiment.bibtex`."""
        from vinb.experiment import citation

        return citation.bibtex(self, figure)


def load(path: str | Path) -> SavedRecord:
    """Reads a record.

    Args:
        path: a ``record.json`` or the folder that holds one.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a record; names the file and the key.
    """
    path = Path(path)
    path = path / "record.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no record at {str(path)!r}; a finished run writes record.json into its output folder."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}); run the notebook again.") from None

    def refuse(why: str) -> None:
        raise ValueError(f"{str(path)!r} is not a record: {why}.")

    if not isinstance(content, dict) or "schema" not in content:
        refuse("it has no 'schema'")
    if content["schema"] != SCHEMA:
        refuse(
            f"its schema is {content['schema']!r} and this vinb reads {SCHEMA}; use the vinb that wrote it"
        )
    for key, kind in (("result", dict), ("environment", dict), ("bibtex", str)):
        if not isinstance(content.get(key), kind):
            refuse(f"{key!r} is missing or of the wrong type")
    result = content["result"]
    for key, kind in _RESULT.items():
        if not isinstance(result.get(key), kind):
            refuse(f"'result.{key}' is missing or of the wrong type")
    for key, fields in _ITEMS.items():
        for item in result[key]:
            if lacking := fields - set(item if isinstance(item, dict) else ()):
                refuse(f"an item of 'result.{key}' lacks {', '.join(sorted(lacking))}")
    for claim in result["claims"]:
        if claim["verdict"] not in _VERDICTS:
            refuse(
                f"claim {claim['name']!r} has verdict {claim['verdict']!r}, none of {', '.join(_VERDICTS)}"
            )
    return SavedRecord(path, result, content["environment"], content["bibtex"])


def compare(records: Iterable[Any]) -> "pandas.DataFrame":
    """One row per record: notebook, preset, seed, parameters that differ, metrics, counts of verdicts.

    A metric called like a parameter or another column goes into ``metric <name>``; a parameter called like one of the
    first three columns, into ``parameter <name>``.

    Args:
        records: records of this session, loaded ones, or paths of such.

    Raises:
        ValueError: if there are no records.
    """
    import pandas

    records = [load(r) if isinstance(r, str | Path) else r for r in records]
    if not records:
        raise ValueError("compare: no records given.")
    results = [r.result for r in records]
    names = list(dict.fromkeys(name for result in results for name in result["parameters"]))
    missing = object()
    seen = {name: [result["parameters"].get(name, missing) for result in results] for name in names}
    differing = [name for name in names if any(value != seen[name][0] for value in seen[name])]
    first, last = ("notebook", "preset", "seed"), [f"claims {verdict}" for verdict in _VERDICTS]

    def column(kind: str, name: str, taken: Iterable[str]) -> str:
        return f"{kind} {name}" if name in taken else name

    rows = []
    for result in results:
        row = {key: result[key] for key in first}
        row |= {column("parameter", name, first): result["parameters"].get(name) for name in differing}
        for metric in result["metrics"]:
            row[column("metric", metric["name"], (*first, *names, *last))] = metric["value"]
        verdicts = [claim["verdict"] for claim in result["claims"]]
        row |= {key: verdicts.count(verdict) for key, verdict in zip(last, _VERDICTS, strict=True)}
        rows.append(row)
    return pandas.DataFrame(rows)
