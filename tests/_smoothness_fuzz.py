"""Random NumPyro programs, and a judge of claims about their smoothness that knows nothing of any analysis.

:func:`generate` writes the source of a program: latents and parameters, a few lines of arithmetic, and terms of the log density
that use them. ``smooth_only=True`` keeps to what is continuously differentiable on the whole domain (the product of the open
supports and constraints).

:func:`judge` takes the program's log density as a function of all inputs in float64 (``scalar_fn``: NumPyro's ``log_density`` with
the latents and the constrained parameters substituted, validation off) and looks for counterexamples to claims by evaluating it:

- on segments in the joint space of the claimed inputs it finds places where values or slopes change most, and zooms in;
- at such a place, a jump refutes ``CONT``, difference quotients that grow without bound refute ``LIP``, and one-sided slopes that
  keep apart refute ``DIFF``, each over steps that shrink by several orders of magnitude, so that strong curvature is no alarm;
- around special points (zeros, integers, ends of clips) it compares directions: a limit that depends on the direction refutes
  ``CONT``, directional derivatives that are not linear in the direction refute ``DIFF``.

Places where values are large are left out, because there float64 is a staircase (``1 - tanh(20)``, ``sin(1e16 * x)``).

Import it from a test as ``import _smoothness_fuzz``: pytest puts ``tests/`` on the path.
"""

import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints
from numpyro.infer.util import log_density

CONST, DIFF, LIP, CONT, ANY = range(5)  # as in vinb.analysis.Level


class Input(NamedTuple):
    shape: tuple
    kind: str  # "real", "positive" or "unit"


@dataclass(frozen=True)
class Program:
    """A program without arguments, its inputs by name, its log density as a function of them, and its source."""

    program: Callable
    inputs: dict[str, Input]
    scalar_fn: Callable
    describe: str


# What programs are made of

_LARGE = None  # while the judge traces, a list of how large values are, in units of what float64 allows


def _at_most(limit):
    def value(x):
        if _LARGE is not None:
            _LARGE.append(jnp.max(jnp.abs(x)) / limit)
        return x

    return value


val = _at_most(1e4)  # any value
sat = _at_most(8.0)  # the argument of a function that saturates


@jax.custom_jvp
def halved(x):
    return x / 2


halved.defjvp(lambda primals, tangents: (primals[0] / 2, tangents[0] / 2))


@jax.custom_vjp
def kinked(x):
    return jnp.maximum(x, 0.5 * x)


kinked.defvjp(lambda x: (kinked(x), None), lambda _, g: (g,))


def recurrent(x, s):
    """A scan with a smooth body."""
    return lax.scan(lambda c, v: (jnp.tanh(0.5 * c + v), 0.5 * c * v), s, x)[1]


def recurrent_relu(x, s):
    return lax.scan(lambda c, v: (jax.nn.relu(0.5 * c + v), c + v), s, x)[1]


def counted(x):
    """A while loop whose number of steps is known."""
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 0.8 * c[1] + jnp.sin(c[1])), (0, x))[1]


def until(x):
    """A while loop whose number of steps depends on the value."""
    return lax.while_loop(lambda c: (c < 1.0) & (c > -20.0), lambda c: c + 0.7, x)


def looped(x):
    return lax.fori_loop(0, 3, lambda i, c: c + 0.3 * jnp.cos(c + i), x)


def looped_abs(x):
    return lax.fori_loop(0, 3, lambda i, c: jnp.abs(c - 0.4 * i), x)


def solved(x):
    """A triangular system with the Cholesky factor of a positive definite matrix."""
    factor = jnp.linalg.cholesky(jnp.outer(x, x) + jnp.eye(x.size))
    return jsp.linalg.solve_triangular(factor, jnp.arange(1.0, x.size + 1), lower=True)


def one_hot(x):
    return jax.nn.one_hot(jnp.argmax(x), x.size)


def chosen(x, s):
    """The element whose index is computed from a value."""
    return x[jnp.clip(jnp.floor(s + 1.0), 0, x.size - 1).astype(int)]


def sliced(x, s):
    return lax.dynamic_slice(x, (jnp.where(s > 0.3, 1, 0),), (2,)).sum()


def updated(x, s):
    return lax.dynamic_update_slice(x, jnp.ones(1) * 0.5, (jnp.int32(2 * s),))


def switched(x):
    index = jnp.clip(jnp.floor(x), 0, 2).astype(int)
    return lax.switch(index, [jnp.sin, jnp.cos, lambda v: 0.5 * v], x)


MATRIX = np.array([[0.5, -0.3, 0.8], [0.1, 0.9, -0.6], [-0.4, 0.2, 0.7]], np.float32)
SELECTED = np.array([True, False, True])

# Operations, one a line: the kinds of the arguments (real, positive, unit; a unit value is positive, a positive one real) and of
# the result, and the text. §x, §y are arguments, §k and §m constants with §k < §m. Those of the first tables are continuously
# differentiable where their arguments are of the kind; those of the others are not, or cannot be expected to be seen to be.

