"""`begin`: the first call of every notebook, made before jax is imported."""

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vinb.experiment import citation, figures, parameters, paths, shell, source
from vinb.experiment.record import Record


def begin(
    namespace: Mapping[str, Any],
    *,
    notebook: str,
    presets: Mapping[str, Mapping[str, Any]],
    paper: str | None = None,
) -> Record:
    """Checks the parameters of this run and begins its record: quick, and without importing jax.

    Also applies the figures' style, and silences two known messages at import: ArviZ 0.x announces its next version
    once a day, and tqdm misses ipywidgets, which nothing here needs. Every other warning stays visible.

    Args:
        namespace: the notebook's ``globals()``.
        notebook: its name, the file's stem.
        presets: ``{"smoke": {...}, "cpu": {...}, "paper": {...}}``, the same names in each: parameters of the
            parameters cell, whose ``None`` means "the preset's value".
        paper: BibTeX key of the paper in ``notebooks/references.bib``; None for a notebook that reproduces none.

    Returns:
        A `Record`; its ``settings`` are the values in force.

    Raises:
        ParameterError: for a parameter that the parameters cell does not define, a value that does not fit or is not
            finite, or a parameter's name that `Settings` uses itself.
        ValueError, TypeError: for presets or a paper that are themselves wrong.
    """
    started = time.perf_counter()
    cells = shell.history(namespace)
    if cells is None:  # a plain script: there is no parameters cell to ask
        known = {
            name: parameters.Parameter(None, "") for name in ("preset", "seed", *presets.get("smoke", ()))
        }
    else:
        known, injected = parameters.find(cells)
        examples = {name: [presets[p][name] for p in presets if name in presets[p]] for name in known}
        parameters.unknown(notebook, injected, known, examples)
    parameters.check_names(known)
    parameters.check_presets(presets, known if cells is not None else None)
    if missing := [
        name for name in known if name not in namespace and (cells is not None or name in ("preset", "seed"))
    ]:
        raise parameters.ParameterError(f"not defined: {', '.join(missing)}; run the parameters cell again.")
    given = {name: namespace.get(name) for name in known}
    settings = parameters.resolve(notebook, given, presets, known)

    root = paths.root()
    bibtex = citation.entry(paper, root) if paper is not None else ""
    changed = {name: getattr(settings, name) for name in settings.overrides}
    if settings.seed != known["seed"].default and known["seed"].default is not None:
        changed["seed"] = settings.seed
    folder = paths.output_folder(notebook, settings.preset, changed)
    (folder / "record.json").unlink(missing_ok=True)  # a run that crashes leaves no record of an earlier one

    warnings.filterwarnings(
        "ignore", message=r"\s*ArviZ is undergoing a major refactor", category=FutureWarning
    )
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, which NumPyro imports
    figures.apply_style()
    file = _notebook_file(notebook, root)
    return Record(
        notebook=notebook,
        paper=paper,
        settings=settings,
        folder=folder,
        bibtex=bibtex,
        root=root,
        tie=source.Tie(file, namespace) if file is not None and cells is not None else None,
        started=started,
    )


def _notebook_file(notebook: str, root: Path | None) -> Path | None:
    """The file this run probably comes from; `source.Tie` finds out whether it does."""
    named = os.environ.get("VINB_NOTEBOOK")
    file = Path(named) if named else root / "notebooks" / f"{notebook}.ipynb" if root is not None else None
    return file if file is not None and file.is_file() else None
