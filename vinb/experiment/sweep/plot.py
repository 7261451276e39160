"""The plot of a sweep: one panel per number, means with intervals over seeds, single runs behind them."""

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vinb.experiment import figures
from vinb.experiment.sweep.results import Summary, value_words, varying, words

PANELS = 12
_SERIES = 8  # colours of the style; more series get other markers
_MARKERS = "osD^vPX*"
_GREY = "#444444"


def draw(
    folder: Path, summaries: Sequence[Summary], names: Sequence[str], say: Callable[[str], None]
) -> bool:
    """Writes ``summary.svg`` and ``summary.png``.

    Along the axis goes the numeric parameter with most values, else the parameter with most; what else varies makes series.

    Args:
        folder: where to.
        summaries: of `vinb.experiment.sweep.results.summarise`.
        names: the metrics or claims to plot; empty for the first `PANELS` metrics, or claims where there are no metrics.
        say: called with what was left out.

    Returns:
        Whether there was something to plot.
    """
    panels = _panels(summaries, names, say)
    if not panels:
        say("no finished run recorded a number, so there is nothing to plot")
        return False
    import matplotlib
    from matplotlib.figure import Figure

    axis = _Axis(summaries)
    columns = min(len(panels), 3 if len(panels) != 4 else 2)
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context():
        figures.apply_style()
        width = max(4.2, min(11.0, 3.6 * columns))
        fig = Figure(figsize=(width, 2.9 * rows + 0.6), layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False).ravel()
        handles: dict[str, Any] = {}
        for ax, group in zip(axes, panels, strict=False):
            _panel(ax, axis, group, handles, width / columns)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        handles |= {name: handles.pop(name) for name in ("single runs", "paper") if name in handles}  # last
        if len(handles) > 1:
            longest = max(map(len, handles))
            fig.legend(
                handles.values(),
                map(_verbatim, handles),
                loc="outside lower center",
                ncols=max(1, min(len(handles), int(width * 9 / (longest + 6)))),
            )
        figures.save(fig, folder, "summary")
    return True


def _panels(summaries, names, say) -> list[list[Summary]]:
    """The summaries to plot, by what they measure."""
    groups: dict[tuple[str, str], list[Summary]] = {}
    for summary in summaries:
        if summary.values:
            groups.setdefault((summary.kind, summary.name), []).append(summary)
    known = dict.fromkeys(name for _, name in groups)
    for name in names:
        if name not in known:
            say(f"--metric {name}: no run recorded it; there are {', '.join(known) or 'none'}")
    if names := [name for name in names if name in known]:
        return [group for name in dict.fromkeys(names) for key, group in groups.items() if key[1] == name]
    kinds = {kind for kind, _ in groups}
    chosen = [g for (kind, _), g in groups.items() if kind == ("metric" if "metric" in kinds else "claim")]
    if len(chosen) > PANELS:
        say(f"plotted are the first {PANELS} of {len(chosen)} numbers; choose others by --metric NAME")
    return chosen[:PANELS]


def _verbatim(text: str) -> str:
    """`text` so that matplotlib takes none of it for mathematics."""
    return text.replace("$", r"\$")


def _closest(places: Sequence[float]) -> float:
    return min(b - a for a, b in itertools.pairwise(places))


