"""Random model-guide pairs with known answers to "can the guide draw what the model excludes?".

:func:`generate` writes the source of a pair, block by block. A block knows the supports that it writes, so the truth comes from its
construction; nothing is run or analysed. :func:`witness` runs a pair, to find out whether a truth can be right.

``VALID``: for all values that the constraints of the parameters admit and almost all draws of the guide, all sites of the model
have a positive density, and names, shapes, event dimensions and plates agree. ``INVALID``: not so. ``ERROR``: a program is wrong in
itself. A case is ``decidable`` if intervals of single parameters, constants and structure suffice to tell.

Import it from a test as ``import _support_fuzz``: pytest puts ``tests/`` on the path.
"""

import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import constraints, transforms
from numpyro.infer import autoguide, reparam

VALID, INVALID, ERROR = "VALID", "INVALID", "ERROR"
INF = float("inf")


@dataclass(frozen=True)
class Case:
    """A pair, its arguments, whether enumeration is on, and what is true of it; ``describe`` shows all of that."""

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]
    truth: str
    decidable: bool
    describe: str
    enum: bool = False


@dataclass
class Pair:
    """The source of a pair as it grows. ``side`` is ``model``, ``guide`` or ``both``."""

    rng: np.random.Generator
    enum: bool
    lines: dict = field(default_factory=lambda: {"model": [], "guide": []})
    count: int = 0
    scalars: list = field(
        default_factory=list
    )  # scalar sites in both programs, to be used in later expressions
    reals: list = field(default_factory=list)  # those among them that are Normal in both
    data: dict = field(default_factory=dict)  # arguments of both programs
    automatic: str = ""  # an autoguide instead of a written one

    def name(self, letter):
        self.count += 1
        return f"{letter}{self.count}"

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def chance(self, p):
        return self.rng.random() < p

    def number(self, low, high):
        """A multiple of a quarter, so that sums and products in float32 are exact."""
        return float(self.rng.integers(round(low * 4), round(high * 4) + 1)) / 4

    def write(self, side, text):
        for one in ("model", "guide") if side == "both" else (side,):
            self.lines[one] += textwrap.dedent(text).strip("\n").split("\n")

    def sample(self, side, name, law, end=""):
        self.write(side, f'{name} = numpyro.sample("{name}", {law}{end})')

    def observe(self, name, law, data):
        self.sample("model", name, law, f", obs={data}")

    # Expressions

    def param(self, side, init, constraint="real"):
        name = self.name("a")
        end = "" if constraint == "real" else f", constraint=constraints.{constraint}"
        self.write(side, f'{name} = numpyro.param("{name}", {init}{end})')
        return name

    def positive(self, side):
        return self.param(side, self.pick(0.5, 1.0, 2.0), "positive")

    def real(self, side):
        return self.param(side, self.pick(-1.0, 0.0, 0.5))

    def loc(self, side):
        """A real expression, perhaps of a parameter or an earlier site."""
        z = self.pick(*self.scalars) if self.scalars else "0.25"
        k = self.number(-2, 2)
        known = (self.real(side),) if self.chance(0.2) else ()
        return self.pick(k, k, *known, z, f"jnp.tanh({z})", f"0.5 * {z} + 1.0", f"jax.jit(jnp.sin)({z})")

    def scale(self, side):
        """A positive expression."""
        z = self.pick(*self.scalars) if self.scalars else "0.25"
        k = self.number(0.25, 3)
        if self.chance(0.2):
            return self.positive(side)
        if self.chance(0.2):
            return f"jnp.exp({self.real(side)})"
        return self.pick(k, k, k, f"jax.nn.softplus({z})", f"(0.5 + {z} ** 2)")

    def between(self, side, low, high):
        """An expression whose values, over all parameters, fill ``(low, high)`` up to its ends."""
        width, q, r = high - low, self.positive, self.real
        if low == high:
            return str(low)
        if low == -INF and high == INF:
            return r(side)
        if high == INF:
            if self.chance(0.2):
                return self.param(side, low + 1.0, f"greater_than({low})")
            if self.chance(0.5):
                return f"{low} + {self.pick('jnp.exp', 'jax.nn.softplus')}({r(side)})"
            return f"{low} + {q(side)}" + self.pick("", " ** 2")
        if low == -INF:
            return f"{high} - {q(side)}" if self.chance(0.5) else f"{high} - jnp.exp({r(side)})"
        if self.chance(0.2):
            return self.param(side, low + self.pick(0.25, 0.5, 0.75) * width, f"interval({low}, {high})")
        if self.chance(0.2):
            return f"{low} + {width} * {self.param(side, 0.5, 'unit_interval')}"
        if self.chance(0.4):
            x = r(side)
            return self.pick(
                f"{low} + {width} * jax.nn.sigmoid({x})",
                f"{low + width / 2} + {width / 2} * jnp.tanh({x})",
                f"jnp.clip({x}, {low}, {high})",
            )
        x = q(side)
        return self.pick(
            f"{low} + {width} / (1.0 + {x})",
            f"{high} - {width} * jnp.exp(-{x})",
            f"{low} + {width} * jnp.tanh({x})",
            f"jnp.minimum({low} + {x}, {high})",
            f"jnp.maximum({high} - {x}, {low})",
        )

    # Distributions with a given support

    def law(self, side, templates):
        """One of the templates, one a line, in which L is a real expression and S a positive one."""
        text = self.pick(*templates.split("\n"))
        return text.replace("§L", str(self.loc(side))).replace("§S", str(self.scale(side)))

    def on_line(self, side):
        return self.law(side, ON_LINE)

    def on_half_line(self, side):
        return self.law(side, ON_HALF_LINE)

    def on(self, side, low, high):
        """A distribution on the interval between two ends, each of them a pair: least and greatest value."""
        fixed = low[0] == low[1] and high[0] == high[1]
        a, b = low[0], high[0]
        if (a, b) == (-INF, INF):
            return self.on_line(side)
        if not fixed:
            lower, upper = self.between(side, *low), self.between(side, *high)
            if b == INF:
                return self.law(side, f"TruncatedNormal(§L, §S, low={lower})")
            if a == -INF:
                return self.law(side, f"TruncatedNormal(§L, §S, high={upper})")
            return self.law(
                side, f"Uniform({lower}, {upper})\nTruncatedNormal(§L, §S, low={lower}, high={upper})"
            )
        if (a, b) == (0, INF) and self.chance(0.8):
            return self.on_half_line(side)
        if (a, b) == (0, 1) and self.chance(0.7):
            return self.law(side, ON_UNIT_INTERVAL)
        if b == INF:
            return self.law(side, (ABOVE_POSITIVE if a > 0 else ABOVE).replace("§A", str(a)))
        if a == -INF:
            return self.law(side, BELOW.replace("§B", str(b)))
        templates = BETWEEN_POSITIVE if a > 0 else BETWEEN
        return self.law(side, templates.replace("§A", str(a)).replace("§B", str(b)).replace("§W", str(b - a)))

    # Sites in both programs

    def sites(self, model, guide, letter="x", scalar=0.6):
        """One latent site in both programs, a scalar or in one of many shapes."""
        name, k = self.name(letter), int(self.rng.integers(2, 5))
        shapes = ("expand", "event", "plate", "nested", "plate event", "ones")
        style = "scalar" if self.chance(scalar) else self.pick(*shapes)
        for side, text in (("model", model), ("guide", guide)):
            plate = f'with numpyro.plate("{name}_plate", {k}):\n    '
            plates = f'with numpyro.plate("{name}_rows", {k}, dim=-2), numpyro.plate("{name}_columns", 3, dim=-1):\n    '
            start, end = {
                "scalar": ("", ""),
                "expand": ("", f".expand([{k}])"),
                "ones": ("", f".expand([{self.pick('', '1, ')}{k}])"),  # leading ones make no difference
                "event": ("", f".expand([{k}]).to_event(1)"),
                "nested": (plates, ""),
                "plate": (plate, ""),
                "plate event": (plate, ".expand([2]).to_event(1)"),
            }[style]
            self.write(side, f'{start}{name} = numpyro.sample("{name}", {text}{end})')
        return name, style

    def common_real(self):
        """The name of a scalar site that is Normal in both programs."""
        if self.reals and self.chance(0.5):
            return self.pick(*self.reals)
        name = self.name("z")
        for side in ("model", "guide"):
            self.sample(side, name, f"Normal({self.loc(side)}, {self.scale(side)})")
        self.reals.append(name)
        self.scalars.append(name)
        return name


