"""Can a guide draw what its model excludes? The static check of the assumption that every lower bound rests on
(lee2020verifiedsvi).

Design notes. The soundness claim: ``VALID`` means that for all values of the parameters under their constraints and almost
every draw of the guide, the model's density is positive there, provided that each distribution of NumPyro has a positive
density almost everywhere on its declared support (at arguments in their domain, which is checked), that both programs depend
on nothing but their arguments, parameters and draws, and that numbers are real: nothing rounds to an end of a support. Ends
of continuous supports are null sets and are ignored. It says nothing of whether the bound is finite or its gradient is what
an estimator gives. ``INVALID`` is a definite violation, for some parameters at least.
"""

from collections.abc import Callable

import numpy as np

from vinb.analysis.abstract import Numbers
from vinb.analysis.evaluate import Evaluated, evaluate
from vinb.analysis.observations import observed_within
from vinb.analysis.order import Order
from vinb.analysis.signatures import constraint_of, has_bounds, in_domain
from vinb.analysis.sites import Path, TooManyPaths, Undecided, concrete, trace_paths
from vinb.analysis.supports import support_of, within
from vinb.analysis.verdicts import Answer, Finding, SupportReport, Verdict


def support_match(
    model: Callable,
    guide: Callable,
    args: tuple = (),
    kwargs: dict | None = None,
    *,
    enum: bool = False,
    strict_plates: bool = True,
    max_paths: int = 64,
) -> SupportReport:
    """Check that a model has a positive density wherever its guide may draw, for all values of the parameters.

    Both programs are traced with abstract draws; nothing is drawn and nothing computed. For an objective that draws from the
    model and scores the guide (inference compilation, a wake phase), pass them in exchanged roles.

    Args:
        model, guide: NumPyro programs of the same arguments.
        args, kwargs: their arguments, with the data.
        enum: may the guide leave out sites that the model enumerates (``infer={"enumerate": "parallel"}``)?
        strict_plates: is a plate that only the guide has an error? Otherwise only a subsampled one is.
        max_paths: how many ways of Python branches on draws are followed in each program.

    Returns:
        A :class:`SupportReport`; show it in a notebook.
    """
    numbers, traced = Numbers(), {}
    for label, program in (("model", model), ("guide", guide)):
        try:
            traced[label] = trace_paths(program, args, kwargs, max_paths=max_paths)
        except (Undecided, TooManyPaths) as error:
            return _stopped(label, error, Verdict.UNKNOWN, "branch")
        except Exception as error:  # whatever a user's program raises is the result
            return _stopped(label, error, Verdict.ERROR, "error")
    pairs = []
    assumptions: set[str] = set()
    for guide_path in traced["guide"]:
        q = evaluate(guide_path, numbers)
        for model_path in traced["model"]:
            p = evaluate(model_path, numbers, draws_of(q))
            if not compatible(p, q):
                continue
            check = _Pair(p, q, enum, strict_plates)
            pairs.append(check.findings())
            assumptions |= check.assumptions | p.interpreter.assumptions | q.interpreter.assumptions
    verdict = verdict_of(pairs)
    findings = tuple(dict.fromkeys(f for found in pairs for f in found)) if verdict != Verdict.VALID else ()
    return SupportReport(
        verdict, findings, (len(traced["model"]), len(traced["guide"])), tuple(sorted(assumptions))
    )


def assert_support_match(
    model: Callable, guide: Callable, args: tuple = (), kwargs: dict | None = None, **options
) -> None:
    """:func:`support_match` as an assertion.

    Raises:
        ValueError: where the verdict is not ``VALID``, with the findings.
    """
    report = support_match(model, guide, args, kwargs, **options)
    if report.verdict != Verdict.VALID:
        lines = "\n".join(f"  {finding}" for finding in report.findings)
        raise ValueError(f"support match of model and guide: {report.verdict}\n{lines}")


def _stopped(label, error, verdict, kind):
    text = (str(error).splitlines() or [""])[0]
    return SupportReport(verdict, (Finding(label, kind, f"{type(error).__name__}: {text}", verdict),), (0, 0))


def draws_of(q: Evaluated) -> dict:
    """What the guide's sites give to the model: intervals, and the values of those that are assigned."""
    latent = {name: site for name, site in q.path.sites.items() if not site.observed}
    return {name: q[name, "value"] if site.assigned else q.intervals[name] for name, site in latent.items()}


