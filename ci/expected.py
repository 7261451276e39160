"""``make expected``: refresh tests/expected/<name>.json from a smoke run of each notebook.

    python ci/expected.py [NAME ...] [--run FOLDER]

Values are replaced; a metric's tolerance, which is about other machines, is kept, and a new metric gets 2 % of its value, at
least 1e-6. Widen one by hand only with a reason. `--run` takes a finished smoke run of one notebook instead of
running it.
"""

import argparse
import json
import sys
from pathlib import Path

from vinb.experiment import load, notebooks

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "expected"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of notebooks (default: all)")
    parser.add_argument("--run", type=Path, help="folder of a finished smoke run of the one NAME")
    options = parser.parse_args()
    known = notebooks.discover(ROOT)
    if odd := [name for name in options.names if name not in known]:
        parser.error(f"no notebook {', '.join(odd)}; there are {', '.join(known) or 'none'}")
    if options.run and len(options.names) != 1:
        parser.error("--run goes with exactly one NAME")
    return max([_refresh(name, known[name], options.run) for name in options.names or known], default=0)


def _refresh(name: str, path: Path, folder: Path | None) -> int:
    if folder is None:
        run = notebooks.execute(
            path, output_dir=ROOT / "runs" / name / "smoke", parameters={"preset": "smoke"}, root=ROOT
        )
        if run.failure is not None:
            print(f"{name}: cell [{run.failure.cell}]: {run.failure.error}", file=sys.stderr)
            return 1
        folder = run.folder
    record = load(folder / "record.json")
    if record.notebook != name or record.preset != "smoke":
        print(f"{name}: that run is of {record.notebook} at {record.preset}", file=sys.stderr)
        return 1
    if record.result["overrides"] or "failed" in record.verdicts.values():
        print(f"{name}: that run overrides the preset, or its claims failed", file=sys.stderr)
        return 1
    file = FOLDER / f"{name}.json"
    before = json.loads(file.read_text())["metrics"] if file.exists() else {}
    metrics = {}
    for metric, value in record.metrics.items():
        kept = before.get(metric, {}).get("tolerance")
        metrics[metric] = {
            "value": value,
            "tolerance": max(float(f"{abs(value) * 0.02:.2g}"), 1e-6) if kept is None else kept,
        }
        if metric in before and abs(before[metric]["value"] - value) > metrics[metric]["tolerance"]:
            print(f"{name}: {metric} was {before[metric]['value']:g}, is {value:g}")
    FOLDER.mkdir(exist_ok=True)
    file.write_text(json.dumps({"verdicts": record.verdicts, "metrics": metrics}, indent=1) + "\n")
    print(f"wrote {file.relative_to(ROOT)}: {len(metrics)} metrics, {len(record.verdicts)} claims")
    return 0


if __name__ == "__main__":
    sys.exit(main())
