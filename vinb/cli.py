"""``vinb list | run | cite | data | doctor``: a thin shell around papermill and `vinb.experiment`.

Exit codes: 0 done; 1 a claim failed, a cell raised, or a check of `doctor` or `data verify` failed; 2 the
call was wrong, or a file could not be read or written.
"""

import argparse
import ast
import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vinb
from vinb.experiment import citation, notebooks, parameters, paths, saved
from vinb.experiment.tables import verdict_counts
from vinb.tables import Table

_PREFERRED = ("paper", "cpu", "smoke")  # which committed record speaks for a notebook


class UsageError(ValueError):
    """The call was wrong; exit code 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        arguments: the words after ``vinb``; None takes them from the process.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:  # `vinb list | head`
        sys.stderr.close()
        return 0
    except (ValueError, OSError) as error:  # also a notebook or a record that is broken
        print(f"vinb: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vinb: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vinb",
        description="Notebooks on variational inference that reproduce papers: list, run and cite them.",
    )
    parser.add_argument("--version", action="version", version=f"vinb {vinb.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--root", help="folder of the clone (default: $VINB_ROOT, else this folder or one above it)"
    )

    listing = commands.add_parser(
        "list", parents=[place], help="the notebooks, their papers and committed records"
    )
    listing.set_defaults(run=_list)

    run = commands.add_parser(
        "run",
        parents=[place],
        help="run a notebook",
        description="Runs a notebook by papermill; shows where its results are and whether its claims held.",
        epilog="Example: vinb run vae --preset smoke -p seed=1 -p 'latent_dims=[2, 5]'",
    )
    run.add_argument("notebook", help="name of a notebook (see `vinb list`), or a path of an .ipynb file")
    run.add_argument(
        "--preset", choices=parameters.PRESETS, help="size of the run (default: as the notebook says, cpu)"
    )
    run.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter; values as in Python or JSON; repeatable",
    )
    run.add_argument(
        "--output-dir",
        metavar="FOLDER",
        help="results go to FOLDER/<notebook>/<preset and overrides>/ (default: runs/ in the clone)",
    )
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="stop if a single cell takes longer")
    run.set_defaults(run=_run)

    cite = commands.add_parser(
        "cite",
        parents=[place],
        help="BibTeX and provenance of a reproduced paper or figure",
        epilog="Example: vinb cite vae figure-4",
    )
    cite.add_argument("notebook", help="name of a notebook, or a record.json or its folder")
    cite.add_argument(
        "figure", nargs="?", help="name of a figure, such as figure-4 (default: the whole record)"
    )
    cite.add_argument(
        "--preset", choices=parameters.PRESETS, help="which committed record (default: the largest)"
    )
    cite.set_defaults(run=_cite)

    data = commands.add_parser("data", help="data sets: list, verify, download")
    verbs = data.add_subparsers(required=True, metavar="VERB")
    for verb, words in (
        ("list", "data sets with size, licence and where their files are"),
        ("verify", "compare checksums"),
        ("download", "fetch into the user's cache"),
    ):
        sub = verbs.add_parser(verb, help=words)
        if verb != "list":
            sub.add_argument("names", nargs="+" if verb == "download" else "*", metavar="NAME")
        sub.set_defaults(run=_data, verb=verb)

    doctor = commands.add_parser("doctor", parents=[place], help="what works on this machine")
    doctor.set_defaults(run=_doctor)
    return parser


def _list(options: argparse.Namespace) -> int:
    root = paths.require_root(options.root)
    known, rows, broken = citation.references(root), [], []
    for name, path in notebooks.discover(root).items():
        found = []
        for preset in parameters.PRESETS:
            file = path.parent / name / preset / "record.json"
            if file.is_file():
                try:
                    found.append(f"{preset}: {verdict_counts(saved.load(file).result['claims'])}")
                except ValueError as error:
                    found.append(f"{preset}: unreadable")
                    broken.append(error)
        try:
            nb = notebooks.read(path)
        except ValueError as error:
            rows.append([name, "unreadable", "", "; ".join(found) or "none"])
            broken.append(error)
            continue
        key = _paper_key(nb)
        rows.append(
            [name, _title(nb), citation.short(known[key]) if key in known else "", "; ".join(found) or "none"]
        )
    if not rows:
        print(f"No notebooks in {paths.shown(root / 'notebooks')}.")
    else:
        print(Table(["notebook", "title", "paper", "committed records"], rows))
    for error in broken:
        print(f"vinb: {error}", file=sys.stderr)
    return 2 if broken else 0


def _title(nb: dict[str, Any]) -> str:
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            for line in source.splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return ""


def _paper_key(nb: dict[str, Any]) -> str | None:
    """The ``paper=`` of the notebook's ``begin`` call."""
    for source in notebooks.code_cells(nb):
        if "begin(" in source and "paper" in source:
            try:
                tree = ast.parse(source)
            except SyntaxError:
                continue
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.keyword)
                    and node.arg == "paper"
                    and isinstance(node.value, ast.Constant)
                ):
                    return node.value.value
    return None


