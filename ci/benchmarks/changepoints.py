"""Time and memory of summing changepoints out, against the number of steps n and of changepoints m.

Prints fitted exponents of time and of XLA's temp bytes, which are to be one in n and in m; then a table against an enumeration of
all placements and against NumPyro's enumeration of the same model as a hidden Markov model, whose transitions are a full matrix.

    python ci/benchmarks/changepoints.py [--json PATH] [--rounds N] [--steps N ...] [--changepoints M ...] [--fixed N M]
        [--against N M ...] [--largest N M]
"""

import importlib.util
import itertools
import math
import sys

import harness
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from harness import System
from numpyro.contrib.control_flow import scan

from vinb.models import changepoint

ALLOWED = 0.15  # how far an exponent may be from one
VALUE, GRADIENT = "vinb", "vinb, gradient"
BY_HAND, NUMPYRO = "all placements", "numpyro"
MOST_BYTES = 2 * 2**30  # at the largest size
MOST_PLACEMENTS = 1_000_000  # listed


def densities(steps, changepoints):
    random = np.random.default_rng(0)
    return jnp.asarray(random.normal(size=(steps, changepoints + 1)), jnp.float32)


def series(steps, changepoints):
    """Normal data and the levels of the segments; the last step can only lie in the last segment."""
    random = np.random.default_rng(0)
    x, levels = random.normal(size=steps), random.normal(size=changepoints + 1)
    x[-1] = levels[-1] = 25.0
    return jnp.asarray(x, jnp.float32), jnp.asarray(levels, jnp.float32)


def system(name, function, *args):
    program = harness.compiled(function, *args)
    return System(
        name,
        lambda: np.asarray(program.call(*args)),
        1,
        program.compile_seconds,
        program.flops,
        program.temp_bytes,
    )


def log_sum(density):
    return changepoint.log_marginal(density)


def gradient(density):
    """The probabilities of all segments at all steps; their sum is returned, so that the device's copying does not count."""
    return jnp.sum(jax.grad(log_sum)(density)[:, 0])


def by_recursion(x, levels):
    """Log density of a series that moves on with probability one half at each step, until it is in the last segment."""
    steps, segments = len(x), len(levels)
    stay = jnp.full((steps - 1, segments), jnp.log(0.5)).at[:, -1].set(0.0)
    density = dist.Normal(levels, 1.0).log_prob(x[:, None])
    return changepoint.log_marginal(density, jnp.full((steps - 1, segments - 1), jnp.log(0.5)), log_stay=stay)


def enumeration(steps, changepoints):
    """The same by listing every placement."""
    placements = np.array(list(itertools.combinations(range(1, steps), changepoints)), np.int32)
    edges = jnp.asarray(np.pad(placements, ((0, 0), (1, 1)), constant_values=((0, 0), (0, steps))))

    def value(x, levels):
        density = dist.Normal(levels, 1.0).log_prob(x[:, None])
        sums = jnp.concatenate([jnp.zeros((1, changepoints + 1)), jnp.cumsum(density, 0)])
        inside = sum(sums[edges[:, k + 1], k] - sums[edges[:, k], k] for k in range(changepoints + 1))
        return jax.nn.logsumexp(inside + edges[:, -2] * jnp.log(0.5))

    return value


def hidden_markov(x, levels):
    """The same as a NumPyro user has it: a chain of states, summed out by NumPyro's enumeration."""
    from numpyro.contrib import funsor

    segments = len(levels)
    allowed = jnp.tril(jnp.triu(jnp.ones((segments, segments))), 1)

    def model(x):
        def step(before, value):
            law = dist.Categorical(logits=jnp.where(allowed, 0.0, -1e9)[before])
            state = numpyro.sample("state", law, infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(levels[state], 1.0), obs=value)
            return state, None

        scan(step, 0, x)

    enumerated = funsor.enum(funsor.config_enumerate(model), first_available_dim=-1)
    return funsor.log_density(enumerated, (x[1:],), {}, {})[0] + dist.Normal(levels[0], 1.0).log_prob(x[0])


