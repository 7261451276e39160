"""Platform, precision, memory, determinism, compilation cache and device mesh. Importing it does not import
jax.

`configure` is called once, before the first computation; `mesh`, `shard_batch` and `replicate` spread arrays
over several devices; `environment` is for the run record.
"""

from vinb.accelerator.settings import (
    PLATFORMS,
    PRECISIONS,
    PlatformNotFound,
    RestartNeeded,
    Summary,
    configure,
    environment,
)
from vinb.accelerator.sharding import mesh, replicate, shard_batch

__all__ = [
    "PLATFORMS",
    "PRECISIONS",
    "PlatformNotFound",
    "RestartNeeded",
    "Summary",
    "configure",
    "environment",
    "mesh",
    "replicate",
    "shard_batch",
]
