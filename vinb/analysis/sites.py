"""NumPyro programs as jaxprs for analysis: every parameter, draw and subsample a tagged input, every site's parts an output.

Design notes. The program runs under ``jax.make_jaxpr`` with its handlers; no draw is made. Each latent site's value is a tag of
the site's name, so that a model and its guide, traced apart, speak of the same values; a ``Delta`` site is an assignment instead. A
site's log density is a call that the interpreter knows by name: what is written inside NumPyro's densities (clips, guards) says
nothing of how smooth they are. A Python branch on an abstract value is taken both ways, path by path.
"""

import contextlib
import contextvars
import functools
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from numpyro import handlers
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions import Delta, Distribution, MaskedDistribution, constraints, kl_divergence
from numpyro.primitives import Messenger

from vinb.analysis.dependence import inner_jaxprs, tag
from vinb.analysis.domains import (
    WRAPPERS,
    is_numeric,
    masks_of,
    static_interval,
    support_ends,
    support_kind,
    unwrap,
)
from vinb.analysis.intervals import Interval
from vinb.analysis.signatures import DensityCall, DivergenceCall, owners, signature_of
from vinb.analysis.source import place

try:
    from jax._src.core import Tracer  # its __bool__ is what a Python branch calls
except ImportError:  # pragma: no cover
    Tracer = None

_CALL = "vinb_call_"


@dataclass
class SiteInfo:
    """What is static about a sample site of one path."""

    name: str
    fn: Distribution  # the distribution of one element; its arrays belong to a trace that is over
    observed: bool
    shape: tuple[int, ...]
    event_dim: int
    auxiliary: bool
    enumerated: bool
    line: str
    automatic: bool  # written by an automatic guide of NumPyro
    hidden: bool  # masked altogether
    kind: str  # of its support, see domains.support_kind
    exact: bool
    interval: Interval  # around its values, whatever the distribution's arguments are
    discrete: bool
    integral: bool  # are its values whole numbers by their type?

    @property
    def assigned(self) -> bool:
        return isinstance(self.fn, Delta) and not self.observed


@dataclass
class ParamInfo:
    name: str
    constraint: Any
    tags: tuple[str, ...]  # one per array


@dataclass
class Path:
    """One way through a program: ``jaxpr`` maps a key to ``outputs``, whose place is given by what they are."""

    decisions: tuple[bool, ...]
    sites: dict[str, SiteInfo]
    params: dict[str, ParamInfo]
    jaxpr: ClosedJaxpr
    outputs: dict[tuple, int]
    densities: dict[str, DensityCall]
    lines: dict[int, str]  # of the branches
    plates: dict[str, tuple[int, int]]  # size and size of the subsample

    @functools.cached_property
    def constants(self) -> frozenset:
        return frozenset(self.jaxpr.jaxpr.constvars)

    @functools.cached_property
    def producers(self) -> dict:
        """The equation that each variable comes from."""
        return {v: k for k, eqn in enumerate(self.jaxpr.jaxpr.eqns) for v in eqn.outvars}

    @functools.cached_property
    def tagged(self) -> frozenset[int]:
        """The equations that hold an input."""
        eqns = self.jaxpr.jaxpr.eqns
        return frozenset(
            k
            for k, eqn in enumerate(eqns)
            if eqn.primitive.name == "tag" or any(map(_has_tags, inner_jaxprs(eqn.params)))
        )


class TooManyPaths(ValueError):
    """A program branches on its draws more often than is looked at."""


class Undecided(ValueError):
    """A program needs the concrete value of something that depends on chance."""


def trace_paths(
    program: Callable, args: tuple = (), kwargs: dict | None = None, *, max_paths: int = 64
) -> list[Path]:
    """The paths of a program: one, unless Python branches on its draws or parameters.

    Raises:
        TooManyPaths: for more than ``max_paths``.
        Undecided: where Python needs a number that depends on chance: ``int(z)``, ``range(z)``, a branch inside of ``jax.jit``.
    """
    pending, paths = [()], []
    while pending:
        decisions = pending.pop()
        path = _trace(program, args, kwargs or {}, decisions, max_paths)
        paths.append(path)
        if len(paths) + len(pending) > max_paths:
            raise TooManyPaths(f"the program branches on its draws in more than {max_paths} ways")
        # The decisions that this run made on its own, the other way.
        for k in range(len(decisions), len(path.decisions)):
            pending.append((*path.decisions[:k], not path.decisions[k]))
    return [path for path in paths if not _impossible(path)]


