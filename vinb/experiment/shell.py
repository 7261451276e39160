"""The little that is asked of IPython: what was executed, in which cell we are, and showing things."""

import sys
from collections.abc import Mapping
from typing import Any


def shell() -> Any | None:
    """The running IPython shell, or None in a plain script. Never imports IPython."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def history(namespace: Mapping[str, Any]) -> list[str] | None:
    """Source of every cell executed so far, in order, as typed; None where `namespace` is not IPython's."""
    if not isinstance(namespace.get("In"), list):
        return None
    running = shell()
    if running is not None and running.user_ns is namespace:
        return list(running.history_manager.input_hist_raw)
    return list(namespace["In"])


def current_cell() -> tuple[int, str] | None:
    """Execution count and identity of the cell being executed, or None in a plain script.

    The identity is JupyterLab's cell id where it sent one, else the cell's source.
    """
    running = shell()
    if running is None:
        return None
    parent = running.get_parent() if hasattr(running, "get_parent") else {}
    identity = (parent or {}).get("metadata", {}).get("cellId") or running.history_manager.input_hist_raw[-1]
    return running.execution_count, identity


def show(*objects: Any) -> None:
    """Displays in a notebook, prints in a script."""
    if shell() is None:
        for each in objects:
            print(each)
    else:
        from IPython.display import display

        display(*objects)
