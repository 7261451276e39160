"""What the peers' programs share: reading the request, writing the reply, and one row per system that says
what it estimated or why it did not. Runs in every environment: only the standard library and numpy.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np

# The folder of the benchmarks, for the modules that need no more than a peer has.
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))


class Unsupported(Exception):
    """The system has no such feature; the message says what is missing."""


def row(system, estimate):
    """`estimate()` returns draws [draws, quantities], or their mean and standard error; nan where a quantity is not given."""
    try:
        drawn = estimate()
    except Unsupported as error:
        return {"system": system, "unsupported": str(error)}
    except Exception as error:  # what a system says of a case is the result
        return {"system": system, "error": words(error)}
    mean, error = drawn if isinstance(drawn, tuple) else moments(drawn)
    return {"system": system, "estimate": numbers(mean), "se": numbers(error)}


def words(error):
    """One line, without the colours that some libraries put into their messages."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}"[:140]


def moments(draws):
    draws = np.asarray(draws, dtype=np.float64)
    draws = draws[:, None] if draws.ndim == 1 else draws
    return draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))


def numbers(values):
    """For JSON, which has no nan."""
    return [float(v) if np.isfinite(v) else None for v in np.atleast_1d(np.asarray(values, dtype=float))]


def answer_cases(cases, request):
    """Rows by case: `cases` gives a function of `(draws, **constants)` to estimates by system."""
    return {
        name: [
            row(system, estimate) for system, estimate in cases[name](request["draws"], **constants).items()
        ]
        for name, constants in request["cases"].items()
    }


def arrays_of(request, case):
    """The direction to project gradients on, and the case with the very arrays of the process that asks."""
    with np.load(request["arrays"]) as file:
        groups = {"params": {}, "direction": {}}
        for name in file.files:
            if "/" in name:
                group, key = name.split("/", 1)
                groups[group][key] = file[name]
        data = file["data"]
    return groups["direction"], dataclasses.replace(case, params=groups["params"], data=data)


def main(answers):
    """Answers the request on the standard input, of the kind `request["what"]`, in the file that the command names."""
    request = json.loads(sys.stdin.read())
    answer = answers[request["what"]](request)
    Path(sys.argv[1]).write_text(json.dumps(answer, allow_nan=False))
