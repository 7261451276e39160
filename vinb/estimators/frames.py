"""What the program of an expectation may do with its run: replicate a part, and cut gradients."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.primitives import _PYRO_STACK

from vinb.estimators.checks import check_count
from vinb.estimators.run import Run, chosen_strategies, entered
from vinb.estimators.surrogates import constants


def current() -> Run | None:
    """The innermost expectation that is being run, if any."""
    return next((h for h in reversed(_PYRO_STACK) if isinstance(h, Run)), None)


@contextlib.contextmanager
def detached():
    """Within this context of an expectation's program parameters are constants, and so is what is drawn."""
    run = current()
    if run is None:
        raise ValueError("detached() works within the program of an expectation only")
    outer = run.params, run.detached
    run.params, run.detached = constants(run.params), True
    try:
        yield
    finally:
        run.params, run.detached = outer


def evaluate(program: Callable) -> Callable:
    """``program`` as a function ``(params, key, *args)`` to whatever it returns, arrays of any shape, without derivatives.

    For what is not an expectation: samples, weights, predictions. The program may use all verbs.
    """

    def call(params, key, *args, **kwargs):
        with Run("direct", params, key), detached():
            return program(*args, **kwargs)

    return call


def replicate(program: Callable, num: int, *, name: str = "particles") -> Callable:
    """``program`` run ``num`` times with independent noise, in one vectorised pass.

    This is what takes the place of ``jax.vmap`` around sample sites: within an expectation every site keeps its strategy.

    Args:
        program: a function with sample sites; its arguments are the same in all runs.
        num: number of runs.
        name: names the frame, see ``with_baseline``.

    Returns:
        A function of ``program``'s arguments to its result with a leading axis of size ``num``.
    """
    check_count(num, "num")

    def run_all(*args, **kwargs):
        parent = current()
        if parent is None:
            key = numpyro.prng_key()
            if key is None:
                raise ValueError(
                    "replicate needs randomness: call it within an expectation or numpyro.handlers.seed"
                )
            # Params must reach the handlers outside, which hold their values.
            hide = lambda site: site["type"] != "param"  # noqa: E731
            seeded = lambda k: handlers.block(handlers.seed(program, k), hide_fn=hide)(*args, **kwargs)  # noqa: E731
            return jax.vmap(seeded)(jax.random.split(key, num))
        identity = parent.identity(name)
        inside = {k: v for k, v in parent.forced.items() if k.startswith(f"{identity}/")}
        found, chosen = {}, chosen_strategies()

        def one(index, forced):
            child = parent.child(f"{identity}/", jax.random.fold_in(parent.key_of(identity), index), forced)
            child.lane = parent.lane + 0.0 * index
            with contextlib.ExitStack() as stack:
                for handler in (handlers.block(), child, *chosen):
                    stack.enter_context(entered(handler))
                result = program(*args, **kwargs)
            found.update(child.sites)
            parent.notes.update(child.notes)
            return result, child.records, child.mutables

        result, records, mutables = jax.vmap(one)(jnp.arange(num), inside)
        for site in found.values():
            site.shape = (num, *site.shape)
        parent.sites.update(found)
        parent.records.update(records)
        parent.mutables.update(jax.tree.map(lambda m: jnp.mean(m, 0), mutables))
        return result

    return run_all
