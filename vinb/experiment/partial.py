"""Hidden folders in which runs happen before they are renamed: their names, and removing those of runs that died."""

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"\.(?P<run>.+)\.(?:partial|old)-(?:(?P<host>[A-Za-z0-9-]+)-)?(?P<process>\d+)")
_DAY = 24 * 3600.0
KEPT = ".kept"  # in a hidden folder: its run is over, and could not be renamed


def beside(folder: Path, kind: str = "partial") -> Path:
    """A hidden folder beside `folder` for this process alone, also where machines share the file system."""
    return folder.with_name(f".{folder.name}.{kind}-{_host()}-{os.getpid()}")


def leftovers(folders: Iterable[Path]) -> list[Path]:
    """Hidden folders of runs into `folders` that are going on, or died; without those that `keep` marked."""
    names: dict[Path, set[str]] = {}
    for folder in folders:
        names.setdefault(folder.parent, set()).update((folder.name, f"{folder.name}-failed"))
    found = []
    for parent, runs in names.items():
        for path in sorted(parent.glob(".*-*")):
            match = _NAME.fullmatch(path.name)
            if match is not None and match["run"] in runs and not is_kept(path):
                found.append(path)
    return found


def keep(hidden: Path) -> None:
    """Marks a run that is over and still in its hidden folder, so that nothing here removes it."""
    (hidden / KEPT).touch()


def is_kept(hidden: Path) -> bool:
    return (hidden / KEPT).exists()


def is_alive(hidden: Path, *, elsewhere: bool = True) -> bool:
    """Whether the run in a hidden folder may still be going on.

    On this machine its process is looked for. A run on another counts as alive until nothing has changed for a day.

    Args:
        hidden: the folder.
        elsewhere: False if it is known that no run on another machine goes on.
    """
    import psutil

    owner = _NAME.fullmatch(hidden.name)
    try:
        changed = max(file.stat().st_mtime for file in (hidden, *hidden.iterdir()))
    except OSError:  # renamed or removed by now
        return True
    if owner is None or owner["host"] != _host():
        return elsewhere and time.time() - changed < _DAY
    try:
        process = psutil.Process(int(owner["process"]))
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= changed + 1
    except psutil.Error:
        return False


def remove(hidden: Iterable[Path]) -> None:
    """Removes hidden folders, after ending kernels on this machine that outlived their parent and still write there."""
    import psutil

    folders = {str(folder) for folder in hidden}
    orphans = []
    for process in psutil.process_iter() if folders else ():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("VINB_OUTPUT_DIR") in folders:
                process.kill()
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=10)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()) or "here"
