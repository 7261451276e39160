"""Parameters and randomness of NumPyro programs: how a program's sites get their values.

Design notes. Each random site's key is ``fold_in(key, crc32(site name))``, not the next split of a running key as under
``numpyro.handlers.seed``: forcing or removing one site leaves the noise of every other site unchanged, so that two runs of
a program can be compared site by site.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import Messenger

from vinb.estimators.keys import site_key

Params = dict[str, Any]


class site_keys(Messenger):
    """Give every unseeded random site of ``fn`` a key that depends on ``key`` and the site's name alone."""

    def __init__(self, fn: Callable | None = None, *, key: jax.Array):
        self.key = key
        super().__init__(fn)

    def __enter__(self):
        self.num_unnamed = 0
        return super().__enter__()

    def process_message(self, msg):
        if msg["type"] not in ("sample", "prng_key", "plate", "control_flow") or msg["value"] is not None:
            return
        if msg["kwargs"].get("rng_key") is None:
            name = msg.get("name")
            if name is None:  # numpyro.prng_key() has no name; a slash cannot collide with a site's
                name = f"/prng_key/{self.num_unnamed}"
                self.num_unnamed += 1
            msg["kwargs"]["rng_key"] = site_key(self.key, name)


class unconstrained_params(Messenger):
    """Set the param sites of ``fn`` from their unconstrained values, as ``numpyro.infer.SVI`` does."""

    def __init__(self, fn: Callable | None = None, *, params: Params):
        self.params = params
        super().__init__(fn)

    def process_message(self, msg):
        if msg["type"] == "param":
            # Left alone, a forgotten param would stay at its initial value without a word.
            msg["value"] = bijector(msg)(param_value(self.params, msg["name"]))


def param_value(params, name):
    if name not in params:
        raise ValueError(
            f"params has no entry for the param site {name!r}; it has {sorted(params)}. "
            "Make it with init((model, guide), key, *args)."
        )
    return params[name]


def bijector(site):
    return biject_to(site["kwargs"].get("constraint", constraints.real))


class _RunForReal(Exception):
    """Tracing a program will not do."""


class _initial_params(Messenger):
    """Record the param sites of ``fn`` with their initial values, each drawn with a key of the site's own."""

    def __init__(self, fn: Callable | None = None, *, key: jax.Array, tracing: bool):
        self.key, self.tracing, self.sites, self.in_param = key, tracing, {}, False
        super().__init__(fn)

    def process_message(self, msg):
        if msg["type"] == "prng_key" and self.tracing and not self.in_param:
            # Automatic guides ask for a key when they first see their model, and would keep traced values of that run.
            raise _RunForReal
        if msg["type"] == "param" and msg["value"] is None:
            self.in_param = True
            with jax.ensure_compile_time_eval(), site_keys(key=site_key(self.key, msg["name"])):
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
            self.in_param = False
            if self.tracing and any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(msg["value"])):
                raise _RunForReal

    def postprocess_message(self, msg):
        if msg["type"] == "param":
            self.sites[msg["name"]] = msg


def _param_sites(program, key, args, kwargs):
    """The param sites of ``program`` with their initial values.

    The program is traced, since operation by operation it would be slow to compile, and only shapes matter. One that looks at
    its arguments' values, or computes an initial value from them, is run for real.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    given = [leaf for is_array, leaf in zip(arrays, leaves, strict=True) if is_array]

    def run(recorder, *given):
        given = iter(given)
        mixed = [next(given) if is_array else leaf for is_array, leaf in zip(arrays, leaves, strict=True)]
        args, kwargs = structure.unflatten(mixed)
        with site_keys(key=key), recorder:
            program(*args, **kwargs)

    try:
        recorder = _initial_params(key=key, tracing=True)
        jax.eval_shape(functools.partial(run, recorder), *given)
    except (_RunForReal, *_NEEDS_VALUES):
        recorder = _initial_params(key=key, tracing=False)
        run(recorder, *given)
    return recorder.sites


_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def init(program: Callable | tuple[Callable, ...], key: jax.Array, *args, **kwargs) -> Params:
    """Initial unconstrained parameters of one program, or of several that are trained together (a model and its guide).

    Args:
        program: a NumPyro program, or a tuple of them that take the same arguments.
        key: typed PRNG key, for param sites with a random initial value.
        args, kwargs: the arguments of the program; only their shapes matter, unless an initial value is computed from them.

    Returns:
        A dict from param site to its unconstrained value (an array, or a pytree for a module): ``numpyro.infer.SVI``'s layout.
    """
    programs = program if isinstance(program, tuple) else (program,)
    params: Params = {}
    for one in programs:
        for name, site in _param_sites(one, key, args, kwargs).items():
            value = bijector(site).inv(site["value"])
            # An array, as in SVI: training leaves a Python number, as in `param("loc", 0.0)`, where it is.
            params.setdefault(name, jnp.asarray(value, float) if isinstance(value, float) else value)
    return params


def constrain(program: Callable | tuple[Callable, ...], params: Params, *args, **kwargs) -> Params:
    """The values of ``program``'s param sites on their own support, from the unconstrained ``params`` of :func:`init`.

    Raises:
        ValueError: if ``params`` lacks a param site of the program.
    """
    programs = program if isinstance(program, tuple) else (program,)
    values: Params = {}
    for one in programs:
        for name, site in _param_sites(one, jax.random.key(0), args, kwargs).items():
            values[name] = bijector(site)(param_value(params, name))
    return values
