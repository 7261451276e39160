"""Where the notebooks are, and where a run's files go."""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

_MARK = Path("notebooks") / "references.bib"  # what makes a folder the root of the notebooks


class RootNotFound(FileNotFoundError):
    """No folder with the notebooks was found; the message says how to get them."""

    def __str__(self) -> str:
        return str(self.args[0])


def root(explicit: str | Path | None = None) -> Path | None:
    """The folder that holds ``notebooks/``, or None.

    Looks at `explicit`, then ``$VINB_ROOT``, then the current folder and its parents, then the folder above
    the installed package (a clone installed in place).

    Args:
        explicit: a folder the user named.

    Raises:
        RootNotFound: if ``explicit`` or ``$VINB_ROOT`` is given but holds no ``notebooks/references.bib``.
    """
    for origin, named in (("--root", explicit), ("$VINB_ROOT", os.environ.get("VINB_ROOT"))):
        if named:
            folder = Path(named).expanduser().resolve()
            if not (folder / _MARK).is_file():
                raise RootNotFound(
                    f"{origin} names {str(named)!r}, which holds no {_MARK.as_posix()}; "
                    "name the folder of the clone, the one that contains notebooks/."
                )
            return folder
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / _MARK).is_file():
            return folder
    return None


def require_root(explicit: str | Path | None = None) -> Path:
    """As `root`, but an error that says how to get the notebooks where there are none."""
    found = root(explicit)
    if found is None:
        url = source_url()
        get = f"git clone {url}" if url else "clone the vinb repository with git"
        raise RootNotFound(
            "The notebooks are not part of the installed package, and none were found here or above. "
            f"To get them: {get}; then call vinb inside that folder, or name it by --root or $VINB_ROOT."
        )
    return found


def source_url() -> str | None:
    """The repository's address from the package's metadata (``Source`` or ``Repository``), or None."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.metadata("vinb").get_all("Project-URL") or ():
            label, _, url = line.partition(",")
            if label.strip().lower() in ("source", "repository"):
                return url.strip()
    return None


def run_name(preset: str, overrides: Mapping[str, object]) -> str:
    """A folder name for a run: ``cpu``, or ``cpu-seed=1`` with overrides; long ones end in a hash instead."""
    full = "-".join([preset, *(f"{name}={_brief(value)}" for name, value in sorted(overrides.items()))])
    return full if len(full) <= 80 else f"{preset}-{_digest(sorted(overrides.items()), 12)}"


def _brief(value: object) -> str:
    """`value` as part of a file name; a hash follows where another value would read the same."""
    text = re.sub(r"[^A-Za-z0-9.,+-]+", "", str(value))
    items = value if isinstance(value, list | tuple) and value else [value]
    numbers = all(isinstance(item, int | float) for item in items)
    word = text == value and text[:1].isalpha() and "," not in text
    return text if numbers or word else f"{text}-{_digest(value, 6)}"


def _digest(value: object, length: int) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:length]


def output_folder(notebook: str, preset: str, overrides: Mapping[str, object]) -> Path:
    """Where a run writes: ``$VINB_OUTPUT_DIR``, else ``runs/<notebook>/<run name>`` in the root or here."""
    if named := os.environ.get("VINB_OUTPUT_DIR"):
        return Path(named)
    return (root() or Path.cwd()) / "runs" / notebook / run_name(preset, overrides)


def shown(path: Path) -> str:
    """`path` as a person at the current folder would type it."""
    try:
        return Path(os.path.relpath(path)).as_posix()
    except ValueError:  # another drive
        return str(path)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes `content` so that a reader sees the old file or the whole new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