def _trace(program, args, kwargs, decisions, max_branches) -> Path:
    trace = functools.partial(_traced, program, args, kwargs, decisions, max_branches)
    may_draw_keys, known = False, {}
    while True:
        try:
            return trace(may_draw_keys, known)
        except _RunForReal:
            with handlers.block(), handlers.seed(rng_seed=0):  # automatic guides make themselves ready
                program(*args, **kwargs)
            may_draw_keys = True
        except _AskedFirst as asked:  # a module asks for a parameter before it says what it is
            known = known | asked.found


class _AskedFirst(Exception):
    """Parameters were asked for before their initial values were given."""

    def __init__(self, found):
        self.found = found


class _RunForReal(Exception):
    """A program asks for a key: an automatic guide would keep abstract values of this run."""


def _traced(program, args, kwargs, decisions, max_branches, may_draw_keys, known) -> Path:
    recorded: dict[str, Any] = {}

    def run(key):
        handler = _Abstracted(key, may_draw_keys, known)
        with (
            numpyro.validation_enabled(False),
            _branching(key, decisions, max_branches) as branches,
            handlers.block(),
            handlers.trace() as trace,
            handler,
        ):
            try:
                program(*args, **kwargs)
            except _RunForReal:
                raise
            except Exception as error:
                _refuse_missing(handler, error)
                raise
        if handler.found:
            raise _AskedFirst(handler.found)
        _refuse_missing(handler, None)
        densities: dict[str, DensityCall] = {}
        sites, outputs = {}, {}
        plates = {name: _sizes(*site["args"]) for name, site in trace.items() if site["type"] == "plate"}
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            sites[name] = _site_info(name, site, handler)
            outputs |= _site_outputs(name, site, densities)
        for k, (predicate, line) in enumerate(branches.predicates):
            outputs["branch", k] = predicate
            recorded.setdefault("lines", {})[k] = line
        recorded.update(
            sites=sites, params=handler.params, densities=densities, keys=list(outputs), plates=plates
        )
        recorded["decisions"] = tuple(branches.made)
        return [jnp.asarray(value) for value in outputs.values()]

    try:
        closed = jax.make_jaxpr(run)(jax.random.key(0))
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise Undecided(
            f"the program needs the value of something that depends on chance while it is traced: {str(error).splitlines()[0]}"
        ) from error
    return Path(
        recorded["decisions"],
        recorded["sites"],
        recorded["params"],
        closed,
        {key: k for k, key in enumerate(recorded["keys"])},
        recorded["densities"],
        recorded.get("lines", {}),
        recorded["plates"],
    )


def _refuse_missing(handler, error):
    if handler.missing:
        name = sorted(handler.missing)[0]
        raise ValueError(
            f"param site {name!r} has no initial value; give one: numpyro.param({name!r}, value)"
        ) from error


