"""Exactly solvable problems put to vinb, NumPyro, genjax, Pyro and storchastic: whose gradients are right?

A system is right where it is within five standard errors of the exact value in every quantity, and its standard
error is small enough to see a mistake of a quarter of the largest value. The exit status says whether vinb is.

    python ci/benchmarks/correctness.py [--json PATH] [--support PATH] [--draws N] [--install-peers]
        [--peers NAME ...] [--cases NAME ...]
"""

import argparse
import sys
from pathlib import Path

import exact
import harness
import numpy as np
import peers
import support

sys.path.insert(1, str(peers.PROGRAMS))

SIGMAS = 5.0
ROUNDING = 1e-4  # of float32, relative to the largest exact value
SYSTEMS = ("vinb", "numpyro", "genjax", "pyro", "storchastic")


def verdict(case: exact.Case, row: dict) -> str:
    """'right', 'BIASED', 'unclear' (too noisy to say), 'unsupported' or 'error'."""
    for word in ("unsupported", "error"):
        if word in row:
            return word
    given = np.array([v is not None for v in row["estimate"]])
    if not given.any():
        return "error"
    true = case.exact[given]
    scale = np.abs(true).max() or 1.0
    mean = np.array(row["estimate"], dtype=float)[given]
    error = np.array(row["se"], dtype=float)[given]
    if np.any(np.abs(mean - true) > SIGMAS * error + ROUNDING * scale):
        return "BIASED"
    return "right" if np.all(SIGMAS * error < 0.25 * scale) else "unclear"


def rows_of(system: str, chosen: dict[str, exact.Case], options) -> list[dict]:
    """One row per case and variant of the system."""
    request = {"draws": options.draws, "cases": {name: case.constants for name, case in chosen.items()}}
    try:
        if system in peers.PEERS:
            replies = peers.ask(system, {"what": "correctness", **request}, install=options.install_peers)
        else:
            replies = __import__(f"run_{system}").correctness(request)
    except peers.Missing as missing:
        print(f"{system} skipped: {missing}")
        return []
    return [
        {"case": name, **row, "verdict": verdict(chosen[name], row)}
        for name, rows in replies.items()
        for row in rows
    ]


def table(case: exact.Case, rows: list[dict]) -> str:
    """The estimates of one case below the exact values."""
    lines = [["", *case.quantities, ""], ["exact", *(f"{value:.5f}" for value in case.exact), ""]]
    for row in rows:
        said = row.get("unsupported") or row.get("error")
        if said:
            lines.append([row["system"], f"{row['verdict']}: {said}"])
            continue
        cells = [
            "-" if mean is None else f"{mean:.5f} ± {error:.5f}"
            for mean, error in zip(row["estimate"], row["se"], strict=True)
        ]
        lines.append([row["system"], *cells, row["verdict"]])
    full = [line for line in lines if len(line) > 2]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    widths[0] = max(len(line[0]) for line in lines)
    text = [
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=False))]
        )
        for line in lines
    ]
    return "\n".join([f"{case.name}: {case.what}", *(line.rstrip() for line in text), ""])


def make_parser():
    parser = argparse.ArgumentParser(description="Who is right on exactly solvable problems.")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the rows there")
    parser.add_argument(
        "--support", type=Path, metavar="PATH", help="write the matrix of who supports what there"
    )
    parser.add_argument("--draws", type=int, default=200_000, help="gradients per system and case (200000)")
    parser.add_argument("--install-peers", action="store_true", help="make the peers' environments (2 GB)")
    parser.add_argument("--peers", nargs="*", choices=SYSTEMS[1:], default=list(SYSTEMS[1:]))
    parser.add_argument("--cases", nargs="+", choices=list(exact.cases()), metavar="NAME")
    return parser


def main(arguments=None) -> int:
    options = make_parser().parse_args(arguments)
    cases = exact.cases()
    chosen = {name: cases[name] for name in options.cases or cases}
    rows = [row for system in ("vinb", *options.peers) for row in rows_of(system, chosen, options)]
    for name, case in chosen.items():
        print(table(case, [row for row in rows if row["case"] == name]))
    if options.json:
        harness.write(options.json, rows)
    if options.support:
        harness.write(options.support, support.matrix(rows))
    fine = ("right", "unclear")  # unclear where the draws are too few
    wrong = [row for row in rows if row["system"].startswith("vinb") and row["verdict"] not in fine]
    for row in wrong:
        print(f"{row['case']}: {row['system']} is {row['verdict']}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
