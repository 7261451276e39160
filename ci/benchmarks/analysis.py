"""Seconds that the static analyses take per program: support match, smoothness, selection, on the papers' pairs.

Time is told apart for tracing the program, which is what NumPyro and JAX take for it, and for the interpretation of its
jaxpr; both are per program, a model or a guide. The exit status tells of a pair whose program takes longer than the bar,
beside the time to trace it once.

    python ci/benchmarks/analysis.py [--json PATH] [--rounds N] [--scale small|original] [--pairs NAME ...]
"""

import sys
import time

import harness
import numpy as np

from vinb.analysis import select_pathwise, smoothness, support_match
from vinb.analysis.dependence import inner_jaxprs
from vinb.analysis.evaluate import evaluate
from vinb.analysis.sites import trace_paths
from vinb.models.pairs import PAIRS, make_pair

SECONDS = 2.0  # per example model
HEADER = (
    "pair",
    "program",
    "sites",
    "equations",
    "trace",
    "interpret",
    "smoothness",
    "support match",
    "selection",
)


def timed(call, rounds):
    """Median seconds, and what the first call took: it has JAX compile what the program itself computes."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, float(np.median(seconds[1:])), seconds[0]


def num_equations(jaxpr):
    return sum(1 + sum(num_equations(inner) for inner in inner_jaxprs(eqn.params)) for eqn in jaxpr.eqns)


def run(options, name):
    pair = make_pair(name, options.scale)
    rows, problems = [], []
    _, match, _ = timed(lambda: support_match(pair.model, pair.guide, pair.args, pair.kwargs), options.rounds)
    _, selection, _ = timed(
        lambda: select_pathwise(pair.model, pair.guide, pair.args, pair.kwargs), options.rounds
    )
    for label, program in (("model", pair.model), ("guide", pair.guide)):
        paths, trace, _ = timed(lambda p=program: trace_paths(p, pair.args, pair.kwargs), options.rounds)
        _, interpret, _ = timed(lambda p=paths: [evaluate(path) for path in p], options.rounds)
        _, whole, first = timed(lambda p=program: smoothness(p, pair.args, pair.kwargs), options.rounds)
        sites = sum(len(path.sites) for path in paths)
        equations = sum(num_equations(path.jaxpr.jaxpr) for path in paths)
        seconds = (trace, interpret, whole, match, selection)
        print(
            "  ".join(
                [f"{name:12}", f"{label:7}", f"{sites:5}", f"{equations:9}", *(f"{s:10.4f}" for s in seconds)]
            )
        )
        rows.append(
            {
                "case": f"{name}, {label}, {options.scale}",
                "system": "vinb",
                "seconds": whole,
                "compile_seconds": first,
                "flops": None,
                "temp_bytes": None,
                "trace_seconds": trace,
                "interpret_seconds": interpret,
                "support_match_seconds": match,
                "selection_seconds": selection,
                "equations": equations,
            }
        )
        if options.scale == "small" and whole > SECONDS:
            problems.append(f"{name}, {label}: {whole:.2f} s are over {SECONDS:g} s")
    return rows, problems


def main(arguments=None) -> int:
    parser = harness.parser("Seconds per program of the static analyses.", rounds=3)
    parser.add_argument("--scale", choices=("small", "original"), default="small", help="sizes of the pairs")
    parser.add_argument("--pairs", nargs="+", choices=sorted(PAIRS), default=sorted(PAIRS), metavar="NAME")
    options = parser.parse_args(arguments)
    print("  ".join(f"{word:>10}" for word in HEADER) + "   (seconds)")
    return harness.run(options, run, [(name,) for name in options.pairs])


if __name__ == "__main__":
    sys.exit(main())
