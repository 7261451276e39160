"""Which source a result came from: hashes of notebook and package, the parent commit, versions."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vinb.experiment import parameters, shell

_PACKAGES = (
    "jax",
    "jaxlib",
    "numpyro",
    "equinox",
    "optax",
    "numpy",
    "arviz",
    "matplotlib",
    "pandas",
    "scipy",
)


def code_cells(nb: Mapping[str, Any]) -> list[str]:
    """Sources of a notebook's code cells that are neither empty nor injected by papermill."""
    sources = []
    for cell in nb["cells"]:
        if cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", ()):
            text = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            if text.strip():
                sources.append(text.rstrip())
    return sources


def code_hash(nb: Mapping[str, Any]) -> str:
    """sha256 over the code cells' sources; outputs, prose, metadata and injected parameters do not count.

    Args:
        nb: a notebook as nbformat or json reads it (format 4).
    """
    return hashlib.sha256(json.dumps(code_cells(nb)).encode()).hexdigest()


class Tie:
    """Ties what a kernel executed to a notebook file, read when the run begins."""

    def __init__(self, file: Path, namespace: Mapping[str, Any]):
        nb = json.loads(file.read_text(encoding="utf-8"))
        self._sources, self._hash, self._namespace = code_cells(nb), code_hash(nb), namespace

    def hash(self) -> str | None:
        """The file's code hash if what was executed is the file from its first cell to the one running now, else None.

        Cells may have run more than once, but their last runs must be in the file's order, and nothing else may have
        run since the parameters cell, except what papermill injected; an edited cell is something else.
        """
        cells = shell.history(self._namespace) or []
        begun = parameters.latest(cells)
        if begun is None or cells[-1].rstrip() not in self._sources:
            return None
        wanted = self._sources[: self._sources.index(cells[-1].rstrip()) + 1]
        since = {c.rstrip() for c in cells[begun:] if c.strip() and not parameters.is_injected(c)}
        left, last_runs = Counter(wanted), []
        for cell in map(str.rstrip, reversed(cells)):
            if left[cell]:  # as many last runs of a text as the file has cells of it
                left[cell] -= 1
                last_runs.append(cell)
        return self._hash if since <= set(wanted) and last_runs[::-1] == wanted else None


def package_hash() -> str:
    """sha256 over the paths and contents of the package's Python files."""
    folder = Path(__file__).resolve().parents[1]
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        total.update(f"{file.relative_to(folder).as_posix()}\0{len(file.read_bytes())}\0".encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def commit(root: Path | None) -> str | None:
    """The commit checked out at `root`, or None outside git."""
    if root is None:
        return None
    try:
        git = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() if git.returncode == 0 else None


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of the installed packages that a result depends on."""
    from importlib import metadata

    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, Any] | None:
    """`vinb.accelerator.environment()` if jax was imported, else None."""
    if "jax" not in sys.modules:
        return None
    from vinb import accelerator

    return accelerator.environment()


def system() -> str:
    """Operating system and processor family, without the machine's name."""
    return f"{platform.system()} {platform.machine()}"