SMOOTH = {
    # any shape, elementwise
    "unary": """
r > r: §k + §x
r > r: §m * §x
r > r: §k - §x
r > r: -§x
r > r: jnp.sin(§x)
r > r: jnp.cos(§m * §x)
r > r: jnp.tanh(sat(§x))
r > r: §x**2
r > r: §x**3
r > r: jnp.square(§x) - §k
r > r: lax.integer_pow(§x, 3)
r > r: jnp.arctan(§x)
r > r: jnp.arcsinh(§x)
r > r: jnp.sinh(0.5 * sat(§x))
r > r: lax.erf(0.5 * sat(§x))
r > r: lax.erfc(0.5 * sat(§x))
r > r: jax.nn.silu(sat(§x))
r > r: jax.nn.gelu(0.5 * sat(§x))
r > r: jax.nn.log_sigmoid(sat(§x))
r > r: jnp.expm1(0.5 * sat(§x))
r > r: jnp.log1p(§x**2)
r > r: halved(§x)
r > r: jax.jit(jnp.sin)(§x)
r > r: jax.checkpoint(jnp.cos)(§x)
r > r: lax.stop_gradient(§x)
r > r: counted(§x)
r > r: looped(§x)
r > r: jnp.logaddexp(sat(§x), §k)
r > r: jnp.where(jnp.array(True), §x, -§x)
r > r: jnp.clip(jnp.tanh(sat(§x)), -1.5, 1.5)
r > r: lax.cond(jnp.array(2.0) > 1.0, jnp.sin, jnp.floor, §x)
r > p: jnp.exp(0.5 * sat(§x))
r > p: jnp.exp2(0.5 * sat(§x))
r > p: jax.nn.softplus(sat(§x))
r > p: 1.0 / (1.0 + §x**2)
r > p: 0.1 + §x**2
r > p: 1.5 + jnp.sin(§x)
r > p: jnp.sqrt(1.0 + §x**2)
r > p: jnp.cosh(0.5 * sat(§x))
r > u: jax.nn.sigmoid(sat(§x))
r > u: 0.5 + 0.4 * jnp.sin(§x)
r > u: 1.0 / (1.0 + jnp.exp(-sat(§x)))
r > u: jnp.exp(-jax.nn.softplus(sat(§x)))
p > r: jnp.log(§x)
p > r: lax.lgamma(§x)
p > r: jsp.special.digamma(§x)
p > r: jnp.log1p(§x)
p > r: jsp.special.xlogy(§x, §x)
p > r: §x * jnp.log(§x)
p > p: jnp.sqrt(§x)
p > p: 1.0 / (0.1 + §x)
p > p: §x**1.5
p > p: §x**-0.5
p > p: jnp.power(§x, 0.3)
p > p: lax.rsqrt(0.1 + §x)
p > p: jax.nn.relu(§x)
p > p: jnp.abs(§x)
p > p: jnp.where(§x > 0, §x, 1.0)
p > p: jnp.cbrt(§x)
p > p: §x / (1.0 + §x)
p > r: jnp.maximum(§x, -0.5)
u > r: jsp.special.logit(§x)
u > r: jnp.log(§x) - jnp.log1p(-§x)
u > r: lax.erf_inv(§x)
u > r: jnp.arctanh(§x)
u > r: jnp.arcsin(§x)
u > u: 1.0 - §x
u > u: §x**2
u > p: jnp.minimum(§x, 1.5)
u > p: jnp.clip(§x, -0.5, 1.5) + 0.1
""",
    # two arguments of the same shape, or one of them a scalar
    "binary": """
r r > r: §x + §y
r r > r: §x - §y
r r > r: §x * §y
r p > r: §x / §y
r r > r: jnp.logaddexp(sat(§x), sat(§y))
r p > r: jnp.arctan2(§x, §y)
r p > r: jsp.special.xlogy(§x, §y)
r p > r: jsp.special.xlog1py(§x, §y)
r r > r: §x * jax.nn.sigmoid(sat(§y))
p r > p: §x**jnp.tanh(sat(§y))
p p > p: §x + §y
p p > p: §x * §y
p p > p: §x / (0.1 + §y)
p r > p: jnp.sqrt(§x + §y**2)
p p > r: jsp.special.gammainc(§x, §y)
p u > r: jsp.special.betainc(§x, 1.5, §y)
u u > u: §x * §y
u u > u: 0.5 * (§x + §y)
r r > r: §x / (1.0 + §y**2)
""",
    # a vector to a scalar
    "reduce": """
r > r: jnp.sum(§x)
r > r: jnp.mean(§x)
r > r: jnp.prod(§x)
r > r: jnp.var(§x)
r > r: jax.nn.logsumexp(sat(§x))
r > r: jnp.dot(§x, MATRIX[0])
r > r: jnp.dot(§x, §x)
r > r: §x[0]
r > r: §x[-1] * §x[1]
r > r: jnp.trapezoid(§x)
r > r: jnp.sum(solved(§x))
r > r: jnp.einsum("i,ij,j", §x, MATRIX, §x)
r > r: jnp.log(jnp.sum(jnp.exp(sat(§x))))
r > p: jnp.sum(jnp.exp(0.5 * sat(§x)))
p > p: jnp.sum(§x)
p > p: jnp.prod(§x)
u > p: jnp.mean(§x)
r > r: jnp.sum(lax.dynamic_slice(§x, (1,), (2,)))
""",
    # a vector to a vector
    "vector": """
r > r: jnp.cumsum(§x)
r > r: jnp.cumprod(jnp.sin(§x))
r > u: jax.nn.softmax(sat(§x))
r > r: jax.nn.log_softmax(sat(§x))
r > r: jnp.flip(§x)
r > r: jnp.roll(§x, 1)
r > r: MATRIX @ §x
r > r: jnp.concatenate([§x[1:], §x[:1]])
r > r: §x.at[0].set(§k)
r > r: §x.at[1].add(§k)
r > r: §x.at[0].multiply(§x[1])
r > r: §x[jnp.array([2, 0, 1])]
r > r: jax.vmap(jnp.sin)(§x)
r > r: jax.vmap(lambda v: v * jnp.sum(§x))(§x)
r > r: lax.associative_scan(jnp.add, §x)
r > r: jnp.where(SELECTED, §x, -§x)
r > r: jnp.convolve(§x, MATRIX[1, :2], mode="same")
r > r: solved(§x)
r > r: recurrent(§x, 0.0)
r > r: jnp.pad(§x[:2], (1, 0))
r > r: jnp.outer(§x, §x) @ MATRIX[2]
r > r: lax.cumlogsumexp(sat(§x))
p > p: jnp.cumsum(§x)
u > u: jnp.cumprod(§x)
p > p: §x / (jnp.sum(§x) + 0.1)
""",
    # a scalar and a vector to a vector
    "mixed": """
r r > r: recurrent(§y, §x)
r r > r: §y.at[1].set(§x)
r r > r: jnp.stack([§x, §y[0], §x * §y[1]])
r r > r: jnp.full(3, §x) + §y
r r > r: jnp.polyval(§y, §x) * §y
""",
}
ROUGH = {
    "unary": """
r > r: jax.nn.relu(§x)
r > r: jnp.maximum(§x, §k)
r > r: jnp.minimum(§x, §m)
r > r: jnp.clip(§x, §k, §m)
r > r: jnp.abs(§x)
r > p: jnp.abs(§x) + 0.1
r > p: jax.nn.relu(§x) + 0.2
r > r: jax.nn.leaky_relu(§x)
r > r: jax.nn.elu(sat(§x))
r > r: jax.nn.selu(sat(§x))
r > r: jax.nn.relu6(3.0 * §x)
r > r: jax.nn.hard_tanh(§x)
r > r: jax.nn.soft_sign(§x)
r > r: kinked(§x)
r > r: jnp.sign(§x)
r > r: jnp.floor(§x)
r > r: jnp.round(§m * §x)
r > r: jnp.ceil(§x)
r > r: jnp.trunc(§x)
r > r: §x % 0.7
r > r: lax.rem(§x, 0.7 * jnp.ones_like(§x))
r > r: jnp.floor_divide(§x, 0.6)
r > r: jnp.where(§x > §k, 1.0, -0.5)
r > r: jnp.where(§x > §k, §x, §k)
r > r: jnp.where(§x > §k, §x, -§x)
r > r: jnp.where(jnp.abs(§x) < 1.0, 0.5 * §x**2, jnp.abs(§x) - 0.5)
r > r: jnp.where(§x == §k, 1.0, §x)
r > r: §x.astype(int) * 0.5
r > r: jnp.heaviside(§x, 0.5)
r > r: jnp.sqrt(jnp.abs(§x))
r > r: jnp.cbrt(§x)
r > r: jnp.abs(§x) ** 1.5
r > r: §x * jnp.abs(§x)
r > r: jnp.sqrt(§x)
r > r: jnp.log(§x)
r > r: 1.0 / §x
r > r: §x**-2
r > r: §x**1.5
r > r: jnp.interp(§x, jnp.array([-1.0, 0.5, 1.0]), jnp.array([0.0, 1.0, 0.3]))
r > r: jnp.searchsorted(jnp.array([-0.5, 0.3, 1.0]), §x) * 0.5
r > r: jnp.nan_to_num(§x)
r > r: jnp.abs(jnp.sin(§x))
r > r: jnp.sinc(§x)
r > r: jsp.special.log_ndtr(0.5 * sat(§x))
r > r: jsp.special.ndtr(0.5 * sat(§x))
r > r: jnp.tan(§x)
r > r: jnp.select([§x < §k, §x < §m], [§x, 2.0 * §x], 0.5)
r > r: jnp.piecewise(§x, [§x < §k], [jnp.sin, lambda v: 0.3 * v])
r > r: jnp.sign(§x) * jnp.sqrt(jnp.abs(§x))
r > u: 0.5 + 0.3 * jnp.sign(§x)
r > u: jnp.clip(§x, 0.1, 0.9)
p > r: jsp.special.entr(§x)
p > r: jnp.floor(§x)
p > p: jnp.maximum(§x, 0.5)
u > r: jnp.round(§x)
""",
    "binary": """
r r > r: jnp.maximum(§x, §y)
r r > r: jnp.minimum(§x, §y)
r r > r: jnp.where(§x > §y, 1.0, -0.5)
r r > r: jnp.where(§x > §k, §y, -§y)
r r > r: jnp.where(§x > §y, §x, 0.5 * §y)
r r > r: jnp.where(§x > §k, §y, §y)
r r > r: §x / §y
r r > r: §x * §y / (§x**2 + §y**2)
r r > r: §x**3 / (§x**2 + §y**2)
r r > r: jnp.sqrt(§x**2 + §y**2)
r r > r: jnp.hypot(§x, §y)
r r > r: jnp.arctan2(§x, §y)
r r > r: §x % (1.0 + jnp.abs(§y))
r r > r: jnp.sign(§x) * §y
r r > r: jnp.floor(§x) + §y
r r > r: jax.nn.relu(§x) * §y
r r > r: jnp.abs(§x - §y)
r r > r: jnp.abs(§x) * jnp.abs(§y)
r r > r: jnp.fmod(§x, 0.8) * §y
p r > r: jnp.where(§y > 0, jnp.log(§x), §x)
r p > r: jnp.clip(§x, -§y, §y)
p p > r: jsp.special.betaln(§x, §y)
""",
    "reduce": """
r > r: jnp.max(§x)
r > r: jnp.min(§x)
r > r: jnp.sort(§x)[0]
r > r: jnp.median(§x)
r > r: jnp.linalg.norm(§x)
r > r: jnp.std(§x)
r > r: jnp.ptp(§x)
r > r: jnp.argmax(§x) * 0.5
r > r: jnp.dot(one_hot(§x), §x)
r > r: jnp.sum(one_hot(§x) * MATRIX[0])
r > r: lax.top_k(§x, 2)[0][1]
r > r: §x[jnp.argmin(jnp.abs(§x))]
r > r: jnp.sum(§x > §k) * 0.3
r > r: jnp.where(jnp.any(§x > §k), §x[0], 0.0)
r > r: lax.cond(§x[0] > §k, lambda v: v[1], lambda v: v[2], §x)
r > r: jnp.sum(jnp.abs(§x))
r > r: chosen(§x, §x[0])
r > r: sliced(§x, §x[2])
r > r: lax.reduce_max(§x, axes=(0,))
""",
    "vector": """
r > r: jnp.sort(§x)
r > r: lax.cummax(§x)
r > r: §x - jnp.max(§x)
r > r: §x / jnp.max(jnp.abs(§x))
r > r: one_hot(§x) + §x
r > r: updated(§x, §x[1])
r > r: recurrent_relu(§x, 0.0)
r > r: jnp.where(§x > §x[::-1], §x, 0.0)
r > r: §x[jnp.argsort(§x)]
r > r: lax.top_k(§x, 3)[0]
r > r: jax.vmap(lambda v: jnp.maximum(v, §x[0]))(§x)
r > r: jnp.cumsum(jax.nn.relu(§x))
r > r: §x / jnp.linalg.norm(§x)
r > r: jnp.take(§x, jnp.round(§x).astype(int), mode="clip")
""",
    "mixed": """
r r > r: recurrent_relu(§y, §x)
r r > r: jnp.where(§y > §x, §y, §x)
r r > r: jnp.minimum(§x, §y)
r r > r: updated(§y, §x)
r r > r: jnp.where(§x > §k, §y, 2.0 * §y)
r r > r: lax.cond(§x > §k, lambda v: v, lambda v: -v, §y)
r r > r: jnp.roll(§y, jnp.floor(§x).astype(int))
r r > r: chosen(§y, §x) + §y
""",
    # a scalar alone
    "scalar": """
r > r: until(§x)
r > r: looped_abs(§x)
r > r: switched(§x)
r > r: lax.cond(§x > §k, jnp.sin, jnp.cos, §x)
r > r: lax.cond(§x > §k, lambda v: v, lambda v: §k * jnp.ones_like(v), §x)
r > r: lax.cond(§x > §k, lambda v: 1.0, lambda v: -2.0, §x)
r > r: jnp.array([0.3, -0.5, 1.0])[jnp.clip(jnp.floor(§x), 0, 2).astype(int)]
r > r: lax.fori_loop(0, jnp.int32(jnp.clip(2.0 * §x, 0.0, 5.0)), lambda i, c: c + 0.1, 0.0)
""",
}
# Terms of the log density: §x, §y as above, §s the shape of §x.
SMOOTH_TERMS = """
r: numpyro.factor("§n", jnp.sum(§x))
r: numpyro.factor("§n", -jnp.sum(§x**2))
r: numpyro.sample("§n", Normal(§x, 1.0), obs=jnp.full(§s, 0.7))
r: numpyro.sample("§n", Normal(§x, 0.5), obs=jnp.full(§s, -0.3))
r: numpyro.sample("§n", Normal(0.3, jnp.exp(0.3 * sat(§x))), obs=jnp.full(§s, 0.8))
r: numpyro.sample("§n", Normal(0.3, jax.nn.softplus(sat(§x))), obs=jnp.full(§s, 0.8))
p: numpyro.sample("§n", Normal(0.3, §x), obs=jnp.full(§s, 0.8))
p: numpyro.sample("§n", Poisson(§x), obs=jnp.full(§s, 2.0))
p: numpyro.sample("§n", Exponential(§x), obs=jnp.full(§s, 0.8))
p: numpyro.sample("§n", Gamma(§x, 1.5), obs=jnp.full(§s, 1.3))
p: numpyro.sample("§n", Gamma(2.0, §x), obs=jnp.full(§s, 1.3))
p: numpyro.sample("§n", Beta(§x, 1.5), obs=jnp.full(§s, 0.4))
p: numpyro.sample("§n", HalfNormal(§x), obs=jnp.full(§s, 0.4))
p: numpyro.sample("§n", StudentT(3.0, 0.5, §x), obs=jnp.full(§s, 0.4))
r: numpyro.sample("§n", StudentT(3.0, §x, 1.0), obs=jnp.full(§s, 0.4))
r: numpyro.sample("§n", Cauchy(§x, 1.0), obs=jnp.full(§s, 0.4))
r: numpyro.sample("§n", LogNormal(§x, 1.0), obs=jnp.full(§s, 1.4))
r: numpyro.sample("§n", Bernoulli(logits=sat(§x)), obs=jnp.ones(§s, int))
u: numpyro.sample("§n", Bernoulli(probs=§x), obs=jnp.ones(§s, int))
u: numpyro.sample("§n", Bernoulli(§x), obs=jnp.zeros(§s, int))
v: numpyro.sample("§n", Categorical(logits=sat(§x)), obs=1)
v: numpyro.sample("§n", Categorical(probs=jax.nn.softmax(sat(§x))), obs=2)
r: numpyro.sample("§n", Binomial(5, logits=sat(§x)), obs=jnp.full(§s, 2.0))
v: numpyro.sample("§n", MultivariateNormal(§x, jnp.eye(3)), obs=jnp.zeros(3))
r: numpyro.sample("§n", Normal(jax.nn.log_sigmoid(sat(§x)), 1.0).mask(jnp.array(True)), obs=jnp.full(§s, 0.7))
"""
ROUGH_TERMS = """
r: numpyro.factor("§n", -jnp.sum(jnp.abs(§x)))
r: numpyro.factor("§n", -jnp.sum(jnp.sqrt(jnp.abs(§x))))
r: numpyro.sample("§n", Normal(0.3, §x), obs=jnp.full(§s, 0.8))
r: numpyro.sample("§n", Normal(0.3, jax.nn.relu(§x) + 0.3), obs=jnp.full(§s, 0.8))
r: numpyro.sample("§n", Laplace(§x, 1.0), obs=jnp.full(§s, 0.7))
r: numpyro.sample("§n", Poisson(jax.nn.relu(§x)), obs=jnp.full(§s, 2.0))
r: numpyro.sample("§n", Poisson(jnp.abs(§x) + 0.1), obs=jnp.full(§s, 2.0))
r: numpyro.sample("§n", Normal(§x, 1.0).mask(§x > 0), obs=jnp.full(§s, 0.7))
r: numpyro.sample("§n", Bernoulli(probs=jnp.clip(§x, 0.1, 0.9)), obs=jnp.ones(§s, int))
p: numpyro.sample("§n", Uniform(0.0, 5.0 + §x), obs=jnp.full(§s, 0.7))
p: numpyro.sample("§n", Uniform(0.0, §x), obs=jnp.full(§s, 0.7))
r: numpyro.sample("§n", TruncatedNormal(§x, 1.0, low=0.0), obs=jnp.full(§s, 0.7))
r: numpyro.sample("§n", VonMises(§x, 1.0), obs=jnp.full(§s, 0.7))
"""
PRIORS = {
    "real": ("Normal(§r, §p)", "Normal(§r, §p)", "Normal(0.0, 1.0)"),
    "positive": ("Gamma(2.0, 1.0)", "LogNormal(0.0, 0.5)", "Gamma(§p, 1.5)", "LogNormal(§r, 0.5)"),
    "unit": ("Beta(2.0, 1.5)", "Uniform(0.0, 1.0)", "Beta(§p, 2.0)"),
}
CONSTANTS = (-1.0, -0.5, 0.0, 0.3, 0.5, 1.0, 2.0)