ON_LINE = """Normal(§L, §S)
Normal(§L, §S)
Cauchy(§L, §S)
Laplace(§L, §S)
StudentT(3.0, §L, §S)
Logistic(§L, §S)
Gumbel(§L, §S)
SoftLaplace(§L, §S)
AsymmetricLaplace(§L, §S, 2.0)
TransformedDistribution(Normal(§L, 1.0), AffineTransform(1.0, §S))"""
ON_HALF_LINE = """HalfNormal(§S)
HalfCauchy(§S)
Exponential(§S)
Gamma(§S, 1.5)
InverseGamma(2.0, §S)
LogNormal(§L, §S)
Weibull(§S, 2.0)
Chi2(§S)
FoldedDistribution(Normal(§L, §S))
TruncatedNormal(§L, §S, low=0.0)
TransformedDistribution(Normal(§L, §S), ExpTransform())
TransformedDistribution(HalfNormal(§S), AffineTransform(0.0, 2.0, domain=constraints.positive))"""
ON_UNIT_INTERVAL = """Beta(§S, 2.0)
Beta(1.5, §S)
Kumaraswamy(§S, 2.0)
BetaProportion(0.5, §S)
TransformedDistribution(Normal(§L, §S), SigmoidTransform())
Uniform(0.0, 1.0)
Uniform()"""
ABOVE = """TruncatedNormal(§L, §S, low=§A)
TransformedDistribution(HalfNormal(1.0), AffineTransform(§A, 1.5, domain=constraints.positive))
TransformedDistribution(Exponential(§S), AffineTransform(§A, 1.0, domain=constraints.positive))
TransformedDistribution(LogNormal(0.0, 1.0), AffineTransform(§A, 0.5, domain=constraints.positive))"""
ABOVE_POSITIVE = f"{ABOVE}\nPareto(§A, §S)"
BELOW = """TruncatedNormal(§L, §S, high=§B)
TransformedDistribution(Exponential(§S), AffineTransform(§B, -2.0, domain=constraints.positive))"""
BETWEEN = """Uniform(§A, §B)
Uniform(§A, §B)
TruncatedNormal(§L, §S, low=§A, high=§B)
TruncatedCauchy(§L, §S, low=§A, high=§B)
TransformedDistribution(Beta(2.0, 0.5), AffineTransform(§A, §W, domain=constraints.unit_interval))
TransformedDistribution(Normal(§L, §S), [SigmoidTransform(), AffineTransform(§A, §W, domain=constraints.unit_interval)])"""
BETWEEN_POSITIVE = f"{BETWEEN}\nLogUniform(§A, §B)"


# Blocks. Each takes a pair and the truth that is wanted, writes its lines and returns whether it is decidable; None if it cannot
# have that truth.


def ends(pair, want):
    """Ends of a model's support and of a guide's, included (``VALID``) or not. None if impossible."""
    core = pair.pick("line", "half", "half", "above", "below", "unit", "finite", "finite", "finite")
    low, high = {"line": (-INF, INF), "half": (0.0, INF), "unit": (0.0, 1.0)}.get(
        core, (pair.number(-3, 2), None)
    )
    if high is None:
        high = low + pair.number(0.75, 3)
        low, high = (-INF if core == "below" else low), (INF if core == "above" else high)
    middle = {"line": 0.0, "below": high - 1.5, "half": 1.5, "above": low + 1.5}.get(core, (low + high) / 2)

    def end(at, sign, inside):
        """An end of the guide's support; ``sign`` points to the outside."""
        if not np.isfinite(at):
            return at if pair.chance(0.4) else middle + sign * pair.number(1, 3)
        if not inside:
            return sign * INF if pair.chance(0.2) else at + sign * pair.number(0.25, 2)
        moved = at - sign * (0.0 if pair.chance(0.3) else pair.number(0.25, 1.5))
        return moved if (moved - middle) * sign > 0.2 else at

    outside = [False, False]
    if want == INVALID:
        finite = np.isfinite([low, high])
        if not finite.any():
            return None
        outside = list(finite)
        if finite.all() and pair.chance(0.8):
            outside[pair.rng.integers(2)] = False
    return (low, high), (end(low, -1, not outside[0]), end(high, 1, not outside[1]))


def learnt_ends(pair, low, high, outward):
    """Ranges of both ends. Over all parameters, the union (``outward=-1``) or the intersection (``+1``) is ``(low, high)``."""
    step = 0.25 * (high - low) if np.isfinite(high - low) else 0.75
    ranges = [(low, low), (high, high)]
    for i, (at, sign) in enumerate(((low, -1), (high, 1))):
        if np.isfinite(at) and pair.chance(0.4):
            other = at + sign * outward * (step if outward < 0 else pair.number(0.25, 2))
            ranges[i] = (min(at, other), max(at, other))
    return ranges