def _find(name: str, root: Path) -> Path:
    known = notebooks.discover(root)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"there is no notebook {name!r}.{hint} Notebooks: {', '.join(known) or 'none'}.")
    return known[name]


def _run(options: argparse.Namespace) -> int:
    if options.notebook.endswith(".ipynb"):
        path, root = Path(options.notebook).resolve(), paths.root(options.root)
        if not path.is_file():
            raise UsageError(f"there is no file {options.notebook!r}.")
    else:
        root = paths.require_root(options.root)
        path = _find(options.notebook, root)
    given = dict(_assignment(text) for text in options.parameter)
    if options.preset is not None:
        if given.get("preset", options.preset) != options.preset:
            raise UsageError(
                f"--preset {options.preset} and -p preset={given['preset']} contradict each other."
            )
        given["preset"] = options.preset
    known = notebooks.parameters_of(notebooks.read(path))
    parameters.unknown(path.stem, given, known)
    if "seed" in given:
        parameters.check_seed(given["seed"])
    preset = given.get("preset", known["preset"].default if "preset" in known else None)
    if "preset" in known and preset not in parameters.PRESETS:
        raise UsageError(f"preset {preset!r} is not one of {', '.join(parameters.PRESETS)}.")
    # A value that is the default needs no injected cell: the run is then one of the file as it stands. By repr, since
    # False is no 0 and 1.0 no 1; whether they fit is for the notebook to say.
    given = {name: value for name, value in given.items() if repr(value) != repr(known[name].default)}
    overrides = {name: value for name, value in given.items() if name != "preset" and value is not None}
    base = Path(options.output_dir) if options.output_dir else (root or Path.cwd()) / "runs"
    folder = base / path.stem / paths.run_name(preset or "run", overrides)
    run = notebooks.execute(path, output_dir=folder, parameters=given, root=root, timeout=options.timeout)
    return _report(path, run)


def _report(path: Path, run: notebooks.Run) -> int:
    print(f"notebook  {paths.shown(run.notebook)}")
    record = None
    if run.record is not None:
        record = saved.load(run.record)
        if record.result["figures"]:
            print(f"figures   {paths.shown(run.folder / 'figures')} ({len(record.result['figures'])})")
        print(f"record    {paths.shown(run.record)}")
        if record.result["claims"]:
            print(f"\n{record.claims_table()}")
    if run.failure is None:
        return int(record is not None and "failed" in record.verdicts.values())
    if record is not None and "failed" in record.verdicts.values():
        print("\nvinb: claims failed; see the table above.", file=sys.stderr)
        return 1
    place = f"cell [{run.failure.cell}]" if run.failure.cell else "the run"
    lines = run.failure.source.strip().splitlines()
    shown = "".join(f"\n    {line}" for line in lines[:4]) + ("\n    ..." if len(lines) > 4 else "")
    print(f"\nvinb: {path.stem}: {place} stopped with an error:{shown}\n{run.failure.error}", file=sys.stderr)
    print(f"The notebook up to there, with the traceback: {paths.shown(run.notebook)}", file=sys.stderr)
    return 1