def compatible(p: Evaluated, q: Evaluated) -> bool:
    """May both ways be taken with the same draws?"""
    decided: dict[int, bool] = {}
    for result in (q, p):
        for k, decision in enumerate(result.path.decisions):
            value = result["branch", k]
            if value.decided is not None and value.decided != decision:
                return False
            if decided.setdefault(value.number, decision) != decision:
                return False
    return True


def verdict_of(pairs) -> Verdict:
    if not pairs:
        return Verdict.UNKNOWN
    worst = [_worst(found) for found in pairs]
    if all(v == Verdict.VALID for v in worst):
        return Verdict.VALID
    return Verdict.INVALID if all(v == Verdict.INVALID for v in worst) else Verdict.UNKNOWN


def _worst(findings) -> Verdict:
    verdicts = {f.verdict for f in findings}
    return next((v for v in (Verdict.INVALID, Verdict.UNKNOWN) if v in verdicts), Verdict.VALID)


class _Pair:
    """One way through the model beside one way through the guide."""

    def __init__(self, p: Evaluated, q: Evaluated, enum: bool, strict_plates: bool):
        self.p, self.q, self.enum, self.strict_plates = p, q, enum, strict_plates
        self.assumptions: set[str] = set()
        self.found: list[Finding] = []
        self.follows: dict[str, set[str]] = {}  # what a site's doubtful arguments depend on

    def findings(self) -> list[Finding]:
        model, guide = self.p.path, self.q.path
        self._sites(model, guide)
        self._plates(model, guide)
        for name, site in guide.sites.items():
            if not site.observed:
                self._arguments(self.q, name, "guide")
        for name, site in model.sites.items():
            self._arguments(self.p, name, "model")
            if site.observed:
                self._observation(name)
            elif name in guide.sites and not guide.sites[name].observed:
                self._common(name)
        # What follows from a wrong support is no finding of its own.
        wrong = {f.site for f in self.found if f.kind == "support" and f.verdict == Verdict.INVALID}
        return [
            f for f in self.found if not (f.kind == "argument" and wrong & self.follows.get(f.site, set()))
        ]

    def _add(self, name, kind, answer: Answer, line):
        if answer.verdict != Verdict.VALID:
            self.found.append(Finding(name, kind, answer.why, answer.verdict, answer.witness, line))

    def _invalid(self, name, kind, why, line):
        self._add(name, kind, Answer(Verdict.INVALID, why), line)

    def _sites(self, model: Path, guide: Path):
        latent = {name for name, site in guide.sites.items() if not site.observed}
        for name in sorted(latent):
            site = guide.sites[name]
            if name not in model.sites and not site.auxiliary:
                self._invalid(
                    name,
                    "extra",
                    "the guide draws it, the model has no such site (mark it is_auxiliary if that is meant)",
                    site.line,
                )
            elif name in model.sites and model.sites[name].observed:
                self._invalid(name, "extra", "the guide draws it, the model observes it", site.line)
        for name, site in model.sites.items():
            if site.observed or name in latent or (self.enum and site.enumerated):
                continue
            word = "observes it" if name in guide.sites else "has no such site"
            self._invalid(
                name,
                "missing",
                f"the model draws it, the guide {word}: it would be drawn from the prior",
                site.line,
            )

    def _plates(self, model: Path, guide: Path):
        for name, sizes in guide.plates.items():
            if name not in model.plates:
                if self.strict_plates or sizes[0] != sizes[1]:
                    self._invalid(name, "plate", "only the guide has this plate", "")
            elif model.plates[name] != sizes:
                self._invalid(
                    name,
                    "plate",
                    f"size and subsample are {sizes} in the guide and {model.plates[name]} in the model",
                    "",
                )

    def _common(self, name):
        model, guide = self.p.path.sites[name], self.q.path.sites[name]
        shapes = [_without_ones(site.shape) for site in (guide, model)]
        if shapes[0] != shapes[1]:
            self._invalid(
                name,
                "shape",
                f"its shape is {guide.shape} in the guide and {model.shape} in the model",
                guide.line,
            )
        elif model.event_dim != guide.event_dim:
            self._invalid(
                name,
                "shape",
                f"its event has {guide.event_dim} axes in the guide and {model.event_dim} in the model",
                guide.line,
            )
        self._scales(name, guide.line)
        if self.p.path.sites[name].hidden:
            return
        if guide.assigned and guide.automatic and self._moves(name):
            if not self._is_image(name):
                why = "the automatic guide maps its draw onto the support that it saw first, the model's may be another"
                self._add(name, "support", Answer(Verdict.UNKNOWN, why), guide.line)
            return
        answer = within(support_of(self.q, name), support_of(self.p, name))
        self._add(name, "support", self._unmasked(name, answer), guide.line)

    def _moves(self, name) -> bool:
        """Is it made of what the guide draws, and not a point that is learnt?"""
        auxiliary = {n for n, site in self.q.path.sites.items() if site.auxiliary and not site.observed}
        return bool(auxiliary & set(self.q[name, "value"].levels))

    def _is_image(self, name) -> bool:
        """An automatic guide maps its own continuous draw onto the whole support, with the Jacobian in the density."""
        value, support = self.q[name, "value"], support_of(self.p, name)
        if support.kind == "interval":
            order = Order(self.q.interpreter, self.q, self.p)
            low, high = support.ends.get("lower"), support.ends.get("upper")
            inside = (low is None or order.at_most(low, value)) and (
                high is None or order.at_most(value, high)
            )
        else:
            inside = bool(support.kind) and support.exact
        if inside:
            self.assumptions.add("automatic guides map their draws onto the supports that they saw first")
        return inside

    def _scales(self, name, line):
        model, guide = self.p.get(name, "scale"), self.q.get(name, "scale")
        if model is None and guide is None:
            return
        intervals = [a.interval if a is not None else None for a in (model, guide)]
        points = [1.0 if i is None else i.low if i.is_point else None for i in intervals]
        if None not in points:
            if points[0] != points[1]:
                self._invalid(
                    name,
                    "scale",
                    f"the model scales it by {points[0]:g} and the guide by {points[1]:g}",
                    line,
                )
        elif model is None or guide is None or model.number != guide.number:
            self._add(
                name,
                "scale",
                Answer(Verdict.UNKNOWN, "model and guide are not known to scale it alike"),
                line,
            )

    def _arguments(self, result: Evaluated, name, label):
        site = result.path.sites[name]
        arguments = result.arguments(name)
        for argument, value in arguments.items():
            constraint = constraint_of(site.fn, argument)
            if not has_bounds(constraint):
                self.assumptions.add(f"{argument} of {type(site.fn).__name__} satisfies {constraint}")
            if in_domain(constraint, value.interval, closed=True):
                continue
            self.follows.setdefault(name, set()).update(value.levels)
            why = f"{argument} of the {label}'s {type(site.fn).__name__} is in {value.interval}, not proved to satisfy {constraint}"
            self._add(name, "argument", Answer(Verdict.UNKNOWN, why), site.line)
        if {"low", "high"} <= set(arguments) and not self._in_order(
            result, name, arguments["low"], arguments["high"]
        ):
            why = f"low of the {label}'s {type(site.fn).__name__} is not proved to be below high"
            self._add(name, "argument", Answer(Verdict.UNKNOWN, why), site.line)

    def _in_order(self, result, name, low, high) -> bool:
        arrays = [concrete(result.path, (name, "argument", a)) for a in ("low", "high")]
        if None not in [None if a is None else 0 for a in arrays]:
            return bool(np.all(arrays[0] <= arrays[1]))
        return Order(self.q.interpreter, self.q, self.p).at_most(low, high)

    def _observation(self, name):
        site, value = self.p.path.sites[name], self.p[name, "value"]
        if site.hidden:
            return
        support = support_of(self.p, name)
        if support.kind == "factor":
            if not self.p.arguments(name)["log_factor"].interval.finite:
                self._add(
                    name,
                    "observation",
                    Answer(Verdict.UNKNOWN, "the factor may be minus infinity"),
                    site.line,
                )
            return
        self._add(
            name,
            "observation",
            self._unmasked(name, observed_within(self.p, self.q, name, support, value)),
            site.line,
        )

    def _unmasked(self, name, answer: Answer) -> Answer:
        """A violation may be of an element that is masked."""
        masks = [concrete(self.p.path, what) for what in self.p.path.outputs if what[:2] == (name, "mask")]
        if answer.verdict != Verdict.INVALID or all(mask is not None and mask.all() for mask in masks):
            return answer
        return Answer(Verdict.UNKNOWN, f"{answer.why}, unless it is masked", answer.witness)


def _without_ones(shape):
    shape = tuple(shape)
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape
