"""jax's persistent compilation cache, in a bounded and locked folder that only vinb writes to."""

import contextlib
import hashlib
import os
import platform as host
import warnings
from pathlib import Path

_BYTES = 2 * 1024**3


def enable(setting: bool | str) -> bool:
    """Switches jax's persistent compilation cache on or off; whether it is on."""
    import jax

    if setting is False or not jax.config.jax_enable_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
        return False
    try:
        folder = _folder(setting)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except OSError as error:
        if setting is not True:
            raise ValueError(
                f"compilation_cache={setting!r} cannot be written to ({error}); pass another folder, or False"
            ) from error
        jax.config.update("jax_enable_compilation_cache", False)
        return False
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _BYTES)  # a bounded cache is one that jax locks
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # An entry that cannot be read or written costs a compilation; it is no concern of a notebook's reader.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    warnings.filterwarnings("ignore", message="Cache value for key .* exceeds the maximum cache size")
    return True


def _folder(setting: bool | str) -> Path:
    if setting is not True:
        base = Path(setting)
    elif given := os.environ.get("VINB_COMPILATION_CACHE") or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = Path(given).expanduser().absolute()
    else:
        import platformdirs

        base = Path(platformdirs.user_cache_dir("vinb")) / "compiled"
    # A subfolder of its own, since a bounded jax cache cannot share one with an unbounded; and one for each
    # kind of processor, since a home folder may be shared by machines whose instructions differ.
    return base / f"vinb-{_processor()}"


def _processor() -> str:
    """Eight letters that differ between processors with different instruction sets."""
    text = host.machine() + host.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as stream:
        text += next((line for line in stream if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _remove_unfinished(folder: Path) -> None:
    """jax writes an entry, then its time stamp. A process killed between the two leaves an entry, perhaps cut
    off, that makes every later write fail."""
    import filelock

    with contextlib.suppress(filelock.Timeout), filelock.FileLock(folder / ".lockfile").acquire(timeout=10):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                entry.unlink(missing_ok=True)