def table(text):
    rows = []
    for line in text.strip().split("\n"):
        kinds, _, body = line.partition(": ")
        given, _, made = kinds.partition(" > ")
        rows.append((tuple(given.split()), made, body))
    return rows


SMOOTH, ROUGH = ({k: table(v) for k, v in tables.items()} for tables in (SMOOTH, ROUGH))
SMOOTH_TERMS, ROUGH_TERMS = table(SMOOTH_TERMS), table(ROUGH_TERMS)
NAMESPACE = {
    **{name: getattr(dist, name) for name in dist.__all__},
    **{
        "MATRIX": MATRIX,
        "SELECTED": SELECTED,
        "constraints": constraints,
        "jax": jax,
        "jnp": jnp,
        "jsp": jsp,
    },
    **{"lax": lax, "numpyro": numpyro, "sat": sat, "val": val},
    **{f.__name__: f for f in (halved, kinked, recurrent, recurrent_relu, counted, until, looped)},
    **{f.__name__: f for f in (looped_abs, solved, one_hot, chosen, sliced, updated, switched)},
}


class Value(NamedTuple):
    text: str
    shape: tuple
    kind: str  # "r", "p" or "u"


@dataclass
class Writer:
    """The source of a program as it grows."""

    rng: np.random.Generator
    roughness: float  # the share of operations and terms that are not smooth
    lines: list = field(default_factory=list)
    values: list = field(default_factory=list)
    inputs: dict = field(default_factory=dict)

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def name(self, letter):
        return f"{letter}{len(self.lines)}"

    def find(self, kind, shapes):
        """A value of a kind, rather a recent one; None if there is none."""
        fits = [v for v in self.values if v.kind in "rpu"["rpu".index(kind) :] and v.shape in shapes]
        if not fits:
            return None
        return fits[-1 - min(int(self.rng.geometric(0.55)) - 1, len(fits) - 1)]

    def add_input(self, letter):
        name, shape = self.name(letter), self.pick((), (), (3,))
        kind = self.pick("real", "real", "positive", "unit")
        self.inputs[name] = Input(shape, kind)
        if letter == "a":
            init = {"real": 0.3, "positive": 1.0, "unit": 0.5}[kind]
            init = f"jnp.full(3, {init})" if shape else str(init)
            constraint = {"real": "real", "positive": "positive", "unit": "unit_interval"}[kind]
            self.lines.append(
                f'{name} = numpyro.param("{name}", {init}, constraint=constraints.{constraint})'
            )
        else:
            prior = self.pick(*PRIORS[kind])
            if kind == "real" and self.rng.random() < self.roughness / 2:
                prior = "Laplace(0.0, 1.0)"
            for old, kind_of, default in (("§r", "r", "0.0"), ("§p", "p", "1.0")):
                value = self.find(kind_of, ((), shape)) if self.rng.random() < 0.5 else None
                prior = prior.replace(old, value.text if value else default)
            if shape:
                prior += self.pick(".expand([3])", ".expand([3]).to_event(1)") if shape else ""
            self.lines.append(f'{name} = numpyro.sample("{name}", {prior})')
        self.values.append(Value(name, shape, kind[0]))

    def fill(self, text, **words):
        k, m = sorted(self.rng.choice(CONSTANTS, 2, replace=False))
        for word, value in {"k": k, "m": m, **words}.items():
            text = text.replace(f"§{word}", str(value))
        return text

    def step(self):
        """One operation on values; False if the one that was drawn does not fit."""
        rough = self.rng.random() < self.roughness
        tables = ROUGH if rough else SMOOTH
        weights = {"unary": 5, "binary": 4, "reduce": 2, "vector": 2, "mixed": 1, "scalar": 1.5}
        weights = {k: w for k, w in weights.items() if k in tables}
        group = self.rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values()))
        kinds, made, body = self.pick(*tables[group])
        shapes = {"reduce": [(3,)], "vector": [(3,)], "mixed": [()], "scalar": [()]}.get(group, [(), (3,)])
        x = self.find(kinds[0], shapes)
        if x is None:
            return False
        y = None
        if len(kinds) > 1:
            y = self.find(kinds[1], [(3,)] if group == "mixed" else [(), (3,)])
            if y is None:
                return False
        shape = {"reduce": (), "vector": (3,), "mixed": (3,), "scalar": ()}.get(
            group, max(x.shape, y.shape if y else ())
        )
        if "lax.cond" in body and group == "unary" and x.shape:
            return False
        name = self.name("t")
        self.lines.append(f"{name} = val({self.fill(body, x=x.text, **({'y': y.text} if y else {}))})")
        self.values.append(Value(name, shape, made))
        return True

    def term(self):
        """One term of the log density."""
        rough = self.rng.random() < self.roughness
        (kind,), _, body = self.pick(*(ROUGH_TERMS if rough else SMOOTH_TERMS))
        x = self.find("r", [(3,)]) if kind == "v" else self.find(kind, [(), (3,)])
        if x is None:
            return False
        self.lines.append(self.fill(body, x=x.text, s=x.shape, n=self.name("o")))
        return True


