"""How one random choice is differentiated: the strategies, and the handler that chooses them from outside a program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions import Delta, Distribution, TransformedDistribution, constraints
from numpyro.primitives import Messenger

from vinb.estimators import boundaries, measure_valued, pathwise, relaxations
from vinb.estimators.checks import check_count
from vinb.estimators.elements import unwrap


class Strategy:
    """How the gradient of an expectation passes through a sample site. Give one at the site, ``infer={"gradient": ...}``, or
    from outside with :class:`strategies`.

    For a strategy of your own that acts at the site alone, subclass :class:`Inline`; for another weak derivative,
    :class:`MeasureValued`; for another control variate, write a baseline for :class:`ScoreFunction`.
    """

    biased = False

    def __str__(self):
        return type(self).__name__

    def refusal(self, fn: Distribution) -> str | None:
        """Why the strategy has no rule for a site with distribution ``fn``, completing "site 'z' is Gamma, ..."; None if it has."""
        return None


class Inline(Strategy):
    """A strategy that is all in the value it returns."""

    def draw(self, fn: Distribution, key: jax.Array, sample_shape: tuple[int, ...]) -> Array:
        """A sample of ``fn`` whose derivative carries the gradient; ``sample_shape`` in front of ``fn``'s own shape."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pathwise(Inline):
    """Differentiate the sample itself: explicit or implicit reparameterisation (kingma2014aevb; figurnov2018implicit).

    Needs a reparameterised distribution, and a cost that is continuous in the sample: that is not checked here.
    """

    def refusal(self, fn):
        if pathwise.is_reparameterised(fn):
            return None
        return (
            f"which has no reparameterised sampler, so Pathwise() would lose its gradient; use {_instead(fn)}"
        )

    def draw(self, fn, key, sample_shape):
        return pathwise.sample(fn, key, sample_shape)


@dataclass(frozen=True)
class Auto(Strategy):
    """``Pathwise`` where that is shown to be right, something else where it is not (lee2023smoothness).

    A site becomes pathwise if it is reparameterised and the cost, the densities of all sites that are not pathwise and what
    the pathwise sites after it are made of are locally Lipschitz in it: ``vinb.analysis`` proves it of the program's jaxpr.
    Any other site is enumerated where its support is small, and has the score function otherwise. ``explain`` says why.
    ``"auto"`` is short for it.
    """


@dataclass(frozen=True)
class PathwiseWithBoundaries(Inline):
    """``Pathwise`` for costs that jump, plus what it loses there: an integral over each boundary (lee2018reparamnondiff).

    For sites made of Gaussian noise (normals of any covariance, affine transformations of them), in programs whose branches
    compare values that are affine in these draws, directly or through linear layers. The boundaries are found in the
    program itself, in ``jnp.where``, comparisons, ``sign``, ``lax.cond`` and loops; a branch of another kind is refused with
    its line. All sites of the program must be pathwise. Each boundary takes two runs of the program without derivatives.

    Args:
        num_boundaries: boundaries drawn at random for each estimate (with replacement); None takes all. Few of many make
            the gradient heavy-tailed. Sites with this strategy in one program must agree on it.

    Second derivatives are refused. Conditions under which the gradient is unbiased, not checked when it is computed: away from the
    boundaries the cost is differentiable and dominated (no denominator, logarithm or power crosses zero there: ``explain`` says so
    where that is not shown); it is finite on both sides of each boundary.
    """

    num_boundaries: int | None = None

    def __post_init__(self):
        if self.num_boundaries is not None:
            check_count(self.num_boundaries, "num_boundaries")

    def refusal(self, fn):
        if boundaries.is_gaussian(fn):
            return None
        return f"whose draws are no function of Gaussian noise that {self} knows; use {_instead(fn)}"

    def draw(self, fn, key, sample_shape):
        return boundaries.push(fn, boundaries.noise_of(fn, key, sample_shape), sample_shape)


