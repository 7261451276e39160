"""Shared by all tests: one compilation cache and one book for the whole session, and no progress lines."""

import os
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

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


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """Folder of the book's pages, made by `make book` once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "book"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    with FileLock(f"{folder}.lock"):
        if not (folder / "html" / "index.html").exists():
            made = subprocess.run(
                ["make", "book", f"BOOK={folder}"],
                cwd=Path(__file__).resolve().parents[1],
                env={n: v for n, v in environment.items() if not n.startswith("VINB_BOOK")},
                capture_output=True,
                text=True,
                check=False,
            )
            (folder / "log").write_text(made.stdout + made.stderr)
        log = (folder / "log").read_text()
    assert (folder / "html" / "objects.inv").exists(), log  # written last
    assert "the book is" in log, log
    return folder / "html"
