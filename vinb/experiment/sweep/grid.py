"""What ``-p NAME=VALUES`` means, the runs of a grid, and which of them are finished."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vinb.experiment import notebooks, parameters, paths, planning, saved
from vinb.experiment.planning import Plan
from vinb.tables import Table

MAX_RUNS = 10_000
_RANGE = re.compile(r"([+-]?\d+):([+-]?\d+)(?::([+-]?\d+))?")


@dataclasses.dataclass(frozen=True)
class Grid:
    """The runs of a sweep before any of them happens.

    Attributes:
        notebook: the file.
        root: the folder with ``notebooks/``, or None.
        values: name -> values, as given; the runs are their product, the last name varying fastest.
        runs: one `Plan` per run.
        folder: where the sweep's table, summary and plot go.
        code_hash: of the notebook as it stands.
        notes: what was put right, in sentences.
    """

    notebook: Path
    root: Path | None
    values: Mapping[str, Sequence[Any]]
    runs: Sequence[Plan]
    folder: Path
    code_hash: str
    notes: Sequence[str]


def values(name: str, text: str) -> list[Any]:
    """The values in ``a,b,c``, where each is a value as in Python or JSON, or a range of integers.

    ``0:5`` and ``0:10:2`` are ranges as in Python, the end excluded. Commas within brackets or quotes separate nothing:
    ``[400,400],[800]`` are two lists, ``'a,b'`` is one text, and so is ``'0:5'``.

    Args:
        name: of the parameter, for messages.
        text: as typed.

    Raises:
        ValueError: for an empty value, an empty range, more than `MAX_RUNS` values, or brackets and quotes left open.
    """
    found: list[Any] = []
    for item in _split(name, text):
        if not item:
            raise ValueError(f"-p {name}={text}: a value is empty; for an empty text write '' in quotes.")
        numbers = _RANGE.fullmatch(item)
        if numbers is None:
            found.append(planning.literal(item))
            continue
        start, stop, step = (int(number) for number in (*numbers.groups()[:2], numbers[3] or 1))
        if step == 0 or (stop - start) * step <= 0:
            raise ValueError(
                f"-p {name}={text}: the range {item} is empty; write first:end or first:end:step, "
                "the end excluded, such as 0:5 for 0, 1, 2, 3, 4."
            )
        if abs(stop - start) > MAX_RUNS * abs(step):
            raise ValueError(f"-p {name}={text}: the range {item} has more than {MAX_RUNS:,} values.")
        found += range(start, stop, step)
    return found


def _split(name: str, text: str) -> list[str]:
    """`text` at its commas outside of brackets and quotes; a quote opens only where a value begins."""
    items, current, depth, quote, before = [], "", 0, "", ","
    escaped = False  # a quote behind a backslash ends nothing
    for character in text:
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "'\"" and before in ",[({:":
            quote = character
        elif character in "[({":
            depth += 1
        elif character in "])}":
            depth -= 1
        elif character == "," and depth == 0:
            items.append(current.strip())
            current, before = "", ","
            continue
        current += character
        before = before if character.isspace() else character
    if quote or depth:
        raise ValueError(f"-p {name}={text}: {'a quote' if quote else 'a bracket'} is left open.")
    return [*items, current.strip()]


def parse(assignments: Sequence[str]) -> dict[str, list[Any]]:
    """Name -> values of all ``NAME=VALUES``.

    Raises:
        ValueError: for what is no assignment, a name given twice, or values that cannot be read.
    """
    found: dict[str, list[Any]] = {}
    for text in assignments:
        name, value = planning.assignment(text)
        if name in found:
            raise ValueError(f"-p {name}: given twice; write all its values in one, such as -p {name}=1,2.")
        found[name] = values(name, value)
    return found


def grid(
    notebook: str | Path,
    values: Mapping[str, Sequence[Any]],
    *,
    preset: str | None = None,
    output_dir: str | Path | None = None,
    root: str | Path | None = None,
) -> Grid:
    """The runs of a sweep, all checked.

    Args:
        notebook: name of a notebook, or the path of an ``.ipynb`` file.
        values: name -> values to try.
        preset: the preset of all runs; None for the notebook's own, or where `values` has ``preset``.
        output_dir: results go to ``<output_dir>/<notebook>/``; None for ``runs/`` in the clone.
        root: the folder with ``notebooks/``; None looks for it.

    Raises:
        ParameterError: for a name that the notebook does not have, or a seed that is none.
        TypeError: for values that are no list.
        ValueError: for an unknown notebook or preset, no values, too many runs, or two runs in one folder.
    """
    path, found = planning.locate(str(notebook), root)
    nb = notebooks.read(path)
    known, notes, distinct = notebooks.parameters_of(nb), [], {}
    parameters.unknown(path.stem, [*values, *(["preset"] if preset else [])], known)
    if preset is not None and "preset" in values:
        raise ValueError("preset is given twice: by --preset (preset=) and among the parameters.")
    if not values:
        raise ValueError("nothing to vary; give values, such as -p seed=0:5.")
    for name, items in values.items():
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise TypeError(f"{name}: give a list of the values to try; got {items!r}.")
        if not items:
            raise ValueError(f"{name}: has no values; give at least one.")
        first: dict[Any, Any] = {}
        for item in items:
            first.setdefault(_identity(item), item)
        distinct[name] = list(first.values())
        if len(distinct[name]) < len(items):
            notes.append(f"{name}: values given more than once count once.")
    if (number := math.prod(map(len, distinct.values()))) > MAX_RUNS:
        raise ValueError(f"{number:,} runs are too many; vary fewer values, at most {MAX_RUNS:,} runs.")

    base, fixed = planning.base(output_dir, found), {} if preset is None else {"preset": preset}
    runs = [
        planning.plan(path, known, fixed | dict(zip(distinct, point, strict=True)), base)
        for point in itertools.product(*distinct.values())
    ]
    # As `notebooks.execute` resolves them, so that a run is where it says it is, also behind a symbolic link.
    place = (base / path.stem).resolve()
    runs = [dataclasses.replace(run, folder=place / run.folder.name) for run in runs]
    folders: dict[Path, Plan] = {}
    for run in runs:
        if (other := folders.setdefault(run.folder, run)) is not run:
            raise ValueError(
                f"two runs would share the folder {run.folder.name}: {dict(other.given)} and {dict(run.given)} "
                "are the same to the notebook; leave one of them out."
            )
    varied = {name: items for name, items in distinct.items() if name != "preset"}
    presets = "+".join(dict.fromkeys(run.preset or "run" for run in runs))
    folder = place / paths.run_name(f"sweep-{presets}", varied)
    return Grid(path, found, distinct, runs, folder, notebooks.code_hash(nb), notes)


def _identity(value: Any) -> Any:
    """Equal for values that make the same run: 1 and 1.0, not 1 and True."""
    if isinstance(value, list | tuple):
        return tuple(map(_identity, value))
    kind = "number" if type(value) in (int, float) else type(value).__name__
    return kind, value if value.__hash__ is not None else repr(value)


def finished(run: Plan, code_hash: str) -> tuple[saved.SavedRecord | None, str]:
    """The record of a run, if it is one of these settings and of the notebook as it stands.

    Args:
        run: the run.
        code_hash: of the notebook as it stands.

    Returns:
        The record and an empty text, or None and why there is none: empty where the run was never made.
    """
    file = run.folder / "record.json"
    if not file.is_file():
        before = run.folder.with_name(f"{run.folder.name}-failed").is_dir()
        return None, "failed before" if before else ""
    try:
        record = saved.load(file)
    except (ValueError, OSError):
        return None, "its record cannot be read"
    if record.environment.get("notebook_hash") != code_hash:
        return None, "stale: the notebook has changed since"
    given = {n: v for n, v in run.given.items() if n not in ("preset", "seed") and v is not None}
    same = (
        (record.preset, record.seed) == (run.preset, run.seed)
        and set(record.result["overrides"]) <= set(given)
        and all(_identity(record.parameters.get(n)) == _identity(v) for n, v in given.items())
    )
    return (record, "") if same else (None, "its record is of other parameters")


def table(grid: Grid) -> Table:
    """The runs, each with whether it is finished."""
    rows = []
    for run in grid.runs:
        record, why = finished(run, grid.code_hash)
        rows.append([run.folder.name, "finished" if record is not None else f"to make{why and f' ({why})'}"])
    finished_already = sum(row[1] == "finished" for row in rows)
    caption = f"{len(rows)} runs of {grid.notebook.stem}, {finished_already} finished:"
    return Table(["run", "state"], rows, caption=caption)
