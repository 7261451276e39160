"""``vinb list | run | sweep | cite | new | data | doctor``: a thin shell around papermill and `vinb.experiment`.

Exit codes: 0 done; 1 a claim failed, a cell raised, or a check of `doctor` or `data verify` failed; 2 the
call was wrong, or a file could not be read or written.
"""

import argparse
import difflib
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import vinb
from vinb.experiment import citation, notebooks, parameters, paths, planning, saved
from vinb.experiment.planning import literal
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

    running = argparse.ArgumentParser(add_help=False)
    running.add_argument("notebook", help="name of a notebook (see `vinb list`), or a path of an .ipynb file")
    running.add_argument(
        "--preset", choices=parameters.PRESETS, help="size of a run (default: as the notebook says, cpu)"
    )
    running.add_argument(
        "--output-dir",
        metavar="FOLDER",
        help="results go to FOLDER/<notebook>/<preset and overrides>/ (default: runs/ in the clone)",
    )
    running.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="stop a run if a single cell takes longer"
    )

    run = commands.add_parser(
        "run",
        parents=[place, running],
        help="run a notebook",
        description="Runs a notebook by papermill; shows where its results are and whether its claims held.",
        epilog="Example: vinb run vae --preset smoke -p seed=1 -p 'latent_dims=[2, 5]'",
    )
    run.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter; values as in Python or JSON; repeatable",
    )
    run.set_defaults(run=_run)

    sweep = commands.add_parser(
        "sweep",
        parents=[place, running],
        help="run a notebook for every combination of some values",
        description="Runs a notebook for every combination of values, several at a time, and puts the results into one table "
        "and one plot. Finished runs are skipped, so the same command goes on after an interruption.",
        epilog="Example: vinb sweep bayes_by_backprop --preset smoke -p seed=0:5 -p hidden=100,200",
    )
    sweep.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="values of a parameter: a,b,c or first:end or first:end:step, the end excluded; lists as [1,2],[3]; repeatable",
    )
    sweep.add_argument("--workers", type=int, metavar="N", help="runs at a time on this machine")
    sweep.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="take the workers of this dask scheduler: its address or its file",
    )
    sweep.add_argument("--metric", action="append", default=[], metavar="NAME", help="plot this; repeatable")
    sweep.add_argument("--again", action="store_true", help="make finished runs again")
    sweep.add_argument("--dry-run", action="store_true", help="list the runs and which are finished")
    sweep.set_defaults(run=_sweep)

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

    new = commands.add_parser(
        "new",
        parents=[place],
        help="make a notebook from a template that runs",
        description="Writes notebooks/NAME.ipynb, a small example that runs and follows the standard, to write your own over.",
        epilog="Example: vinb new my_paper --paper kingma2014aevb",
    )
    new.add_argument(
        "name", metavar="NAME", help="of the notebook: lower-case letters, digits and underscores"
    )
    of = new.add_mutually_exclusive_group()
    of.add_argument("--paper", metavar="KEY", help="the paper's key in notebooks/references.bib")
    of.add_argument(
        "--bibtex", metavar="FILE", help="add the paper's entry, in FILE (- for standard input), to it"
    )
    new.add_argument("--title", metavar="TEXT", help="the notebook's heading (default: the paper's title)")
    new.set_defaults(run=_new)

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
        key = notebooks.paper_key(nb)
        rows.append(
            [
                name,
                notebooks.title(nb),
                citation.short(known[key]) if key in known else "",
                "; ".join(found) or "none",
            ]
        )
    if not rows:
        print(f"No notebooks in {paths.shown(root / 'notebooks')}.")
    else:
        print(Table(["notebook", "title", "paper", "committed records"], rows))
    for error in broken:
        print(f"vinb: {error}", file=sys.stderr)
    return 2 if broken else 0


def _run(options: argparse.Namespace) -> int:
    path, root = planning.locate(options.notebook, options.root)
    given = {name: literal(value) for name, value in map(planning.assignment, options.parameter)}
    if options.preset is not None:
        if given.get("preset", options.preset) != options.preset:
            raise UsageError(
                f"--preset {options.preset} and -p preset={given['preset']} contradict each other."
            )
        given["preset"] = options.preset
    known = notebooks.parameters_of(notebooks.read(path))
    plan = planning.plan(path, known, given, planning.base(options.output_dir, root))
    run = notebooks.execute(
        path, output_dir=plan.folder, parameters=plan.given, root=root, timeout=options.timeout
    )
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


def _sweep(options: argparse.Namespace) -> int:
    from vinb.experiment import sweep

    grid = sweep.grid(
        options.notebook,
        sweep.parse(options.parameter),
        preset=options.preset,
        output_dir=options.output_dir,
        root=options.root,
    )
    if options.dry_run:
        print(sweep.table(grid))
        return 0
    # A run's line is seen as it ends, also in the log of a batch job.
    done = sweep.sweep(
        grid,
        workers=options.workers,
        scheduler=options.scheduler,
        again=options.again,
        timeout=options.timeout,
        metrics=options.metric,
        say=functools.partial(print, flush=True),
    )
    return 0 if done.successful else 1


def _cite(options: argparse.Namespace) -> int:
    if Path(options.notebook).exists() and ("/" in options.notebook or options.notebook.endswith(".json")):
        record = saved.load(options.notebook)
    else:
        root = paths.require_root(options.root)
        folder = planning.find(options.notebook, root).with_suffix("")
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


def _new(options: argparse.Namespace) -> int:
    from vinb.experiment import new

    entry = options.bibtex
    if entry is not None:
        entry = sys.stdin.read() if entry == "-" else Path(entry).read_text(encoding="utf-8")
    root = paths.require_root(options.root)
    made = new.create(options.name, root, paper=options.paper, bibtex=entry, title=options.title)
    print(f"notebook    {paths.shown(made.notebook)}")
    if made.references is not None:
        print(f"references  {paths.shown(made.references)}, with {made.key} at its end")
    print(f"\n{new.next_steps(made)}")
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
