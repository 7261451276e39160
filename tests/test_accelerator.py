"""vinb.accelerator. A process has one backend, so nearly every case runs in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vinb import accelerator

TESTS = Path(__file__).resolve().parent


def _start(code, *arguments, script=None, **variables):
    """A Python process running `code` (or `script`), with only the environment variables it should see."""
    variables = {name: str(value) for name, value in variables.items()}
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "VINB_"))
    }
    command = [script] if script else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        cwd=TESTS.parent,
        env={**kept, "VINB_COMPILATION_CACHE": "/dev/null/none", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process):
    """What it printed, after a check that it succeeded and wrote nothing to stderr."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors == ""
    return output


def _run(code, **variables):
    return _finish(_start(code, **variables)).splitlines()


def test_settings_reach_jax_before_it_starts():
    lines = _run(
        """
import sys, os
from vinb import accelerator
assert "jax" not in sys.modules
summary = accelerator.configure("cpu", "float64", True, 0.5, False)
import jax, jax.numpy as jnp
print(summary)
print(jnp.ones(3).dtype, jax.config.jax_platforms, jax.config.jax_default_matmul_precision)
print(os.environ["XLA_FLAGS"], os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"], jax.device_count())
print(jax.config.jax_enable_compilation_cache)
print(accelerator.environment()["precision"])
""",
        XLA_FLAGS="--xla_force_host_platform_device_count=3",
    )
    cores = len(os.sched_getaffinity(0))
    assert lines == [
        f"cpu x {cores} cores as 3 devices, float64, deterministic, no compilation cache",
        "float64 cpu float32",
        "--xla_force_host_platform_device_count=3 --xla_gpu_deterministic_ops=true 0.5 3",
        "False",
        "float64",
    ]


def test_same_settings_again_do_nothing_and_changed_ones_ask_for_a_restart():
    lines = _run("""
from vinb import accelerator
settings = dict(platform="cpu", precision="tensorfloat32", compilation_cache=False)
first = accelerator.configure(**settings)
assert accelerator.configure(**settings) is first
assert accelerator.configure(**{**settings, "platform": None}) is first
import jax
for change in (dict(platform="gpu"), dict(precision="float32"), dict(deterministic=True),
               dict(memory_fraction=0.5), dict(compilation_cache=True)):
    try:
        accelerator.configure(**{**settings, **change})
    except accelerator.RestartNeeded as error:
        ((name, value),) = change.items()
        assert "Restart the kernel" in str(error) and f"{name}={value!r} (now" in str(error)
        print(name, "refused")
assert jax.config.jax_default_matmul_precision == "tensorfloat32"
print(first)
""")
    names = ["platform", "precision", "deterministic", "memory_fraction", "compilation_cache"]
    assert lines[:-1] == [f"{name} refused" for name in names]
    assert "tensorfloat32 asked for (a cpu multiplies in float32)" in lines[-1]


def test_after_somebody_else_started_jax():
    lines = _run("""
import jax
jax.devices()
from vinb import accelerator
for settings in (dict(precision="float64"), dict(platform="gpu"), dict(deterministic=True),
                 dict(memory_fraction=0.5), dict(precision="bfloat16")):
    try:
        accelerator.configure(**settings)
    except accelerator.RestartNeeded as error:
        print("refused", *settings)
assert not jax.config.jax_enable_x64
print(accelerator.configure(platform="cpu", compilation_cache=False).platform)
""")
    names = ["precision", "platform", "deterministic", "memory_fraction", "precision"]
    assert lines == [*(f"refused {name}" for name in names), "cpu"]


def test_a_platform_that_is_not_there_is_refused_and_the_next_call_works():
    lines = _run(
        """
import os
from vinb import accelerator
for platform in ("gpu", "tpu"):
    try:
        accelerator.configure(platform=platform, precision="float64", deterministic=True, memory_fraction=0.1)
    except accelerator.PlatformNotFound as error:
        print(error)
import jax
assert jax.config.jax_platforms == "cpu" and not jax.config.jax_enable_x64
assert "XLA_FLAGS" not in os.environ and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ
print(accelerator.configure(platform="cpu", compilation_cache=False).precision)
import jax.numpy as jnp
print(jnp.ones(2).dtype)
""",
        CUDA_VISIBLE_DEVICES="",
        JAX_PLATFORMS="cpu",
    )
    assert lines[0].startswith("platform='gpu' was asked for, but jax found cpu x 1")
    assert lines[1].startswith("platform='tpu' was asked for, but jax found cpu x 1")
    assert lines[2:] == ["float32", "float32"]


def test_jax_platforms_that_is_not_there():
    lines = _run(
        """
from vinb import accelerator
try:
    accelerator.configure()
except accelerator.PlatformNotFound as error:
    print(error)
print(accelerator.configure(platform="cpu", compilation_cache=False).platform)
""",
        JAX_PLATFORMS="tpu",
    )
    assert lines[0].startswith("jax cannot start with JAX_PLATFORMS='tpu'; unset it")
    assert lines[-1] == "cpu"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"platform": "cuda"}, ValueError, "platform='cuda' must be None or one of cpu, gpu, tpu"),
        ({"precision": "half"}, ValueError, "precision='half' must be one of float32"),
        ({"deterministic": 1}, TypeError, "deterministic=1"),
        ({"memory_fraction": 0}, ValueError, "memory_fraction=0"),
        ({"memory_fraction": 1.5}, ValueError, "memory_fraction=1.5"),
        ({"memory_fraction": "0.5"}, TypeError, "memory_fraction='0.5'"),
        ({"memory_fraction": float("nan")}, ValueError, "memory_fraction=nan"),
        ({"compilation_cache": None}, TypeError, "compilation_cache=None"),
        ({"compilation_cache": ""}, TypeError, "compilation_cache=''"),
    ],
)
def test_settings_that_do_not_exist(settings, error, message):
    with pytest.raises(error) as caught:
        accelerator.configure(**settings)
    assert message in str(caught.value)


