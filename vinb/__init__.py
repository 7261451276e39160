"""vinb: shared code of notebooks that reproduce papers on variational inference.

Rooms, imports going only downwards: cli, experiment, training, models, objectives, programs, estimators, data, accelerator.
Import the room you need (``from vinb import objectives``); importing ``vinb`` itself loads nothing else, and never jax.
"""

__version__ = "0.1.0"