def generate(seed, smooth_only=False) -> Program:
    """The program of a seed, an integer."""
    rng = np.random.default_rng([seed, 0x5300 + smooth_only])
    writer = Writer(rng, 0.0 if smooth_only else rng.choice([0.2, 0.4, 0.6]))
    for _ in range(rng.integers(0, 3)):
        writer.add_input("a")
    for i in range(rng.integers(1, 4)):
        if i:
            while not writer.step():
                pass
        writer.add_input("z")
    for _ in range(rng.integers(1, 7)):
        while not writer.step():
            pass
    for _ in range(rng.integers(1, 3)):
        while not writer.term():
            pass
    return build("\n".join(writer.lines), writer.inputs, f"<smoothness fuzz {seed}{' smooth' * smooth_only}>")


def build(body, inputs, file="<program>") -> Program:
    """A program from the source of its body."""
    source = f"def program():\n{textwrap.indent(body, '    ')}\n"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space = dict(NAMESPACE)
    exec(compile(source, file, "exec"), space)
    program = space["program"]

    def scalar_fn(**values):
        with numpyro.validation_enabled(False):
            return log_density(program, (), {}, values)[0]

    return Program(program, inputs, scalar_fn, f"# {file}\n{source}")


def of_function(fn, *kinds):
    """A "program" whose log density is a function of scalars a, b, ... of the given kinds, to try the judge."""
    inputs = {name: Input((), kind) for name, kind in zip("abc", kinds or ("real",), strict=False)}
    return Program(fn, inputs, lambda **values: fn(*values.values()), getattr(fn, "__doc__", "") or "")


