"""Shared by all tests: one compilation cache for the whole session, and no progress lines."""

import os
from pathlib import Path

# Set before jax is imported; worker processes, notebook kernels and subprocesses inherit it. Cached programs make a second run,
# and the second kernel of one run, start in a fraction of the time.
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
# Each program that is written makes JAX look at all entries, to see how large they are: thousands of small ones take minutes.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))  # a bounded cache is a locked cache
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# glibc gives freed memory back and asks for it anew all the time while XLA compiles: a tenth of a run.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
os.environ.setdefault("MALLOC_TOP_PAD_", str(2**26))
os.environ["VINB_PROGRESS"] = "0"
os.environ.pop("VINB_DATA", None)  # tests pass on embedded data alone
