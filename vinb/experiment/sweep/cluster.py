"""Where the runs of a sweep happen: dask workers on this machine, or a scheduler that runs already."""

import contextlib
import glob
import importlib.util
import itertools
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinb.experiment import notebooks, source

if TYPE_CHECKING:
    from distributed import Client

_MEMORY_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_MEMORY = 0.9  # of a device, for all its workers together; the rest is for what jax does not count
_NOTHING = logging.CRITICAL + 1  # of dask's own log: what it means for the runs is reported
_PATIENCE = 10  # seconds a scheduler has to answer
_one_at_a_time = threading.Lock()  # a run is told its folder by the environment of the whole process


@dataclass(frozen=True)
class Job:
    """What a worker is told of one run.

    Attributes:
        notebook: the file.
        folder: where the run goes.
        given: the values injected.
        root: the folder with ``notebooks/``, or None.
        timeout: seconds a cell may take, or None.
        shares: of `shares`; empty for workers that others started.
    """

    notebook: Path
    folder: Path
    given: Mapping[str, Any]
    root: Path | None
    timeout: float | None
    shares: Mapping[int, Mapping[str, str]]


def execute(job: Job) -> notebooks.Run:
    """Makes one run; this is what a worker does."""
    import dask
    from distributed import get_worker

    with _one_at_a_time:
        # Dask holds its workers' libraries to one thread each; a run by hand has no such bound, nor has this one.
        for name, value in dask.config.get("distributed.nanny.pre-spawn-environ", {}).items():
            if os.environ.get(name) == str(value):
                del os.environ[name]
        os.environ.update(job.shares[get_worker().name] if job.shares else {})
        return notebooks.execute(
            job.notebook,
            output_dir=job.folder,
            parameters=job.given,
            root=job.root,
            timeout=job.timeout,
            progress=False,
        )


def shares(workers: int) -> dict[int, dict[str, str]]:
    """The environment of each worker's runs: its GPU, where there are any, and its share of that GPU's memory.

    What the user has set stays: a memory fraction of theirs, and only the GPUs of their ``CUDA_VISIBLE_DEVICES``.

    Args:
        workers: how many there will be on this machine.
    """
    devices = gpus()
    fraction = _MEMORY / -(-workers // max(1, len(devices)))
    common = {_MEMORY_VARIABLE: f"{fraction:.3g}"} | {
        name: os.environ[name] for name in (_MEMORY_VARIABLE, *_thread_variables()) if name in os.environ
    }
    return {
        i: common | ({"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} if devices else {})
        for i in range(workers)
    }


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that jax would use here, found without starting jax."""
    plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    if not plugin or os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in visible.split(",")]
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # CUDA, too, stops there
    return [str(i) for i in range(len(glob.glob("/proc/driver/nvidia/gpus/*")))]


def default_workers() -> int:
    """One per GPU; without GPUs one per two cores, since each run is a jax process that uses several."""
    return len(gpus()) or max(1, source.cores() // 2)


@contextlib.contextmanager
def local(workers: int) -> Iterator["Client"]:
    """A client of workers on this machine, each a process that is started anew when it dies."""
    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": 0,  # whose fault a death was is found out by the sweep
        "distributed.scheduler.worker-saturation": 1.0,  # no run waits behind another while a worker is free
    }
    with (
        tempfile.TemporaryDirectory(prefix="vinb-sweep-", ignore_cleanup_errors=True) as scratch,
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # it would only count the worker, and the run is in a kernel of its own
            # No dashboard, and what dask serves without one on any port: a warning would say that the usual one is taken.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            local_directory=scratch,
            silence_logs=_NOTHING,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        try:
            with client.as_current():
                yield client
        except BaseException:
            for nanny in cluster.workers.values():  # asked to stop, a worker would wait for its run
                nanny.auto_restart = False
                with contextlib.suppress(OSError, TypeError):
                    os.kill(nanny.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            raise


@contextlib.contextmanager
def connected(scheduler: str, places: Sequence[Path]) -> Iterator["Client"]:
    """A client of a scheduler that runs already.

    Args:
        scheduler: its address, or the file that ``dask scheduler --scheduler-file`` writes.
        places: files and folders that every worker must see.

    Raises:
        ConnectionError: if it does not answer.
        ValueError: if the file is none of a scheduler, or a worker lacks vinb or one of the places.
    """
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    address = _address(scheduler) if scheduler.endswith(".json") else scheduler
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"--scheduler {scheduler}: no dask scheduler answers at {address} ({error}). Start one by `dask scheduler` and "
            "pass the address it prints, such as tcp://10.0.0.1:8786; it must be reachable from here."
        ) from None
    with silence_logging_cmgr(_NOTHING), client, client.as_current():
        try:
            seen = client.run(_missing, [str(place) for place in places], on_error="return")
        except ValueError:  # no workers yet
            seen = {}
        for worker, missing in seen.items():
            if isinstance(missing, Exception):
                raise ValueError(
                    f"worker {worker} cannot run vinb ({type(missing).__name__}: {missing}); start it with the Python of an "
                    "environment that has vinb, of the same version as here."
                )
            if missing:
                raise ValueError(
                    f"worker {worker} does not see {', '.join(missing)}; clone and --output-dir must be on a file system that "
                    "all machines share, at the same path."
                )
        yield client


def _address(file: str) -> str:
    deadline = time.monotonic() + _PATIENCE
    while not Path(file).is_file() and time.monotonic() < deadline:  # a scheduler that is just starting
        time.sleep(0.1)
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))["address"]
    except FileNotFoundError:
        raise ConnectionError(
            f"--scheduler {file}: there is no such file; start one by `dask scheduler --scheduler-file {file}`."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--scheduler {file}: is not a file that `dask scheduler` wrote.") from None


def _missing(places: Sequence[str]) -> list[str]:
    return [place for place in places if not os.path.exists(place)]


def _thread_variables() -> list[str]:
    import dask
    import distributed  # noqa: F401  (it adds the defaults of its settings)

    return list(dask.config.get("distributed.nanny.pre-spawn-environ", {}))