def exponent(sizes, values):
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def growth(options, what, cases):
    """Rows, and the exponents in ``what`` of time and memory."""
    rows, problems, found = [], [], {}
    for steps, changepoints in cases:
        case = f"n={steps},m={changepoints}"
        density = densities(steps, changepoints)
        systems = [system(VALUE, log_sum, density), system(GRADIENT, gradient, density)]
        results = harness.measure(case, systems, options.rounds)
        rows += [result.row() for result in results.values()]
        size = steps if what == "n" else changepoints
        for name, result in results.items():
            found.setdefault(name, []).append((size, np.median(result.seconds), result.system.temp_bytes))
            print(
                f"{case:18s} {name:16s} {np.median(result.seconds) * 1e3:10.2f} ms  {result.system.temp_bytes or 0:15,} temp bytes"
            )
    for name, points in found.items():
        sizes, seconds, memory = zip(*points, strict=True)
        time_power = exponent(sizes, seconds)
        print(f"{name}: time grows like {what}^{time_power:.3f}", end="")
        verdict = "within" if abs(time_power - 1) <= ALLOWED else "OUTSIDE"
        print(f" ({verdict} 1 +- {ALLOWED})", end="")
        if all(memory) and name == GRADIENT:  # the value alone keeps the forward messages of XLA's choice
            memory_power = exponent(sizes, memory)
            print(f", memory like {what}^{memory_power:.3f}", end="")
            if memory_power > 1 + ALLOWED:
                problems.append(f"{name}: temp bytes grow like {what}^{memory_power:.3f}")
        print()
    print()
    return rows, problems


def against(options, steps, changepoints):
    """Rows of the three ways to the same number."""
    case = f"n={steps},m={changepoints}"
    ways = {VALUE: by_recursion}
    if math.comb(steps - 1, changepoints) <= MOST_PLACEMENTS:
        ways[BY_HAND] = enumeration(steps, changepoints)
    if importlib.util.find_spec("funsor"):
        ways[NUMPYRO] = hidden_markov
    else:
        print("numpyro's enumeration skipped: it needs funsor (pip install funsor)")
    systems = [system(name, way, *series(steps, changepoints)) for name, way in ways.items()]
    results = harness.measure(case, systems, options.rounds)
    vinb = results[VALUE]
    problems = []
    for name, result in results.items():
        ratio = harness.ratios(results, name, VALUE)[1]
        print(
            f"{case} {name:16s} {np.median(result.seconds) * 1e6:12,.1f} us  {ratio:8.2f} x  "
            f"compile {result.system.compile_seconds:.2f} s  log sum {float(result.last):.5f}"
        )
        if not abs(float(result.last) - float(vinb.last)) < 1e-5 * abs(float(vinb.last)):
            problems.append(f"{case}: {name} gives {float(result.last)}, vinb {float(vinb.last)}")
    print()
    return [result.row() for result in results.values()], problems


def largest(options, steps, changepoints):
    """Memory of value and gradient at the largest size."""
    density = densities(steps, changepoints)
    program = harness.compiled(jax.value_and_grad(log_sum), density)
    memory = program.call.memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    value, slopes = program.call(density)
    rows_sum = np.asarray(slopes.sum(1))
    print(
        f"n={steps},m={changepoints}: value and gradient in {total / 2**20:,.0f} MiB, log sum {float(value):.2f}"
    )
    problems = []
    if total > MOST_BYTES:
        problems.append(f"n={steps},m={changepoints}: {total:,} bytes are over {MOST_BYTES:,}")
    if not np.abs(rows_sum - 1).max() < 1e-2:  # float32 over so many steps
        problems.append(
            f"n={steps},m={changepoints}: probabilities of segments add up to {rows_sum.min()} .. {rows_sum.max()}"
        )
    return [], problems


def main(arguments=None) -> int:
    parser = harness.parser("Time and memory of summing changepoints out.")
    parser.add_argument("--steps", type=int, nargs="+", default=[5000, 20_000, 80_000], metavar="N")
    parser.add_argument("--changepoints", type=int, nargs="+", default=[500, 1000, 2000, 4000], metavar="M")
    parser.add_argument(
        "--fixed",
        type=int,
        nargs=2,
        default=[5000, 50],
        metavar=("N", "M"),
        help="steps as M grows, changepoints as N grows",
    )
    parser.add_argument("--against", type=int, nargs="+", default=[60, 4, 2000, 20, 2000, 40], metavar="N M")
    parser.add_argument("--largest", type=int, nargs=2, default=[100_000, 50], metavar=("N", "M"))
    options = parser.parse_args(arguments)
    steps, changepoints = options.fixed
    return harness.run(
        options,
        lambda options, compare, *args: compare(options, *args),
        [
            (growth, "n", [(n, changepoints) for n in options.steps]),
            (growth, "m", [(steps, m) for m in options.changepoints]),
            *((against, *case) for case in zip(options.against[::2], options.against[1::2], strict=True)),
            (largest, *options.largest),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
