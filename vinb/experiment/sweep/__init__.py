"""Sweeps: the runs of a grid of parameters on dask workers, and their table, summary and plot.

    from vinb.experiment.sweep import sweep

    done = sweep("vae", {"seed": range(5), "latent_sizes": [[2], [5]]}, preset="smoke")
    done.files["table"]  # a CSV with one row per run and number

In a script, call it under ``if __name__ == "__main__":``, since workers of this machine import the script anew. `grid` makes
the same runs without starting them; ``done.outcomes`` says how each ended.
"""

from vinb.experiment.sweep.grid import Grid, finished, grid, parse, table
from vinb.experiment.sweep.running import Outcome, Swept, sweep

__all__ = ["Grid", "Outcome", "Swept", "finished", "grid", "parse", "sweep", "table"]