def _numeric(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


class _Axis:
    """Where settings lie: `place` along the axis and in which series."""

    def __init__(self, summaries: Sequence[Summary]):
        distinct = varying(summaries)

        def rank(name: str) -> tuple[bool, int]:
            return _numeric(distinct[name]), len(distinct[name])

        self.name = max(distinct, key=rank) if distinct else None
        self.others = [name for name in distinct if name != self.name]
        values = distinct.get(self.name, [None])
        self.numeric = self.name is not None and _numeric(values)
        if self.numeric:
            values = sorted(values)
            places, gap = [float(value) for value in values], _closest(values)
            if (
                values[0] > 0 and values[-1] / values[0] >= 30
            ):  # over decades by the logarithm, if that spreads them
                decades = [math.log10(value) for value in values]
                if _closest(decades) / (decades[-1] - decades[0]) > gap / (places[-1] - places[0]):
                    places, gap = decades, _closest(decades)
        else:
            places, gap = [float(i) for i in range(len(values))], 1.0
        self.places, self.labels = places, [value_words(value) for value in values]
        self._values, self.series = values, []
        self.only = "mean, 95 % interval" if any(len(s.values) > 1 for s in summaries) else "run"
        for summary in summaries:
            if (label := words(summary.setting, self.others)) not in self.series:
                self.series.append(label)
        span = places[-1] - places[0] or 1.0
        self._step = min(0.12 * gap, 0.5 * gap / len(self.series), 0.03 * span if self.numeric else 1.0)
        self.aside = min(
            0.35 * self._step, 0.02 * span
        )  # single runs beside their mean, so that both are seen
        margin = 0.08 * span if self.numeric else 0.5
        margin += self._step * (len(self.series) - 1) / 2
        self.limits = places[0] - margin, places[-1] + margin

    def place(self, setting: Mapping[str, Any]) -> tuple[int, float]:
        """Number of the series, and position along the axis, with series side by side."""
        series = self.series.index(words(setting, self.others))
        where = self.places[self._values.index(setting[self.name])] if self.name is not None else 0.0
        return series, where + (series - (len(self.series) - 1) / 2) * self._step

    def ticks(self, inches: float) -> tuple[list[float], list[str], bool]:
        """Positions and labels that fit into `inches`, and whether the labels have to be turned."""
        span = (self.places[-1] - self.places[0]) or 1.0
        width = 0.09 * max(map(len, self.labels)) + 0.1  # of a label, in inches
        if not self.numeric:
            turned = width * len(self.labels) > 0.8 * inches
            return (
                self.places,
                [label if len(label) <= 24 else f"{label[:21]}..." for label in self.labels],
                turned,
            )
        kept: list[int] = []
        for i, place in enumerate(self.places):
            if not kept or (place - self.places[kept[-1]]) / span * 0.75 * inches >= width:
                kept.append(i)
        return [self.places[i] for i in kept], [self.labels[i] for i in kept], False


def _panel(ax, axis: _Axis, group: Sequence[Summary], handles: dict[str, Any], inches: float) -> None:
    rows: dict[int, list[tuple[float, Summary]]] = {}
    printed = {summary.paper for summary in group if summary.paper is not None}
    for summary in group:
        series, place = axis.place(summary.setting)
        rows.setdefault(series, []).append((place, summary))
    for series, found in sorted(rows.items()):
        found.sort(key=lambda pair: pair[0])
        colour = f"C{series % _SERIES}"
        marker = _MARKERS[(series // _SERIES + series) % len(_MARKERS)]
        xs = [place for place, _ in found]
        means = [summary.mean for _, summary in found]
        # Of a single run no interval is known, and none is drawn.
        reach = [[s.mean - s.low if s.low is not None else math.nan for _, s in found]]
        reach.append([s.high - s.mean if s.high is not None else math.nan for _, s in found])
        for place, summary in found:
            if len(summary.values) > 1:
                (dots,) = ax.plot(
                    [place + axis.aside] * len(summary.values),
                    summary.values,
                    marker=".",
                    linestyle="",
                    color=colour,
                    alpha=0.5,
                    markeredgewidth=0,
                    markersize=7,
                )
                handles.setdefault("single runs", dots)
        line = ax.errorbar(
            xs,
            means,
            yerr=reach if axis.only != "run" else None,
            color=colour,
            marker=marker,
            markersize=5,
            capsize=3,
            linewidth=1.6,
            linestyle="-" if axis.numeric else "",
        )
        handles.setdefault(axis.series[series] or axis.only, line)
        _paper(ax, axis, found, _GREY if len(printed) == 1 else colour, handles)
    first = group[0]
    ax.set_title(_verbatim("\n".join(textwrap.wrap(first.name, int(inches * 9)))))
    ax.set_ylabel(_verbatim(first.unit or ""))
    positions, labels, turned = axis.ticks(inches)
    ax.set_xticks(
        positions,
        [_verbatim(label) for label in labels],
        **({"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}),
    )
    ax.set_xticks([], minor=True)
    ax.set_xlim(*axis.limits)
    if axis.name is None:
        ax.set_xticks([0.0], [value_words(first.setting["preset"])])
    else:
        ax.set_xlabel(axis.name)


def _paper(ax, axis: _Axis, found, colour: str, handles: dict[str, Any]) -> None:
    """The paper's numbers of a series: one line across where they are the same, else one through them or marks."""
    numbers = [(place, summary.paper) for place, summary in found if summary.paper is not None]
    if not numbers:
        return
    from matplotlib.lines import Line2D

    style = {"linestyle": "--", "linewidth": 1.2}
    if len({paper for _, paper in numbers}) == 1:
        ax.axhline(numbers[0][1], color=colour, **style)
    elif axis.numeric:
        ax.plot(*zip(*numbers, strict=True), marker="_", color=colour, **style)
    else:  # nothing lies between words
        for place, paper in numbers:
            ax.plot([place - 3 * axis.aside, place + 3 * axis.aside], [paper, paper], color=colour, **style)
    handles.setdefault("paper", Line2D([], [], color=_GREY, **style))
