"""Support match and smoothness on random programs: against the truth by construction, and against a judge who only evaluates."""

import _smoothness_fuzz as smooth
import _support_fuzz as support
import jax
import jax.numpy as jnp
import pytest
from _smoothness_fuzz import CONST, CONT, DIFF, LIP


def chunks(start, count, size):
    return [pytest.param(range(i, i + size), id=str(i)) for i in range(start, start + count, size)]


def fail_with(failures):
    """All headlines, and the sources of the first few."""
    if failures:
        heads = "\n".join(head for head, _ in failures)
        pytest.fail(
            "\n\n".join([heads, *(f"{head}\n{source}" for head, source in failures[:3])]), pytrace=False
        )


# Support match


def check_support(seeds):
    from vinb.analysis import support_match

    failures, undecided, decidable = [], [], 0
    for seed in seeds:
        case = support.generate(seed)
        report = support_match(case.model, case.guide, case.args, case.kwargs, enum=case.enum)
        verdict = str(getattr(report.verdict, "value", report.verdict))
        decidable += case.decidable
        item = f"seed {seed}: {verdict}, in truth {case.truth}", f"{case.describe}\n{report.findings}"
        if case.truth != verdict:
            if verdict in (support.VALID, support.INVALID):
                failures.append(item)
            elif case.decidable:
                undecided.append(item)
    fail_with(failures)
    if len(undecided) > 0.1 * decidable:
        fail_with([(f"{len(undecided)} of {decidable} undecided", ""), *undecided])


@pytest.mark.parametrize("seeds", chunks(0, 200, 50))
def test_support_match(seeds):
    check_support(seeds)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seeds", chunks(200, 2000, 50))
def test_support_match_on_many(seeds):
    check_support(seeds)


def test_pairs_have_all_truths():
    cases = [support.generate(seed) for seed in range(200)]
    truths = [case.truth for case in cases]
    assert all(truths.count(truth) > 50 for truth in (support.VALID, support.INVALID))
    assert truths.count(support.ERROR) > 2
    assert 0.5 < sum(case.decidable for case in cases) / 200 < 0.9


@pytest.mark.exhaustive
@pytest.mark.parametrize("seeds", chunks(0, 200, 20))
def test_truths_by_running(seeds):
    """No run of a valid pair leaves the model's support; a run of a wrong program raises."""
    failures = []
    for seed in seeds:
        case = support.generate(seed)
        if case.truth == support.ERROR:
            with pytest.raises((AssertionError, ValueError)):
                support.witness(case, draws=1)
        elif case.truth == support.VALID and (seen := support.witness(case, draws=4)):
            failures.append((f"seed {seed}: {seen}", case.describe))
    fail_with(failures)


# Smoothness


# sqrt |cos(z^9)| is continuous, with cusps that lie closer together than the judge's steps.
TOO_STEEP = {3887}


def check_smoothness(seeds):
    from vinb.analysis import smoothness

    failures = []
    for seed in set(seeds) - TOO_STEEP:
        program = smooth.generate(seed)
        levels = {name: int(level) for name, level in smoothness(program.program).levels.items()}
        assert set(levels) == set(program.inputs), program.describe
        failures += [(f"seed {seed}: {text}", program.describe) for text in smooth.judge(program, levels)]
    fail_with(failures)


@pytest.mark.parametrize("seeds", chunks(0, 200, 25))
def test_smoothness(seeds):
    check_smoothness(seeds)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seeds", chunks(200, 5000, 50))
def test_smoothness_on_many(seeds):
    check_smoothness(seeds)


def check_completeness(seeds):
    from vinb.analysis import smoothness

    missed, total = [], 0
    for seed in seeds:
        program = smooth.generate(seed, smooth_only=True)
        levels = smoothness(program.program).levels
        total += len(program.inputs)
        missed += [
            (f"seed {seed}: {name} is {levels[name]!r}", program.describe)
            for name in program.inputs
            if levels[name] > DIFF
        ]
    if len(missed) > 0.05 * total:
        fail_with([(f"{len(missed)} of {total} smooth inputs missed", ""), *missed])


@pytest.mark.parametrize("seeds", chunks(0, 60, 30))
def test_smooth_inputs_are_seen_to_be(seeds):
    check_completeness(seeds)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seeds", chunks(60, 1000, 50))
def test_smooth_inputs_are_seen_to_be_on_many(seeds):
    check_completeness(seeds)


# The judge


def sharp(scale):
    return lambda a: 1 / (1 + scale * a**2)