# The judge

BATCH = 2048  # points of one evaluation
SPECIAL = {
    "real": (0.0, 0.0, 0.0, 1.0, -1.0, 0.5, -0.5, 0.3, 2.0, 0.7),
    "positive": (0.5, 1.0, 2.0, 0.3, 0.7),
    "unit": (0.5, 0.3, 0.7),
}


class Density:
    """The log density of a program on points, the rows of an array; NaN where it is not finite or not to be trusted."""

    def __init__(self, program):
        self.names, self.kinds, self.parts = list(program.inputs), [], {}
        for name, (shape, kind) in program.inputs.items():
            size = int(np.prod(shape))
            self.parts[name] = slice(len(self.kinds), len(self.kinds) + size)
            self.kinds += [kind] * size
        self.size = len(self.kinds)
        self.positive = np.array([kind != "real" for kind in self.kinds])
        self.unit = np.array([kind == "unit" for kind in self.kinds])

        def single(point):
            global _LARGE
            _LARGE = []
            values = {k: point[part].reshape(program.inputs[k].shape) for k, part in self.parts.items()}
            try:
                value = jnp.asarray(program.scalar_fn(**values), float)
                return value, jnp.max(jnp.stack([jnp.asarray(0.0), *_LARGE]))
            finally:
                _LARGE = None

        options = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
        with jax.enable_x64(True):
            shape = jax.ShapeDtypeStruct((BATCH, self.size), np.float64)
            self.compiled = jax.jit(jax.vmap(single), compiler_options=options).lower(shape).compile()

    def raw(self, points):
        """Values, and where they can be trusted."""
        points = np.asarray(points, np.float64).reshape(-1, self.size)
        padded = np.concatenate([points, np.repeat(points[:1], -len(points) % BATCH, axis=0)])
        with jax.enable_x64(True):
            parts = [self.compiled(padded[i : i + BATCH]) for i in range(0, len(padded), BATCH)]
        value, largest = (np.concatenate([np.asarray(p[i]) for p in parts])[: len(points)] for i in (0, 1))
        return value, largest < 1

    def __call__(self, points):
        value, trusted = self.raw(points)
        value[~(trusted & np.isfinite(value) & (np.abs(value) < 1e9))] = np.nan
        return value.reshape(np.shape(points)[:-1])

    def draw(self, rng, count):
        normal = rng.normal(size=(count, self.size))
        points = np.where(self.positive, np.exp(0.7 * normal), 1.3 * normal)
        return np.where(self.unit, rng.uniform(0.03, 0.97, size=normal.shape), points)

    def special(self, rng, points, which):
        """Sets the coordinates in a boolean array to special values."""
        values = np.array([SPECIAL[kind][rng.integers(len(SPECIAL[kind]))] for kind in self.kinds])
        if rng.random() < 0.3 and not self.positive[which].any():
            values[:] = 0.0
        return np.where(which, values, points)

    def room(self, points, direction):
        """How far one can go from points, both ways, within the domain."""
        with np.errstate(divide="ignore"):
            below = np.where(self.positive, points, np.inf) / np.abs(direction)
            above = np.where(self.unit, 1 - points, np.inf) / np.abs(direction)
        return 0.95 * np.nanmin(np.minimum(below, above), axis=-1)