class _Abstracted(Messenger):
    """Give every latent site, parameter and subsample of a program an abstract value, in loops and branches too."""

    def __init__(self, key, may_draw_keys, known):
        self.key, self.may_draw_keys = key, may_draw_keys
        # Shapes of parameters by name; those found after they were asked for; and those that were only asked for.
        self.known, self.found, self.missing = known, {}, set()
        self.params: dict[str, ParamInfo] = {}
        self.lines, self.automatic = {}, set()
        self.count, self.in_param = itertools.count(), False
        super().__init__()

    def process_message(self, msg):
        kind = msg["type"]
        if kind == "sample":
            self._sample(msg)
        elif kind == "param" and msg["value"] is None:
            msg["value"] = self._param(msg)
        elif kind == "plate" and msg["value"] is None:
            size, subsample = _sizes(*msg["args"])
            msg["value"] = tag(jnp.zeros(subsample, int), f"/plate/{msg['name']}/{size}", 0)
        elif kind == "prng_key" and msg["value"] is None:
            if not (self.may_draw_keys or self.in_param):
                raise _RunForReal
            msg["value"] = self._key()
        elif kind == "control_flow":
            bodies = (0,) if msg["fn"] is scan_wrapper else (1, 2) if msg["fn"] is cond_wrapper else ()
            msg["args"] = tuple(_Within(self, a) if k in bodies else a for k, a in enumerate(msg["args"]))

    def _key(self):
        return jax.random.fold_in(self.key, next(self.count))

    def _sample(self, msg):
        name = msg["name"]
        self.lines[name], automatic = _user_line()
        if automatic:
            self.automatic.add(name)
        if msg["value"] is not None:
            return
        fn, shape = msg["fn"], msg["kwargs"]["sample_shape"]
        draw = lambda key: fn.sample(key, sample_shape=shape)  # noqa: E731
        if isinstance(unwrap(fn), Delta):
            msg["value"] = draw(self.key)
            return
        try:
            aval = jax.eval_shape(draw, self.key)
        except NotImplementedError:  # an improper distribution
            aval = jax.ShapeDtypeStruct((*shape, *fn.shape()), jnp.result_type(float))
        msg["value"] = tag(jnp.zeros(aval.shape, aval.dtype), name, 0)

    def _param(self, msg):
        name = msg["name"]
        self.in_param = True
        initial = _shapes_of(lambda: msg["fn"](*msg["args"], **msg["kwargs"]))
        self.in_param = False
        if initial is None and name not in self.known:
            self.missing.add(name)
            return None
        if name in self.missing:
            self.missing.discard(name)
            self.found[name] = initial
        initial = self.known.get(name, initial)
        leaves, structure = jax.tree_util.tree_flatten_with_path(initial)
        tags = tuple(f"/param/{name}" + "".join(f"/{_step(p)}" for p in path) for path, _ in leaves)
        self.params[name] = ParamInfo(name, msg["kwargs"].get("constraint", constraints.real), tags)
        values = [
            tag(jnp.zeros(leaf.shape, leaf.dtype), label, 0) if is_numeric(leaf) else leaf
            for label, (_, leaf) in zip(tags, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, values)


def _shapes_of(make):
    """What ``make`` returns, with shapes in place of arrays; other leaves, as a module's functions, as they are."""
    others = []

    def arrays():
        leaves, structure = jax.tree.flatten(make())
        others[:] = structure, [None if is_numeric(leaf) else leaf for leaf in leaves]
        return [jnp.asarray(leaf) for leaf in leaves if is_numeric(leaf)]

    shapes = iter(jax.eval_shape(arrays))
    structure, kept = others
    return structure.unflatten([next(shapes) if leaf is None else leaf for leaf in kept])


def _sizes(size, subsample_size=None):
    return size, size if subsample_size is None else subsample_size


def _step(entry):
    return next((str(getattr(entry, a)) for a in ("key", "name", "idx") if hasattr(entry, a)), str(entry))


class _Within:
    """``function`` under ``handler``, which stays entered elsewhere too."""

    def __init__(self, handler, function):
        self.handler, self.function = handler, function

    def __call__(self, *args):
        inner = _Abstracted(self.handler.key, self.handler.may_draw_keys, self.handler.known)
        inner.__dict__.update(self.handler.__dict__)
        inner.fn = None
        with inner:
            return self.function(*args)


_OURS = ("/numpyro/", "/jax/", "/vinb/analysis/", "/contextlib.py", "/functools.py")


def _user_line() -> tuple[str, bool]:
    """Where in the user's program a site stands, and whether an automatic guide has written it."""
    frame, automatic = sys._getframe(1), False
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        automatic |= file.endswith("numpyro/infer/autoguide.py")
        if not any(part in file for part in _OURS):
            return place(file, frame.f_lineno, frame.f_code.co_name), automatic
        frame = frame.f_back
    return "an unknown line", automatic


def _site_info(name, site, handler) -> SiteInfo:
    fn, infer = site["fn"], site["infer"]
    base = unwrap(fn)
    return SiteInfo(
        name,
        base,
        bool(site["is_observed"]),
        jnp.shape(site["value"]),
        fn.event_dim,
        bool(infer.get("is_auxiliary")),
        infer.get("enumerate") == "parallel",
        handler.lines.get(name, "an unknown line"),
        name in handler.automatic,
        any(mask is False for mask in masks_of(fn)),
        *support_kind(base),
        static_interval(base),
        bool(base.is_discrete),
        not jnp.issubdtype(jnp.result_type(site["value"]), jnp.inexact),
    )


# ---- outputs


def _site_outputs(name, site, densities) -> dict[tuple, Any]:
    """By ``(site, what)``: its log density, its value, its distribution's arguments and ends of support, its scale and masks."""
    fn, value = site["fn"], site["value"]
    base, outputs = unwrap(fn), {(name, "value"): value}
    outputs[name, "density"] = _log_density(name, fn, value, site.get("scale"), densities)
    for argument, (array, _) in given_arguments(base).items():
        outputs[name, "argument", argument] = array
    for side, bound in support_ends(base).items():
        outputs[name, side] = bound
    if site.get("scale") is not None:
        outputs[name, "scale"] = site["scale"]
    for k, mask in enumerate(masks_of(fn)):
        outputs[name, "mask", k] = mask
    return outputs


def given_arguments(base: Distribution) -> dict[str, tuple[Any, Distribution]]:
    """The arguments of a distribution that are arrays, each with the distribution that declares it."""
    given = {}
    for prefix, owner in owners(base):
        for name in type(owner).arg_constraints:
            # Two distributions compute an argument back from others.
            array = getattr(owner, name) if name == "mean" else vars(owner).get(name)
            if array is not None and is_numeric(array):
                given.setdefault(prefix + name, (array, owner))
    return given


def _is_whole(base, leaves, structure) -> bool:
    return (
        type(base).__module__.startswith(("numpyro.", "vinb."))
        or vars(structure.unflatten(leaves)).keys() >= vars(base).keys()
    )


def _log_density(name, fn, value, scale, densities):
    if scale is not None:
        return jnp.sum(jnp.asarray(scale)) * _log_density(name, fn, value, None, densities)
    if isinstance(fn, MaskedDistribution):
        if fn._mask is False:
            return jnp.zeros(())
        inner = _log_density(name, fn.base_dist, value, None, densities)
        return inner if fn._mask is True else jnp.where(jnp.all(fn._mask), inner, 0.0)
    if isinstance(fn, WRAPPERS):
        return _log_density(name, fn.base_dist, value, None, densities)
    return opaque_density(name, fn, value, densities)


_calls: contextvars.ContextVar[dict[str, DensityCall] | None] = contextvars.ContextVar(
    "density calls", default=None
)


@contextlib.contextmanager
def opaque_densities():
    """Within it :func:`log_prob_of` makes calls that the interpreter can tell from others; yields the dict of them by name."""
    calls: dict[str, DensityCall] = {}
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def log_prob_of(base: Distribution, value):
    """``base.log_prob(value)``, for whoever is traced within :func:`opaque_densities`."""
    calls = _calls.get()
    return base.log_prob(value) if calls is None else opaque_density("", base, value, calls, total=False)


def divergence_of(first: Distribution, second: Distribution):
    """NumPyro's ``kl_divergence``, for whoever is traced within :func:`opaque_densities`."""
    calls = _calls.get()
    if calls is None:
        return kl_divergence(first, second)
    fns = unwrap(first), unwrap(second)
    given = [given_arguments(fn) for fn in fns]
    leaves, structure = jax.tree.flatten((first, second))

    def divergence(arguments, leaves):
        return kl_divergence(*structure.unflatten(leaves))

    arguments = [array for named in given for array, _ in named.values()]
    call = DivergenceCall(fns, tuple(tuple(named) for named in given))
    return _as_call(divergence, call, calls)(*jax.tree.map(jnp.asarray, (arguments, leaves)))


def _as_call(fn, call, calls):
    """``fn`` as a call that has its entry in ``calls``."""
    label = f"{_CALL}{len(calls)}"
    fn.__name__ = fn.__qualname__ = label
    calls[label] = call
    return jax.jit(fn)


def opaque_density(name: str, base: Distribution, value, densities: dict[str, DensityCall], *, total=True):
    """``base.log_prob(value)`` as a call that the interpreter can tell from others; its sum, if ``total``."""
    arguments, ends = given_arguments(base), support_ends(base)
    leaves, structure = jax.tree.flatten(base)
    # A distribution of one's own may hold what it does not declare: then its arrays stay where they are.
    rebuilt = structure.unflatten if _is_whole(base, leaves, structure) else lambda leaves: base

    known = signature_of(base) is not None

    def log_prob(arguments, ends, leaves, value):
        if total and known:
            return jnp.zeros(())  # nobody looks inside
        densities_of = rebuilt(leaves).log_prob(value)
        return jnp.sum(densities_of) if total else densities_of

    arrays = [[array for array, _ in arguments.values()], list(ends.values()), leaves]
    call = DensityCall(name, base, tuple(arguments), tuple(ends))
    try:
        return _as_call(log_prob, call, densities)(*jax.tree.map(jnp.asarray, arrays), value)
    except NotImplementedError:  # a flow that cannot be inverted, say
        call = call._replace(computable=False)
        return _as_call(lambda *_: jnp.zeros(()), call, densities)(*jax.tree.map(jnp.asarray, arrays), value)


# ---- Python branches


class _Branching:
    def __init__(self, trace, decisions, limit):
        self.trace, self.decisions, self.limit = trace, decisions, limit
        self.made, self.predicates = [], []

    def decide(self, tracer) -> bool:
        if tracer._trace is not self.trace:
            raise jax.errors.TracerBoolConversionError(tracer)
        for known, truth in zip((p for p, _ in self.predicates), self.made, strict=True):
            if known is tracer:
                return truth
        k = len(self.made)
        if k >= self.limit:
            raise TooManyPaths(f"the program branches on its draws more than {self.limit} times in one run")
        truth = self.decisions[k] if k < len(self.decisions) else True
        self.made.append(truth)
        self.predicates.append((tracer, _user_line()[0]))
        return truth


@contextlib.contextmanager
def _branching(key, decisions, limit):
    """Let Python branch on abstract booleans as ``decisions`` say, and the way of True after them."""
    branching = _Branching(getattr(key, "_trace", None), decisions, limit)
    if Tracer is None or not hasattr(Tracer, "__bool__") or branching.trace is None:  # pragma: no cover
        yield branching  # a branch raises, as without us
        return
    original = Tracer.__bool__

    def decide(tracer):
        if getattr(tracer, "ndim", None) == 0 or getattr(tracer, "size", None) == 1:
            return branching.decide(tracer)
        return original(tracer)

    Tracer.__bool__ = decide
    try:
        yield branching
    finally:
        Tracer.__bool__ = original


def _impossible(path: Path) -> bool:
    """Does a branch that depends on the data alone go the other way?"""
    for k, decision in enumerate(path.decisions):
        known = concrete(path, ("branch", k))
        if known is not None and bool(np.all(known)) != decision:
            return True
    return False


def concrete(path: Path, output: tuple) -> np.ndarray | None:
    """The value of an output that follows from the program's arguments alone; None for one that does not."""
    jaxpr = path.jaxpr.jaxpr
    wanted = jaxpr.outvars[path.outputs[output]]
    pending, needed = [wanted], set()
    while pending:
        atom = pending.pop()
        if isinstance(atom, Literal) or atom in path.constants:
            continue
        k = path.producers.get(atom)
        if k is None or k in path.tagged:  # the key, or something that is drawn or learnt
            return None
        if k not in needed:
            needed.add(k)
            pending.extend(jaxpr.eqns[k].invars)
    part = jaxpr.replace(invars=[], outvars=[wanted], eqns=[jaxpr.eqns[k] for k in sorted(needed)])
    with jax.ensure_compile_time_eval():
        return np.asarray(jaxpr_as_fun(ClosedJaxpr(part, path.jaxpr.consts))()[0])


def _has_tags(jaxpr):
    return any(
        eqn.primitive.name == "tag" or any(map(_has_tags, inner_jaxprs(eqn.params))) for eqn in jaxpr.eqns
    )