# Compilation cache

_COMPILE = """
import sys, jax
from vinb import accelerator
hits, misses = [], []
seen = {"cache_hits": hits, "cache_misses": misses}
jax.monitoring.register_event_listener(lambda name, **_: seen.get(name.split("/")[-1], []).append(1))
summary = accelerator.configure(platform="cpu", compilation_cache=eval(sys.argv[1]))
x = jax.random.normal(jax.random.key(0), (64, 32))
value = jax.jit(jax.grad(lambda w: jax.numpy.tanh(x @ w).sum()))(x[0])
print(summary)
print(len(hits), len(misses), jax.device_get(value).tobytes().hex())
"""


def _compile(cache, **variables):
    summary, line = _finish(_start(_COMPILE, repr(cache), **variables)).splitlines()
    hits, misses, value = line.split()
    return summary, int(hits), int(misses), value


def test_compiled_programs_are_kept_and_shared(tmp_path):
    """Three processes at once and one after them: the same numbers, and nothing on stderr (`_finish`)."""
    other = tmp_path / "foreign-cache"
    other.write_bytes(b"an entry of an unbounded jax cache, without a time stamp")
    processes = [_start(_COMPILE, "True", VINB_COMPILATION_CACHE=tmp_path) for _ in range(3)]
    values = {_finish(process).split()[-1] for process in processes}
    summary, hits, misses, value = _compile(True, VINB_COMPILATION_CACHE=tmp_path)
    assert hits > 0
    assert misses == 0
    assert values == {value}
    assert summary.endswith(", compilation cache")
    assert str(tmp_path) not in summary
    assert other.exists()
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (folder / ".lockfile").exists()  # jax locks only a bounded cache
    assert len(list(folder.glob("*-cache"))) == len(list(folder.glob("*-atime"))) == hits


def test_a_process_killed_while_writing_does_not_spoil_the_cache(tmp_path):
    _, hits, misses, value = _compile(True, JAX_COMPILATION_CACHE_DIR=tmp_path, VINB_COMPILATION_CACHE="")
    assert hits == 0
    assert misses > 0
    entries = sorted(tmp_path.glob("*/*-cache"))
    assert len(entries) == misses
    entries[0].write_bytes(entries[0].read_bytes()[:100])  # cut off, the time stamp not written
    entries[0].with_name(entries[0].name.removesuffix("-cache") + "-atime").unlink()
    assert _compile(str(tmp_path))[1:] == (misses - 1, 1, value)
    assert _compile(str(tmp_path))[1:] == (misses, 0, value)  # mended, not only passed over
    entries[1].write_bytes(b"")  # damaged in a way nobody can see: costs a compilation, prints nothing
    assert _compile(str(tmp_path))[3] == value


def test_a_cache_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    assert _compile(True, VINB_COMPILATION_CACHE=blocked)[0].endswith("no compilation cache")
    process = _start(_COMPILE, repr(str(blocked)))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ValueError: compilation_cache=" in errors
    assert _compile(True, VINB_COMPILATION_CACHE=tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[1:3] == (
        0,
        0,
    )


# Summary and record


def test_summary_and_environment():
    summary = accelerator.Summary("gpu", "A<B>", 2, 3, 16, "bfloat16", True, 0.5, True)
    line = "gpu x 2 (A<B>), bfloat16, 3 processes, deterministic, 50% of device memory, compilation cache"
    assert str(summary) == repr(summary) == line
    table = summary._repr_html_()
    assert "<th>precision</th><td>bfloat16</td>" in table
    assert "A&lt;B&gt;" in table
    environment = accelerator.environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["cores"] == len(os.sched_getaffinity(0))
    assert set(environment["versions"]) == {"jax", "jaxlib", "numpyro"}
    assert not any(text in json.dumps(environment) for text in ("/", socket.gethostname() + '"'))


# Meshes


def _close(result, devices, rows):
    assert result["devices"] == devices
    assert result["rows_outside"] == result["rows_inside"] == rows
    losses, params = result["alone"]
    assert losses[-1] < 0.5 * losses[0]  # it trained, so agreement means something
    for name in ("outside", "inside"):
        other_losses, other_params = result[name]
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        assert set(params) == {"w", "v"}
        for leaf in params:
            np.testing.assert_allclose(other_params[leaf], params[leaf], rtol=1e-5, atol=1e-5)
    assert result["message"].startswith(
        "batch['x'] has shape (31, 2); its leading axis must be a multiple of"
    )


def test_a_sharded_batch_trains_like_one_device():
    process = _start(
        None, script=TESTS / "_mesh_devices.py", XLA_FLAGS="--xla_force_host_platform_device_count=4"
    )
    _close(json.loads(_finish(process)), 4, [8, 8, 8, 8])


def test_two_processes_train_like_one_device():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [_start(None, port, 2, process, script=TESTS / "_mesh_devices.py") for process in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (
        json.loads(output.splitlines()[-1]) for output, _ in outputs
    )  # gloo prints a line before
    _close(first, 2, [16])
    _close(second, 2, [16])
    assert first["inside"] == second["inside"]
    assert "2 processes" in first["summary"]


def test_mesh_of_no_devices():
    with pytest.raises(ValueError, match="at least one device"):
        accelerator.mesh(devices=[])
