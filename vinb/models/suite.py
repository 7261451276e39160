"""Small model-guide pairs with known answers to "can the guide draw a value that the model excludes?".

The rows are those on which an analyser of Pyro programs was tried (lee2020verifiedsvi, artifact: 39 pairs after the tests of Pyro's
own inference engine), written anew for NumPyro. Each pair is about names, shapes and plates rather than about supports. Rows whose
site names would be random in NumPyro (a loop over a subsample: 10, 14, 17, 19, 36, 37) are not expressible, and a plate without a
size (22) does not exist.

``authors`` is what their analyser says: ``Valid``, ``Invalid``, ``ERR`` (the program is wrong) or ``crash`` (not supported by it).
``expected`` is the answer for the NumPyro pair: ``VALID``, ``INVALID`` or ``ERROR`` (the program raises while it is traced).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

__all__ = ["SUITE", "Case"]


@dataclass(frozen=True)
class Case:
    """One row: ``number`` in the artifact, the pair with its arguments, the right answer and the authors' answer."""

    number: int
    model: Callable
    guide: Callable
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expected: str = "VALID"
    authors: str = "Valid"


def _sample(name, probs, shape=()):
    return numpyro.sample(name, dist.Bernoulli(probs).expand(shape + jnp.shape(probs)))


def _both(number, body, guide_body=None, expected="VALID", authors="Valid", init=0.5):
    """A pair that runs ``body(p)`` twice, with a constant ``p`` in the model and a learnt one in the guide."""

    def model():
        body(jnp.asarray(init))

    def guide():
        (guide_body or body)(numpyro.param("p", jnp.asarray(init), constraint=constraints.unit_interval))

    return Case(number, model, guide, expected=expected, authors=authors)


# Without plates


def _observe_only():
    numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1), obs=jnp.zeros(2))


def _nothing():
    pass


def _one_bernoulli():
    numpyro.sample("x", dist.Bernoulli(0.5))


def _learnt_bernoulli():
    numpyro.sample("x", dist.Bernoulli(numpyro.param("p", 0.5, constraint=constraints.unit_interval)))


def _twice():
    numpyro.sample("x", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Bernoulli(0.5))


def _enumerated():
    p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
    numpyro.sample("x", dist.Bernoulli(p), infer={"enumerate": "parallel"})


def _normal(shape, event_dim, name=None):
    def program():
        loc = jnp.zeros(shape) if name is None else numpyro.param(name, jnp.zeros(shape))
        numpyro.sample("x", dist.Normal(loc, 1.0).to_event(event_dim))

    return program


def _x_then_y():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0))


def _learnt_x_then_y():
    x = numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.0), 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0))


def _learnt_y_then_x():
    y = numpyro.sample("y", dist.Normal(numpyro.param("loc", 0.0), 1.0))
    numpyro.sample("x", dist.Normal(y, 1.0))


# Loops, and plates that hold no site


def _empty_plate(probs, subsample_size=None):
    with numpyro.plate("plate", 10, subsample_size):
        pass
    numpyro.sample("x", dist.Bernoulli(probs))


def _model_empty_plate():
    _empty_plate(0.5)


def _guide_empty_plate(subsample_size=None):
    def guide():
        _empty_plate(numpyro.param("p", 0.5, constraint=constraints.unit_interval), subsample_size)

    return guide


def _loop(p):
    for i in range(4):
        _sample(f"x_{i}", p)


def _loop_of_one_name(p):
    for _ in range(4):
        _sample("x", p)


def _loops(p):
    for i in range(3):
        for j in range(3):
            _sample(f"x_{i}_{j}", p)


def _swapped_loops(p):
    for j in range(3):
        for i in range(3):
            _sample(f"x_{i}_{j}", p)


# Plates


def _plate(shape, subsample_size=5):
    def body(p):
        with numpyro.plate("plate", 10, subsample_size):
            _sample("x", p, shape)

    return body


def _nested(x, y, z=None):
    """Sites of the given shapes, x in a plate of 5, y and z in one of 6 inside it."""

    def body(p):
        with numpyro.plate("plate_outer", 10, 5):
            _sample("x", p, x)
            with numpyro.plate("plate_inner", 11, 6):
                _sample("y", p, y)
                if z is not None:
                    _sample("z", p, z)

    return body


def _components(particles):
    """A Beta for each of two components, and data that broadcast over them (and over ten particles)."""

    def once(observe):
        components = numpyro.plate("components", 2, dim=-1)
        with components:
            p = numpyro.sample("p", dist.Beta(1.1, 1.1))
        if observe:
            with numpyro.plate("data", 1000, dim=-2), components:
                numpyro.sample("obs", dist.Bernoulli(p), obs=jnp.ones((1000, 2)))

    def program(observe):
        def run():
            if particles:
                with numpyro.plate("num_particles", 10, dim=-3):
                    once(observe)
            else:
                once(observe)

        return run

    return program(True), program(False)


