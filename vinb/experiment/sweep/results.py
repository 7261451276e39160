"""The results of a sweep: one tidy table, a summary over seeds, both as CSV."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinb.experiment.paths import shown, write_atomic
from vinb.experiment.saved import SavedRecord
from vinb.experiment.tables import number, verdict_counts
from vinb.tables import Table

_COLUMNS = ("kind", "name", "value", "error", "paper", "unit", "verdict")
_VERDICTS = ("held", "failed", "not-applicable", "known-miss")
_SUMMARY = ("kind", "name", "mean", "low", "high", "deviation", "runs", "paper", "unit", *_VERDICTS)
_CONFIDENCE = 0.95
_PRINTED = 30  # rows of the summary that are still read on a terminal


@dataclass(frozen=True)
class Summary:
    """One number of the runs of one setting, over their seeds.

    Attributes:
        setting: name -> value in force, of preset and swept parameters but the seed.
        kind: ``metric`` or ``claim``.
        name: of the metric or claim.
        values: one per seed, in the runs' order; empty for a claim that measures no single number.
        mean: of the values, None without any.
        low: lower end of the 95 % interval of the mean by Student's t, None with fewer than two values.
        high: its upper end.
        deviation: standard deviation over seeds, None with fewer than two values.
        paper: the paper's number, or None.
        unit: of all of these, or None.
        verdicts: of a claim, one per run.
    """

    setting: Mapping[str, Any]
    kind: str
    name: str
    values: Sequence[float]
    mean: float | None
    low: float | None
    high: float | None
    deviation: float | None
    paper: float | None
    unit: str | None
    verdicts: Sequence[str]


def write(
    folder: Path,
    names: Sequence[str],
    records: Sequence[SavedRecord],
    metrics: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Writes ``table.csv``, ``summary.csv`` and the plot ``summary.svg`` and ``.png`` of some records.

    The same records in the same order give the same bytes.

    Args:
        folder: where to.
        names: the swept parameters.
        records: of the runs.
        metrics: names of the metrics or claims to plot; empty for the first dozen.
        say: called with each line of the report.

    Returns:
        ``table``, ``summary`` and, where there was something to plot, ``plot``.
    """
    from vinb.experiment.sweep import plot

    summaries = summarise(names, records)
    files = {"table": folder / "table.csv", "summary": folder / "summary.csv"}
    write_atomic(files["table"], _csv(_table(names, records)))
    write_atomic(files["summary"], _csv(_summary_table(names, summaries)))
    notes: list[str] = []  # said when all files are there, whoever listens
    if plot.draw(folder, summaries, metrics, notes.append):
        files["plot"] = folder / "summary.svg"
    else:
        for kind in ("svg", "png"):  # an earlier call's
            (folder / f"summary.{kind}").unlink(missing_ok=True)
    if (text := _readable(summaries)) is not None:
        say(f"\n{text}\n")
    for note in notes:
        say(note)
    say(f"table     {shown(files['table'])}")
    say(f"summary   {shown(files['summary'])}" + (", .svg, .png" if "plot" in files else ""))
    return files


def summarise(names: Sequence[str], records: Sequence[SavedRecord]) -> list[Summary]:
    """Mean and interval of every number in every setting; settings and numbers in the order of the records.

    Args:
        names: the swept parameters.
        records: of the runs. Of two with one setting and seed the first counts.
    """
    import numpy as np
    from scipy.special import stdtrit

    settings: dict[str, tuple[dict[str, Any], dict[int, SavedRecord]]] = {}
    for record in records:
        setting = {"preset": record.preset} | {n: _in_force(record, n) for n in names if n != "seed"}
        settings.setdefault(json.dumps(setting), (setting, {}))[1].setdefault(record.seed, record)
    found = []
    for setting, by_seed in settings.values():
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for record in by_seed.values():
            for row in _numbers(record):
                groups.setdefault((row["kind"], row["name"]), []).append(row)
        for (kind, name), rows in groups.items():
            values = [row["value"] for row in rows if row["value"] is not None]
            mean = float(np.mean(values)) if values else None
            deviation = low = high = None
            if len(values) > 1:
                deviation = float(np.std(values, ddof=1))
                half = float(stdtrit(len(values) - 1, (1 + _CONFIDENCE) / 2)) * deviation / len(values) ** 0.5
                low, high = mean - half, mean + half
            verdicts = [row["verdict"] for row in rows if row["verdict"]]
            first = rows[0]
            found.append(
                Summary(
                    setting,
                    kind,
                    name,
                    values,
                    mean,
                    low,
                    high,
                    deviation,
                    first["paper"],
                    first["unit"],
                    verdicts,
                )
            )
    return found