@dataclass(frozen=True)
class ScoreFunction(Strategy):
    """Multiply the cost that follows the site by the derivative of the site's log density (REINFORCE).

    Args:
        baseline: None, or one of ``Constant``, ``MovingAverage``, ``Network`` and ``LeaveOneOut``: subtracted from the cost, it
            lowers the variance and leaves the mean alone.
    """

    baseline: Any = None

    def __str__(self):
        return "ScoreFunction" if self.baseline is None else f"ScoreFunction, {type(self.baseline).__name__}"

    def refusal(self, fn):
        if not _law_moves(unwrap(fn)):
            return None
        return (
            "whose support has ends that are computed and may depend on parameters: the score would miss what enters and leaves "
            "there. Use Pathwise(), or give the ends as plain numbers if they are constant"
        )


@dataclass(frozen=True)
class Enumerate(Strategy):
    """Sum over all values: exact, at the cost of one run per value, or per combination of those that interact."""

    def refusal(self, fn):
        if support_size(fn) is not None:
            return None
        return f"whose values cannot be enumerated; use {_instead(fn)}"


@dataclass(frozen=True)
class MeasureValued(Strategy):
    """Differences of the cost between coupled alternative values (weak derivatives; lew2023adev).

    A subclass may bring rules of its own by overriding both methods.
    """

    def refusal(self, fn):
        if measure_valued.supports(unwrap(fn)):
            return None
        return f"for which {self} has no rule; use {_instead(fn)}"

    def derivatives(
        self, fn: Distribution, value: Array, key: jax.Array
    ) -> tuple[measure_valued.Derivative, ...]:
        """See ``vinb.estimators.measure_valued.derivatives``; ``fn`` is the distribution of one element of the site."""
        return measure_valued.derivatives(fn, value, key)


@dataclass(frozen=True)
class StraightThrough(Inline):
    """Discrete sample, differentiated as if it were its probability. BIASED."""

    biased = True

    def refusal(self, fn):
        return _no_relaxation(self, fn)

    def draw(self, fn, key, sample_shape):
        return relaxations.straight_through(fn, key, sample_shape)


@dataclass(frozen=True)
class GumbelSoftmax(Inline):
    """A continuous relaxation of the discrete sample. BIASED, in value and gradient.

    Args:
        temperature: positive; the bias goes to zero with it, and the variance of the gradient to infinity.
    """

    temperature: float = 0.5
    biased = True

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def refusal(self, fn):
        return _no_relaxation(self, fn)

    def draw(self, fn, key, sample_shape):
        return relaxations.gumbel_softmax(fn, key, sample_shape, self.temperature)


def support_size(fn: Distribution) -> int | None:
    """The number of values of one element, if they can be enumerated."""
    base = unwrap(fn)
    if not base.has_enumerate_support:
        return None
    try:
        return jax.eval_shape(lambda: support_values(base)).shape[0]
    except (NotImplementedError, jax.errors.ConcretizationTypeError):
        return None


def support_values(base: Distribution) -> Array:
    """The values that one element can take, [values, *event]."""
    support = base.enumerate_support(expand=False)
    return jnp.reshape(support, (support.shape[0], *base.event_shape))


def _instead(fn):
    """What does have a rule."""
    options = ["Pathwise()"] if pathwise.is_reparameterised(fn) else []
    options += ["Enumerate()"] if support_size(fn) is not None else []
    options += ["MeasureValued()"] if measure_valued.supports(unwrap(fn)) else []
    return " or ".join([*options, "ScoreFunction()"])


def _no_relaxation(strategy, fn):
    if relaxations.supports(fn):
        return None
    hint = ""
    if getattr(unwrap(fn), "has_enumerate_support", False):
        hint = " (for a categorical choice there is vinb.distributions.OneHotCategorical)"
    return f"for which {strategy} has no rule; use {_instead(fn)}{hint}"