def _allocated(p):
    with numpyro.plate("plate_outer", 10, 5, dim=-3):
        _sample("x", p)
        with numpyro.plate("plate_inner_1", 11, 6):
            _sample("y", p)
            with numpyro.plate("plate_inner_2", 12, 7):
                _sample("z", p)
                with numpyro.plate("plate_inner_3", 13, 8):
                    _sample("q", p)


def _taken(p):
    with numpyro.plate("plate_outer", 10, 5, dim=-2):
        _sample("x", p)
        with numpyro.plate("plate_inner_1", 11, 6):
            _sample("y", p)
            with numpyro.plate("plate_inner_2", 12, 7, dim=-1):
                _sample("z", p)


def _reused(p):
    columns = numpyro.plate("columns", 10, 5, dim=-1)
    rows = numpyro.plate("rows", 11, 6, dim=-2)
    with columns:
        _sample("x", p)
    with rows:
        _sample("y", p)
    with rows, columns:
        _sample("z", p)


def _separate(p):
    with numpyro.plate("plate_1", 10, 5):
        _sample("x1", p)
    with numpyro.plate("plate_2", 11, 6):
        _sample("x2", p)


def _depths(p):
    inner = numpyro.plate("plate2", 10, 5)
    for i in range(2):
        _sample(f"x_{i}", p)
        if i == 0:
            for j in range(2):
                with inner:
                    _sample(f"y_{j}", p)
        else:
            with inner:
                _sample("z", p)


SUITE: dict[str, Case] = {
    "empty guide": Case(0, _observe_only, _nothing),
    "empty model and guide": Case(1, _nothing, _nothing),
    "site twice in the model": Case(2, _twice, _learnt_bernoulli, expected="ERROR", authors="ERR"),
    "event dimensions": Case(
        3, _normal((2,), 1), _normal((2, 1), 2, "loc"), expected="INVALID", authors="Invalid"
    ),
    "event shapes": Case(
        4, _normal((1, 2), 2), _normal((2, 1), 2, "loc"), expected="INVALID", authors="Invalid"
    ),
    "site twice in the guide": Case(5, _one_bernoulli, _twice, expected="ERROR", authors="ERR"),
    "enumerated in the guide": Case(6, _one_bernoulli, _enumerated),
    "same order": Case(7, _x_then_y, _learnt_x_then_y),
    "swapped order": Case(8, _x_then_y, _learnt_y_then_x),
    "plate in the model only": Case(9, _model_empty_plate, _learnt_bernoulli),
    "plate in the guide only": Case(
        11, _one_bernoulli, _guide_empty_plate(), expected="INVALID", authors="Invalid"
    ),
    "subsampled plate in the guide only": Case(
        12, _one_bernoulli, _guide_empty_plate(5), expected="INVALID", authors="crash"
    ),
    "loop": _both(13, _loop),
    "loop of one name": _both(15, _loop_of_one_name, expected="ERROR", authors="ERR"),
    "nested loops": _both(16, _loops),
    "swapped nested loops": _both(18, _loops, _swapped_loops),
    "plate": _both(20, _plate((10,), None)),
    "subsampled plate": _both(21, _plate((5,))),
    "too few in a plate": _both(23, _plate((2,)), expected="ERROR", authors="ERR"),
    "too many in a plate": _both(24, _plate((6,)), expected="ERROR", authors="ERR"),
    "nested plates": _both(25, _nested((5,), (6, 5))),
    "nested plates, p of one element": _both(26, _nested((5,), (6,), (5, 6)), init=[0.5]),
    "nested plates, y of the outer size": _both(
        27, _nested((5, 1), (5,)), expected="ERROR", authors="ERR", init=[0.5]
    ),
    "nested plates, z transposed": _both(28, _nested((5, 1), (6,), (6, 1)), init=[0.5]),
    "nested plates, z of the outer size": _both(
        29, _nested((5, 1), (6,), (5, 5)), expected="ERROR", authors="ERR", init=[0.5]
    ),
    "data broadcast over components": Case(30, *_components(particles=False)),
    "allocated dimensions": _both(31, _allocated),
    "dimension taken": _both(32, _taken, expected="ERROR", authors="ERR"),
    "data broadcast over components and particles": Case(33, *_components(particles=True)),
    "plates reused and combined": _both(34, _reused),
    "separate plates": _both(35, _separate),
    "plates at three depths": _both(38, _depths, authors="crash"),
}
