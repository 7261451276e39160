"""Time and memory of a step through one dense layer: each way to draw a Bayesian layer's outputs, and a deterministic layer.

A step is the gradient of a loss in the layer's parameters and inputs, and a small move along it. `separate` draws weights for
every example and is so slow that it has rounds of its own, interleaved with `local`.

    python ci/benchmarks/bayesian_layers.py [--json PATH] [--rounds N] [--width W ...] [--batch-size B ...]
        [--separate-rounds N]
"""

import dataclasses
import itertools
import sys
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import System

from vinb.models.bayesian import BayesianDense, mean_weights

STEP_SIZE = 1e-6
DETERMINISTIC, BY_HAND = "deterministic", "hand-written-local"
MODES = ("shared", "flipout", "local")
WORK = 1.02  # FLOPs and temp bytes of `local` over the hand-written ones, at most


class Params(NamedTuple):
    """Of the hand-written layer, in the order of the layer's own: XLA's temp bytes depend on it."""

    loc: jax.Array
    raw: jax.Array
    bias_loc: jax.Array
    bias_raw: jax.Array


def local_by_hand(params, key, x):
    """What a single-file program has: a dense layer with the local reparameterisation written out."""
    mean = x @ params.loc + params.bias_loc
    variance = x**2 @ jax.nn.softplus(params.raw) ** 2 + jax.nn.softplus(params.bias_raw) ** 2
    return mean + jnp.sqrt(variance) * jax.random.normal(key, mean.shape)


def loss_of(forward):
    return lambda state, key: jnp.mean(jax.nn.relu(forward(state[0], key, state[1])) ** 2)


def run_of(forward):
    """A program of as many steps as there are keys."""
    slope = jax.value_and_grad(loss_of(forward))

    def steps(state, keys):
        def step(state, key):
            loss, gradient = slope(state, key)
            return jax.tree.map(lambda p, g: p - STEP_SIZE * g, state, gradient), loss

        return jax.lax.scan(step, state, keys)

    return steps


def system(name, forward, params, x, steps):
    keys = jax.random.split(jax.random.key(1), steps)
    state = (params, x)
    program = harness.compiled(run_of(forward), state, keys)

    def run():
        state_and_losses = program.call(state, keys)
        return jax.device_get(jax.block_until_ready(state_and_losses)[1])

    return System(name, run, steps, program.compile_seconds, program.flops, program.temp_bytes)


def gradients_agree(layer, params, x):
    """The largest difference of the gradient of `local` from the hand-written one, relative to its largest entry."""
    key = jax.random.key(2)
    ours = jax.grad(loss_of(lambda layer, key, x: layer(x, key=key, mode="local")))((layer, x), key)
    theirs = jax.grad(loss_of(local_by_hand))((params, x), key)
    pairs = [
        (ours[0].weight.loc, theirs[0].loc),
        (ours[0].weight.raw_scale, theirs[0].raw),
        (ours[0].bias.loc, theirs[0].bias_loc),
        (ours[0].bias.raw_scale, theirs[0].bias_raw),
        (ours[1], theirs[1]),
    ]
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


def compare(options, width, batch):
    """Rows and problems of one case; problems are wrong results and too much work, never times."""
    case = f"width={width},batch={batch}"
    layer = BayesianDense.init(jax.random.key(0), width, width, scale=0.05)
    x = jax.nn.relu(jax.random.normal(jax.random.key(3), (batch, width)))
    weight, bias = layer.weight, layer.bias
    params = Params(weight.loc, weight.raw_scale, bias.loc, bias.raw_scale)
    steps = max(1, round(options.work / (width * width * batch)))
    drawn = {
        mode: lambda layer, key, x, mode=mode: layer(x, key=key, mode=mode) for mode in (*MODES, "separate")
    }
    deterministic = lambda layer, key, x: layer(x, mode="mean")  # noqa: E731
    plain = mean_weights(layer)
    systems = [
        system(name, deterministic, plain, x, steps) for name in (DETERMINISTIC, f"{DETERMINISTIC} (A/A)")
    ]
    systems += [system(mode, drawn[mode], layer, x, steps) for mode in MODES]
    systems.append(system(BY_HAND, local_by_hand, params, x, steps))
    results = harness.measure(case, systems, options.rounds)
    print(harness.table(results, "step", DETERMINISTIC))
    local, by_hand = results["local"].system, results[BY_HAND].system
    slow = {}
    if options.separate_rounds:
        # XLA counts the work of one chunk of examples alone.
        separate = dataclasses.replace(system("separate", drawn["separate"], layer, x, 1), flops=None)
        pair = [separate, local]
        slow = harness.measure(case, pair, options.separate_rounds)
        seconds, faster = np.median(slow["separate"].seconds), harness.ratios(slow, "separate", "local")[1]
        memory = f"{separate.temp_bytes:,} temp bytes"
        print(f"separate: {seconds:.3f} s per step, {memory}; local is {faster:,.0f} times faster")
    noise = harness.spread(results, DETERMINISTIC)
    for to, allowed in ((BY_HAND, 1.05), (DETERMINISTIC, 2.8)):
        ratio = harness.ratios(results, "local", to)[1]
        verdict = "within" if ratio <= allowed + noise else "ABOVE"
        print(f"time of local over {to}: {ratio:.3f}, {verdict} {allowed} + A/A spread {noise:.3f}")

    problems = []
    difference = gradients_agree(layer, params, x)
    print(f"gradients of local and {BY_HAND} differ by {difference:.1e} (relative)\n")
    if not difference < 1e-4:
        problems.append(
            f"{case}: the gradient of local differs from the hand-written one by {difference:.1e}"
        )
    for what in ("flops", "temp_bytes"):
        mine, theirs = getattr(local, what), getattr(by_hand, what)
        if mine is not None and theirs and mine > WORK * theirs + 2**16:  # alignment, in a small layer
            problems.append(f"{case}: {what} of local, {mine:,.0f}, are over {WORK} times {theirs:,.0f}")
    rows = [result.row() for name, result in results.items() if "A/A" not in name]
    return rows + ([slow["separate"].row()] if slow else []), problems


def main(arguments=None) -> int:
    parser = harness.parser("Time per step of each way to draw a Bayesian layer's outputs.")
    parser.add_argument(
        "--width", type=int, nargs="+", default=[100, 300, 1000], help="inputs and outputs of the layer"
    )
    parser.add_argument("--batch-size", type=int, nargs="+", default=[100, 1000])
    parser.add_argument(
        "--separate-rounds", type=int, default=3, help="timed steps with weights per example (3; 0 for none)"
    )
    parser.add_argument(
        "--work", type=float, default=2e9, help="width^2 x batch x steps of a timed run (2e9)"
    )
    options = parser.parse_args(arguments)
    return harness.run(options, compare, itertools.product(options.width, options.batch_size))


if __name__ == "__main__":
    sys.exit(main())
