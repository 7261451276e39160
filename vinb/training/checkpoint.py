"""Checkpoints: one file, written atomically, tied to the run that wrote it.

A file is one line of JSON (the fingerprint of the run, the step, the names of the evaluations, a CRC of what
follows) and then the arrays as Equinox serialises them. Typed keys are stored as their key data; the name of
their implementation is in the fingerprint.
"""

import hashlib
import io
import json
import os
import zlib
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

from vinb.training.programs import is_key


class CheckpointMismatch(ValueError):
    """The checkpoint belongs to another run, or is damaged."""


def describe(arrays, names) -> list:
    """Path, dtype and shape of each array; the dtype of a typed key names its implementation."""
    return [[name, str(array.dtype), list(array.shape)] for name, array in zip(names, arrays, strict=True)]


def digest(tree) -> str:
    """SHA-256 of the values of all arrays of a tree."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        value = np.ascontiguousarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        total.update(value.reshape(-1).view(np.uint8))
    return total.hexdigest()


def _raw(arrays):
    return [jax.random.key_data(array) if is_key(array) else array for array in arrays]


def save(
    path: Path, fingerprint: dict, step: int, arrays, losses, steps, evaluations: dict, seconds: float
) -> None:
    """Writes the checkpoint: whoever reads ``path`` sees the old file or the new one, whole.

    ``steps`` are the steps at which the run was evaluated so far, ``evaluations`` the values, by name.
    """
    payload = io.BytesIO()
    eqx.tree_serialise_leaves(
        payload, (_raw(arrays), losses[:step], [np.asarray(v) for v in evaluations.values()])
    )
    payload = payload.getvalue()
    header = {"fingerprint": fingerprint, "step": step, "seconds": seconds, "crc32": zlib.crc32(payload)}
    header.update({"evaluation steps": steps, "evaluations": list(evaluations)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}.tmp"
    )  # each process its own: two may write `path`
    try:
        with open(temporary, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:  # also when the disk is full or from the keyboard; nothing is there after the rename
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def read(path: Path) -> tuple[dict, bytes]:
    """Header and payload of a checkpoint, after checking that the file is whole."""
    data = path.read_bytes()
    line, _, payload = data.partition(b"\n")
    try:
        header = json.loads(line)
        whole = zlib.crc32(payload) == header["crc32"]
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise CheckpointMismatch(
            f"checkpoint {str(path)!r} is damaged or no checkpoint of vinb ({len(data)} bytes). Delete it to "
            "start from the beginning, or give another path."
        )
    return header, payload


def check(path: Path, header: dict, fingerprint: dict) -> None:
    """Refuses a checkpoint of another run: resuming it would not continue the run that was asked for."""
    found = header["fingerprint"]
    for name, expected in fingerprint.items():
        if found.get(name) != expected:
            raise CheckpointMismatch(
                f"checkpoint {str(path)!r} belongs to another run: {name} is {_short(found.get(name))} there "
                f"and {_short(expected)} here. Give another path, delete the file to start from the "
                "beginning, or run with the settings it was written with."
            )


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:90] + " ... " + text[-90:]


def restore(header: dict, payload: bytes, arrays):
    """(arrays, losses, evaluations) of a checkpoint that passed `check`; ``arrays`` gives shapes and
    shardings."""
    evaluations = {name: np.zeros(len(header["evaluation steps"])) for name in header["evaluations"]}
    like = (_raw(arrays), np.zeros(header["step"], np.float32), list(evaluations.values()))
    values, losses, points = eqx.tree_deserialise_leaves(io.BytesIO(payload), like)
    values = [
        jax.device_put(
            jax.random.wrap_key_data(value, impl=jax.random.key_impl(array)) if is_key(array) else value,
            None if isinstance(array.sharding, jax.sharding.SingleDeviceSharding) else array.sharding,
        )
        for value, array in zip(values, arrays, strict=True)
    ]
    return values, losses, dict(zip(evaluations, map(list, points), strict=True))
