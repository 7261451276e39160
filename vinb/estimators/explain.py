"""What an expectation does at each sample site, as a table; and what each way of doing it costs, measured."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vinb.estimators.checks import check_count
from vinb.estimators.expectation import Expectation, expectation
from vinb.estimators.moments import moments
from vinb.estimators.plan import Plan
from vinb.estimators.sites import Params
from vinb.estimators.strategies import Enumerate, MeasureValued, PathwiseWithBoundaries, Strategy
from vinb.tables import Table


def explain(program: Callable | Expectation) -> Callable[..., Table]:
    """How each sample site of an expectation is differentiated, why, and how often the program is run for it.

    Args:
        program: an expectation (every objective is one), or a program to take the expectation of.

    Returns:
        A function ``(params, key, *args)`` to a ``vinb.tables.Table`` with a row per site: its distribution, the shape
        of its elements, its strategy, the reason, and the runs of the program that it asks for. Nothing is computed,
        the program is only traced.
    """
    objective = program if isinstance(program, Expectation) else expectation(program)

    def table(params: Params, key: jax.Array, *args, **kwargs) -> Table:
        plan = objective.plan(params, key, *args, **kwargs)
        rows = []
        for name, site in plan.sites.items():
            strategy, reason = plan.strategies[name]
            note = plan.notes.get(site.name)
            rows.append(
                (
                    name,
                    site.distribution,
                    str(site.shape),
                    f"{strategy}{' (BIASED)' if strategy.biased else ''}",
                    reason if note is None else f"{reason}; {note}",
                    _runs(plan, name),
                )
            )
        forward, backward = num_runs(plan)
        caption = f"{backward} run(s) of the program with derivatives and {forward} without, per particle"
        names = {site.name for site in plan.sites.values()}
        caption = "; ".join([caption, *(note for name, note in plan.notes.items() if name not in names)])
        return Table(("site", "distribution", "elements", "strategy", "why", "runs"), rows, caption=caption)

    return table


def num_runs(plan: Plan) -> tuple[int, int]:
    """Runs of the program per particle: those that need values only, and those that are differentiated."""
    configurations = math.prod(plan.sizes)
    alternatives = sum(_alternatives(plan, name) for name in plan.of_kind(MeasureValued))
    return alternatives * configurations, configurations


def _alternatives(plan, name):
    return plan.sites[name].num_alternatives * plan.num_mixed(name)


def _runs(plan, name):
    if name not in set().union(*plan.upstream):
        return "no influence on the cost"
    strategy = plan.strategy(name)
    if isinstance(strategy, Enumerate):
        shared = [n for n, c in plan.colour.items() if c == plan.colour[name] and n != name]
        return f"x {plan.num_configurations(name)}" + (
            f", together with {len(shared)} other(s)" if shared else ""
        )
    if isinstance(strategy, PathwiseWithBoundaries):
        return "+ 2 without derivatives per boundary"
    if isinstance(strategy, MeasureValued):
        return f"+ {_alternatives(plan, name)} without derivatives"
    return "-"


class Variance(NamedTuple):
    """Measured variance and cost of one choice of strategies.

    ``variance`` is the sum over all components of the gradient's variances and ``variance_error`` its standard error,
    taking the components' errors as fully dependent; ``gradient`` holds the moments by parameter.
    """

    label: str
    variance: float
    variance_error: float
    flops: float
    runs: tuple[int, int]
    biased: bool
    gradient: Any


class Comparison(NamedTuple):
    """Rows of :func:`gradient_variance`; printing it gives the table."""

    rows: tuple[Variance, ...]
    num_draws: int

    def table(self) -> Table:
        """Variances, cost, and their product relative to the first row that has a variance: the work for equal precision."""
        first = next((row.variance * row.flops for row in self.rows if row.variance > 0), math.nan)
        lines = []
        for row in self.rows:
            work = row.variance * row.flops / first
            error = row.variance_error / row.variance if row.variance > 0 else 0.0
            lines.append(
                (
                    row.label + (" (BIASED)" if row.biased else ""),
                    f"{row.variance:.4g} (+-{error:.1%})",
                    f"{row.flops:,.0f}",
                    f"{row.runs[1]} + {row.runs[0]}",
                    "0" if row.variance == 0 else f"{work:.3g}",
                )
            )
        header = (
            "strategies",
            "gradient variance",
            "flops",
            "runs with + without derivatives",
            "variance x flops",
        )
        caption = (
            f"{self.num_draws:,} draws each; the last column is relative to the first row with a variance"
        )
        return Table(header, lines, right=frozenset({1, 2, 3, 4}), caption=caption)

    def __str__(self):
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self):
        return self.table()._repr_html_()


def gradient_variance(
    objective: Callable | Expectation,
    params: Params,
    key: jax.Array,
    *args,
    strategies: Mapping[str, Mapping[str, Strategy] | None],
    num_draws: int = 1000,
    batch_size: int | None = None,
    baseline_steps: int = 1000,
) -> Comparison:
    """Measure the variance and the cost of the gradient under several choices of strategies.

    Args:
        objective: an expectation, or a program to take the expectation of.
        params, key, args: what to differentiate at.
        strategies: by label a mapping from site name to strategy, as for ``strategies``; None for the choice the program makes.
        num_draws: gradients per choice.
        batch_size: gradients computed at the same time, see ``moments``.
        baseline_steps: calls at ``params`` from which the baselines that learn do so first; then they stay as they are.

    Returns:
        A :class:`Comparison`, a row per label; print it, or show it in a notebook.

    Raises:
        ValueError: if ``strategies`` is empty, ``num_draws`` below 2 or ``baseline_steps`` below 1; and as the expectation for
            strategies that do not fit.
    """
    if not strategies:
        raise ValueError(
            'strategies is empty; pass for example {"default": None, "score": {"z": ScoreFunction()}}'
        )
    check_count(baseline_steps, "baseline_steps")
    objective = objective if isinstance(objective, Expectation) else expectation(objective)
    key, key_learn = jax.random.split(key)
    rows = []
    for label, choice in strategies.items():
        chosen = objective if choice is None else objective.with_strategies(choice)
        gradient = jax.grad(_with_learnt_baselines(chosen, params, key_learn, args, baseline_steps))
        found = moments(lambda k, g=gradient: g(params, k, *args), key, num_draws, batch_size=batch_size)
        total = lambda tree: float(sum(np.sum(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))))  # noqa: E731
        compiled = jax.jit(gradient).lower(params, key, *args).compile()
        plan = chosen.plan(params, key, *args)
        rows.append(
            Variance(
                label,
                total(found.variance),
                total(found.variance_error),
                float((compiled.cost_analysis() or {}).get("flops", jnp.nan)) / chosen.num_particles,
                num_runs(plan),
                any(plan.strategy(s).biased for s in plan.sites)
                or any(note.startswith("BIASED") for note in plan.notes.values()),
                found,
            )
        )
    return Comparison(tuple(rows), num_draws)


def _with_learnt_baselines(objective, params, key, args, num_steps):
    """``objective`` as a function to its value, its learning baselines as they are after ``num_steps`` calls."""
    learning = Expectation(objective.program, objective.num_particles, True, objective.choices)
    state = learning.init_state(params, key, *args)
    if not jax.tree.leaves(state) and not objective.has_state:
        return objective
    step = lambda state, key: (learning(params, key, *args, state=state)[1], None)  # noqa: E731
    state, _ = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))(
        state, jax.random.split(key, num_steps)
    )
    return lambda params, key, *args: learning(params, key, *args, state=state)[0]
