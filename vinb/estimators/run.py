"""One run of a program whose sample sites are differentiated by strategies.

Design notes. A :class:`Run` is the outermost NumPyro handler of an expectation: it sets parameters and draws every
site that has no value yet. Each site draws with ``fold_in(key, crc32(identity))``: forcing one site leaves the noise
of all others as it was, so runs with different forced values can be compared. A site's identity is its name; a second
site of that name in the same run gets
``#2``, and sites within a frame (:func:`replicate`, NumPyro's ``scan`` and ``cond``) the frame's name in front.

A program is run in four modes: ``direct`` (no site needs anything but its own draw), ``analyse`` (abstractly, with
marked values instead of draws), ``primal`` (enumerated sites are forced to the values of one configuration),
``what-if`` (one measure-valued site is moved to an alternative value; what it influences is drawn again with the same noise,
all else keeps its value).
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jax.lax import stop_gradient
from numpyro import handlers
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions import constraints
from numpyro.primitives import _PYRO_STACK, Messenger

from vinb.analysis import tag
from vinb.analysis.domains import open_interval, static_interval, support_ends
from vinb.analysis.intervals import Interval
from vinb.analysis.signatures import signature_of
from vinb.estimators import boundaries, control_flow, pathwise
from vinb.estimators.elements import element_log_prob, element_prob, score_log_prob, unwrap
from vinb.estimators.keys import site_key
from vinb.estimators.sites import bijector, param_value
from vinb.estimators.strategies import (
    Auto,
    Enumerate,
    GumbelSoftmax,
    Inline,
    MeasureValued,
    Pathwise,
    PathwiseWithBoundaries,
    ScoreFunction,
    Strategy,
    check_strategy,
    strategies,
    support_size,
    support_values,
)


class NeedsPlan(Exception):
    """A site's strategy needs more than its own draw."""


@dataclass
class Site:
    """What does not change from run to run about a sample site that has to be drawn."""

    identity: str
    name: str
    distribution: str
    requested: Strategy | None
    shape: tuple[int, ...]  # of its elements
    support_size: int | None  # values of one element
    reparameterised: bool
    looped: bool = False
    num_alternatives: int = 0  # values a measure-valued derivative moves one element to