FINE = {  # continuously differentiable, although some look otherwise from afar
    "exp(20 a)": lambda a: jnp.exp(20 * a),
    "tanh(50 a)": lambda a: jnp.tanh(50 * a),
    "a^5": lambda a: a**5,
    "softplus(30 a)": lambda a: jax.nn.softplus(30 * a),
    "1 / (1 + 1000 a^2)": sharp(1e3),
    "exp(-100 a^2)": lambda a: jnp.exp(-100 * a**2),
    "a |a|": lambda a: a * jnp.abs(a),
    "|a|^1.5": lambda a: jnp.abs(a) ** 1.5,
    "logaddexp(20 a, 20 b)": lambda a, b: jnp.logaddexp(20 * a, 20 * b),
    "a b / (0.01 + a^2 + b^2)": lambda a, b: a * b / (0.01 + a**2 + b**2),
}
WRONG = {  # and the strongest claim that fails
    "relu": (jax.nn.relu, DIFF),
    "abs": (jnp.abs, DIFF),
    "a small kink": (lambda a: jnp.sin(5 * a) + 1e-3 * jnp.abs(a - 0.123), DIFF),
    "sqrt(abs(a))": (lambda a: jnp.sqrt(jnp.abs(a)), LIP),
    "cbrt": (jnp.cbrt, LIP),
    "sign": (jnp.sign, CONT),
    "floor": (jnp.floor, CONT),
    "where(a > 0.3, 1, 2)": (lambda a: jnp.where(a > 0.3, 1.0, 2.0), CONT),
    "a small jump": (lambda a: jnp.exp(a) + 1e-4 * jnp.floor(a), CONT),
    "a point": (lambda a: jnp.where(a == 0, 1.0, a), CONT),
    "1 / a": (lambda a: 1 / a, CONT),
    "-log(abs(a))": (lambda a: -jnp.log(jnp.abs(a)), CONT),
    "sqrt": (jnp.sqrt, CONT),
    "max(a, b)": (lambda a, b: jnp.maximum(a, b), DIFF),
    "sort(a, b)[0]": (lambda a, b: jnp.sort(jnp.stack([a, b]))[0], DIFF),
    "|a| |b|": (lambda a, b: jnp.abs(a) * jnp.abs(b), DIFF),
    "a^3 / (a^2 + b^2)": (lambda a, b: a**3 / (a**2 + b**2), DIFF),
    "norm": (lambda a, b: jnp.sqrt(a**2 + b**2), DIFF),
    "sqrt of norm": (lambda a, b: (a**2 + b**2) ** 0.25, LIP),
    "a b / (a^2 + b^2)": (lambda a, b: a * b / (a**2 + b**2), CONT),
}


def judged(fn, level):
    kinds = ["real"] * (2 if getattr(fn, "__code__", None) and fn.__code__.co_argcount == 2 else 1)
    program = smooth.of_function(fn, *kinds)
    return smooth.judge(program, dict.fromkeys(program.inputs, level))


@pytest.mark.parametrize("name", FINE)
def test_judge_raises_no_false_alarm(name):
    assert not judged(FINE[name], DIFF)


@pytest.mark.parametrize("name", WRONG)
def test_judge_finds(name):
    fn, level = WRONG[name]
    assert judged(fn, level)
    if level < CONT:
        assert not judged(fn, level + 1)


def test_judge_finds_denied_dependence():
    assert judged(lambda a: 1e-6 * jnp.sin(a), CONST)
    assert not judged(lambda a: 0.0 * a, CONST)


def test_judge_takes_claims_jointly():
    """Smooth in each input, but not in both at once; claims about one of them are right."""
    program = smooth.of_function(lambda a, b: a * b / (a**2 + b**2), "real", "real")
    assert not smooth.judge(program, {"a": DIFF, "b": 4})
    assert smooth.judge(program, {"a": DIFF, "b": DIFF})


@pytest.mark.parametrize(
    "seeds", [*chunks(0, 10, 10), pytest.param(range(60, 560), id="many", marks=pytest.mark.exhaustive)]
)
def test_judge_accepts_smooth_programs(seeds):
    failures = []
    for seed in seeds:
        program = smooth.generate(seed, smooth_only=True)
        failures += [
            (f"seed {seed}: {text}", program.describe)
            for text in smooth.judge(program, dict.fromkeys(program.inputs, DIFF))
        ]
    fail_with(failures)


def test_judge_objects_to_rough_programs():
    """A claim that everything is smooth is false for many of the programs, and the judge notices."""
    programs = [smooth.generate(seed) for seed in range(20)]
    assert sum(bool(smooth.judge(p, dict.fromkeys(p.inputs, DIFF))) for p in programs) > 4