def judge(program, levels, seed=0, lines=16):
    """Counterexamples, as text, to the claim that the log density of ``program`` has ``levels`` (a dict from names to levels: for
    each property, jointly in all inputs whose level is at most that)."""
    rng = np.random.default_rng([seed, 0x10DE])
    density = Density(program)
    claims, seen = [], None
    for level in (DIFF, LIP, CONT):
        names = sorted(name for name in program.inputs if levels.get(name, ANY) <= level)
        if names and names != seen:
            claims.append((level, names))
        seen = names
    found = []
    constant = sorted(name for name in program.inputs if levels.get(name, ANY) == CONST)
    if constant:
        found += dependence(density, rng, constant)
    for level, names in claims:
        which = np.zeros(density.size, bool)
        for name in names:
            which[density.parts[name]] = True
        what = f"{('CONST', 'DIFF', 'LIP', 'CONT')[level]} in {', '.join(names)}"
        found += [f"{what}: {text}" for text in along_lines(density, rng, level, which, lines)]
        found += [f"{what}: {text}" for text in around_points(density, rng, level, which)]
    return found


def dependence(density, rng, names):
    """Inputs that are denied to matter, but do."""
    first, second = density.draw(rng, 200), density.draw(rng, 200)
    found = []
    for name in names:
        moved = first.copy()
        moved[:, density.parts[name]] = second[:, density.parts[name]]
        values, others = density(first), density(moved)
        change = np.nan_to_num(np.abs(values - others) / (1 + np.abs(values)))
        if change.max() > 1e-9:
            found.append(f"CONST in {name}: changes by {change.max():.3g}")
    return found


