"""Platform, precision, memory and determinism.

`configure` is called once, before the first computation: jax reads most of these settings when it starts its
backend and ignores a later change in silence, which here is an error.
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vinb.accelerator import cache

PLATFORMS = ("cpu", "gpu", "tpu")
PRECISIONS = ("float32", "bfloat16", "float64", "tensorfloat32")

_DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"
_MEMORY_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class RestartNeeded(RuntimeError):
    """A setting cannot change any more because jax has started its backend; the kernel must be restarted."""


class PlatformNotFound(RuntimeError):
    """The platform asked for is not on this machine."""


@dataclass(frozen=True, repr=False)
class Summary:
    """What the computations run on: as a string one line, in a notebook a table, neither with a path."""

    platform: str
    device_kind: str
    device_count: int
    process_count: int
    cores: int
    precision: str
    deterministic: bool
    memory_fraction: float | None
    compilation_cache: bool

    def __str__(self) -> str:
        return ", ".join(text for _, text in self._rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table>{rows}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        if self.platform == "cpu":
            devices = f"cpu x {self.cores} cores" + (
                f" as {self.device_count} devices" * (self.device_count > 1)
            )
        else:
            devices = f"{self.platform} x {self.device_count} ({self.device_kind})"
        precision = self.precision
        if self.platform == "cpu" and precision in ("bfloat16", "tensorfloat32"):
            precision += " asked for (a cpu multiplies in float32)"
        rows = [("devices", devices), ("precision", precision)]
        if self.process_count > 1:
            rows.append(("processes", f"{self.process_count} processes"))
        if self.deterministic:
            rows.append(("determinism", "deterministic"))
        if self.memory_fraction is not None and self.platform != "cpu":
            rows.append(("memory", f"{self.memory_fraction:.0%} of device memory"))
        rows.append(
            ("compilation", "compilation cache" if self.compilation_cache else "no compilation cache")
        )
        return rows


@dataclass(frozen=True)
class _Settings:
    platform: str | None
    precision: str
    deterministic: bool
    memory_fraction: float | None
    compilation_cache: bool | str


_configured: tuple[_Settings, Summary] | None = None


def configure(
    platform: str | None = None,
    precision: str = "float32",
    deterministic: bool = False,
    memory_fraction: float | None = None,
    compilation_cache: bool | str | os.PathLike[str] = True,
) -> Summary:
    """Sets up jax for this process, starts its backend and says what it runs on.

    The same settings again do nothing. With several hosts, ``jax.distributed.initialize`` comes before this call
    (see `mesh`).

    Args:
        platform: "cpu", "gpu" or "tpu"; None takes what jax finds (or what ``JAX_PLATFORMS`` says).
        precision: of matrix products and convolutions: "float32" (in full, also where the device would by
            itself round to TensorFloat-32), "tensorfloat32", "bfloat16" (the fastest the device offers for
            float32 inputs); a cpu multiplies in float32 whichever of these is given. "float64" makes all
            arrays double by default.
        deterministic: on a GPU, only run-to-run deterministic kernels, and no autotuning (slower). On a cpu
            the same number of cores gives the same numbers anyway. Flags already in ``XLA_FLAGS`` are kept.
        memory_fraction: share of GPU memory to reserve, in (0, 1]; None leaves jax's choice. No effect on a
            cpu.
        compilation_cache: keep compiled programs on disk: a folder, or True for ``$VINB_COMPILATION_CACHE``,
            else ``$JAX_COMPILATION_CACHE_DIR``, else the user's cache folder. Programs go to a subfolder that
            only vinb writes to (locked, at most 2 GiB, least recently used go first). They run with your
            rights: name no folder that others can write to. ``JAX_ENABLE_COMPILATION_CACHE=false`` switches
            it off from outside.

    Returns:
        the `Summary`, which displays as a line or a table.

    Raises:
        ValueError: for a setting that does not exist, or a named folder that cannot be written to.
        TypeError: for a setting of another type.
        RestartNeeded: for a setting changed after the backend started.
        PlatformNotFound: for a platform that is not there; says what was found.
    """
    global _configured
    wanted = _checked(platform, precision, deterministic, memory_fraction, compilation_cache)
    if _configured is not None:
        _refuse_changes(wanted, _configured[0], _configured[1].platform)
        return _configured[1]

    import jax

    if _backend_started():
        # Started by somebody else, so what is in force counts; None and False ask for nothing.
        _refuse_changes(wanted, _in_force(wanted), jax.default_backend())
    else:
        _start(wanted)
    cached = cache.enable(wanted.compilation_cache)
    summary = _summary(wanted, cached)
    _configured = (wanted, summary)
    return summary


def environment() -> dict[str, Any]:
    """For the run record: platform, device kind and counts, cores, precision, versions.

    Starts jax's backend if nothing has.

    Returns:
        strings and integers by name, and the versions by package; none holds a path, a host or a user.
    """
    import jax

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cores": _cores(),
        "precision": _precision_in_force(),
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "numpyro")},
    }


def _checked(platform, precision, deterministic, memory_fraction, compilation_cache) -> _Settings:
    if platform is not None and platform not in PLATFORMS:
        raise ValueError(f"platform={platform!r} must be None or one of {', '.join(PLATFORMS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if not isinstance(deterministic, bool):
        raise TypeError(f"deterministic={deterministic!r} must be True or False")
    if memory_fraction is not None:
        if isinstance(memory_fraction, bool) or not isinstance(memory_fraction, int | float):
            raise TypeError(f"memory_fraction={memory_fraction!r} must be None or a number in (0, 1]")
        if not 0 < memory_fraction <= 1:
            raise ValueError(f"memory_fraction={memory_fraction!r} must be in (0, 1]")
        memory_fraction = float(memory_fraction)
    if not isinstance(compilation_cache, bool):
        if not isinstance(compilation_cache, str | os.PathLike) or not os.fspath(compilation_cache):
            raise TypeError(f"compilation_cache={compilation_cache!r} must be True, False or a folder")
        compilation_cache = os.path.abspath(os.path.expanduser(os.fspath(compilation_cache)))
    return _Settings(platform, precision, deterministic, memory_fraction, compilation_cache)


def _refuse_changes(wanted: _Settings, present: _Settings, platform: str) -> None:
    changes = []
    if wanted.platform not in (None, platform):
        changes.append(f"platform={wanted.platform!r} (now {platform!r})")
    for name in ("precision", "deterministic", "memory_fraction", "compilation_cache"):
        if getattr(wanted, name) != getattr(present, name):
            changes.append(f"{name}={getattr(wanted, name)!r} (now {getattr(present, name)!r})")
    if changes:
        raise RestartNeeded(
            f"jax has started already, so these settings cannot change: {', '.join(changes)}. "
            "Restart the kernel and call accelerator.configure(...) with them before any computation."
        )


def _in_force(wanted: _Settings) -> _Settings:
    """The settings of a backend that was started without `configure`; where ``wanted`` asks for nothing, its
    own value."""
    fraction = os.environ.get(_MEMORY_VARIABLE)
    return _Settings(
        platform=None,
        precision=_precision_in_force(),
        deterministic=wanted.deterministic and _deterministic_flag_set(),
        memory_fraction=float(fraction) if fraction and wanted.memory_fraction is not None else None,
        compilation_cache=wanted.compilation_cache,  # a cache changes no result and can be switched on late
    )


def _precision_in_force() -> str:
    """One of `PRECISIONS`, or "default" where the device decides because jax was told nothing."""
    import jax

    if jax.config.jax_enable_x64:
        return "float64"
    set_to = jax.config.jax_default_matmul_precision
    if set_to is None:
        return "float32" if jax.default_backend() == "cpu" else "default"
    return "float32" if set_to == "highest" else set_to


def _deterministic_flag_set() -> bool:
    return _DETERMINISTIC_FLAG in os.environ.get("XLA_FLAGS", "").split()


def _backend_started() -> bool:
    """Whether jax has a backend, without starting one. jax has no public way to ask."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def _start(wanted: _Settings) -> None:
    import jax
    from jax.extend.backend import clear_backends

    variables = {name: os.environ.get(name) for name in ("XLA_FLAGS", _MEMORY_VARIABLE)}
    options = {
        name: getattr(jax.config, name)
        for name in ("jax_platforms", "jax_enable_x64", "jax_default_matmul_precision")
    }
    if wanted.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC_FLAG}".strip()
    if wanted.memory_fraction is not None:
        os.environ[_MEMORY_VARIABLE] = str(wanted.memory_fraction)
    if wanted.platform is not None:
        # "gpu" would make jax insist on every kind of GPU at once; left free, it prefers an accelerator to
        # the cpu.
        jax.config.update("jax_platforms", "cpu" if wanted.platform == "cpu" else None)
    jax.config.update("jax_enable_x64", wanted.precision == "float64")
    jax.config.update(
        "jax_default_matmul_precision", "float32" if wanted.precision == "float64" else wanted.precision
    )
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        found, cause = "nothing that starts", error
    else:
        cause = None
        if wanted.platform in (None, found):
            return
        found = f"{found} x {jax.device_count()} ({jax.devices()[0].device_kind})"
    # Nothing was computed yet, so all can be undone: a second call may ask for another platform.
    clear_backends()
    for name, value in options.items():
        jax.config.update(name, value)
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if wanted.platform is None:
        raise PlatformNotFound(
            f"jax cannot start with JAX_PLATFORMS={options['jax_platforms']!r}; unset it, or set it to what "
            f"this machine has ({cause})"
        ) from cause
    extra = {"gpu": 'pip install "vinb[gpu]"', "tpu": 'pip install "jax[tpu]"'}.get(wanted.platform)
    raise PlatformNotFound(
        f"platform={wanted.platform!r} was asked for, but jax found {found}. "
        + (
            f"Where there is a {wanted.platform.upper()}, its driver and `{extra}` are needed; "
            if extra
            else ""
        )
        + "pass platform=None to take what there is."
    ) from cause


def _summary(wanted: _Settings, cached: bool) -> Summary:
    import jax

    devices = jax.devices()
    return Summary(
        platform=devices[0].platform,
        device_kind=devices[0].device_kind,
        device_count=len(devices),
        process_count=jax.process_count(),
        cores=_cores(),
        precision=wanted.precision,
        deterministic=wanted.deterministic or _deterministic_flag_set(),
        memory_fraction=wanted.memory_fraction,
        compilation_cache=cached,
    )


def _cores() -> int:
    """The cores this process may use (fewer than the machine has under taskset, Slurm or a container's cpu
    set)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
