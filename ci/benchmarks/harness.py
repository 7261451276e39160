"""What the benchmarks share: fair timing, XLA's own counts of work and memory, a table, and a JSON file.

A benchmark makes one `System` per implementation; each run of it does the same `units` of work and waits for
the device. `measure` runs them in turn, in another order each round, so that a slow minute of the machine
falls on all of them; what is compared is the ratio within a round. One system is a second compiled copy of
the reference ("A/A"): how far its ratio is from 1 is what the machine's noise alone does.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

REFERENCE = "hand-written"
A_A = f"{REFERENCE} (A/A)"


@dataclass(frozen=True)
class System:
    """`run()` does `units` units of work and returns what it computed, on the host: that waits for the
    device. `flops` and `temp_bytes` are per unit; None where a system has none."""

    name: str
    run: Callable[[], Any]
    units: int
    compile_seconds: float
    flops: float | None
    temp_bytes: int | None


@dataclass(frozen=True)
class Program:
    """A compiled program. XLA counts the body of a loop once: for a loop over steps, `flops` is per step."""

    call: Callable
    compile_seconds: float
    flops: float | None
    temp_bytes: int | None


def compiled(function: Callable, *args, donate: tuple[int, ...] = ()) -> Program:
    """Compiles `function` for these arguments, giving it those numbered in `donate` to write over."""
    # A function of its own, so that no copy compiled earlier is used again.
    start = time.perf_counter()
    program = jax.jit(lambda *args: function(*args), donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - start
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    temp_bytes = None if memory is None else memory.temp_size_in_bytes
    return Program(program, seconds, cost.get("flops"), temp_bytes)


@dataclass(frozen=True)
class Result:
    """One system's timings, per unit: `seconds` [rounds] of wall time, and `cpu_seconds` [rounds] that all
    threads of the process together computed; `last` is what the last run returned."""

    case: str
    system: System
    seconds: np.ndarray
    cpu_seconds: np.ndarray
    last: Any

    def row(self) -> dict:
        return {
            "case": self.case,
            "system": self.system.name,
            "seconds": float(np.median(self.seconds)),
            "compile_seconds": self.system.compile_seconds,
            "flops": self.system.flops,
            "temp_bytes": self.system.temp_bytes,
        }


def measure(case: str, systems: list[System], rounds: int) -> dict[str, Result]:
    """Runs every system once to warm up and then `rounds` times, interleaved; by name of the system."""
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; got {rounds}.")
    last = {system.name: system.run() for system in systems}
    times = {system.name: [] for system in systems}
    for number in range(rounds):
        shift = number % len(systems)
        order = systems[shift:] + systems[:shift]
        # Backwards every other round, so that no system always follows the same one.
        for system in order if number % 2 == 0 else reversed(order):
            start, cpu_start = time.perf_counter(), time.process_time()
            last[system.name] = system.run()
            took = time.perf_counter() - start, time.process_time() - cpu_start
            times[system.name].append(np.array(took) / system.units)
    return {s.name: Result(case, s, *np.array(times[s.name]).T, last[s.name]) for s in systems}


def ratios(results: dict[str, Result], name: str, to: str = REFERENCE, clock="seconds") -> np.ndarray:
    """First quartile, median and third quartile over the rounds of the time of `name` over that of `to`."""
    return np.quantile(getattr(results[name], clock) / getattr(results[to], clock), [0.25, 0.5, 0.75])


def median_error(quartiles, rounds: int) -> float:
    """Standard error of the median of `rounds` independent rounds with these quartiles, shaped like a normal's; too small by an
    eighth at nine rounds. How compilations of the same program differ is not in it."""
    low, _, high = quartiles
    return float(np.sqrt(np.pi / 2 / rounds) * (high - low) / 1.349)


def spread(results: dict[str, Result], reference: str = REFERENCE) -> float:
    """How far from 1 the quartiles of the A/A ratio are: differences below this say nothing."""
    low, _, high = ratios(results, f"{reference} (A/A)", reference)
    return float(max(abs(low - 1), abs(high - 1)))


def table(results: dict[str, Result], unit: str, to: str = REFERENCE) -> str:
    """Times per `unit` with ratios to the reference `to` (median and quartiles), the A/A ratio beside them.

    The ratio of processor times is of use on a busy machine, where wall times say little, if the device is
    the processor.
    """
    reference = results[to].system
    noise = _quartiles(ratios(results, f"{to} (A/A)", to))
    lines = [["system", f"time/{unit}", "ratio (quartiles)", "A/A", "processor time ratio", "compile"]]
    lines[0] += ["flops", "ratio", "temp bytes", "ratio"]
    for name, result in results.items():
        system = result.system
        line = [
            name,
            f"{np.median(result.seconds) * 1e6:,.1f} us",
            _quartiles(ratios(results, name, to)),
            noise,
        ]
        line += [
            _quartiles(ratios(results, name, to, clock="cpu_seconds")),
            f"{system.compile_seconds:.2f} s",
        ]
        line += [_count(system.flops), _ratio(system.flops, reference.flops)]
        line += [_count(system.temp_bytes), _ratio(system.temp_bytes, reference.temp_bytes)]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width)
            for cell, width in zip([line[0].ljust(widths[0]), *line[1:]], widths, strict=True)
        )
        for line in lines
    ]
    return "\n".join([next(iter(results.values())).case, text[0], "-" * len(text[0]), *text[1:]])


def _quartiles(quantiles):
    low, middle, high = quantiles
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def _count(number):
    return "-" if number is None else f"{number:,.0f}"


def _ratio(number, reference):
    return "-" if number is None or not reference else f"{number / reference:.4f}"


def load() -> str:
    """How busy the machine is, in words."""
    busy = "/".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return f"load {busy} (1, 5 and 15 minutes) on {os.cpu_count()} cores, {jax.devices()[0].device_kind}"


def parser(description: str, rounds: int = 9) -> argparse.ArgumentParser:
    """The options all benchmarks take."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--json", type=Path, metavar="PATH", help="also write the rows there")
    result.add_argument("--rounds", type=int, default=rounds, help=f"timed runs of each system ({rounds})")
    return result


def write(path: Path, rows: list[dict]) -> None:
    """Writes the rows as JSON: whoever reads `path` sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(rows, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def run(
    options: argparse.Namespace, compare: Callable, cases: Iterable[tuple], summary: Callable | None = None
) -> int:
    """What a benchmark's `main` does: `compare(options, *case)` returns the rows and problems of a case; the rows are written,
    the problems and what `summary(options, rows)` says printed, and the exit status says whether there are problems."""
    rows, problems, start = [], [], time.perf_counter()
    print(f"before: {load()}\n")
    for case in cases:
        new_rows, new_problems = compare(options, *case)
        rows, problems = rows + new_rows, problems + new_problems
    print(f"after {time.perf_counter() - start:.0f} s: {load()}")
    if options.json:
        write(options.json, rows)
    if summary and (text := summary(options, rows)):
        print(text)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0
