"""Notebook files: find them, run them, publish what a run showed, check them against the standard."""

import ast
import contextlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinb.experiment import parameters as parameter_cells
from vinb.experiment import partial, saved
from vinb.experiment.checking import check, to_dos
from vinb.experiment.paths import shown, write_atomic
from vinb.experiment.source import code_cells, code_hash

__all__ = [
    "Failure",
    "Run",
    "check",
    "check_timeout",
    "code_cells",
    "code_hash",
    "discover",
    "execute",
    "paper_key",
    "parameters_of",
    "publish",
    "read",
    "title",
    "to_dos",
]


@dataclass(frozen=True)
class Failure:
    """Where a run stopped: the cell's execution count (None if no cell did it), its source, the error."""

    cell: int | None
    source: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class Run:
    """What `execute` left: folder, executed notebook, the record's path (or None), the failure (or None)."""

    folder: Path
    notebook: Path
    record: Path | None
    failure: Failure | None


def discover(root: Path) -> dict[str, Path]:
    """Name -> path of every notebook in ``<root>/notebooks``, by name."""
    return {path.stem: path for path in sorted((Path(root) / "notebooks").glob("*.ipynb"))}


def read(path: Path) -> dict[str, Any]:
    """A notebook's JSON.

    Raises:
        ValueError: if the file is no notebook of format 4.
    """
    try:
        nb = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{shown(path)} is not a notebook: {error}.") from None
    if not isinstance(nb, dict) or nb.get("nbformat") != 4 or not isinstance(nb.get("cells"), list):
        raise ValueError(f"{shown(path)} is not a notebook of format 4; open and save it in JupyterLab.")
    for i, cell in enumerate(nb["cells"]):
        if not isinstance(cell, dict) or not {"cell_type", "metadata", "source"} <= cell.keys():
            raise ValueError(
                f"{shown(path)} is not a notebook: cell {i + 1} lacks its type, metadata or source."
            )
    return nb


def parameters_of(nb: Mapping[str, Any]) -> dict[str, parameter_cells.Parameter]:
    """What the cell tagged ``parameters`` assigns, in order; empty if there is none."""
    for cell in nb["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            source = cell["source"]
            return parameter_cells.assigned(source if isinstance(source, str) else "".join(source))
    return {}


def title(nb: Mapping[str, Any]) -> str:
    """The first heading of a notebook, empty if it has none."""
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            for line in source.splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return ""


def paper_key(nb: Mapping[str, Any]) -> str | None:
    """The ``paper=`` of the notebook's ``begin`` call."""
    for source in code_cells(nb):
        if "begin(" in source and "paper" in source:
            try:
                tree = ast.parse(source)
            except SyntaxError:
                continue
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.keyword)
                    and node.arg == "paper"
                    and isinstance(node.value, ast.Constant)
                ):
                    return node.value.value
    return None


def execute(
    path: str | Path,
    *,
    output_dir: str | Path,
    parameters: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    timeout: float | None = None,
    progress: bool = True,
) -> Run:
    """Runs a notebook by papermill in a kernel of its own.

    The run happens in a hidden folder beside `output_dir`, renamed when done; so an interrupted run leaves
    `output_dir` as it was. A run in which a cell raised goes to ``<output_dir>-failed`` instead, with the
    notebook up to that cell; one whose claims failed is complete and goes to `output_dir`. A run that is
    over is never deleted: where it cannot be put into its folder it stays in a hidden one, which the error names.

    Args:
        path: the notebook.
        output_dir: a folder for this run alone: it will hold the notebook, ``record.json`` and ``figures/``.
            An earlier run in it is replaced.
        parameters: overrides by name.
        root: the folder with ``notebooks/``, for the kernel.
        timeout: seconds a single cell may take, None for no limit.
        progress: show a bar of cells where stderr is a terminal and ``VINB_PROGRESS`` is not 0.

    Returns:
        Where the run is, and where it stopped if a cell raised.

    Raises:
        ParameterError: for a name that the parameters cell does not assign.
        ValueError: for a timeout that is none.
        FileExistsError: if ``output_dir``, or the folder for a failed run, holds something that is no run; or if such an
            OSError of this process left its run beside it.
        OSError: if the run is over but could not be put into its folder; the message says where it is kept.
        KeyboardInterrupt: after cleaning up.
    """
    path, final = Path(path).resolve(), Path(output_dir).resolve()
    overrides = dict(parameters or {})
    check_timeout(timeout)
    nb = read(path)
    parameter_cells.unknown(path.stem, overrides, parameters_of(nb))
    failed = final.with_name(f"{final.name}-failed")
    for folder in (final, failed):
        _refuse_foreign(folder, path)
    bar = (
        progress and os.environ.get("VINB_PROGRESS") != "0" and sys.stderr.isatty()
    )  # the kernel gets 0 below
    hidden = partial.beside(final)
    if partial.is_kept(hidden):
        raise FileExistsError(
            f"{shown(hidden)} holds a run of this process that could not be put into {shown(final)}; "
            "move it away, or remove it."
        )
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    target = hidden / path.name
    try:
        variables = {"VINB_OUTPUT_DIR": str(hidden), "VINB_NOTEBOOK": str(path), "VINB_PROGRESS": "0"}
        if root is not None:
            variables["VINB_ROOT"] = str(Path(root).resolve())
        with _environment(variables):
            failure = _papermill(path, target, overrides, nb, timeout, bar)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    complete = failure is None or (
        failure.error.startswith("ClaimsFailed") and (hidden / "record.json").is_file()
    )
    final = final if complete else failed
    try:
        _tidy(target)
        _refuse_foreign(final, path)  # it may hold something by now
        _replace(hidden, final)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.keep(hidden)
        raise OSError(f"The run is over, and kept in {shown(hidden)}: {error}") from error
    record = final / "record.json"
    return Run(final, final / path.name, record if record.is_file() else None, failure)


