"""One progress line on stdout that clears itself."""

import os
import sys


def bar(
    total: int, *, done: int = 0, show: bool | str | None = None, delay: float = 1.0, interval: float = 0.5
):
    """A tqdm bar over ``total`` steps, disabled if ``show`` is False or VINB_PROGRESS=0.

    ``show=None`` shows it on a terminal or in a notebook, and not where stdout goes to a file or a pipe. A
    string is the label in front of it. It appears after ``delay`` seconds, so that short runs flash nothing,
    and moves every ``interval`` seconds.
    """
    from tqdm import tqdm

    if show is None:
        show = sys.stdout.isatty() or type(sys.stdout).__module__.startswith("ipykernel")
    return tqdm(
        total=total,
        initial=done,
        desc=show if isinstance(show, str) else "training",
        unit="step",
        disable=show is False or os.environ.get("VINB_PROGRESS", "1") == "0",
        file=sys.stdout,  # tqdm's own default is stderr
        leave=False,
        delay=delay,
        mininterval=interval,
        dynamic_ncols=True,
    )
