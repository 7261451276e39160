"""One training loop for every notebook: `run` for any step function, `fit` for a loss and an optimiser."""

from vinb.training.checkpoint import CheckpointMismatch
from vinb.training.fit import Fitted, fit, permutation
from vinb.training.loop import Diverged, Trained, run

__all__ = ["CheckpointMismatch", "Diverged", "Fitted", "Trained", "fit", "permutation", "run"]
