"""``make notebooks``: run notebooks as they stand, keep outputs, records and figures in the tree, check them.

    python ci/notebooks.py [NAME ...] [--preset cpu|smoke|paper] [--check]

At `cpu`, the preset of the parameters cell, the outputs go into the notebook itself; at the others only the
record and the figures are kept beside it. `--check` runs nothing. Exits 1 if a run failed or a problem is
left; instructions of the template of `vinb new` that are left are listed, but no problem yet.
"""

import argparse
import sys
from pathlib import Path

from vinb.experiment import notebooks, parameters, saved

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of notebooks (default: all)")
    parser.add_argument("--preset", choices=parameters.PRESETS, default="cpu")
    parser.add_argument("--check", action="store_true", help="only check what is committed")
    options = parser.parse_args()
    known = notebooks.discover(ROOT)
    if odd := [name for name in options.names if name not in known]:
        parser.error(f"no notebook {', '.join(odd)}; there are {', '.join(known) or 'none'}")
    good = True
    for name in options.names or known:
        good &= (options.check or _run(name, known[name], options.preset)) and _check(name, known[name])
    return 0 if good else 1


def _run(name: str, path: Path, preset: str) -> bool:
    default = notebooks.parameters_of(notebooks.read(path))["preset"].default
    given = {} if preset == default else {"preset": preset}
    run = notebooks.execute(path, output_dir=ROOT / "runs" / name / preset, parameters=given, root=ROOT)
    if run.record is not None:
        print(f"{name} at {preset}\n{saved.load(run.record).claims_table()}", flush=True)
    if run.failure is not None:
        print(
            f"{name}: cell [{run.failure.cell}]: {run.failure.error}\n{run.failure.traceback}",
            file=sys.stderr,
        )
        return False
    try:
        for file in notebooks.publish(path, run.folder):
            print(f"wrote {file.relative_to(ROOT).as_posix()}")
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False
    return True


def _check(name: str, path: Path) -> bool:
    problems = notebooks.check(path)
    for problem in problems:
        print(f"{name}: {problem}", file=sys.stderr)
    if left := notebooks.to_dos(path):
        print(f'{name}: {len(left)} "To do:" are left, of which make test accepts none:', *left, sep="\n  ")
    return not problems


if __name__ == "__main__":
    sys.exit(main())
