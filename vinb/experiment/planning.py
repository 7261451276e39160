"""From what a person names and sets to one run: its notebook, the values injected, its folder."""

import ast
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinb.experiment import notebooks, parameters, paths


@dataclass(frozen=True)
class Plan:
    """One run before it happens.

    Attributes:
        notebook: its file.
        folder: where its results go.
        preset: the preset in force; None for a notebook without presets.
        seed: the seed in force; None for a notebook without one.
        given: name -> value to inject; values that are the file's own are left out.
    """

    notebook: Path
    folder: Path
    preset: str | None
    seed: int | None
    given: Mapping[str, Any]


def find(name: str, root: Path) -> Path:
    """The file of a notebook by its name.

    Raises:
        ValueError: if `root` has none of that name; suggests the nearest.
    """
    known = notebooks.discover(root)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no notebook {name!r}.{hint} Notebooks: {', '.join(known) or 'none'}.")
    return known[name]


def locate(notebook: str, root: str | Path | None = None) -> tuple[Path, Path | None]:
    """File and root of a notebook.

    Args:
        notebook: its name, or the path of an ``.ipynb`` file, which may lie outside of any root.
        root: the folder with ``notebooks/``; None looks for it as `vinb.experiment.root` does.

    Raises:
        ValueError: if there is no such notebook.
        RootNotFound: if a name is given and there is no root.
    """
    if notebook.endswith(".ipynb"):
        path = Path(notebook).resolve()
        if not path.is_file():
            raise ValueError(f"there is no file {notebook!r}.")
        return path, paths.root(root)
    found = paths.require_root(root)
    return find(notebook, found), found


def base(output_dir: str | Path | None, root: Path | None) -> Path:
    """The folder that holds one folder of runs per notebook: `output_dir`, else ``runs/`` in the root or here."""
    return Path(output_dir) if output_dir else (root or Path.cwd()) / "runs"


def plan(
    path: Path, known: Mapping[str, parameters.Parameter], given: Mapping[str, Any], folder: Path
) -> Plan:
    """Checks the values given for one run, and says where it goes.

    Args:
        path: the notebook.
        known: its parameters, of `notebooks.parameters_of`.
        given: values by name, ``preset`` and ``seed`` among them.
        folder: the `base` of all runs.

    Raises:
        ParameterError: for a name that the notebook does not have, or a seed that is none.
        ValueError: for an unknown preset.
    """
    parameters.unknown(path.stem, given, known)
    if "seed" in given:
        parameters.check_seed(given["seed"])
    preset = given.get("preset", known["preset"].default if "preset" in known else None)
    if "preset" in known and preset not in parameters.PRESETS:
        raise ValueError(f"preset {preset!r} is not one of {', '.join(parameters.PRESETS)}.")
    seed = given.get("seed", known["seed"].default if "seed" in known else None)
    # A value that is the default needs no injected cell: the run is then one of the file as it stands. By repr, since
    # False is no 0 and 1.0 no 1; whether they fit is for the notebook to say.
    given = {name: value for name, value in given.items() if repr(value) != repr(known[name].default)}
    overrides = {name: value for name, value in given.items() if name != "preset" and value is not None}
    return Plan(path, folder / path.stem / paths.run_name(preset or "run", overrides), preset, seed, given)


def literal(text: str) -> Any:
    """A value typed on a command line: JSON or Python where it is one (lists also of words), else text."""
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if value is not ...:
            return list(value) if isinstance(value, tuple) else value
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        if "[" not in inner:
            return [literal(item.strip()) for item in inner.split(",")] if inner else []
    return text


def assignment(text: str) -> tuple[str, str]:
    """Name and value, still as text, of ``NAME=VALUE``.

    Raises:
        ValueError: if it is none.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip().isidentifier():
        raise ValueError(f"-p {text!r}: write NAME=VALUE, such as -p seed=1.")
    return name.strip(), value.strip()