class Run(Messenger):
    """The handler. ``records`` collects per site what the driver needs, ``sites`` what is static (mode ``analyse``)."""

    def __init__(
        self, mode, params, key, *, plan=None, forced=None, alternative=None, constrained=False, noise=None
    ):
        self.mode, self.params, self.key, self.plan = mode, params, key, plan
        # Per site: indices into the support, the value it keeps, or for the moved one a mask of the elements that move.
        self.forced = {} if forced is None else forced
        # In mode what-if: the moved site, and the number of its alternative value.
        self.alternative = alternative
        # In mode direct: the noise of sites with boundaries, by site; and what was drawn of it, with its strategy.
        self.given_noise, self.noise, self.with_boundaries = noise, {}, None
        self.constrained = constrained  # are params on their own supports, or unconstrained?
        self.sites, self.records, self.mutables, self.notes = {}, {}, {}, {}
        self.prefix, self.live, self.lane, self.looped, self.substituted = "", None, 0.0, False, ()
        self.detached = False
        # In mode analyse, for smoothness: the intervals of sites and parameters, which are then all marked.
        self.intervals: dict[str, Interval] | None = None
        self.discrete: set[str] = set()
        self.plate_key = key
        self.counts = {}
        self.level = get_opaque_trace_state()
        super().__init__()

    def __enter__(self):
        super().__enter__()
        return self

    def child(self, prefix, key, forced=None):
        run = Run(
            self.mode,
            self.params,
            key,
            plan=self.plan,
            forced=self.forced if forced is None else forced,
            alternative=self.alternative,
            constrained=self.constrained,
        )
        run.plate_key = self.plate_key  # the runs of a frame see one subsample
        run.prefix, run.live, run.looped, run.detached = prefix, self.live, self.looped, self.detached
        run.lane, run.intervals, run.discrete = self.lane, self.intervals, self.discrete
        return run

    @contextlib.contextmanager
    def scope(self, prefix="", live=None):
        """Enter this run once more, hidden from the handlers in between except choices of strategies."""
        outer = self.prefix, self.live
        self.prefix += prefix
        if live is not None:
            self.live = live if self.live is None else self.live & live
        chosen = chosen_strategies()
        try:
            with contextlib.ExitStack() as stack:
                for handler in (handlers.block(), self, *chosen):
                    stack.enter_context(entered(handler))
                yield
        finally:
            self.prefix, self.live = outer

    # ---- messages

    def process_message(self, msg):
        kind = msg["type"]
        if kind == "sample" and msg["value"] is None:
            self._draw(msg)
        elif kind == "param":
            value = param_value(self.params, msg["name"])
            if self.intervals is not None:
                value = self._marked_param(msg, value)
            msg["value"] = value if self.constrained else bijector(msg)(value)
        elif kind == "mutable" and msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]
        elif kind == "plate" and msg["value"] is None:
            # By its plain name: a model and its guide see the same subsample.
            msg["kwargs"]["rng_key"] = site_key(self.plate_key, f"/plate/{msg['name']}")
        elif (
            kind == "prng_key" and msg["kwargs"]["rng_key"] is None
        ):  # NumPyro's block lets it through to all runs
            msg["kwargs"]["rng_key"] = self.key_of(self.identity("/prng_key"))
        elif kind == "control_flow" and msg["value"] is None:
            if msg["fn"] is scan_wrapper:
                control_flow.scan(self, msg)
            elif msg["fn"] is cond_wrapper:
                control_flow.cond(self, msg)
            else:
                raise ValueError(
                    f"{msg['fn'].__name__} of NumPyro's control flow is not supported in an expectation"
                )

    def postprocess_message(self, msg):
        if msg["type"] == "mutable":
            self.mutables[msg["name"]] = msg["value"]
        elif msg["type"] == "control_flow" and msg["fn"] is scan_wrapper:
            control_flow.after_scan(self, msg)

    def identity(self, name):
        full = self.prefix + name
        self.counts[full] = count = self.counts.get(full, 0) + 1
        return full if count == 1 else f"{full}#{count}"

    def key_of(self, identity):
        return site_key(self.key, identity)

    # ---- sample sites

    def _draw(self, msg):
        name, fn = msg["name"], msg["fn"]
        if any(control_flow.substitutes(kind, values, msg) for kind, values in self.substituted):
            return
        if get_opaque_trace_state() != self.level:
            raise ValueError(
                f"sample site {name!r} is inside a jax.vmap, jax.lax.scan, jax.lax.cond, jax.grad or jax.jit of your own, where "
                "the expectation cannot see it. Use numpyro.plate or vinb.programs.replicate instead of vmap, "
                "numpyro.contrib.control_flow.scan and cond instead of jax.lax's, and put jax.jit around the expectation."
            )
        identity = self.identity(name)
        if self.detached:
            msg["value"] = stop_gradient(fn.sample(self.key_of(identity), msg["kwargs"]["sample_shape"]))
            return
        requested = msg["infer"].get("gradient")
        requested = Auto() if requested == "auto" else requested
        if requested is not None:
            check_strategy(name, requested)
            if (refusal := requested.refusal(fn)) is not None:
                raise ValueError(f"site {name!r} is {type(unwrap(fn)).__name__}, {refusal}")
        if self.looped:
            msg["infer"] = {**msg["infer"], "_drawn_in_loop": True}  # for closed forms of the lower bound
        shape = msg["kwargs"]["sample_shape"]

        if self.mode == "direct":
            if requested is None and not pathwise.is_reparameterised(fn):
                raise NeedsPlan
            strategy = Pathwise() if requested is None else requested
            if not isinstance(strategy, Inline):
                raise NeedsPlan
            if isinstance(strategy, PathwiseWithBoundaries):
                msg["value"] = self._draw_from_noise(fn, strategy, identity, shape)
            else:
                msg["value"] = strategy.draw(fn, self.key_of(identity), shape)
        elif self.mode == "analyse":
            msg["value"] = self._mark(msg, identity, requested)
        else:
            msg["value"] = self._draw_planned(msg, identity, shape)

    def _draw_from_noise(self, fn, strategy, identity, shape):
        if self.prefix:
            raise ValueError(
                f"site {identity!r} is inside a scan, a cond or a frame of vinb.programs, where {strategy} is not possible; write "
                "the loop or the branch out in Python, or use ScoreFunction()"
            )
        if self.with_boundaries not in (None, strategy):
            raise ValueError(
                f"site {identity!r} has {strategy!r}, and a site before it {self.with_boundaries!r}: give all sites the same"
            )
        self.with_boundaries = strategy
        if self.given_noise is None:
            self.noise[identity] = boundaries.noise_of(fn, self.key_of(identity), shape)
        else:
            self.noise[identity] = self.given_noise[identity]
        return boundaries.push(fn, self.noise[identity], shape)

    def _mark(self, msg, identity, requested):
        fn, base = msg["fn"], unwrap(msg["fn"])
        drawn = jnp.asarray(fn.sample(self.key, msg["kwargs"]["sample_shape"]))
        dtype = jnp.result_type(float) if isinstance(requested, GumbelSoftmax) else drawn.dtype
        shape = drawn.shape[: drawn.ndim - base.event_dim]
        self.sites[identity] = Site(
            identity,
            msg["name"],
            type(base).__name__,
            requested,
            shape,
            support_size(base),
            pathwise.is_reparameterised(fn),
            self.looped,
        )
        # A sum with the lane gives the mark the batch axis of a replicated frame.
        marked = tag(jnp.full(drawn.shape, self.lane, dtype), identity, len(shape))
        if isinstance(requested, MeasureValued):
            moves = requested.derivatives(base, marked, self.key)
            alternatives = [v for move in moves for v in (move.positive, move.negative) if v is not None]
            self.sites[identity].num_alternatives = len(alternatives)
        self.records[identity] = {"log_prob": self._log_prob(fn, marked), "drawn": drawn}
        if self.intervals is not None:
            self.intervals[identity] = static_interval(base)
            # Implicit derivatives are smooth in the arguments, whatever the sampler does.
            made_of = jax.tree.leaves(fn) if signature_of(base) is not None else [drawn]
            self.records[identity]["made_of"] = [jnp.asarray(leaf) for leaf in made_of]
            self.records[identity]["ends"] = jax.tree.map(jnp.asarray, support_ends(base))
            if base.is_discrete:
                self.discrete.add(identity)
        return marked

    def _marked_param(self, msg, value):
        constraint = (
            msg["kwargs"].get("constraint", constraints.real) if self.constrained else constraints.real
        )
        leaves, structure = jax.tree.flatten(value)
        names = [f"/param/{msg['name']}#{k}" for k in range(len(leaves))]
        self.intervals.update(dict.fromkeys(names, open_interval(constraint)))
        return structure.unflatten([tag(leaf, name, 0) for name, leaf in zip(names, leaves, strict=True)])

    def _log_prob(self, fn, value):
        """For the analysis of what the site's law depends on."""
        try:
            return self._where_live(element_log_prob(fn, value))
        except NotImplementedError:  # then on all that the distribution is made of
            return sum(jnp.sum(jnp.asarray(leaf, float)) for leaf in jax.tree.leaves(fn))

    def _where_live(self, log_prob):
        # In the branch of a cond that is not taken, the sample means nothing.
        return log_prob if self.live is None else jnp.where(self.live, log_prob, 0.0)

    def _draw_planned(self, msg, identity, shape):
        fn, base = msg["fn"], unwrap(msg["fn"])
        strategy, key = self.plan.strategy(identity), self.key_of(identity)
        if isinstance(strategy, Enumerate):
            value = support_values(base)[self.forced[identity]]
            self.records[identity] = {"prob": element_prob(fn, value)}
            return value
        if self.mode == "what-if":
            return stop_gradient(self._draw_what_if(fn, strategy, identity, key, shape))
        if isinstance(strategy, Inline):
            value, record = strategy.draw(fn, key, shape), {}
        else:
            value, record = stop_gradient(fn.sample(key, shape)), {}
        if isinstance(strategy, MeasureValued):
            moves = strategy.derivatives(base, value, jax.random.fold_in(key, 1))
            record["moves"] = [_without_values(move) for move in moves]
        elif isinstance(strategy, ScoreFunction):
            record["inputs"] = stop_gradient(msg["infer"].get("baseline_input"))
            record["log_prob"] = self._where_live(score_log_prob(fn, value))
        if not self.looped:
            record["value"] = value
        self.records[identity] = record
        return value

    def _draw_what_if(self, fn, strategy, identity, key, shape):
        site, number = self.alternative
        if identity != site and identity in self.forced:
            return self.forced[identity]
        if isinstance(strategy, Inline):
            return strategy.draw(fn, key, shape)
        value = fn.sample(key, shape)
        if identity != site:
            return value
        moves = strategy.derivatives(unwrap(fn), value, jax.random.fold_in(key, 1))
        values = [v for move in moves for v in (move.positive, move.negative) if v is not None]
        moved = jnp.stack(jnp.broadcast_arrays(*values))[number].astype(value.dtype)
        return jnp.where(self.forced[identity], moved, value)


@contextlib.contextmanager
def entered(handler):
    # NumPyro's handlers cut the stack at an exception, which a second entry of the same handler would confuse.
    depth = len(_PYRO_STACK)
    handler.__enter__()
    try:
        yield
    except BaseException:
        del _PYRO_STACK[depth:]
        raise
    handler.__exit__(None, None, None)


def chosen_strategies():
    return [h.again() for h in _PYRO_STACK if isinstance(h, strategies)]


# ---- draws


def _without_values(move):
    """Which alternatives there are; their values are drawn again where they are used."""
    positive, negative = move.positive is not None, move.negative is not None
    return {
        "parameter": move.parameter,
        "coefficient": stop_gradient(move.coefficient),
        "present": _Static((positive, negative)),
    }


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Static:
    value: Any