def check_timeout(timeout: float | None) -> None:
    """Refuses what is no time that a cell may take."""
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"timeout: got {timeout}; it is the seconds that a cell may take, more than 0.")


def publish(path: str | Path, run: str | Path) -> list[Path]:
    """Puts a run beside its notebook: record and figures into ``<name>/<preset>/``, its outputs into the
    file if it ran the file as it stands (no injected parameters).

    Only outputs and execution counts are taken over; so no papermill metadata, timestamps or injected cells
    get in. The notebook's ``metadata.vinb.code_hash`` ties the outputs to the code cells. The record and the
    figures are replaced together, and the notebook is written last.

    Args:
        path: the notebook.
        run: the folder of a run of it.

    Returns:
        The files written.

    Raises:
        ValueError: if the run is not one of the notebook's present source, has failed claims or overrides.
        FileNotFoundError: if the run lacks its record, its notebook or a figure; nothing was written then.
    """
    import nbformat

    path, run = Path(path), Path(run)
    record = saved.load(run)
    source = nbformat.read(path, as_version=4)
    if record.environment["notebook_hash"] != code_hash(source):
        raise ValueError(f"{shown(run)} is not a run of {shown(path)} as it stands; run it again.")
    if failed := [name for name, verdict in record.verdicts.items() if verdict == "failed"]:
        raise ValueError(f"{shown(run)}: claims failed ({', '.join(failed)}); nothing was published.")
    if record.result["overrides"] or record.seed != parameters_of(source)["seed"].default:
        raise ValueError(
            f"{shown(run)} overrides the preset's values or the seed; only plain presets are published."
        )

    text = None
    executed = nbformat.read(run / path.name, as_version=4)
    if not any("injected-parameters" in cell.metadata.get("tags", ()) for cell in executed.cells):
        outputs = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
        for cell in source.cells:
            if cell.cell_type == "code":
                ran = outputs[cell.id]
                cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
                cell.metadata.pop("execution", None)
        source.metadata.pop("papermill", None)
        source.metadata["vinb"] = {"code_hash": code_hash(source)}
        text = nbformat.writes(source, version=4).rstrip("\n") + "\n"

    folder = path.parent / path.stem / record.preset
    figures = [f"figures/{f['name']}.{kind}" for f in record.result["figures"] for kind in ("svg", "png")]
    names = ["record.json", *figures]
    hidden = partial.beside(folder)
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        for name in names:
            write_atomic(hidden / name, (run / name).read_bytes())
        _replace(hidden, folder)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    if text is not None:
        write_atomic(path, text)
    return [path] * (text is not None) + [folder / name for name in names]


def _papermill(path, target, overrides, nb, timeout, bar) -> Failure | None:
    # papermill, nbclient and their kin take half a second to import: here, not at the top
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    style = {"desc": path.stem, "leave": False, "dynamic_ncols": True, "file": sys.stderr}
    try:
        papermill.execute_notebook(
            _braces(path),
            _braces(target),
            overrides,
            kernel_name=nb["metadata"].get("kernelspec", {}).get("name", "python3"),
            progress_bar=style if bar else False,
            execution_timeout=None
            if timeout is None
            else math.ceil(timeout),  # papermill takes whole seconds
            # The kernel's own log, not the cells' warnings: it would warn of its TCP transport at every start, and call the
            # interrupt that comes before the end an error.
            extra_arguments=["--log-level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback or ()))
        return Failure(error.exec_count, error.source, f"{error.ename}: {error.evalue}", traceback)
    except (CellTimeoutError, DeadKernelError, NoSuchKernel, RuntimeError) as error:
        return Failure(None, "", f"{type(error).__name__}: {error}")
    return None


def _braces(path: Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")  # papermill fills its paths by str.format


def _tidy(executed: Path) -> None:
    """Takes this machine's paths, which papermill notes, out of an executed notebook."""
    import nbformat

    if executed.is_file():
        nb = nbformat.read(executed, as_version=4)
        for key in ("input_path", "output_path", "environment_variables"):
            nb.metadata.get("papermill", {}).pop(key, None)
        write_atomic(executed, nbformat.writes(nb, version=4).rstrip("\n") + "\n")


def _refuse_foreign(folder: Path, notebook: Path) -> None:
    """A run replaces its folder: never one that holds the notebook itself or something else than a run of it."""
    if notebook.is_relative_to(folder):
        raise FileExistsError(f"{shown(folder)} holds the notebook itself; name another folder for the run.")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{shown(folder)} is a file; name a folder for the run.")
    if folder.is_dir() and any(folder.iterdir()):
        ours = {notebook.name, "record.json", "figures", ".ipynb_checkpoints", ".DS_Store", partial.KEPT}
        if odd := sorted(file.name for file in folder.iterdir() if file.name not in ours):
            raise FileExistsError(
                f"{shown(folder)} holds files that are not a run's ({', '.join(odd[:3])}), "
                "and a run replaces its folder; move them or name another folder."
            )


def _replace(hidden: Path, final: Path) -> None:
    old = partial.beside(final, "old")
    if final.exists():
        final.rename(old)
    try:
        hidden.rename(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