def segments(density, rng, which, count):
    """Ends of segments on which only some coordinates change: between random points, and through special ones."""
    start = density.draw(rng, count)
    stop = start.copy()
    coordinates = np.flatnonzero(which)
    for i in range(count):
        change = which.copy()
        if i % 5 in (1, 2):  # one or two coordinates
            change = np.zeros_like(which)
            change[rng.choice(coordinates, min(i % 5, len(coordinates)), replace=False)] = True
        if i % 5 < 3:
            stop[i] = np.where(change, density.draw(rng, 1)[0], start[i])
            continue
        middle = density.special(rng, start[i], which & (rng.random(density.size) < 0.6))
        direction = np.where(which, rng.normal(size=density.size), 0.0)
        if i % 5 == 4:
            direction = np.where(which, rng.integers(-1, 2, size=density.size), 0.0)
            if not direction.any():
                direction = np.where(which, 1.0, 0.0)
        direction /= np.linalg.norm(direction)
        length = min(rng.uniform(0.5, 2.0), density.room(middle, direction))
        start[i], stop[i] = middle - length * direction, middle + rng.uniform(0.5, 1) * length * direction
    return start, stop


def top(scores, count):
    """Indices along the last axis of the ``count`` largest scores, no two of them close."""
    scores, picked = scores.copy(), []
    for _ in range(count):
        best = scores.argmax(-1)
        picked.append(best)
        for shift in (-2, -1, 0, 1, 2):
            at = np.clip(best + shift, 0, scores.shape[-1] - 1)
            np.put_along_axis(scores, at[:, None], -1.0, -1)
    return np.stack(picked, -1)


def along_lines(density, rng, level, which, count):
    """Jumps, vertical slopes and kinks on segments."""
    start, stop = segments(density, rng, which, count)

    def at(line, t):
        """Values at ``t[window, point]`` on the segment of each window."""
        t = t[..., None]
        return density((1 - t) * start[line][:, None] + t * stop[line][:, None])

    grid = np.linspace(0, 1, 101)
    points = (1 - grid[:, None]) * start[:, None] + grid[:, None] * stop[:, None]
    raw, trusted = density.raw(points)
    undefined = (np.isnan(raw) & trusted).reshape(count, -1)
    finite = (np.isfinite(raw) & trusted).reshape(count, -1)
    values = np.where(finite & (np.abs(raw.reshape(count, -1)) < 1e9), raw.reshape(count, -1), np.nan)
    found = []
    holes = undefined[:, 2:] & undefined[:, 1:-1] & undefined[:, :-2]
    bad = holes.any(-1) & (finite.sum(-1) > 2)
    if bad.any():
        i = int(bad.argmax())
        found.append(f"undefined between {start[i].round(3)} and {stop[i].round(3)}, defined elsewhere there")

    # Fourth differences show kinks better than second ones: a kink gives its size times the step, a smooth function the step's
    # fourth power.
    first = np.nan_to_num(np.abs(np.diff(values)), nan=-1.0)
    fourth = np.abs(np.diff(values, 4))
    around = np.lib.stride_tricks.sliding_window_view(
        np.pad(fourth, ((0, 0), (6, 6)), mode="edge"), 13, axis=-1
    )
    typical = np.median(np.nan_to_num(around, nan=0.0), axis=-1)
    fourth = np.nan_to_num(fourth, nan=-1.0)
    peaks = np.concatenate([top(fourth, 2), top(fourth / (typical + 1e-12), 3), top(first, 2)], axis=1)
    jumps = np.zeros(peaks.shape, bool)
    jumps[:, -2:] = True
    line = np.repeat(np.arange(count), peaks.shape[1])
    jumps, peaks = jumps.ravel(), peaks.ravel()
    low, high = grid[np.where(jumps, peaks, peaks + 1)], grid[np.where(jumps, peaks + 1, peaks + 3)]

    index = np.arange(len(line))
    for _ in range(9):
        cell = (high - low) / 16
        t = low[:, None] + cell[:, None] * np.arange(17)
        values = at(line, t)
        first = np.nan_to_num(np.abs(np.diff(values)), nan=-1.0).argmax(-1)
        fourth = np.nan_to_num(np.abs(np.diff(values, 4)), nan=-1.0).argmax(-1)
        more = high - low > 1e-8
        low = np.where(more, t[index, np.where(jumps, first, fourth + 1)] - cell / 2, low)
        high = np.where(more, t[index, np.where(jumps, first + 1, fourth + 3)] + cell / 2, high)

    middle, width = (low + high) / 2, (high - low) / 2
    steps = 10.0 ** -np.arange(3, 8)  # 1e-3 ... 1e-7
    nodes = np.arange(5)
    offsets = width[:, None, None] + steps[:, None] * nodes  # [window, step, node]
    both = np.stack([-offsets, offsets], 1) + middle[:, None, None, None]
    values = at(line, both.reshape(len(line), -1)).reshape(both.shape)  # [window, side, step, node]
    size = 1 + np.abs(values).max((1, 2, 3))

    def report(flags, text):
        if flags.any():
            i = int(flags.argmax())
            point = (1 - middle[i]) * start[line[i]] + middle[i] * stop[line[i]]
            direction = stop[line[i]] - start[line[i]]
            found.append(f"{text(i)} at {point.round(6)} along {direction.round(3)}")

    with np.errstate(invalid="ignore", divide="ignore"):
        inner = values[..., 1:]
        jump = np.abs(inner[:, 1].mean(-1) - inner[:, 0].mean(-1))  # [window, step]
        spread = np.ptp(inner, axis=-1).sum(1)
        flags = (jump > 10 * spread + 1e-7 * size[:, None])[:, 2:].all(-1) & (jump[:, 4] > 0.5 * jump[:, 2])
        report(flags, lambda i: f"jumps by {jump[i, 4]:.3g}")
        growth = np.diff(values[..., 1], axis=-1)  # as the distance falls tenfold
        flags = ((growth > 1e-2).all(-1) & (growth[..., -1] > 0.7 * growth[..., 0])).any(1)
        report(flags, lambda i: f"grows to {values[i, :, 4, 1].max():.3g}")
        if level <= LIP:
            rise = np.abs(values[..., 4] - values[..., 1])
            ratio = rise[..., 1:] / rise[..., :-1]
            flags = ((ratio > 0.15) & (rise[..., 1:] > 1e-10 * size[:, None, None])).all(-1).any(1)
            flags &= (ratio[..., 1:] < 0.9).all(-1).any(1)
            report(flags, lambda i: f"has quotients up to {(rise[i] / steps / 3).max():.3g}")
        if level <= DIFF:
            sign = np.array([-1.0, 1.0])[:, None]
            fourth = values @ np.array([-25 / 12, 4, -3, 4 / 3, -1 / 4]) * sign / steps
            third = values @ np.array([-11 / 6, 3, -3 / 2, 1 / 3, 0]) * sign / steps
            curvature = np.abs(values @ np.array([2.0, -5, 4, -1, 0])) / steps**2
            error = (
                np.abs(fourth - third).sum(1)
                + 2 * width[:, None] * curvature.sum(1)
                + 1e-14 * size[:, None] / steps
            )
            gap = np.abs(fourth[:, 1] - fourth[:, 0])
            least = 1e-6 * (1 + np.abs(fourth).max(1))
            flags = ((gap > 10 * error) & (gap > least))[:, 1:4].all(-1)
            flags &= (gap[:, 3] > 0.7 * gap[:, 2]) & (gap[:, 2] > 0.7 * gap[:, 1])
            report(flags, lambda i: f"has slopes {fourth[i, 0, 3]:.6g} and {fourth[i, 1, 3]:.6g}")
    return found


