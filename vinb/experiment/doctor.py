"""What works on this machine: one line per subject, with what to do where it does not."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from vinb.experiment import notebooks, paths

Line = tuple[str, str, str]  # "ok", "warn" or "fail"; the subject; words


def examine(root: str | Path | None = None) -> Iterator[Line]:
    """Yields (state, subject, words); ``fail`` where notebooks will not run. Imports jax.

    Args:
        root: the folder with ``notebooks/`` that the user named, if any.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    yield "ok", "python", version
    yield from _packages()
    yield from _jax()
    yield from _data()
    yield from _notebooks(root)
    yield from _kernels()
    yield from _disk()


def _packages() -> Iterator[Line]:
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        required = metadata.requires("vinb") or []
    except metadata.PackageNotFoundError:
        yield "warn", "packages", "vinb is not installed, only on the path; pip install -e . in the clone"
        return
    good = []
    for line in required:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield "fail", requirement.name, f"not installed; pip install '{requirement}'"
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{requirement.name} {version}")
        else:
            yield (
                "fail",
                requirement.name,
                f"{version} is not {requirement.specifier}; pip install '{requirement}'",
            )
    yield "ok", "packages", ", ".join(good)


def _jax() -> Iterator[Line]:
    try:
        from vinb import accelerator

        summary = accelerator.configure()
        import jax

        devices = jax.devices()
    except Exception as error:  # whatever a backend raises is what the user needs to see
        yield "fail", "jax", f"{type(error).__name__}: {error}"
        return
    yield "ok", "devices", str(summary)
    if devices[0].platform == "cpu" and shutil.which("nvidia-smi"):
        yield "warn", "devices", "an NVIDIA driver is here but jax sees no GPU; pip install 'vinb[gpu]'"
    cache = jax.config.jax_compilation_cache_dir
    if cache:
        yield "ok", "compilation cache", paths.shown(Path(cache))
    else:
        yield "warn", "compilation cache", "off; every run compiles anew"


def _data() -> Iterator[Line]:
    from vinb import data

    for name, dataset in data.DATASETS.items():
        if not dataset.embeddable:
            continue
        try:
            data.verify(name)
            yield "ok", f"data {name}", "checksums agree"
        except Exception as error:
            yield "fail", f"data {name}", str(error)


def _notebooks(root: str | Path | None) -> Iterator[Line]:
    try:
        found = paths.require_root(root)
    except paths.RootNotFound as error:
        yield "warn", "notebooks", str(error)
        return
    yield "ok", "notebooks", f"{len(notebooks.discover(found))} in {paths.shown(found / 'notebooks')}"


def _kernels() -> Iterator[Line]:
    from jupyter_client.kernelspec import KernelSpecManager

    known = KernelSpecManager().find_kernel_specs()
    if "python3" not in known:
        yield "fail", "kernel", "no python3 kernel; python -m ipykernel install --sys-prefix"
    elif Path(sys.prefix) not in Path(known["python3"]).parents and "ipykernel" not in known["python3"]:
        yield "warn", "kernel", "python3 is that of another Python; python -m ipykernel install --sys-prefix"
    else:
        yield "ok", "kernel", "python3"


def _disk() -> Iterator[Line]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    words = f"{free:.1f} GB free here"
    yield (
        ("ok", "disk", words)
        if free >= 1
        else ("warn", "disk", f"{words}; runs and the cache want about 1 GB")
    )