def interval(pair, want):
    """A continuous site: families, constant and learnt ends."""
    found = ends(pair, want)
    if found is None:
        return None
    model = pair.on("model", *learnt_ends(pair, *found[0], 1))
    guide = pair.on("guide", *learnt_ends(pair, *found[1], -1))
    name, style = pair.sites(model, guide)
    if want == VALID and style == "scalar":
        pair.scalars.append(name)
    return True


def learnt_model_ends(pair, want):
    """An end of the model's support is learnt over a whole half line, so that nothing is left for all parameters."""
    if want == VALID:
        return None
    a, form = pair.number(-1, 1), pair.rng.integers(3)
    if form == 0:
        model = f"Uniform({a}, {pair.between('model', a, INF)})"
        pair.sites(model, pair.on("guide", (a, a), (a + 1, a + 1)))
    elif form == 1:
        model = f"Uniform({pair.between('model', -INF, a)}, {a})"
        pair.sites(model, pair.on("guide", (a - 1, a - 1), (a, a)))
    else:
        pair.sites(f"TruncatedNormal(0.0, 1.0, low={pair.real('model')})", pair.on_half_line("guide"))
    return True


def discrete(pair, want):
    """Atoms: a set of consecutive integers in each program."""

    def law(side, low, high):
        if high == INF:
            return pair.law(side, COUNTS)
        if low > 0:
            return f"DiscreteUniform({low}, {high})"
        templates = f"{BITS}\n{UP_TO}" if high == 1 else UP_TO
        return pair.law(side, templates.replace("§N", str(high + 1)).replace("§H", str(high)))

    high = pair.pick(1, 1, 2, 3, 4, INF)
    low = 0 if high == INF else pair.pick(0, 0, 0, 1)
    high += low
    if want == VALID and high == INF:
        guide = 0, pair.pick(1, 2, 4, INF)
    elif want == VALID:
        top = int(pair.rng.integers(low + 1, high + 1))
        guide = (low if pair.chance(0.7) else int(pair.rng.integers(low, top))), top
    elif high == INF:
        return None
    elif low > 0 and pair.chance(0.5):
        guide = 0, high
    else:
        guide = low, pair.pick(high + 1, high + 2, INF if low == 0 else high + 1)
    pair.sites(law("model", low, high), law("guide", *guide), "n")
    return True


COUNTS = """Poisson(§S)
Geometric(0.25)
Geometric(logits=§L)
NegativeBinomial2(§S, 2.0)
GammaPoisson(2.0, §S)
ZeroInflatedPoisson(0.25, rate=§S)"""
UP_TO = """Categorical(probs=jnp.ones(§N) / §N)
Categorical(logits=jnp.linspace(-1.0, 1.0, §N) * §L)
Categorical(probs=jax.nn.softmax(jnp.arange(§N) * §L))
Binomial(§H, 0.25)
Binomial(§H, logits=§L)
BetaBinomial(1.5, §S, §H)
DiscreteUniform(0, §H)"""
BITS = """Bernoulli(0.25)
Bernoulli(0.75)
Bernoulli(logits=§L)
Bernoulli(logits=§L)
Bernoulli(probs=jax.nn.sigmoid(§L))
Bernoulli(probs=jax.nn.sigmoid(§L))"""


def table(text):
    """Rows ``truth: model | guide``, with a question mark in front of the hard ones, as a dict of lists."""
    rows = {VALID: [], INVALID: []}
    for line in text.strip().split("\n"):
        truth, _, row = line.partition(": ")
        rows[truth.strip("? ")].append((*row.split(" | "), not truth.startswith("?")))
    return rows


def from_table(rows, letter, scalar=0.6):
    """A block that writes a row of a table. In it, n is a size, and a, b are a real and a positive parameter of the guide."""

    def block(pair, want):
        if not rows[want]:
            return None
        model, guide, decidable = pair.pick(*rows[want])
        n = int(pair.rng.integers(2, 5))
        a = pair.real("guide") if "§a" in guide else ""
        b = pair.positive("guide") if "§b" in guide else ""
        for old, new in (("§n", n), ("§m", n - 1), ("§p", n + 1), ("§a", a), ("§b", b)):
            model, guide = model.replace(old, str(new)), guide.replace(old, str(new))
        pair.sites(model, guide, letter, scalar)
        return decidable

    return block


MEASURES = table("""
INVALID: Poisson(2.0) | HalfNormal(§b)
INVALID: Bernoulli(0.25) | Beta(1.0, §b)
INVALID: Geometric(0.5) | Uniform(0.0, 4.0)
INVALID: Normal(0.0, 1.0) | Poisson(§b)
INVALID: Laplace(0.0, 1.0) | Bernoulli(logits=§a)
INVALID: Gamma(1.0, 1.0) | Categorical(logits=jnp.zeros(§n))
INVALID: Normal(0.0, 1.0) | Delta(§a)
INVALID: Cauchy(0.0, 1.0) | Delta(0.5)
INVALID: Gamma(2.0, 1.0) | Delta(§b)
INVALID: Uniform(-1.0, 1.0) | Delta(jnp.tanh(§a))
? INVALID: Delta(0.5) | Normal(§a, 1.0)
""")
VECTORS = table("""
VALID: Dirichlet(jnp.ones(§n)) | Dirichlet(jnp.full(§n, §b))
VALID: Dirichlet(jnp.ones(§n)) | TransformedDistribution(Normal(jnp.zeros(§m), §b).to_event(1), StickBreakingTransform())
VALID: MultivariateNormal(jnp.zeros(§n), jnp.eye(§n)) | Normal(jnp.full(§n, §a), §b).to_event(1)
VALID: Normal(jnp.zeros(§n), 1.0).to_event(1) | MultivariateNormal(jnp.full(§n, §a), §b * jnp.eye(§n))
VALID: Normal(jnp.zeros(§n), 1.0).to_event(1) | LowRankMultivariateNormal(jnp.zeros(§n), jnp.ones((§n, 1)), jnp.full(§n, §b))
VALID: LKJCholesky(§n, 2.0) | LKJCholesky(§n, §b)
VALID: VonMises(0.0, 1.0) | VonMises(§a, §b)
VALID: Normal(0.0, 3.0) | VonMises(§a, §b)
? VALID: GaussianRandomWalk(1.0, §n) | Normal(jnp.full(§n, §a), §b).to_event(1)
? VALID: Normal(jnp.zeros(§n), 1.0).to_event(1) | TransformedDistribution(Normal(jnp.zeros(§n), §b).to_event(1), OrderedTransform())
? VALID: Multinomial(5, jnp.array([0.25, 0.25, 0.5])) | Multinomial(5, logits=jnp.arange(3) * §a)
INVALID: Dirichlet(jnp.ones(§n)) | Dirichlet(jnp.full(§p, §b))
INVALID: Dirichlet(jnp.ones(§n)) | Beta(1.0, §b).expand([§n]).to_event(1)
INVALID: Dirichlet(jnp.ones(§n)) | Normal(jnp.zeros(§n), §b).to_event(1)
INVALID: Normal(jnp.zeros(§n), 1.0).to_event(1) | Dirichlet(jnp.full(§n, §b))
INVALID: LKJCholesky(§n, 2.0) | Normal(jnp.zeros((§n, §n)), §b).to_event(2)
INVALID: LogNormal(jnp.zeros(§n), 1.0).to_event(1) | MultivariateNormal(jnp.full(§n, §a), jnp.eye(§n))
? INVALID: TransformedDistribution(Normal(jnp.zeros(3), 1.0).to_event(1), OrderedTransform()) | Normal(jnp.zeros(3), §b).to_event(1)
? INVALID: Multinomial(5, logits=jnp.zeros(3)) | Multinomial(4, logits=jnp.zeros(3))
""")
ATOMS = table("""
? VALID: Bernoulli(0.5) | Categorical(probs=jnp.array([0.5, 0.5, 0.0]))
? VALID: Categorical(probs=jnp.array([0.5, 0.5, 0.0])) | Bernoulli(0.25)
? VALID: Categorical(probs=jnp.array([0.5, 0.5, 0.0])) | Categorical(probs=jnp.array([0.25, 0.75, 0.0]))
? VALID: Binomial(3, 0.5) | Binomial(3, 1.0)
? VALID: Bernoulli(1.0) | Bernoulli(1.0)
? INVALID: Categorical(probs=jnp.array([0.5, 0.5, 0.0])) | Categorical(logits=jnp.arange(3) * §a)
? INVALID: Categorical(probs=jnp.array([0.0, 0.5, 0.5])) | Bernoulli(0.25)
? INVALID: Bernoulli(1.0) | Bernoulli(logits=§a)
? INVALID: Bernoulli(0.0) | Bernoulli(0.5)
? INVALID: Binomial(3, 1.0) | Binomial(3, 0.5)
""")
MIXTURES = table("""
? VALID: Normal(0.0, 3.0) | MixtureSameFamily(WEIGHTS, Normal(jnp.array([-1.0, 1.0]), §b))
? VALID: MixtureSameFamily(WEIGHTS, Normal(jnp.array([-1.0, 1.0]), 0.5)) | Laplace(§a, 1.0)
? VALID: MixtureGeneral(WEIGHTS, [HalfNormal(1.0), Normal(0.0, 1.0)], support=constraints.real) | Normal(§a, 1.0)
? VALID: HalfNormal(1.0) | MixtureSameFamily(WEIGHTS, LogNormal(jnp.zeros(2), §b))
? VALID: GAP | Uniform(0.25, 1.0)
? VALID: Uniform(0.0, 3.0) | GAP
? INVALID: HalfNormal(1.0) | MixtureSameFamily(WEIGHTS, Normal(jnp.array([-1.0, 1.0]), §b))
? INVALID: GAP | Uniform(0.0, 3.0)
? INVALID: MixtureGeneral(WEIGHTS, [HalfNormal(1.0), HalfNormal(2.0)], support=constraints.real) | Normal(0.0, §b)
? INVALID: Uniform(0.0, 2.0) | GAP
""")
measures = from_table(MEASURES, "x")
vectors = from_table(VECTORS, "v", scalar=1)
atoms_of_no_probability = from_table(ATOMS, "n")
mixtures = from_table(MIXTURES, "m", scalar=1)


def names(pair, want):
    """Missing, additional, auxiliary, renamed, observed and reparameterised sites."""
    name = pair.name("s")
    reparameterised = (
        f'{name} = numpyro.handlers.reparam(lambda: numpyro.sample("{name}", Normal({pair.loc("model")}, 2.0)), '
        f'config={{"{name}": reparam.LocScaleReparam(0.0)}})()'
    )
    if want == VALID:
        form = pair.rng.integers(4)
        if form == 0:
            pair.sample("guide", name, pair.on_line("guide"), ', infer={"is_auxiliary": True}')
        elif form == 1:
            side, z = pair.pick("model", "guide", "both"), pair.common_real()
            pair.write(side, f'numpyro.deterministic("{name}", jnp.exp({z}))')
        elif form == 2:
            pair.observe(name, f"Normal({pair.loc('model')}, 1.0)", "jnp.asarray(0.5)")
        else:
            pair.write("model", reparameterised)
            pair.sample("guide", f"{name}_decentered", pair.on_line("guide"))
        return True
    form = pair.rng.integers(5)
    if form == 0:
        pair.sample("model", name, pair.on_line("model"))
    elif form == 1:
        pair.sample("guide", name, pair.on_line("guide"))
    elif form == 2:
        pair.observe(name, "Normal(0.0, 1.0)", "jnp.asarray(0.5)")
        pair.sample("guide", name, "Normal(0.0, 1.0)")
    elif form == 3:
        pair.sample("model", name, pair.on_half_line("model"))
        pair.sample("guide", f"{name}_renamed", pair.on_half_line("guide"))
    else:
        pair.write("model", reparameterised)
        pair.sample("guide", name, pair.on_line("guide"))
    return True


def shapes(pair, want):
    """Shapes and event dimensions, written in different ways."""
    name = pair.name("h")
    law = pair.pick("Normal({}, 1.0)", "LogNormal({}, 0.5)", "Laplace({}, 2.0)")

    def written(dims, events):
        text = (
            law.format(f"jnp.zeros({tuple(dims)})")
            if pair.chance(0.5)
            else f"{law.format('0.0')}.expand({dims})"
        )
        first = int(pair.rng.integers(events + 1))  # to_event in one step or two
        return text + "".join(f".to_event({k})" for k in (first, events - first) if k)

    dims = [int(n) for n in pair.rng.integers(2, 4, size=pair.rng.integers(1, 4))]
    events = int(pair.rng.integers(0, len(dims) + 1))
    other, other_events = dims, events
    if want == VALID:
        if pair.chance(0.2) and events < len(dims):
            other = [1, *dims]
    elif pair.chance(0.5):
        other_events = pair.pick(*(k for k in range(len(dims) + 1) if k != events))
    elif len(dims) > 1 and dims != dims[::-1] and pair.chance(0.3):
        other = dims[::-1]
    else:
        at = pair.rng.integers(len(dims))
        other = [n + int(i == at) for i, n in enumerate(dims)]
    pair.sample("model", name, written(dims, events))
    pair.sample("guide", name, written(other, other_events))
    return True


def plates(pair, want):
    """Plates with and without subsampling."""
    name, plate, outer = pair.name("p"), pair.name("plate"), pair.name("plate")
    size, part = int(pair.rng.integers(6, 12)), int(pair.rng.integers(2, 5))

    def inside(side, *sizes, loc="0.0"):
        sizes = ", ".join(map(str, sizes))
        pair.write(
            side,
            f'with numpyro.plate("{plate}", {sizes}):\n    {name} = numpyro.sample("{name}", Normal({loc}, 1.0))',
        )

    if want == VALID:
        form = pair.rng.integers(6)
        if form == 0:
            inside("model", size, part)
            inside("guide", size, part, loc=pair.real("guide"))
        elif form == 1:  # a minibatch of observations
            seen = f'numpyro.sample("{name}", Normal({pair.common_real()}, 1.0), obs=jnp.zeros({part}))'
            pair.write("model", f'with numpyro.plate("{plate}", {size}, {part}):\n    {seen}')
        elif form == 2:
            inside("model", size)
            pair.sample("guide", name, f"Normal(jnp.zeros({size}), 1.0)")
            return False
        elif form == 3:
            pair.write("model", f'with numpyro.plate("{plate}", {size}):\n    pass')
        elif form == 4:  # local parameters of all data, of which the plate takes a part
            inside("model", size, part)
            inside("guide", size, part, loc=f'numpyro.param("{name}_loc", jnp.zeros({size}), event_dim=0)')
        else:
            for side, loc in (("model", "0.0"), ("guide", pair.real("guide"))):
                text = f"""
                with numpyro.plate("{outer}", {size}, {part}):
                    {name} = numpyro.sample("{name}", Normal({loc}, 1.0))
                    with numpyro.plate("{plate}", 3):
                        {name}_in = numpyro.sample("{name}_in", Normal({name}, 1.0))
                """
                pair.write(side, text)
        return True
    form = pair.rng.integers(6)
    if form < 3:
        both = (((size,), (size + 1,)), ((size, part), (size, part + 1)), ((size, part), (size + 1, part)))[
            form
        ]
        inside("model", *both[0])
        inside("guide", *both[1])
    elif form == 3:
        inside("guide", size)
        pair.sample("model", name, f"Normal(jnp.zeros({size}), 1.0)")
    elif form == 4:  # scaled in the model, not in the guide
        inside("model", size, part)
        pair.sample("guide", name, f"Normal(jnp.zeros({part}), 1.0)")
        return False
    else:
        inside("model", size)
        inside("guide", size, part)
    return True


def enumerated(pair, want):
    """A discrete site that the model marks for enumeration and the guide leaves out."""
    if want == VALID and not pair.enum:
        return None
    name, k = pair.name("k"), int(pair.rng.integers(2, 4))
    marked = want == VALID or not pair.enum
    law = pair.pick(f"Categorical(logits=jnp.zeros({k}))", f"Categorical(jnp.ones({k}) / {k})")
    pair.sample("model", name, law, ', infer={"enumerate": "parallel"}' if marked else "")
    pair.observe(f"{name}_seen", f"Normal(jnp.arange({k}.0)[{name}], 1.0)", "jnp.asarray(0.3)")
    return True


def scans(pair, want):
    """Sites in numpyro's scan; c is the previous value."""
    name, step, n = pair.name("t"), pair.name("step"), int(pair.rng.integers(3, 6))
    laws = (
        ("Normal(0.0, 1.0)", "Normal(c, 1.0)", "Laplace(0.5 * c, 1.0)"),
        ("HalfNormal(1.0)", "LogNormal(0.1 * c, 1.0)", "Gamma(2.0, 1.0)"),
        ("Uniform(0.0, 1.0)", "Beta(1.0, 2.0)", "Beta(1.0 + c**2, 1.0)"),
    )

    def written(side, kind, length):
        text = f"""
        def {step}(c, _):
            {name} = numpyro.sample("{name}", {pair.pick(*laws[kind])})
            return {name}, None
        scan({step}, 0.5, None, length={length})
        """
        pair.write(side, text)

    kind = int(pair.rng.integers(3))
    written("model", kind, n)
    if want == VALID:
        inner = int(pair.rng.integers(kind, 3))
        if pair.chance(0.2):
            pair.sample("guide", name, f"{laws[inner][0]}.expand([{n}])")
            return False
        written("guide", inner, n)
    elif kind == 0 or pair.chance(0.4):
        written("guide", kind, n + pair.pick(-1, 1))
    else:
        written("guide", int(pair.rng.integers(0, kind)), n)
    return True


def conds(pair, want):
    """A site in both branches of numpyro's cond (which wants one family in both)."""
    name, yes, no, z = pair.name("c"), pair.name("yes"), pair.name("no"), pair.common_real()

    def written(side, true, false):
        text = f"""
        def {yes}(_):
            return numpyro.sample("{name}", {true})
        def {no}(_):
            return numpyro.sample("{name}", {false})
        {name} = cond({z} > 0, {yes}, {no}, None)
        """
        pair.write(side, text)

    form = pair.rng.integers(4)
    if form == 0:
        written("model", "LogNormal(1.0, 1.0)", "LogNormal(-1.0, 2.0)")
        pair.sample("guide", name, pair.on_half_line("guide") if want == VALID else pair.on_line("guide"))
        return True
    if form == 1 and want == VALID:
        written("model", "Normal(1.0, 1.0)", "Normal(-1.0, 2.0)")
        written("guide", "Normal(0.5, 1.0)", f"Normal({z}, 1.0)")
        return True
    a, b = pair.number(1, 2), pair.number(2.5, 4)
    first, second = pair.pick((a, b), (b, a))
    if form < 3:
        written("model", f"Uniform(0.0, {first})", f"Uniform(0.0, {second})")
        pair.sample("guide", name, f"Uniform(0.0, {a if want == VALID else b})")
    else:
        pair.sample("model", name, f"Uniform(0.0, {b if want == VALID else a})")
        written("guide", f"Uniform(0.0, {first})", f"Uniform(0.0, {second})")
    return False


def branches(pair, want):
    """A branch in Python on a latent value."""
    name, z = pair.name("w"), pair.common_real()
    test = pair.pick(f"{z} > 0", f"{z} > 0.5", f"jnp.sin({z}) < 0")
    line, half, unit = "Normal(0.0, 1.0)", "Gamma(2.0, 1.0)", "Beta(1.0, 2.0)"

    def written(side, true, false, test=test):
        true, false = (
            "pass" if law is None else f'{name} = numpyro.sample("{name}", {law})' for law in (true, false)
        )
        pair.write(side, f"if {test}:\n    {true}\nelse:\n    {false}")

    form = pair.rng.integers(6)
    if want == VALID:
        if form == 0:  # both branches accept
            written("model", pair.pick(line, half), pair.pick(line, half))
            pair.sample("guide", name, pair.pick(half, unit))
        elif form == 1:  # the guide takes the same turn
            written("model", line, half)
            written("guide", pair.pick(line, half), pair.pick(half, unit))
        elif form == 2:  # a site that exists in one branch
            written("model", half, None)
            written("guide", pair.pick(half, unit), None)
        elif form == 3:  # a branch of the guide alone
            pair.sample("model", name, line)
            written("guide", pair.pick(line, half), pair.pick(half, unit))
        elif form == 4:  # the same condition in other words
            written("model", line, half)
            written("guide", pair.pick(half, unit), line, f"not ({test})")
        else:  # a branch that is never taken
            positive = pair.name("z")
            pair.sample("both", positive, "HalfNormal(1.0)")
            written("model", line, unit, f"{positive} > -0.5")
            pair.sample("guide", name, line)
        return form < 4
    if form <= 1:
        written("model", half, unit)
        pair.sample("guide", name, line)
    elif form == 2:
        written("model", half, line)
        pair.sample("guide", name, line)
    elif form == 3:
        written("model", line, None)
        pair.sample("guide", name, line)
    elif form == 4:
        written("model", half, line)
        written("guide", line, half)
    else:
        written("model", line, None)
        written("guide", None, line)
    return form <= 1


SEEN = table("""
VALID: Normal(§z, §s) | [0.5, -1.0]
VALID: Poisson(jnp.exp(§z)) | [0.0, 3.0]
VALID: Bernoulli(logits=§z) | [0.0, 1.0, 1.0]
VALID: Gamma(2.0, jnp.exp(§z)) | 0.25
VALID: Exponential(jax.nn.softplus(§z)) | [0.5, 4.0]
VALID: Bernoulli(probs=jax.nn.sigmoid(§z)) | 1.0
VALID: Uniform(0.0, §u) | 0.5
VALID: Beta(2.0, 0.5 + §z**2) | 0.75
? VALID: Gamma(2.0, jnp.exp(§z)).mask(jnp.array([True, False])) | [1.5, -1.0]
INVALID: Gamma(2.0, jnp.exp(§z)) | -1.0
INVALID: Exponential(jnp.exp(§z)) | [0.5, -0.5]
INVALID: Poisson(jnp.exp(§z)) | -1.0
INVALID: Bernoulli(logits=§z) | 2.0
INVALID: Beta(1.0, 1.0 + §z**2) | 1.5
INVALID: Uniform(0.0, 1.0) | [0.5, 2.0]
INVALID: Categorical(logits=§z * jnp.arange(3.0)) | 3
INVALID: Binomial(4, logits=§z) | 5.0
? INVALID: Poisson(jnp.exp(§z)) | 2.5
? INVALID: Uniform(0.0, §q) | 3.0
? INVALID: Categorical(probs=jnp.array([0.5, 0.5, 0.0])) | 2
? INVALID: Poisson(jax.nn.relu(§z)) | 2.0
? INVALID: Bernoulli(probs=jnp.clip(§z, 0.0, 1.0)) | 1.0
""")


def observations(pair, want):
    """Data inside and outside the support of their distribution, which may depend on latents and parameters."""
    if pair.chance(
        0.2
    ):  # the support depends on a latent, which the guide keeps away from the data or does not
        name = pair.name("u")
        upper = pair.pick("9.0", pair.between("guide", 5.0, 9.0))
        pair.sample("model", name, "Uniform(0.0, 10.0)")
        pair.sample("guide", name, f"Uniform({4.0 if want == VALID else 1.0}, {upper})")
        pair.observe(pair.name("o"), f"Uniform(0.0, {name})", "jnp.asarray(3.0)")
        return False
    law, data, decidable = pair.pick(*SEEN[want])
    law = law.replace("§z", pair.common_real()).replace("§s", str(pair.scale("model")))
    if "§u" in law:
        law = law.replace("§u", pair.between("model", 1.0, INF))
    if "§q" in law:
        law = law.replace("§q", pair.positive("model"))
    if pair.chance(0.3):
        argument = pair.name("y")
        pair.data[argument] = np.asarray(eval(data), np.int32 if "Cat" in law else np.float32)
        pair.observe(pair.name("o"), law, argument)
    else:
        pair.observe(pair.name("o"), law, f"jnp.asarray({data})")
    return decidable


def relations(pair, want):
    """Ends that depend on latents, or on the same parameter in both programs: true by arithmetic, not by single intervals."""
    good, form = want == VALID, pair.rng.integers(14)
    b, x = pair.name("b"), pair.name("x")

    def both(model, guide):
        pair.sample("model", x, model)
        pair.sample("guide", x, guide)
        return False

    if form == 0:  # the same latent end
        pair.sample("both", b, pair.pick("HalfNormal(1.0)", "Uniform(1.0, 2.0)"))
        return both(f"Uniform(0.0, {b})", f"Uniform(0.0, {b if good else f'2.0 * {b}'})")
    if form == 1:
        pair.sample("both", b, pair.pick("LogNormal(0.0, 1.0)", "Uniform(1.0, 2.0)"))
        part = f"jax.nn.sigmoid({pair.real('guide')})"
        return both(f"Uniform(0.0, {b})", f"Uniform(0.0, {b} {'*' if good else '+'} {part})")
    if form == 2:
        pair.sample("both", b, "Normal(0.0, 1.0)")
        more = pair.positive("model")
        return both(f"Uniform({b}, {b} + 1.0 + {more})", f"Uniform({b}, {b} + {1.0 if good else 1.5})")
    if form == 3:  # from the interval of the guide's latent
        pair.sample("model", b, f"Uniform(0.0, {pair.pick(2.0, 3.0)})")
        pair.sample("guide", b, f"Uniform({1.0 if good else 0.5}, 2.0)")
        return both(f"Uniform(0.0, {b})", pair.pick("Beta(2.0, 2.0)", "Uniform(0.0, 1.0)"))
    if form in (4, 5):  # the same parameter in both
        pair.write("both", f'{b} = numpyro.param("{b}", 1.0, constraint=constraints.positive)')
        if form == 4:
            return both(f"Uniform(0.0, {b})", f"Uniform(0.0, {b if good else f'2.0 * {b}'})")
        return both(f"Uniform({b} - 1.0, {b} + 2.0)", f"Uniform({b}, {b} + {1.0 if good else 2.5})")
    if form == 6:  # a parabola, below 0.25: intervals alone see (0, 1)
        pair.write("guide", f'{b} = numpyro.param("{b}", 0.5, constraint=constraints.unit_interval)')
        return both(f"Uniform(-1.0, {0.5 if good else 0.125})", f"Uniform(-0.5, {b} * (1.0 - {b}))")
    if form == 7:
        r = pair.real("guide")
        one = f"jnp.sin({r}) ** 2 + jnp.cos({r}) ** 2"
        return both(f"Uniform(0.0, {1.5 if good else 0.75})", f"Uniform(0.0, {one})")
    if form == 8:
        z = pair.common_real()
        return both(f"Uniform(0.0, {2.0 if good else 1.5})", f"Uniform(0.0, jnp.where({z} > 0, 1.0, 2.0))")
    if form == 9:
        pair.sample("both", b, "Normal(0.0, 1.0)")
        moved = f"AffineTransform({b if good else f'{b} - 1.0'}, 1.0, domain=constraints.positive)"
        return both(
            f"TruncatedNormal(0.0, 1.0, low={b})", f"TransformedDistribution(Exponential(1.0), {moved})"
        )
    if form == 10:  # arrays of ends, element by element
        upper = [1.0, 2.0, 3.0]
        other = upper if good else pair.pick([3.0, 2.0, 1.0], [1.0, 2.0, 3.5])
        return both(f"Uniform(0.0, jnp.array({upper}))", f"Uniform(0.0, jnp.array({other}))")
    if form == 11:  # from the data
        y = pair.name("y")
        pair.data[y] = pair.rng.uniform(1, 2, size=5).astype(np.float32)
        return both(f"Uniform(0.0, {y}.max())", f"Uniform(0.0, {y}.{'min' if good else 'sum'}())")
    if form == 12:
        part = "TransformedDistribution(Uniform(0.0, 1.0), ExpTransform())"
        return both("HalfNormal(1.0)", part) if good else both(part, "LogNormal(0.0, 1.0)")
    first, second = pair.positive("guide"), pair.positive("guide")
    return both(f"Uniform(0.0, {1.0 if good else 0.5})", f"Uniform(0.0, {first} / ({first} + {second}))")


def factors(pair, want):
    """Factors, which may be zero."""
    name, z = pair.name("f"), pair.common_real()
    if want == VALID:
        factor = pair.pick(f"-0.5 * {z} ** 2", f"jnp.tanh({z})", "-1.0")
    else:
        factor = pair.pick(
            f"jnp.where({z} > 0, 0.0, -jnp.inf)", f"jnp.log(jnp.maximum({z}, 0.0))", f"jnp.log({z} > 0.5)"
        )
    pair.write("model", f'numpyro.factor("{name}", {factor})')
    return want == VALID


def handled(pair, want):
    """Sites under handlers of NumPyro."""
    name = pair.name("g")
    handler = pair.pick(
        "scale(scale=0.5)", "mask(mask=True)", "mask(mask=jnp.asarray(True))", "scope(prefix='part')"
    )
    for side, law in (
        ("model", "Gamma(2.0, 1.0)"),
        ("guide", f"{'Log' if want == VALID else ''}Normal(1.0, 1.0)"),
    ):
        pair.write(side, f'with numpyro.handlers.{handler}:\n    numpyro.sample("{name}", {law})')
    return not handler.startswith("mask")


def dynamic(pair, want):
    """A number of sites that depends on a draw: no analysis by tracing can tell, none may be wrong."""
    n, name = pair.name("n"), pair.name("i")
    pair.sample("both", n, "Binomial(3, 0.5)")
    more = "" if want == VALID else " + 1"
    for side, extra, law in (("model", more, "Normal"), ("guide", "", "Laplace")):
        pair.write(
            side, f'for i in range(int({n}){extra}):\n    numpyro.sample(f"{name}_{{i}}", {law}(0.0, 1.0))'
        )
    return False


BLOCKS = {
    interval: 10,
    learnt_model_ends: 1,
    discrete: 4,
    measures: 2,
    vectors: 4,
    names: 4,
    shapes: 3,
    plates: 4,
    enumerated: 3,
    scans: 3,
    conds: 2,
    branches: 3,
    observations: 4,
    relations: 5,
    factors: 1,
    atoms_of_no_probability: 1,
    mixtures: 1,
    handled: 1,
    dynamic: 0.3,
}


def automatic(pair, want):
    """A model of plain latents, and an autoguide."""
    for _ in range(int(pair.rng.integers(1, 3))):
        low, high = ends(pair, VALID)[0]
        name, vector = pair.name("x"), pair.chance(0.2)
        law = "Dirichlet(jnp.ones(3))" if vector else pair.on("model", (low, low), (high, high))
        if pair.chance(0.3):
            pair.write(
                "model",
                f'with numpyro.plate("{name}_plate", 3):\n    {name} = numpyro.sample("{name}", {law})',
            )
        else:
            pair.sample("model", name, law + pair.pick("", ".expand([2])"))
    pair.observe("seen", f"Normal(jnp.sum({name}), 1.0)", "jnp.asarray(0.5)")
    good = ("Normal", "Normal", "MultivariateNormal", "DiagonalNormal", "LowRankMultivariateNormal")
    pair.automatic = f"Auto{pair.pick(*good) if want == VALID else 'Delta'}"
    return True


def mistakes(pair):
    """A program that NumPyro refuses."""
    name, form = pair.name("e"), pair.rng.integers(3)
    if form == 0:
        pair.sample(pair.pick("model", "guide"), name, "Normal(0.0, 1.0)")
        pair.sample("both", name, "Normal(0.0, 1.0)")
        return
    dims = f'"{name}_rows", 5, dim=-1), numpyro.plate("{name}_columns", 3, dim=-1'
    where, law = (f'"{name}_plate", 5', "jnp.zeros(4)") if form == 1 else (dims, "0.0")
    pair.write("both", f'with numpyro.plate({where}):\n    numpyro.sample("{name}", Normal({law}, 1.0))')


WEIGHTS = dist.Categorical(np.array([0.25, 0.75], np.float32))
GAP = dist.MixtureGeneral(
    WEIGHTS, [dist.Uniform(0.0, 1.0), dist.Uniform(2.0, 3.0)], support=constraints.interval(0.0, 3.0)
)
NAMESPACE = {
    **{name: getattr(dist, name) for name in dist.__all__},
    **{name: law for name, law in vars(transforms).items() if name.endswith("Transform")},
    **{"GAP": GAP, "WEIGHTS": WEIGHTS, "autoguide": autoguide, "cond": cond, "constraints": constraints},
    **{"jax": jax, "jnp": jnp, "numpyro": numpyro, "reparam": reparam, "scan": scan},
}


def generate(seed) -> Case:
    """The pair of a seed, an integer."""
    rng = np.random.default_rng([seed, 0x5EED])
    pair = Pair(rng, enum=rng.random() < 0.15)
    kind, valid = rng.random(), rng.random() < 0.5
    truth = VALID if valid else INVALID
    if kind < 0.03:
        mistakes(pair)
        return build(pair, ERROR, True, seed)
    if kind < 0.05:  # few: they compile what they need for their start values
        return build(pair, truth, automatic(pair, truth), seed)
    size = int(rng.integers(1, 5))
    broken = None if valid else int(rng.integers(size))
    weights = np.array(list(BLOCKS.values()), float)
    answers = []
    for i in range(size):
        answer = None
        while answer is None:
            block = list(BLOCKS)[rng.choice(len(BLOCKS), p=weights / weights.sum())]
            answer = block(pair, INVALID if i == broken else VALID)
        answers.append(answer)
    # One part that is certainly wrong decides, whatever the others are, unless nobody can trace them.
    decidable = all(answers) if valid else answers[broken] and "range(int(" not in str(pair.lines)
    return build(pair, truth, decidable, seed)


def build(pair, truth, decidable, seed):
    """Compiles the source of a pair."""
    positional = list(pair.data)[::2]
    named = {k: pair.data[k] for k in list(pair.data)[1::2]}
    signature = ", ".join([*positional, *named])

    def function(name):
        return f"def {name}({signature}):\n" + textwrap.indent(
            "\n".join(pair.lines[name] or ["pass"]), "    "
        )

    guide = f"guide = autoguide.{pair.automatic}(model)" if pair.automatic else function("guide")
    source = f"{function('model')}\n\n\n{guide}\n"
    file = f"<support fuzz {seed}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space = dict(NAMESPACE)
    exec(compile(source, file, "exec"), space)
    note = f"# seed {seed}: {truth}" + ("" if decidable else ", hard") + (", enum=True" if pair.enum else "")
    note += "".join(f"\n# {k} = {np.asarray(v).tolist()}" for k, v in pair.data.items())
    args = tuple(pair.data[k] for k in positional)
    return Case(space["model"], space["guide"], args, named, truth, decidable, f"{note}\n{source}", pair.enum)


# Truth by running


def witness(case, draws=20, seed=0):
    """What is wrong with the pair, from running it at random parameters; None if nothing was seen."""
    rng = np.random.default_rng(seed)

    def moved(site):
        """A random value of a parameter, within its constraint."""
        transform = dist.biject_to(site["kwargs"].get("constraint", constraints.real))
        free = transform.inv(site["value"])
        return transform(free + jnp.asarray(2 * rng.normal(size=jnp.shape(free)), jnp.float32))

    for draw in range(draws):
        key = jax.random.key(int(rng.integers(2**31)))
        guide, model = handlers.seed(case.guide, key), handlers.seed(case.model, key)
        guided = handlers.trace(guide).get_trace(*case.args, **case.kwargs)
        if draw > 0:
            sites = {**handlers.trace(model).get_trace(*case.args, **case.kwargs), **guided}
            values = {k: moved(s) for k, s in sites.items() if s["type"] == "param"}
            model, guide = handlers.substitute(model, values), handlers.substitute(guide, values)
            guided = handlers.trace(guide).get_trace(*case.args, **case.kwargs)
        try:
            modelled = handlers.trace(handlers.replay(model, guided)).get_trace(*case.args, **case.kwargs)
        except (TypeError, ValueError) as error:  # shapes that do not fit
            return f"the model raises {error}"
        found = differences(case, modelled, guided)
        if found:
            return found
    return None


def differences(case, modelled, guided):
    """What is wrong with one pair of traces."""

    def latent(trace):
        return {k: s for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}

    model, guide = latent(modelled), latent(guided)
    auxiliary = {k for k, s in guide.items() if s["infer"].get("is_auxiliary")}
    for name in model.keys() - guide.keys():
        if not (case.enum and model[name]["infer"].get("enumerate") == "parallel"):
            return f"{name}: not in the guide"
    for name in guide.keys() - auxiliary - model.keys():
        return f"{name}: not in the model"
    for name, site in guided.items():
        if site["type"] == "plate" and (name not in modelled or modelled[name]["args"] != site["args"]):
            return f"{name}: plate"
    for name in model.keys() & guide.keys():
        mine, other = guide[name]["fn"], model[name]["fn"]
        lengths = [tuple(np.trim_zeros(np.array(d.shape()) - 1, "f") + 1) for d in (mine, other)]
        if lengths[0] != lengths[1] or mine.event_dim != other.event_dim:
            return f"{name}: shapes {mine.shape()} {other.shape()}, event dimensions {mine.event_dim} {other.event_dim}"
        base = mine
        while isinstance(base, dist.Independent | dist.ExpandedDistribution):
            base = base.base_dist
        if mine.is_discrete != other.is_discrete or (isinstance(base, dist.Delta) and not auxiliary):
            return f"{name}: measures"
        if (model[name]["scale"] or 1) != (guide[name]["scale"] or 1):
            return f"{name}: scales"
    # A sampler can leave its own support (in far tails, in float32): such a draw says nothing.
    if not all(np.isfinite(site["fn"].log_prob(site["value"])).all() for site in guide.values()):
        return None
    for name, site in modelled.items():
        if site["type"] == "sample":
            value = np.asarray(site["fn"].log_prob(site["value"]))
            if not (value > -np.inf).all():
                return f"{name}: log density {value} at {site['value']}"
    return None