def around_points(density, rng, level, which, count=15, directions=8):
    """Limits and slopes that depend on the direction, at points some of whose coordinates are special."""
    radii = 10.0 ** -np.arange(3, 8)
    coordinates = np.flatnonzero(which)
    centres, spans = density.draw(rng, count), []
    for i in range(count):
        some = rng.choice(coordinates, min(len(coordinates), 1 + i % 3), replace=False)
        centres[i] = density.special(rng, centres[i], np.isin(np.arange(density.size), some))
        spans.append(rng.normal(size=(directions, density.size)) * np.isin(np.arange(density.size), some))
    spans = np.array(spans)
    spans /= np.linalg.norm(spans, axis=-1, keepdims=True)
    moves = radii[:, None] * np.array([-1.0, 1.0])  # [radius, side]
    points = centres[:, None, None, None] + moves[..., None] * spans[:, :, None, None]
    values = density(points)  # [centre, direction, radius, side]
    size = 1 + np.abs(values).max((1, 2, 3))
    found = []

    def report(flags, text):
        if flags.any():
            i = int(flags.argmax())
            found.append(f"{text(i)} around {centres[i].round(6)}")

    with np.errstate(invalid="ignore", divide="ignore"):
        # Directions are compared with each other, and with the point itself if it has a value.
        centre = density(centres)
        known = np.isfinite(centre)
        rings = values.swapaxes(1, 2).reshape(count, len(radii), -1)
        own = np.where(known[:, None], centre[:, None], rings[..., 0])[..., None]
        spread = np.ptp(np.concatenate([rings, own], -1), axis=-1)
        flags = (spread[:, 4] > 0.5 * spread[:, 2]) & (spread[:, 3] > 0.5 * spread[:, 1])
        report(flags & (spread[:, 4] > 1e-6 * size), lambda i: f"has limits {spread[i, 4]:.3g} apart")
        if level <= LIP:
            ratio = spread[:, 1:] / spread[:, :-1]
            flags = (ratio > 0.2).all(-1) & (spread[:, 4] > 1e-9 * size)
            report(flags, lambda i: f"has quotients up to {spread[i, 4] / radii[4]:.3g}")
        if level <= DIFF:
            slopes = (values[..., 1] - values[..., 0]) / 2 / radii  # [centre, direction, radius]
            halves = values.mean(-1).swapaxes(1, 2)  # of two opposite values: [centre, radius, direction]
            even = (
                np.ptp(np.concatenate([halves, np.where(known[:, None, None], own, halves[..., :1])], -1), -1)
                / radii
            )
            least = 1e-5 * (1 + np.abs(slopes).max((1, 2))) + 1e-14 * size / radii[3]
            shrinks = (even[:, 3] < 0.7 * even[:, 2]) | (even[:, 2] < 0.7 * even[:, 1])
            report(~shrinks & (even[:, 3] > least), lambda i: f"has a kink of {even[i, 3]:.3g}")
            usable = np.isfinite(slopes).all((1, 2))
            rest = np.zeros((count, len(radii)))
            for i in np.flatnonzero(usable):
                fit, *_ = np.linalg.lstsq(spans[i], slopes[i], rcond=None)
                rest[i] = np.abs(slopes[i] - spans[i] @ fit).max(0)
            shrinks = (rest[:, 3] < 0.7 * rest[:, 2]) | (rest[:, 2] < 0.7 * rest[:, 1])
            report(~shrinks & (rest[:, 3] > least), lambda i: f"has slopes {rest[i, 3]:.3g} off linear")
    return found
