"""One look at a model and a guide before they are trained: supports, smoothness, strategies, and measured noise.

Design notes. This is ``vinb.analysis.audit``. It stands above the room of that name because it measures gradients, for which
it needs objectives and estimators.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from vinb.analysis import Level, Selection, SupportReport, Verdict, select_pathwise, support_match
from vinb.estimators import (
    Expectation,
    LeaveOneOut,
    MeasureValued,
    ScoreFunction,
    gradient_variance,
    init,
    moments,
)
from vinb.estimators.plan import Plan
from vinb.objectives import elbo
from vinb.tables import Table, Tabled

NOISY = 10.0  # standard deviation of one draw of the gradient over the size of its mean, above which training is slow
WORTH = 2.0  # how many times less work an alternative must promise to be named


@dataclass(frozen=True)
class SiteAudit:
    """One latent site of the guide.

    Attributes:
        name, distribution: of the site.
        support: what ``support_match`` says of it.
        smoothness: how the densities of model and guide depend on its value.
        strategy, reason: what ``"auto"`` chooses for it, and why.
        noise: standard deviation of one draw of the gradient of the parameters that its distribution is made of, over the size of
            the gradient; None if it was not measured or has no parameters.
        advice: what to change.
    """

    name: str
    distribution: str
    support: Verdict
    smoothness: str
    strategy: str
    reason: str
    noise: float | None
    advice: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Audit(Tabled):
    """What :func:`audit` found; show it in a notebook.

    Attributes:
        verdict: of the support match.
        sites: a :class:`SiteAudit` for each latent site of the guide.
        advice: what to change that concerns no site of the guide alone.
        support, selection: the reports that this rests on; ``selection`` is None where a program could not be traced.
    """

    verdict: Verdict
    sites: tuple[SiteAudit, ...]
    advice: tuple[str, ...]
    support: SupportReport
    selection: Selection | None

    @property
    def ok(self) -> bool:
        """Is there nothing to change?"""
        return (
            self.verdict == Verdict.VALID and not self.advice and not any(site.advice for site in self.sites)
        )

    def table(self) -> Table:
        rows = [
            (
                site.name,
                site.distribution,
                str(site.support),
                site.smoothness,
                f"{site.strategy}: {site.reason}",
                "-" if site.noise is None else f"{site.noise:.3g}",
                "; ".join(site.advice) or "nothing",
            )
            for site in self.sites
        ]
        columns = (
            "site",
            "distribution",
            "support",
            "densities are",
            "gradient",
            "noise / signal",
            "what to change",
        )
        caption = "; ".join([f"support match: {self.verdict}", *self.advice])
        return Table(columns, rows, right=frozenset({5}), caption=caption)


def audit(
    model: Callable,
    guide: Callable,
    *args,
    params: dict | None = None,
    key: jax.Array | None = None,
    num_draws: int = 256,
    enum: bool = False,
    **kwargs,
) -> Audit:
    """Check a model and a guide before training.

    Statically: may the guide draw what the model excludes, how smooth are the densities, which strategy suits each site
    (``"auto"``). Measured, with ``num_draws`` gradients of the lower bound at ``params``: which sites' parameters have noisy
    gradients, and whether another strategy at a site that has the score function would take less work for the same precision.

    Args:
        model, guide: NumPyro programs of the same arguments.
        args, kwargs: their arguments, with the data.
        params: unconstrained parameters to measure at; by default the initial ones.
        key: typed PRNG key for the draws and the initial parameters; by default ``jax.random.key(0)``.
        num_draws: gradients per measurement, at least 2; 0 measures nothing.
        enum: may the guide leave out sites that the model enumerates? Nothing is measured then.

    Returns:
        An :class:`Audit`.

    Raises:
        ValueError: for a negative ``num_draws``, or one of 1.
    """
    if num_draws not in (0, *range(2, num_draws + 1)):
        raise ValueError(f"num_draws must be at least 2, or 0 to measure nothing; got {num_draws}")
    key = jax.random.key(0) if key is None else key
    support = support_match(model, guide, args, kwargs, enum=enum)
    advice = [_support_advice(f) for f in support.findings]
    if support.verdict == Verdict.ERROR or any(f.kind == "branch" for f in support.findings):
        return Audit(support.verdict, (), tuple(advice), support, None)
    selection = select_pathwise(model, guide, args, kwargs)
    if selection.failed:
        advice.append(f"no gradient is sure to be unbiased: {selection.failed}")
    plan, noise, objective = None, {}, None
    try:
        objective = elbo(model, guide).with_strategies("auto")
        params = init((model, guide), key, *args, **kwargs) if params is None else params
        plan = objective.plan(params, key, *args, **kwargs)
        if num_draws:
            noise = _noise(objective, params, key, num_draws, args, kwargs)
    except (ValueError, TypeError) as error:  # a Python branch on a draw is a TypeError of JAX
        text = str(error).splitlines()[0]
        advice.append(f"the lower bound cannot be computed: {text}")
    named = [f.site for f in support.findings]
    sites = []
    for name, found in selection.guide.sites.items():
        if found.observed:
            continue
        strategy, reason = _strategy(plan, name, selection)
        own = [a for f, a in zip(support.findings, advice, strict=False) if f.site == name]
        level = noise.get(_params_of(selection, name))
        if strategy.startswith("ScoreFunction"):
            own += _smoothness_advice(selection, name)
            if num_draws and noise and _verdict(support, name) == Verdict.VALID:
                own += _alternatives(objective, params, key, num_draws, args, kwargs, name)
        if level is not None and not math.isfinite(level):
            own.append("its parameters have no gradient, or one that is not finite: do they reach the bound?")
        elif level is not None and level > NOISY:
            own.append(
                "its gradient is noisy: take more particles or a smaller step"
                + ("" if own else ", or a larger batch")
            )
        total = _level(selection, name)
        sites.append(
            SiteAudit(
                name,
                found.distribution,
                _verdict(support, name),
                str(total),
                strategy,
                reason,
                level,
                tuple(own),
            )
        )
    common = {site.name for site in sites}
    kept = [a for k, a in enumerate(advice) if k >= len(named) or named[k] not in common]
    return Audit(support.verdict, tuple(sites), tuple(kept), support, selection)


def _verdict(support: SupportReport, name: str) -> Verdict:
    found = [f.verdict for f in support.findings if f.site == name]
    return next((v for v in (Verdict.INVALID, Verdict.UNKNOWN) if v in found), Verdict.VALID)


def _level(selection: Selection, name: str) -> Level:
    return max(report.levels.get(name, Level.CONST) for report in (selection.model, selection.guide))


def _strategy(plan: Plan | None, name: str, selection: Selection) -> tuple[str, str]:
    if selection.guide.sites[name].assigned:
        return "none", "assigned, not drawn"
    if plan is None or name not in plan.strategies:
        return ("Pathwise" if name in selection.sites else "ScoreFunction"), selection.reasons[name]
    strategy, reason = plan.strategies[name]
    return str(strategy), reason


def _params_of(selection: Selection, name: str) -> tuple[str, ...]:
    made_of = selection.guide.sites[name].arguments
    return tuple(sorted(p for p in selection.guide.params if p in made_of))


def _support_advice(finding) -> str:
    start = f"{finding.site!r}: {finding.message}"
    ways = {
        "support": "give it a distribution on the model's support (a transformed or truncated one, or an automatic guide)",
        "missing": "sample it in the guide, or enumerate it in the model and pass enum=True",
        "extra": "drop it from the guide, or mark it infer={'is_auxiliary': True}",
        "shape": "make both shapes and to_event calls the same",
        "plate": "use the same plates in both",
        "scale": "scale it alike in both",
        "observation": "keep what was observed inside of the support for all draws",
        "argument": "keep it in its domain for all draws and parameters (jnp.exp, jax.nn.softplus, a constraint)",
    }
    return f"{start}; {ways[finding.kind]}" if finding.kind in ways else start


def _smoothness_advice(selection: Selection, name: str) -> list[str]:
    if not selection.guide.sites[name].reparameterised or _level(selection, name) <= selection.level:
        return []
    causes = [report.causes[name] for report in (selection.model, selection.guide) if name in report.causes]
    cause = f" ({causes[0]})" if causes else ""
    return [
        f"a jump{cause} keeps it from being pathwise: if the sides meet there, write it with jnp.maximum, jax.nn.relu or abs; "
        "if it is a comparison of affine values, PathwiseWithBoundaries() is unbiased"
    ]


def _noise(objective: Expectation, params, key, num_draws, args, kwargs) -> "_Noise":
    found = moments(lambda k: jax.grad(objective)(params, k, *args, **kwargs), key, num_draws)
    return _Noise(*(jax.device_get(tree) for tree in (found.mean, found.variance)))


class _Noise:
    """Noise over signal of groups of parameters."""

    def __init__(self, mean, variance):
        self.mean, self.variance = mean, variance

    def __bool__(self):
        return bool(self.mean)

    def get(self, names: tuple[str, ...]) -> float | None:
        names = tuple(n for n in names if n in self.mean)
        if not names:
            return None

        def total(tree, power):
            return sum(
                float(np.sum(np.abs(leaf) ** power)) for n in names for leaf in jax.tree.leaves(tree[n])
            )

        signal = math.sqrt(total(self.mean, 2))
        return math.sqrt(total(self.variance, 1)) / signal if signal > 0 else math.inf  # NaN stays NaN


def _alternatives(objective, params, key, num_draws, args, kwargs, name) -> list[str]:
    """Strategies that would take less work at a site with the score function."""
    pair = Expectation(objective.program, 2, False, objective.choices)
    choices = {
        "leave-one-out over two particles": (pair, ScoreFunction(baseline=LeaveOneOut())),
        "MeasureValued()": (objective, MeasureValued()),
    }
    (base,) = _work(objective, {name: ScoreFunction()}, params, key, num_draws, args, kwargs)
    found = []
    for label, (chosen, strategy) in choices.items():
        try:
            (work,) = _work(chosen, {name: strategy}, params, key, num_draws, args, kwargs)
        except (ValueError, NotImplementedError):  # no rule for this site
            continue
        if 0 < work * WORTH < base:
            found.append((base / work, label))
    return [
        f"{label} takes {ratio:.2g} times less work for the same precision"
        for ratio, label in sorted(found, reverse=True)[:1]
    ]


def _work(objective, choice, params, key, num_draws, args, kwargs):
    """Variance times operations, per particle."""
    program = objective if not kwargs else Expectation(
        lambda *a: objective.program(*a, **kwargs), objective.num_particles, False, objective.choices
    )  # fmt: skip
    rows = gradient_variance(program, params, key, *args, strategies={"it": choice}, num_draws=num_draws).rows
    return [row.variance * row.flops * objective.num_particles for row in rows]