def _in_force(record: SavedRecord, name: str) -> Any:
    return {"preset": record.preset, "seed": record.seed}.get(name, record.parameters.get(name))


def _numbers(record: SavedRecord) -> list[dict[str, Any]]:
    """One row per metric and claim of a record."""
    rows = [
        {"kind": "metric", "verdict": None} | {key: metric[key] for key in _COLUMNS[1:-1]}
        for metric in record.result["metrics"]
    ]
    for claim in record.result["claims"]:
        measured = claim["measured"]
        scalar = type(measured) in (int, float) and math.isfinite(measured)
        rows.append(
            {"kind": "claim", "name": claim["name"], "value": measured if scalar else None}
            | {"error": None, "paper": None, "unit": None, "verdict": claim["verdict"]}
        )
    return rows


def _columns(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Swept parameter -> its column; one called like another column gets a longer name."""
    return {n: f"parameter {n}" if n in taken else n for n in names if n not in ("preset", "seed")}


def _table(names: Sequence[str], records: Sequence[SavedRecord]) -> list[list[Any]]:
    columns = _columns(names, ("notebook", *_COLUMNS))
    rows: list[list[Any]] = [["notebook", "preset", "seed", *columns.values(), *_COLUMNS]]
    for record in records:
        start = [record.notebook, record.preset, record.seed, *(_in_force(record, n) for n in columns)]
        rows += [start + [row[key] for key in _COLUMNS] for row in _numbers(record)]
    return rows


def _summary_table(names: Sequence[str], summaries: Sequence[Summary]) -> list[list[Any]]:
    columns = _columns(names, _SUMMARY)
    rows: list[list[Any]] = [["preset", *columns.values(), *_SUMMARY]]
    for s in summaries:
        verdicts = [s.verdicts.count(verdict) if s.kind == "claim" else None for verdict in _VERDICTS]
        runs = len(s.verdicts) if s.kind == "claim" else len(s.values)
        start = [s.setting["preset"], *(s.setting[n] for n in columns)]
        rows.append(
            [*start, s.kind, s.name, s.mean, s.low, s.high, s.deviation, runs, s.paper, s.unit, *verdicts]
        )
    return rows


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV: numbers with all their digits, lists and truth values as JSON, nothing for None."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([json.dumps(v) if isinstance(v, bool | list | tuple) else v for v in row])
    return text.getvalue()


def words(setting: Mapping[str, Any], names: Sequence[str]) -> str:
    """Some values of a setting as a person writes them: ``hidden=400, rate=0.1``."""
    return ", ".join(f"{name}={value_words(setting[name])}" for name in names)


def value_words(value: Any) -> str:
    """One value as a person writes it."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def varying(summaries: Sequence[Summary]) -> dict[str, list[Any]]:
    """Name -> distinct values, of what differs between the settings."""
    distinct: dict[str, list[Any]] = {}
    for summary in summaries:
        for name, value in summary.setting.items():
            if value not in distinct.setdefault(name, []):
                distinct[name].append(value)
    return {name: items for name, items in distinct.items() if len(items) > 1}


def _readable(summaries: Sequence[Summary]) -> Table | None:
    """The summary for a terminal; None if it is empty or too long for one."""
    if not 0 < len(summaries) <= _PRINTED:
        return None
    names, rows = list(varying(summaries)), []
    for s in summaries:
        value = "" if s.mean is None else number(s.mean)
        if s.high is not None:
            value += f" ± {s.high - s.mean:.2g}"
        verdicts = verdict_counts([{"verdict": verdict} for verdict in s.verdicts]) if s.verdicts else ""
        runs = str(len(s.verdicts) if s.kind == "claim" else len(s.values))
        rows.append([words(s.setting, names), s.name, value, s.unit or "", number(s.paper), runs, verdicts])
    columns = ["setting", "number", "mean ± 95 %", "unit", "paper", "runs", "verdicts"]
    keep = [j for j in range(len(columns)) if j in (1, 2, 5) or any(row[j] for row in rows)]
    right = frozenset(k for k, j in enumerate(keep) if j in (2, 4, 5))
    return Table([columns[j] for j in keep], [[row[j] for j in keep] for row in rows], right=right)
