"""The notebook standard, as far as a machine can check it."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vinb.experiment import parameters, saved
from vinb.experiment.source import code_hash

MAX_BYTES = 1_500_000
MAX_CELL_LINES = 40
_MACHINE_PATH = re.compile(
    r"(?<![\w:/.~-])(/(?:home|root|Users|tmp|var|private|work|mnt|opt|srv|scratch|usr/local)/[\w.@-]+[\w./@-]*|[A-Za-z]:\\\\?Users\\[\w.-]+)"
)
_TO_DO = re.compile(r"^[ >#*_-]*to do\b[*_ ]*:[*_ ]*(.*)", flags=re.MULTILINE | re.IGNORECASE)
_DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]*")


def check(path: str | Path) -> list[str]:
    """Problems of a committed notebook and of the records committed beside it; empty if there are none.

    Args:
        path: of the notebook. Its records are ``<name>/<preset>/record.json`` beside it; that of the preset in the
            parameters cell must be there.

    Returns:
        One sentence per problem, beginning with the place.
    """
    path = Path(path)
    problems = []
    if (size := path.stat().st_size) > MAX_BYTES:
        problems.append(f"the file has {size:,} bytes; at most {MAX_BYTES:,}.")
    try:
        nb = json.loads(path.read_text(encoding="utf-8"))
        cells = nb["cells"]
    except (ValueError, KeyError, TypeError):
        return [*problems, "the file is not a notebook."]
    if nb.get("nbformat") != 4 or nb.get("nbformat_minor", 0) < 5:
        problems.append(
            "the format is older than 4.5, so cells have no ids; save it with a current JupyterLab."
        )
    if nb["metadata"].get("kernelspec", {}).get("name") != "python3":
        problems.append("the kernel is not python3.")
    if "papermill" in nb["metadata"]:
        problems.append("metadata of papermill is left; run `make notebooks`.")
    problems += _parameters(cells)
    problems += [problem for i, cell in enumerate(cells) for problem in _cell(i, cell)]
    problems += _order(cells)
    stored = nb["metadata"].get("vinb", {}).get("code_hash")
    if stored != code_hash(nb):
        state = "were made by other code cells" if stored else "are not tied to the code cells"
        problems.append(f"the outputs {state}; run `make notebooks`.")
    return problems + _records(path, nb)


def to_dos(path: str | Path) -> list[str]:
    """What the template of ``vinb new`` still asks to be written: the cell and the beginning of each "To do:" that is left.

    These are no problems of `check`, so that work in progress can be run and published; ``make test`` accepts none.
    """
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    return [
        f"cell {i + 1}: {found[1].strip()[:60]}..."
        for i, cell in enumerate(cells)
        for found in _TO_DO.finditer(_source(cell))
    ]


def _parameters(cells: list[Mapping[str, Any]]) -> list[str]:
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged 'parameters'; exactly one must be."]
    source = _source(tagged[0])
    found = parameters.assigned(source)
    problems = []
    if parameters.is_injected(source):
        problems.append(
            "parameters cell: its first line must not be '# Parameters', which marks papermill's own."
        )
    if not {"preset", "seed"} <= found.keys():
        problems.append("parameters cell: must assign `preset` and `seed`.")
    elif found["preset"].default != "cpu":
        problems.append(f"parameters cell: the preset must be 'cpu'; it is {found['preset'].default!r}.")
    bare = [name for name, parameter in found.items() if not parameter.comment]
    if bare:
        problems.append(f"parameters cell: no comment says what these mean: {', '.join(bare)}.")
    return problems


def _cell(index: int, cell: Mapping[str, Any]) -> Iterator[str]:
    place = f"cell {index + 1}"
    source = _source(cell)
    if found := _MACHINE_PATH.search(source):
        yield f"{place}: the source names a path of a machine, {found[1]!r}."
    if cell["cell_type"] != "code":
        return
    if "injected-parameters" in cell["metadata"].get("tags", ()):
        yield f"{place}: was injected by papermill; run `make notebooks`."
    if "papermill" in cell["metadata"] or "execution" in cell["metadata"]:
        yield f"{place}: holds metadata of its execution; run `make notebooks`."
    if (lines := len(source.splitlines())) > MAX_CELL_LINES:
        yield f"{place}: {lines} lines; at most {MAX_CELL_LINES}."
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            yield f"{place}: raised {output['ename']}."
        if output.get("name") == "stderr":
            yield f"{place}: wrote to stderr: {_text(output['text']).strip()[:80]!r}."
        for text in _texts(output):
            if "\r" in text.replace("\r\n", "\n"):
                yield f"{place}: an output holds the remains of a progress bar."
            if found := _MACHINE_PATH.search(text):
                yield f"{place}: an output names a path of a machine, {found[1]!r}."
            elif sys.prefix in text:
                yield f"{place}: an output names a path of a machine, that of its Python."


def _order(cells: list[Mapping[str, Any]]) -> list[str]:
    counts = [
        cell.get("execution_count") for cell in cells if cell["cell_type"] == "code" and _source(cell).strip()
    ]
    if counts == list(range(1, len(counts) + 1)):
        return []
    if all(count is None for count in counts):
        return ["it has no outputs: no cell was executed; run `make notebooks`."]
    return [f"cells were not executed from top to bottom in a fresh kernel: {counts}."]


def _records(path: Path, nb: Mapping[str, Any]) -> Iterator[str]:
    folder = path.parent / path.stem
    presets = [preset for preset in parameters.PRESETS if (folder / preset).is_dir()]
    problems = []
    if "cpu" not in presets:
        problems.append(f"{path.stem}/cpu: no record; run `make notebooks`.")
    for preset in presets:
        place = f"{path.stem}/{preset}/record.json"
        try:
            record = saved.load(folder / preset)
        except (OSError, ValueError) as error:
            problems.append(f"{place}: {error}")
            continue
        if record.environment.get("notebook_hash") != code_hash(nb):
            problems.append(f"{place}: stale, it belongs to other code cells; run `make notebooks`.")
        if (record.notebook, record.preset) != (path.stem, preset):
            problems.append(f"{place}: is a record of {record.notebook!r} at preset {record.preset!r}.")
        if record.result["overrides"]:
            problems.append(f"{place}: overrides the preset's {', '.join(record.result['overrides'])}.")
        failed = [name for name, verdict in record.verdicts.items() if verdict == "failed"]
        if failed:
            problems.append(f"{place}: claims failed: {', '.join(failed)}.")
        for figure in record.result["figures"]:
            for kind in ("svg", "png"):
                if not (folder / preset / "figures" / f"{figure['name']}.{kind}").is_file():
                    problems.append(f"{path.stem}/{preset}/figures/{figure['name']}.{kind}: missing.")
    return problems


def _source(cell: Mapping[str, Any]) -> str:
    return _text(cell["source"])


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _texts(output: Mapping[str, Any]) -> Iterator[str]:
    """Every textual part of an output, without embedded images."""
    if "text" in output:
        yield _text(output["text"])
    yield from output.get("traceback", ())
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/") or kind.endswith(("+json", "/json", "+xml")):
            yield _DATA_URI.sub(
                "",
                value
                if isinstance(value, str)
                else _text(value)
                if isinstance(value, list)
                else json.dumps(value),
            )