def _assignment(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip().isidentifier():
        raise UsageError(f"-p {text!r}: write NAME=VALUE, such as -p seed=1.")
    return name.strip(), literal(value.strip())


def literal(text: str) -> Any:
    """A value typed on a command line: JSON or Python where it is one (lists also of words), else text."""
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return list(value) if isinstance(value, tuple) else value
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        if "[" not in inner:
            return [literal(item.strip()) for item in inner.split(",")] if inner else []
    return text


def _cite(options: argparse.Namespace) -> int:
    if Path(options.notebook).exists() and ("/" in options.notebook or options.notebook.endswith(".json")):
        record = saved.load(options.notebook)
    else:
        root = paths.require_root(options.root)
        folder = _find(options.notebook, root).with_suffix("")
        presets = [options.preset] if options.preset else _PREFERRED
        file = next(
            (folder / p / "record.json" for p in presets if (folder / p / "record.json").is_file()), None
        )
        if file is None:
            which = (
                f"a committed record at preset {options.preset}" if options.preset else "a committed record"
            )
            raise UsageError(
                f"{options.notebook} has no {which[2:]}; run it and name its folder: "
                f"vinb cite runs/{options.notebook}/cpu"
            )
        record = saved.load(file)
    print(citation.bibtex(record, options.figure))
    print(f"\n{citation.provenance(record, options.figure)}")
    return 0


def _data(options: argparse.Namespace) -> int:
    from vinb import data

    if options.verb == "list":
        print(data_table())
        return 0
    names = options.names or [name for name, dataset in data.DATASETS.items() if dataset.files]
    for name in names:
        if name not in data.DATASETS:
            near = difflib.get_close_matches(name, data.DATASETS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"there is no data set {name!r}.{hint} Data sets: {', '.join(data.DATASETS)}.")
    failed = False
    for name in names:
        try:
            fetched_later = (
                not data.DATASETS[name].embeddable and options.verb == "verify" and not options.names
            )
            if fetched_later and _found(name) == "not here":
                print(f"-     {name}: not here; vinb data download {name}")
                continue
            if options.verb == "verify":
                data.verify(name)
            found = data.download(name) if options.verb == "download" else data.locate(name, download=False)
            folders = sorted({paths.shown(Path(path).parent) for path in found.values()})
            print(f"ok    {name}: {len(found)} files in {', '.join(folders)}")
        except (OSError, ValueError) as error:
            failed = True
            print(f"fail  {name}: {error}")
    return int(failed)


def data_table() -> Table:
    """The data sets as a table."""
    from vinb import data

    rows = []
    for name, dataset in data.DATASETS.items():
        size = sum(file.size for file in dataset.files)
        rows.append(
            [
                name,
                dataset.title,
                f"{size / 1e6:.1f} MB" if size else "yours",
                dataset.licence,
                _found(name) if dataset.files else "yours",
                dataset.source,
            ]
        )
    return Table(["data set", "title", "size", "licence", "found", "source"], rows, right=frozenset({2}))


def _found(name: str) -> str:
    """Where a data set's files are, in words without the paths of a machine."""
    from vinb import data
    from vinb.data.files import cache_folder

    try:
        files = data.locate(name, download=False).values()
    except data.DataError as error:
        if str(error).startswith("VINB_DATA"):  # what is set is no folder
            raise
        return "not here"
    given = os.environ.get("VINB_DATA")
    places = {cache_folder(): "cache"} | ({Path(given).expanduser(): "VINB_DATA"} if given else {})
    return ", ".join(sorted({places.get(file.parents[1], "embedded") for file in files}))


def _doctor(options: argparse.Namespace) -> int:
    from vinb.experiment import doctor

    worst = 0
    for state, subject, words in doctor.examine(options.root):
        print(f"{state:<5} {subject:<18} {words}", flush=True)
        worst = max(worst, int(state == "fail"))
    return worst
