"""`sweep`: makes the runs of a grid that are not finished, and the table, summary and plot of all of them."""

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinb.experiment import notebooks, partial, saved, source
from vinb.experiment.paths import shown
from vinb.experiment.planning import Plan
from vinb.experiment.sweep import cluster, results
from vinb.experiment.sweep.grid import Grid, finished, grid

if TYPE_CHECKING:
    from distributed import Client, Future

DEATHS = 3  # workers that may die in one run before it is given up
_RETURNS = 10  # times that a run may come back from dead workers at all, also where it had not begun
_DELAY = 60.0  # seconds until a shared file system shows what another machine wrote
_LOST = "the scheduler was lost; the same command goes on from here"


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended.

    Attributes:
        run: what it was.
        state: ``finished``, ``skipped`` (finished before) or ``failed``.
        record: its record, None if it failed.
        error: why it failed, empty otherwise.
    """

    run: Plan
    state: str
    record: saved.SavedRecord | None = None
    error: str = ""

    @property
    def failed_claims(self) -> list[str]:
        """Names of the claims that failed."""
        verdicts = self.record.verdicts if self.record is not None else {}
        return [name for name, verdict in verdicts.items() if verdict == "failed"]

    def __str__(self) -> str:
        words = {"skipped": ": finished already", "failed": f": {self.error}"}.get(self.state, "")
        claims = f"; claims failed: {', '.join(self.failed_claims)}" if self.failed_claims else ""
        return f"{self.state:<9} {self.run.folder.name}{words}{claims}"


@dataclass(frozen=True)
class Swept:
    """A sweep that is over.

    Attributes:
        grid: its runs before they happened.
        outcomes: how each of them ended, in the grid's order.
        files: what was made of all of them: ``table``, ``summary`` and ``plot`` (where there was something to plot).
    """

    grid: Grid
    outcomes: Sequence[Outcome]
    files: Mapping[str, Path]

    @property
    def successful(self) -> bool:
        """Whether every run finished and no claim failed."""
        return not any(outcome.state == "failed" or outcome.failed_claims for outcome in self.outcomes)


def sweep(
    notebook: str | Path | Grid,
    values: Mapping[str, Sequence[Any]] | None = None,
    *,
    preset: str | None = None,
    output_dir: str | Path | None = None,
    root: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    again: bool = False,
    timeout: float | None = None,
    metrics: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Swept:
    """Runs a notebook for every combination of values, several at a time, and puts the results together.

    Runs go to the folders of `vinb run`. Those that are finished, by their records, are skipped. One that fails does not
    stop the others. One whose worker dies is made again, unless `DEATHS` workers died in it; as runs happen in hidden
    folders, nothing half-written is left. ``table.csv`` (one row per run and number), ``summary.csv`` (mean and 95 %
    interval over seeds) and the plot ``summary.svg`` depend on the records alone, not on how or where runs were made.

    Args:
        notebook: name of a notebook, the path of an ``.ipynb`` file, or what `grid` returned.
        values: name -> values to try; None with a `Grid`, which also has preset, folder and root.
        preset: the preset of all runs; None for the notebook's own.
        output_dir: results go to ``<output_dir>/<notebook>/``; None for ``runs/`` in the clone.
        root: the folder with ``notebooks/``; None looks for it.
        workers: how many runs at a time on this machine; None for one per GPU, or per two cores where there is none.
        scheduler: address or file of a dask scheduler, whose workers are taken instead.
        again: make finished runs again.
        timeout: seconds a single cell may take.
        metrics: names of the metrics or claims to plot; empty for the first dozen metrics.
        say: called with each line of the report.

    Returns:
        The outcomes, and the files made.

    Raises:
        ParameterError, TypeError, ValueError: as `grid`; also for arguments that contradict each other, a worker that
            cannot run the notebook, or missing dask.
        ConnectionError: if the scheduler does not answer.
        KeyboardInterrupt: after stopping the workers; finished runs are kept, and the same call goes on from there.
    """
    if not isinstance(notebook, Grid):
        notebook = grid(notebook, values or {}, preset=preset, output_dir=output_dir, root=root)
    planned = notebook
    if workers is not None and (scheduler is not None or workers < 1):
        given = "workers contradicts scheduler" if scheduler is not None else f"workers: got {workers}"
        raise ValueError(f"{given}; workers is a number of 1 or more, for runs on this machine alone.")
    notebooks.check_timeout(timeout)
    for note in planned.notes:
        say(note)
    folders = [run.folder for run in planned.runs]
    partial.remove(found for found in partial.leftovers(folders) if not partial.is_alive(found))

    outcomes: dict[Path, Outcome] = {}
    todo = []
    for run in planned.runs:
        record, why = (None, "") if again else finished(run, planned.code_hash)
        if record is None:
            todo.append(run)
            if why:
                say(f"again     {run.folder.name}: {why}")
        else:
            outcomes[run.folder] = Outcome(run, "skipped", record)
            say(str(outcomes[run.folder]))
    if (other := _other_code(outcomes.values())) and not again:
        say(
            f"{other} of the finished runs were made by other code of the package vinb; --again makes them anew"
        )
    if todo:
        say(f"{len(todo)} of {len(folders)} runs of {planned.notebook.stem} to make")
        try:
            with _workers(planned, len(todo), workers, scheduler, say) as (client, shares):
                for outcome in _made(client, planned, todo, timeout, shares, say):
                    outcomes[outcome.run.folder] = outcome
        except BaseException as error:
            _clean(todo, elsewhere=True)
            if not isinstance(error, KeyboardInterrupt):
                raise
            done = sum(outcome.state != "failed" for outcome in outcomes.values())
            say(
                f"stopped; {done} of {len(folders)} runs are finished and kept, the same command goes on from there"
            )
            raise
        # Runs on other machines may go on: those of a scheduler that was lost, or of another sweep than this local one.
        others = scheduler is None or any(outcome.error == _LOST for outcome in outcomes.values())
        _clean(todo, elsewhere=others)
    ordered = [outcomes[folder] for folder in folders]
    records = [outcome.record for outcome in ordered if outcome.record is not None]
    return Swept(planned, ordered, results.write(planned.folder, list(planned.values), records, metrics, say))


@contextlib.contextmanager
def _workers(planned: Grid, number: int, workers: int | None, scheduler: str | None, say) -> Iterator[Any]:
    """A client, and the environments of its workers where they are ours."""
    try:
        import distributed  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError('a sweep needs dask: pip install "vinb[cluster]"') from None
    base = planned.folder.parent
    base.mkdir(parents=True, exist_ok=True)
    if scheduler is None:
        workers = min(workers or cluster.default_workers(), number)
        with cluster.local(workers) as client:
            say(f"workers on this machine: {workers}")
            yield client, cluster.shares(workers)
    else:
        with cluster.connected(scheduler, [planned.notebook, base]) as client:
            threads = client.nthreads()
            say(f"workers of {scheduler}: {len(threads) or 'none yet, waiting for them'}")
            if any(count > 1 for count in threads.values()):
                say("a worker makes one run at a time, whatever its threads; start workers with --nthreads 1")
            yield client, {}


def _made(client: "Client", planned: Grid, todo: Sequence[Plan], timeout, shares, say) -> Iterator[Outcome]:
    """Makes the runs, and yields how each ended as it ends."""
    from distributed import KilledWorker, as_completed
    from tqdm import tqdm

    jobs = [
        cluster.Job(planned.notebook, run.folder, run.given, planned.root, timeout, shares) for run in todo
    ]
    futures = client.map(cluster.execute, jobs, pure=False)
    runs = dict(zip((future.key for future in futures), zip(todo, jobs, strict=True), strict=True))
    returns: Counter[Path] = Counter()
    shown_bar = os.environ.get("VINB_PROGRESS") != "0" and sys.stderr.isatty()
    style = {"desc": planned.notebook.stem, "unit": "run", "leave": False, "dynamic_ncols": True}
    with tqdm(total=len(todo), disable=not shown_bar, file=sys.stderr, **style) as bar:

        def tell(line: str) -> None:
            bar.clear()
            say(line)
            bar.refresh()

        ended = as_completed(futures, raise_errors=False)
        for future in ended:
            run, job = runs.pop(future.key)
            if future.status == "error" and isinstance(future.exception(), KilledWorker):
                # Dask blames a death on all that the worker had in hand; a run that began has left its folder. Folders of
                # runs that go on are those of other sweeps.
                found = partial.leftovers([run.folder])
                deaths = sum(not partial.is_alive(folder, elsewhere=bool(shares)) for folder in found)
                returns[run.folder] += 1
                if deaths < DEATHS and returns[run.folder] < _RETURNS:
                    tell(f"again     {run.folder.name}: its worker died")
                    future = client.submit(cluster.execute, job, pure=False)
                    runs[future.key] = run, job
                    ended.add(future)
                    continue
                outcome = Outcome(
                    run, "failed", error=f"KilledWorker: its workers died, {returns[run.folder]} in all"
                )
            else:
                outcome = _ended(run, future, planned.code_hash)
            bar.update()
            tell(str(outcome))
            yield outcome


def _ended(run: Plan, future: "Future", code_hash: str) -> Outcome:
    if future.status == "error":
        error = future.exception()
        return Outcome(run, "failed", error=f"{type(error).__name__}: {error}")
    if future.status != "finished":
        return Outcome(run, "failed", error=_LOST)
    made: notebooks.Run = future.result()
    if made.failure is not None and made.folder != run.folder:
        place = f"cell [{made.failure.cell}]" if made.failure.cell else "the run"
        error = made.failure.error.strip().splitlines() or ["an error"]
        return Outcome(run, "failed", error=f"{place} stopped with {error[0]} ({shown(made.notebook)})")
    deadline = time.monotonic() + _DELAY
    while made.record is not None and not made.record.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    record, why = finished(run, code_hash)
    if record is not None:
        return Outcome(run, "finished", record)
    if made.record is None:
        why = "left no record; the notebook must call experiment.begin and record.finish"
    return Outcome(run, "failed", error=why.replace("has changed since", "changed while the sweep went on"))


def _other_code(outcomes) -> int:
    """How many records were written by other code of the package than the present."""
    present = source.package_hash()
    return sum(outcome.record.environment.get("vinb_hash") != present for outcome in outcomes)


def _clean(runs: Sequence[Plan], *, elsewhere: bool) -> None:
    left = partial.leftovers(run.folder for run in runs)
    partial.remove(found for found in left if not partial.is_alive(found, elsewhere=elsewhere))
