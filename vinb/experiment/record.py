"""The record of one run: metrics, claims and figures, written as ``record.json``."""

import datetime
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vinb
from vinb.experiment import claims, figures, shell, source
from vinb.experiment.parameters import Settings
from vinb.experiment.paths import write_atomic
from vinb.experiment.tables import claims_table, metrics_table
from vinb.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1


class Record:
    """What a run found. Made by `vinb.experiment.begin`.

    Running a cell again by hand replaces what it recorded; recording one name in two different cells is
    refused.

    Attributes:
        settings: values in force, also a table.
        notebook: the notebook's name.
        preset: the preset in force.
        seed: the seed.
        folder: where the run writes.
    """

    def __init__(
        self,
        *,
        notebook: str,
        paper: str | None,
        settings: Settings,
        folder: Path,
        bibtex: str,
        root: Path | None,
        tie: source.Tie | None,
        started: float,
    ):
        self.settings, self.notebook, self.folder = settings, notebook, folder
        self.preset, self.seed = settings.preset, settings.seed
        self._paper, self._bibtex, self._root, self._tie, self._started = paper, bibtex, root, tie, started
        self._entries: dict[str, dict[str, dict[str, Any]]] = {"metric": {}, "claim": {}, "figure": {}}
        self._cells: dict[tuple[str, str], tuple[int, str] | None] = {}
        self._data: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def metric(
        self,
        name: str,
        value: Any,
        *,
        unit: str | None,
        paper: float | None = None,
        source: str | None = None,
        setting: str | None = None,
        error: float | None = None,
    ) -> None:
        """Records a number, beside the paper's where it has one.

        Args:
            name: of the metric, used once in a notebook.
            value: a finite number (also a numpy or jax scalar).
            unit: its unit (``"nats"``), None for a pure number.
            paper: the paper's number.
            source: where the paper prints it.
            setting: under which ours was measured, in a few words.
            error: standard error of ``value``, same unit.

        Raises:
            ValueError: for a number that is not finite, a paper's number without a source, or a name used already.
            TypeError: for a value that is not one number.
        """
        where = f"metric {name!r}"
        if paper is not None and not source:
            raise ValueError(
                f"{where}: the paper's number needs source=, the place where the paper prints it."
            )
        entry = {
            "name": name,
            "value": _scalar(where, "value", value),
            "unit": unit,
            "paper": None if paper is None else _scalar(where, "paper", paper),
            "source": source,
            "setting": setting,
            "error": None if error is None else _scalar(where, "error", error),
        }
        self._add("metric", name, entry)

    def claim(
        self,
        name: str,
        statement: str,
        measured: Any,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        within: tuple[float, float] | None = None,
        holds: bool | None = None,
        source: str | None = None,
        applicable: bool = True,
        reason: str | None = None,
        known_miss: str | None = None,
    ) -> str:
        """Checks a claim by exactly one comparison and records its verdict.

        Args:
            name: of the claim, used once in a notebook.
            statement: what is claimed, as a sentence.
            measured: a number or a list of numbers, each of which must satisfy the comparison; None with ``holds``.
            at_least: a lower bound.
            at_most: an upper bound.
            within: (target, tolerance).
            holds: the outcome of a test made elsewhere.
            source: where the paper makes the claim.
            applicable: False where this preset cannot show it.
            reason: why it cannot; not kept where it can.
            known_miss: a paragraph of evidence for a claim that did not reproduce: what was tried, and what came out.
                The verdict is ``known-miss`` only if the comparison fails.

        Returns:
            The verdict: ``held``, ``failed``, ``not-applicable`` or ``known-miss``.

        Raises:
            ValueError: for no or several comparisons, numbers that are not finite, or a name used already.
            TypeError: for values that are no numbers.
        """
        entry = claims.claim(
            name,
            statement,
            measured,
            at_least=at_least,
            at_most=at_most,
            within=within,
            holds=holds,
            source=source,
            applicable=applicable,
            reason=reason,
            known_miss=known_miss,
        )
        self._add("claim", name, entry)
        return entry["verdict"]

    def figure(self, fig: "Figure", name: str, *, alt: str, caption: str) -> None:
        """Shows a figure with its caption, writes ``figures/<name>.svg`` and ``.png``, and closes it.

        Args:
            fig: a matplotlib figure; rasterise dense artists (``rasterized=True``) to keep the SVG small.
            name: lower-case letters, digits and hyphens: ``"figure-4"``, what `vinb cite` takes.
            alt: what the picture shows, for a reader who cannot see it.
            caption: what to see in it, Markdown.

        Raises:
            ValueError: for a name of another form or used already, or an empty text.
        """
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise ValueError(
                f"figure name: lower-case letters, digits and hyphens, such as 'figure-4'; got {name!r}."
            )
        claims.text(f"figure {name!r}", "alt", alt)
        claims.text(f"figure {name!r}", "caption", caption)
        self._add("figure", name, {"name": name, "caption": caption, "alt": alt})
        png = figures.save(fig, self.folder / "figures", name)
        figures.close(fig)
        if shell.shell() is not None:
            from IPython.display import Markdown, display

            data, metadata = figures.bundle(fig, png, name, alt)
            display(data, metadata=metadata, raw=True)
            display(Markdown(f"**{figures.label(name)}.** {caption}"))

    def data(self, checksums: Mapping[str, str]) -> None:
        """Records the sha256 of each data file used, by file name: ``load_mnist().checksums``."""
        for name, checksum in checksums.items():
            if not re.fullmatch(r"[0-9a-f]{64}", str(checksum)):
                raise ValueError(
                    f"data: checksum of {name!r} must be a sha256 of 64 hex digits; got {checksum!r}."
                )
            if "/" in name or "\\" in name:
                raise ValueError(f"data: give file names without folders; got {name!r}.")
        self._data.update(checksums)

    def timing(self, name: str, seconds: float) -> None:
        """Records a wall time in seconds, in the part of the record that may differ between runs."""
        self._seconds[name] = float(seconds)

    def style(self) -> None:
        """Applies the figures' style again, as `begin` did, after something else changed matplotlib's."""
        figures.apply_style()

    def metrics_table(self) -> Table:
        """The metrics so far: paper | ours | unit | setting."""
        return metrics_table(list(self._entries["metric"].values()))

    def claims_table(self) -> Table:
        """The claims so far, with verdicts."""
        return claims_table(list(self._entries["claim"].values()))

    def bibtex(self, figure: str | None = None) -> str:
        """BibTeX of the paper and of this record; see `vinb.experiment.bibtex`."""
        from vinb.experiment import citation

        return citation.bibtex(self, figure)

    @property
    def result(self) -> dict[str, Any]:
        """The part of the record that is identical for the same code, seed and number of cores."""
        return {
            "notebook": self.notebook,
            "paper": self._paper,
            "preset": self.preset,
            "seed": self.seed,
            "parameters": self.settings.as_dict(),
            "overrides": list(self.settings.overrides),
            "metrics": list(self._entries["metric"].values()),
            "claims": list(self._entries["claim"].values()),
            "figures": list(self._entries["figure"].values()),
            "data": dict(sorted(self._data.items())),
        }

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device, timings, date and hashes of this run."""
        import platform

        return {
            "vinb": vinb.__version__,
            "python": platform.python_version(),
            "packages": source.versions(),
            "system": source.system(),
            "cores": source.cores(),
            "device": source.device(),
            "seconds": {"total": round(time.perf_counter() - self._started, 3), **self._seconds},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "notebook_hash": self._tie.hash() if self._tie is not None else None,
            "vinb_hash": source.package_hash(),
            "commit": source.commit(self._root),
        }

    @property
    def bibtex_entry(self) -> str:
        """The paper's BibTeX entry, empty without a paper."""
        return self._bibtex

    def finish(self) -> None:
        """Writes ``record.json``, shows the table of claims, and raises `ClaimsFailed` if one failed."""
        content = {
            "schema": SCHEMA,
            "result": self.result,
            "environment": self.environment,
            "bibtex": self._bibtex,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomic(self.folder / "record.json", text)
        shell.show(self.claims_table())
        if failed := claims.failures(content["result"]["claims"]):
            raise claims.ClaimsFailed(failed)

    def _add(self, kind: str, name: str, entry: dict[str, Any]) -> None:
        claims.text(kind, "name", name)
        here, before = shell.current_cell(), self._cells.get((kind, name))
        if name in self._entries[kind]:
            again = here is not None and before is not None and here[0] != before[0] and here[1] == before[1]
            if not again:
                raise ValueError(
                    f"{kind} {name!r} was recorded already. Give it a name of its own, or, if the cell was "
                    "edited and run again, run the notebook from experiment.begin."
                )
        self._entries[kind][name] = entry
        self._cells[kind, name] = here


def _scalar(where: str, argument: str, value: Any) -> int | float:
    number = claims.plain(where, argument, value)
    if isinstance(number, bool | list):
        raise TypeError(f"{where}: {argument} must be one number; got {number!r}.")
    return number