def _law_moves(base):
    """May the set of possible values depend on parameters?"""
    if isinstance(base, Delta):
        return isinstance(base.v, jax.core.Tracer)
    if type(base) is TransformedDistribution and base.base_dist.support is not constraints.real:
        # NumPyro gives it the support of the transforms' codomain, whatever part of it the base reaches.
        return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(base.transforms))
    return _support_moves(base.support)


def _support_moves(support):
    ends = jax.tree.leaves([getattr(support, name, None) for name in ("lower_bound", "upper_bound")])
    if hasattr(support, "base_constraint"):
        return _support_moves(support.base_constraint)
    return any(isinstance(end, jax.core.Tracer) and jnp.issubdtype(end.dtype, jnp.floating) for end in ends)


class strategies(Messenger):
    """Choose gradient strategies by site name, from outside a program; stronger than what is written at the sites.

    Args:
        fn: a NumPyro program; or use the handler as a context.
        choice: a mapping from site name to :class:`Strategy`, or a function from a site name to one or None, or ``"auto"`` for
            :class:`Auto` at all sites that have no strategy of their own.

    Raises:
        TypeError: if a value is not a strategy.
        ValueError: when ``fn`` has run without a site of a name in the mapping.
    """

    def __init__(
        self,
        fn: Callable | None = None,
        choice: Mapping[str, Strategy] | Callable[[str], Strategy | None] | None = None,
    ):
        if choice == "auto":
            choice = _auto
        if not callable(choice) and not isinstance(choice, Mapping):
            raise TypeError(f"choice must map site names to strategies, or be 'auto', got {choice!r}")
        if isinstance(choice, Mapping):
            for name, strategy in choice.items():
                check_strategy(name, strategy)
        self.choice = choice
        self.shared = None
        super().__init__(fn)

    def __enter__(self):
        self.seen = set() if self.shared is None else self.shared
        return super().__enter__()

    def again(self):
        """The same choice, to be entered in another place of the stack while this one is entered."""
        inner = strategies(choice=self.choice if callable(self.choice) else self.choice.get)
        inner.shared = self.seen
        return inner

    def __exit__(self, exc_type, exc_value, traceback):
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None and not callable(self.choice) and (unknown := set(self.choice) - self.seen):
            raise ValueError(
                f"choice names {sorted(unknown)}, but the program has no such sample sites; it has {sorted(self.seen)}"
            )

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            # Sites in a loop or a branch do not pass here before they are drawn.
            bodies = (0,) if msg["fn"] is scan_wrapper else (1, 2)
            msg["args"] = tuple(_Within(self, a) if k in bodies else a for k, a in enumerate(msg["args"]))
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        self.seen.add(msg["name"])
        chosen = self.choice(msg["name"]) if callable(self.choice) else self.choice.get(msg["name"])
        if self.choice is _auto and "gradient" in msg["infer"]:
            return
        if chosen is not None:
            check_strategy(msg["name"], chosen)
            msg["infer"] = {**msg["infer"], "gradient": chosen}


def _auto(name):
    return Auto()


class _Within:
    """``function`` under ``handler``, which stays entered elsewhere too."""

    def __init__(self, handler, function):
        self.handler, self.function = handler, function

    def __call__(self, *args):
        with self.handler.again():
            return self.function(*args)


def check_strategy(name: str, strategy: Any) -> None:
    """Raise if ``strategy`` is none."""
    if strategy == "auto":
        return
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        raise TypeError(
            f"the strategy of site {name!r} is the class {strategy.__name__}; pass {strategy.__name__}()"
        )
    if not isinstance(strategy, Strategy):
        known = (
            Auto,
            Pathwise,
            PathwiseWithBoundaries,
            ScoreFunction,
            Enumerate,
            MeasureValued,
            StraightThrough,
            GumbelSoftmax,
        )
        names = ", ".join(f"{c.__name__}()" for c in known)
        raise TypeError(f"the strategy of site {name!r} is {strategy!r}; pass one of {names}")
