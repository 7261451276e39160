"""The peers' own environments, and running a peer's program there.

genjax 0.10.3 needs an older JAX than ours, Pyro and storchastic need PyTorch: each environment is a virtual
environment in the user's cache, made only when asked for (`--install-peers`), never in the repository. A
program of `peer_programs/` runs there as a subprocess; it reads a request from its standard input and writes
its reply to the file that it is told of, both JSON.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import platformdirs

PROGRAMS = Path(__file__).resolve().parent / "peer_programs"


class Missing(Exception):
    """A peer cannot be had here; the message says why and what to do."""


@dataclass(frozen=True)
class Environment:
    """`requirements` are what pip is given; `pythons` the interpreters that they work with."""

    name: str
    requirements: tuple[str, ...]
    size: str
    pythons: tuple[str, ...] = ("3.11",)

    @property
    def folder(self) -> Path:
        return Path(platformdirs.user_cache_dir("vinb")) / "peers" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


GENJAX = Environment("genjax-0.10.3", ("genjax==0.10.3", "jax>=0.5,<0.6"), "0.8 GB")
TORCH = Environment(
    "torch-2.13.0", ("torch==2.13.0", "pyro-ppl==1.9.2", "storchastic==0.3.7", "entmax"), "1 GB"
)

# Which environment each program runs in.
PEERS = {"genjax": GENJAX, "pyro": TORCH, "storchastic": TORCH}


def require(environment: Environment, install: bool = False) -> Path:
    """The environment's interpreter, made first if `install` asks for it.

    Raises:
        Missing: where it is not there and may not or cannot be made.
    """
    if environment.python.exists():
        return environment.python
    if not install:
        raise Missing(
            f"no environment {environment.name}: run with --install-peers to make it "
            f"(about {environment.size} in {environment.folder.parent}, needs a network)"
        )
    python = interpreter(environment)
    environment.folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {', '.join(environment.requirements)} ...", file=sys.stderr)
    start = time.perf_counter()
    # Scripts of a virtual environment name its folder, so it is made in place, and removed where that fails.
    try:
        _checked([python, "-m", "venv", str(environment.folder)])
        _checked([str(environment.python), "-m", "pip", "install", "--quiet", *environment.requirements])
    except BaseException as error:
        shutil.rmtree(environment.folder, ignore_errors=True)
        if isinstance(error, (OSError, subprocess.CalledProcessError)):
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise Missing(
                f"{environment.name} could not be installed: {said[-1] if said else error}"
            ) from error
        raise
    print(f"installed {environment.name} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return environment.python


def interpreter(environment: Environment) -> str:
    """A Python that the environment's packages work with.

    Raises:
        Missing: where there is none.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" in environment.pythons:
        return sys.executable
    for version in environment.pythons:
        found = shutil.which(f"python{version}")
        if found:
            return found
    raise Missing(
        f"{environment.name} needs Python {' or '.join(environment.pythons)}, and none is on the path"
    )


def _checked(command):
    subprocess.run(command, check=True, capture_output=True, text=True)


def ask(peer: str, request: dict, *, install: bool = False, seconds: float = 900):
    """Runs the program of `peer` with `request`; what it replied.

    Raises:
        Missing: where the peer's environment cannot be had, or its program fails or takes over `seconds`.
    """
    python = require(PEERS[peer], install)
    # Neither our packages nor our compilation cache may reach the peer's interpreter.
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    with tempfile.TemporaryDirectory() as folder:
        reply = Path(folder) / "reply.json"
        try:
            subprocess.run(
                [python, PROGRAMS / f"run_{peer}.py", reply],
                input=json.dumps(request),
                env=environment,
                check=True,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise Missing(f"{peer} took over {seconds:.0f} s") from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            raise Missing(f"{peer} failed: {said[-1] if said else error}") from error
        return json.loads(reply.read_text())
