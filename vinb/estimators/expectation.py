"""An expectation as an ordinary function: its value and its reverse-mode gradient are unbiased estimates.

Design notes. A program whose sites all act by themselves (reparameterised ones do) is run as it is. Any other is analysed
(``plan``) and replaced by a surrogate (``assembly``). Continuation passing by an interpreter of jaxprs instead was considered: it
needs interfaces of JAX that change often, and replays at least as much.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float

from vinb.estimators.assembly import RUNS, Surrogate, baselines_of
from vinb.estimators.baselines import LeaveOneOut
from vinb.estimators.boundaries import surface_terms
from vinb.estimators.checks import check_count
from vinb.estimators.plan import Plan, as_terms, make_plan
from vinb.estimators.run import NeedsPlan, Run
from vinb.estimators.sites import Params
from vinb.estimators.strategies import Strategy, strategies
from vinb.estimators.terms import Terms


class Expectation:
    """See :func:`expectation`; made by it."""

    def __init__(self, program, num_particles=1, has_state=False, choices=()):
        self.program, self.num_particles, self.has_state = program, num_particles, has_state
        self.choices = choices

    def __call__(self, params: Params, key: jax.Array, *args, **kwargs) -> Float[Array, ""]:
        state = kwargs.pop("state", None) if self.has_state else None
        if self.has_state and state is None:
            raise ValueError(
                "has_state=True: pass state=..., at first objective.init_state(params, key, *args)"
            )
        value, new_state, _ = self.estimate(params, key, args, kwargs, state)
        return (value, new_state) if self.has_state else value

    def with_strategies(
        self, choice: Mapping[str, Strategy] | Callable[[str], Strategy | None] | Literal["auto"]
    ) -> "Expectation":
        """The same expectation with other gradient strategies at the sites named, see ``strategies``; earlier choices stay.

        ``"auto"``: pathwise exactly where the program is shown to be smooth enough, see ``Auto``.
        """
        strategies(choice=choice)  # raises if it is none
        return Expectation(self.program, self.num_particles, self.has_state, (*self.choices, choice))

    def plan(self, params: Params, key: jax.Array, *args, **kwargs) -> Plan:
        """Which sites there are, what depends on them, and which strategies they have."""
        return self._plan(params, key, args, kwargs, False)

    def init_state(self, params: Params, key: jax.Array, *args, **kwargs):
        """Initial state of the baselines that learn: a dict by site, for ``has_state=True``."""
        plan = self.plan(params, key, *args, **kwargs)
        stateful = {s: b for s, b in baselines_of(plan).items() if not isinstance(b, LeaveOneOut)}
        shapes = {s: plan.sites[s].shape for s in stateful}
        return {
            s: b.init(jax.random.fold_in(key, k), shapes[s], jnp.result_type(float))
            for k, (s, b) in enumerate(stateful.items())
        }

    # ---- the estimate

    def estimate(self, params, key, args, kwargs, state=None, *, constrained=False):
        """``(value, new state of baselines, mutable sites' new values)``; for adapters."""

        def one(key):
            return self._one(params, key, args, kwargs, state, constrained)

        if self.num_particles == 1:
            value, costs, mutables = one(key)
            costs = jax.tree.map(lambda c: c[None], costs)
        else:
            keys = jax.random.split(key, self.num_particles)
            values, costs, mutables = jax.vmap(one, axis_name=RUNS)(keys)
            value = jnp.mean(values)
            mutables = jax.tree.map(lambda m: jnp.mean(m, 0), mutables)
        new_state = None
        if self.has_state:
            new_state = dict(state)
            for site, (baseline, cost, inputs) in costs.items():
                if site in new_state:
                    new_state[site] = baseline.value.update(state[site], inputs, cost)
        return value, new_state, mutables

    def _bound(self, args, kwargs):
        program = self.program
        for choice in self.choices:  # the last one is outermost, and the strongest
            program = strategies(program, choice)
        return lambda: program(*args, **kwargs)

    def _plan(self, params, key, args, kwargs, constrained):
        make_run = lambda: Run("analyse", params, key, constrained=constrained)  # noqa: E731
        return make_plan(self._bound(args, kwargs), make_run)

    def _one(self, params, key, args, kwargs, state, constrained):
        program = self._bound(args, kwargs)
        try:
            run = Run("direct", params, key, constrained=constrained)
            with run:
                cost = as_terms(program())
            value = cost.total()
            if run.noise:
                value += self._surface_terms(program, params, key, constrained, run)
            return value, {}, run.mutables
        except NeedsPlan:
            pass
        plan = self._plan(params, key, args, kwargs, constrained)
        return Surrogate(plan, params, key, args, kwargs, self._bound, constrained).assemble(
            state, self.num_particles, self.has_state
        )

    @staticmethod
    def _surface_terms(program, params, key, constrained, run):
        def cost(noise):
            # A test of the support is no branch of the program; where it fails there is no gradient of this kind.
            with (
                numpyro.validation_enabled(False),
                Run("direct", params, key, constrained=constrained, noise=noise),
            ):
                return as_terms(program()).total()

        key_of_terms = run.key_of("/boundaries")
        return surface_terms(cost, run.noise, key_of_terms, run.with_boundaries.num_boundaries)


def expectation(program: Callable, *, num_particles: int = 1, has_state: bool = False) -> Expectation:
    """The expectation of what ``program`` returns, as a function that can be evaluated and differentiated.

    Args:
        program: a function of ``*args`` that draws with ``numpyro.sample``, has parameters with ``numpyro.param``, and
            returns a scalar: an array, or :class:`Terms`, which gives each random choice its own credit. Each site is
            differentiated by its strategy: ``infer={"gradient": ScoreFunction()}`` at the site, or chosen from outside with
            :class:`strategies`, or by default ``Pathwise`` where the distribution is reparameterised, ``Enumerate`` where
            the support is small, ``ScoreFunction`` otherwise. ``explain`` tells.
        num_particles: independent runs that are averaged.
        has_state: with baselines that learn; the function then takes ``state=`` and returns ``(value, new_state)``.

    Returns:
        A function ``(params, key, *args)`` to a scalar: an unbiased estimate of the expectation, whose gradient in
        ``params`` and in any array argument is an unbiased estimate of the gradient. ``params`` are the unconstrained
        values of the param sites, see ``init``. ``jax.jit``, ``vmap``, ``grad`` and ``value_and_grad`` apply
        (lew2023adev; becker2024programmable).

    Raises:
        ValueError: for a ``num_particles`` below one; and, when called, for a strategy without a rule for the site's
            distribution and for sample sites in transformations of JAX within the program.
    """
    check_count(num_particles)
    return Expectation(program, int(num_particles), has_state)


def with_baseline(cost: Array, frame: str, values: Float[Array, " num"]) -> Terms:
    """A cost whose score-function sites in the frame of a ``replicate`` use the baselines ``values``, one per run of the frame.

    ``values[k]`` must not depend on the random choices of run ``k``.
    """
    return Terms(jnp.asarray(cost), baselines=({frame: values},))
