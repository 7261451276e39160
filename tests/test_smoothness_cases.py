"""The smoothness analysis on the micro-cases of its dossier (lee2023smoothness)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

CONST, DIFF, LIP, CONT, ANY = range(5)


@dataclass(frozen=True)
class Row:
    """A program, and for each input the strongest property that holds and what the analysis is expected to say."""

    program: Any
    true: dict
    expect: dict


NORMAL, GAMMA, UNIFORM = dist.Normal(0.0, 1.0), dist.Gamma(2.0, 1.0), dist.Uniform(0.0, 1.0)


def seen(loc, scale=1.0):
    """An observation, not at a place where the cases would look smooth by accident."""
    loc = jnp.asarray(loc, jnp.result_type(float))
    shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
    numpyro.sample("x", dist.Normal(loc, scale), obs=jnp.full(shape, 0.7))


def row(f, true, expect=None, prior=NORMAL):
    """``z ~ prior`` and ``x ~ Normal(f(z), 1)``."""

    def program():
        seen(f(numpyro.sample("z", prior)))

    return Row(program, {"z": true}, {"z": true if expect is None else expect})


def scaled(f, true):
    """``z ~ Normal`` and ``x ~ Normal(0, f(z))``."""

    def program():
        seen(0.0, f(numpyro.sample("z", NORMAL)))

    return Row(program, {"z": true}, {"z": true})


def pair(f, true, prior=NORMAL, expect=None):
    """``a``, ``b`` and ``x ~ Normal(f(a, b), 1)``."""

    def program():
        seen(f(numpyro.sample("a", prior), numpyro.sample("b", NORMAL)))

    return Row(program, true, expect or true)


def counted(z):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * z), (0, z))[1]


def until(z):
    return lax.while_loop(lambda c: c < 1.0, lambda c: c + 1.0, z)


def scan_of_relu(z):
    return lax.scan(lambda c, _: (jax.nn.relu(c) - 0.1, None), z, None, length=3)[0]


def weighted_choice(z):
    return jax.nn.one_hot(jnp.argmax(z), 3) @ jnp.array([0.0, 1.0, 3.0])


def of_kinked_factor():
    numpyro.factor("f", -jnp.abs(numpyro.sample("z", NORMAL)))


def of_mask():
    z = numpyro.sample("z", NORMAL)
    numpyro.sample("x", dist.Normal(0.0, 1.0).mask(z > 0), obs=jnp.asarray(0.7))


def of_bound():
    a = numpyro.sample("a", NORMAL)
    numpyro.sample("b", dist.Uniform(0.0, jnp.exp(a)))


def of_choice():
    c, z = numpyro.sample("c", dist.Bernoulli(0.4)), numpyro.sample("z", NORMAL)
    seen(jnp.where(c == 1, z, -z))


def of_parameters():
    """Parameters count as inputs like latents; one without influence is constant."""
    numpyro.param("unused", 0.5)
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    bend = numpyro.param("bend", 0.3)
    z = numpyro.sample("z", dist.Normal(jax.nn.relu(bend), scale))
    seen(jnp.sin(z))


FLAG = np.array(True)

# Section 3.8 of the dossier, row by row.
ROWS = {
    "identity": row(lambda z: z, DIFF),
    "sin": row(jnp.sin, DIFF),
    "rational": row(lambda z: 1 / (1 + z**2), DIFF),
    "fori_loop": row(lambda z: lax.fori_loop(0, 3, lambda i, c: c + jnp.sin(c), z), DIFF),
    "relu": row(jax.nn.relu, LIP),
    "max with zero": row(lambda z: jnp.maximum(z, 0.0), LIP),
    "abs": row(jnp.abs, LIP),
    "clip": row(lambda z: jnp.clip(z, -1.0, 1.0), LIP),
    "Laplace prior": row(lambda z: z, LIP, prior=dist.Laplace(0.0, 1.0)),
    "scan of relu": row(scan_of_relu, LIP),
    "max of a stack": row(lambda z: jnp.max(jnp.stack([z, -z])), LIP),
    "least of a sorted vector": row(lambda z: jnp.sort(z)[0], LIP, prior=NORMAL.expand([3])),
    "abs squared": row(lambda z: jnp.abs(z) ** 2, DIFF, LIP),
    "where of constants": row(lambda z: jnp.where(z > 0, 1.0, -2.0), ANY),
    "sign": row(jnp.sign, ANY),
    "floor": row(jnp.floor, ANY),
    "int cast": row(lambda z: z.astype(int), ANY),
    "cond of constants": row(lambda z: lax.cond(z > 0, lambda: 1.0, lambda: -2.0), ANY),
    "while until": row(until, ANY),
    "one-hot of argmax": row(weighted_choice, ANY, prior=NORMAL.expand([3])),
    "abs by where": row(lambda z: jnp.where(z > 0, z, -z), LIP, ANY),
    "abs by cond": row(lambda z: lax.cond(z > 0, lambda v: v, lambda v: -v, z), LIP, ANY),
    "relu by where": row(lambda z: jnp.where(z > 0, z, 0.0), LIP, ANY),
    "where of the same": row(lambda z: jnp.where(z > 0, z, z), DIFF, {DIFF, ANY}),
    "where of data": row(lambda z: jnp.where(FLAG, z, -z), DIFF),
    "while of a counter": row(counted, DIFF),
    "sqrt": row(jnp.sqrt, ANY),
    "log": row(jnp.log, ANY),
    "reciprocal": row(lambda z: 1 / z, ANY),
    "sqrt of positive": row(jnp.sqrt, DIFF, prior=GAMMA),
    "log of positive": row(jnp.log, DIFF, prior=GAMMA),
    "reciprocal of positive": row(lambda z: 1 / z, DIFF, prior=GAMMA),
    "relu of positive": row(jax.nn.relu, DIFF, prior=GAMMA),
    "where of positive": row(lambda z: jnp.where(z > 0, z, -5.0), DIFF, prior=GAMMA),
    "clip of the unit interval": row(lambda z: jnp.clip(z, -1.0, 2.0), DIFF, prior=UNIFORM),
    "sqrt of abs": row(lambda z: jnp.sqrt(jnp.abs(z)), CONT),
    "norm": row(lambda z: jnp.sqrt(jnp.sum(z**2)), LIP, CONT, prior=NORMAL.expand([2])),
    "logsumexp": row(lambda z: jax.nn.logsumexp(jnp.stack([z, jnp.float32(0.3)])), DIFF),
    "softmax": row(lambda z: jax.nn.softmax(jnp.stack([z, jnp.float32(0.3)])), DIFF),
    "log_softmax": row(lambda z: jax.nn.log_softmax(jnp.stack([z, jnp.float32(0.3)])), DIFF),
    "stop_gradient": row(lax.stop_gradient, DIFF),
    "scale": scaled(lambda z: z, ANY),
    "scale, exp": scaled(jnp.exp, DIFF),
    "scale, softplus": scaled(jax.nn.softplus, DIFF),
    "scale, relu": scaled(jax.nn.relu, ANY),
    "scale, abs": scaled(lambda z: jnp.abs(z) + 0.1, LIP),
    "branch on another": pair(lambda a, b: jnp.where(a > 0, b, -b), {"a": ANY, "b": DIFF}),
    "not jointly": pair(lambda a, b: a * b / (a**2 + b**2), {"a": ANY, "b": ANY}),
    "discrete": Row(of_choice, {"c": ANY, "z": DIFF}, {"c": ANY, "z": DIFF}),
    "factor": Row(of_kinked_factor, {"z": LIP}, {"z": LIP}),
    "mask": Row(of_mask, {"z": ANY}, {"z": ANY}),
    "bound": Row(of_bound, {"a": ANY}, {"a": ANY}),
    "parameters": Row(
        of_parameters,
        {"unused": CONST, "scale": DIFF, "bend": LIP, "z": DIFF},
        {"unused": CONST, "scale": DIFF, "bend": LIP, "z": DIFF},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    from vinb.analysis import smoothness

    case = ROWS[name]
    levels = smoothness(case.program).levels
    for site, true in case.true.items():
        assert levels[site] >= true, "unsound"
        expect = case.expect[site]
        assert levels[site] in (expect if isinstance(expect, set) else {expect})


def test_levels_are_of_all_latents_and_parameters():
    from vinb.analysis import Level, smoothness

    report = smoothness(ROWS["parameters"].program)
    assert set(report.levels) == {"unused", "scale", "bend", "z"}
    assert report.smooth(Level.DIFF) == frozenset({"unused", "scale", "z"})
    assert report.smooth(Level.LIP) == frozenset({"unused", "scale", "bend", "z"})
    assert [int(level) for level in (Level.CONST, Level.DIFF, Level.LIP, Level.CONT, Level.ANY)] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_arguments_are_data():
    from vinb.analysis import smoothness

    def program(flag, *, shift):
        z = numpyro.sample("z", NORMAL)
        seen(jnp.where(flag, z + shift, -z))

    assert smoothness(program, (jnp.array(True),), {"shift": jnp.asarray(0.3)}).levels["z"] == DIFF
