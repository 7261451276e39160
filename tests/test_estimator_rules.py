"""Each rule of each strategy against exact values: quadrature and enumeration in float64 by scipy, which shares no code with them.

Every statistical test is a two-sided z-test at |z| < 4.5 (false alarm rate 7e-6 each, seeded), with samples enough that an
error of 2 % of the largest derivative of the vector is more than 7 standard errors away.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints, transforms
from scipy import integrate, special, stats

from vinb.distributions import OneHotCategorical
from vinb.estimators import measure_valued, moments, pathwise, relaxations

Z_LIMIT = 4.5


def assert_mean(mean, error, exact):
    mean, error, exact = (np.asarray(a, np.float64) for a in (mean, error, exact))
    largest = np.abs(exact).max()
    z = (mean - exact) / np.maximum(error, 1e-6 * largest)
    assert np.all(np.abs(z) < Z_LIMIT), f"z = {z}: mean {mean}, exact {exact}"
    assert np.all(error <= 0.02 / 7 * largest), f"needs {(350 * error / largest) ** 2} times the samples"


def derivatives_of(expectation, theta, step=1e-3):
    """Central differences (fourth order) of a float64 function, one row per parameter."""
    theta = np.asarray(theta, np.float64)
    rows = []
    for i in range(theta.size):
        h = step * max(abs(theta.flat[i]), 0.1)
        at = lambda n, i=i, h=h: np.asarray(expectation(theta + n * h * (np.arange(theta.size) == i)))  # noqa: E731
        rows.append((8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h))
    return np.stack(rows)


@functools.cache
def gauss(low, high, panels=400):
    """Composite Gauss-Legendre rule."""
    x, w = np.polynomial.legendre.leggauss(12)
    edges = np.linspace(low, high, panels + 1)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel()


def expect(f, density, low, high):
    x, w = gauss(low, high)
    return (f(x) * density(x) * w).sum()


# Pathwise ------------------------------------------------------------------------------------------------------------


def mixture(t):
    return dist.MixtureSameFamily(dist.Categorical(logits=t[:2]), dist.Normal(t[2:4], t[4:6]))


def mixture_of_probs(t):
    return dist.MixtureSameFamily(dist.Categorical(probs=t[:2] / t[:2].sum()), dist.Normal(t[2:4], t[4:6]))


def general_mixture(t):
    components = [dist.Normal(t[2], t[4]), dist.Normal(t[3], t[5])]
    return dist.MixtureGeneral(dist.Categorical(logits=t[:2]), components)


def mixture_density(weights):
    def density(t):
        w = weights(t[:2])
        return lambda x: sum(w[k] * stats.norm.pdf(x, t[2 + k], t[4 + k]) for k in range(2))

    return density


def xp(x):
    return np if isinstance(x, np.ndarray) else jnp


def bump(x):
    return 1 / (1 + (x - 0.4) ** 2)


def wave(x):
    return xp(x).sin(x + 0.7) + x


def growth(x):
    return xp(x).exp(0.5 * x)


def circular(x):
    return xp(x).exp(xp(x).sin(x))


def truncated_normal(t):
    return dist.TruncatedNormal(t[0], t[1], low=t[2], high=t[3])


def truncated_normal_density(t):
    mass = stats.norm.cdf(t[3], t[0], t[1]) - stats.norm.cdf(t[2], t[0], t[1])
    return lambda x: stats.norm.pdf(x, t[0], t[1]) / mass


MIXTURE = [0.3, -0.4, -0.6, 1.2, 0.7, 0.9]
# name: distribution of a parameter vector, the vector, density in scipy, range of integration (may depend on it), f, draws
PATHWISE = {
    "VonMises": (lambda t: dist.VonMises(t[0], t[1]), [0.5, 1.3], lambda t: lambda x: stats.vonmises.pdf(x, t[1], t[0]),
                 (-np.pi, np.pi), circular, 600_000),
    "MixtureSameFamily": (mixture, MIXTURE, mixture_density(special.softmax), (-12, 12), growth, 800_000),
    "MixtureGeneral": (general_mixture, MIXTURE, mixture_density(special.softmax), (-12, 12), growth, 800_000),
    "MixtureSameFamily probs": (mixture_of_probs, [0.4, 0.6, *MIXTURE[2:]], mixture_density(lambda p: p / p.sum()),
                                (-12, 12), growth, 800_000),
    "TruncatedNormal": (truncated_normal, [0.3, 0.9, -0.5, 1.4], truncated_normal_density,
                        lambda t: (t[2], t[3]), wave, 400_000),
    "Gamma": (lambda t: dist.Gamma(t[0], t[1]), [1.4, 2.0], lambda t: stats.gamma(t[0], scale=1 / t[1]).pdf,
              (0, 30), wave, 100_000),
    "StudentT": (lambda t: dist.StudentT(t[0], t[1], t[2]), [3.0, 0.9, 0.7], lambda t: stats.t(t[0], t[1], t[2]).pdf,
                 (-400, 400), bump, 2_000_000),
    "Kumaraswamy": (lambda t: dist.Kumaraswamy(t[0], t[1]), [1.7, 2.3],
                    lambda t: lambda x: t[0] * t[1] * x ** (t[0] - 1) * (1 - x ** t[0]) ** (t[1] - 1), (0, 1), wave, 100_000),
    "Beta": (lambda t: dist.Beta(t[0], t[1]), [1.6, 2.7], lambda t: stats.beta(t[0], t[1]).pdf, (0, 1), wave, 100_000),
    "InverseGamma": (lambda t: dist.InverseGamma(t[0], t[1]), [5.0, 4.0],
                     lambda t: stats.invgamma(t[0], scale=t[1]).pdf, (1e-9, 150), wave, 200_000),
    "Chi2": (lambda t: dist.Chi2(t[0]), [3.0], lambda t: stats.chi2(t[0]).pdf, (0, 80), wave, 400_000),
    "LogNormal": (lambda t: dist.LogNormal(t[0], t[1]), [0.1, 0.4], lambda t: stats.lognorm(t[1], scale=np.exp(t[0])).pdf,
                  (1e-9, 30), lambda x: 1 / (1 + x**2), 400_000),
    "Uniform": (lambda t: dist.Uniform(t[0], t[1]), [-0.4, 1.3], lambda t: stats.uniform(t[0], t[1] - t[0]).pdf,
                lambda t: (t[0], t[1]), wave, 100_000),
    "Laplace": (lambda t: dist.Laplace(t[0], t[1]), [0.9, 0.6], lambda t: stats.laplace(t[0], t[1]).pdf, (-20, 20),
                growth, 1_600_000),
    "Gumbel": (lambda t: dist.Gumbel(t[0], t[1]), [0.3, 0.8], lambda t: stats.gumbel_r(t[0], t[1]).pdf, (-5, 30), wave, 400_000),
    "Logistic": (lambda t: dist.Logistic(t[0], t[1]), [0.9, 0.3], lambda t: stats.logistic(t[0], t[1]).pdf, (-15, 15),
                 growth, 800_000),
    "Weibull": (lambda t: dist.Weibull(t[0], t[1]), [1.2, 1.7], lambda t: stats.weibull_min(t[1], scale=t[0]).pdf, (0, 20),
                bump, 1_000_000),
    "Exponential": (lambda t: dist.Exponential(t[0]), [1.3], lambda t: stats.expon(scale=1 / t[0]).pdf, (0, 40), wave, 400_000),
    "Pareto": (lambda t: dist.Pareto(t[0], t[1]), [0.6, 4.0], lambda t: stats.pareto(t[1], scale=t[0]).pdf,
               lambda t: (t[0], 200), bump, 1_000_000),
    "HalfNormal": (lambda t: dist.HalfNormal(t[0]), [0.7], lambda t: stats.halfnorm(scale=t[0]).pdf, (0, 9), wave, 100_000),
    "Cauchy": (lambda t: dist.Cauchy(t[0], t[1]), [1.4, 0.7], lambda t: stats.cauchy(t[0], t[1]).pdf, (-4000, 4000), bump,
               1_000_000),
}  # fmt: skip
QUICK = [
    "VonMises",
    "MixtureSameFamily",
    "MixtureGeneral",
    "MixtureSameFamily probs",
    "TruncatedNormal",
    "Gamma",
]


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.exhaustive) for n in PATHWISE]
)
def test_pathwise_gradient(name):
    make, theta, density, limits, f, num_draws = PATHWISE[name]
    theta32 = jnp.array(theta, jnp.float32)
    assert pathwise.is_reparameterised(make(theta32))

    def expectation(t):
        low, high = limits(t) if callable(limits) else limits
        if name in ("StudentT", "Cauchy"):  # heavy tails: x = low + sinh(u)
            u, w = gauss(-np.arcsinh(high), np.arcsinh(high))
            x = np.sinh(u)
            return (f(x) * density(t)(x) * np.cosh(u) * w).sum()
        return expect(f, density(t), low, high)

    measured = moments(
        lambda key: jax.grad(lambda t: f(pathwise.sample(make(t), key)))(theta32),
        jax.random.key(3),
        num_draws,
    )
    assert_mean(measured.mean, measured.standard_error, derivatives_of(expectation, theta))


def diagonal_mixture(t):
    loc, scale = t[2:6].reshape(2, 2), t[6:10].reshape(2, 2)
    return dist.MixtureSameFamily(dist.Categorical(logits=t[:2]), dist.Normal(loc, scale).to_event(1))


def general_diagonal_mixture(t):
    loc, scale = t[2:6].reshape(2, 2), t[6:10].reshape(2, 2)
    components = [dist.Normal(loc[k], scale[k]).to_event(1) for k in range(2)]
    return dist.MixtureGeneral(dist.Categorical(logits=t[:2]), components)


DIAGONAL = np.array([0.2, -0.3, -0.6, 0.3, 0.7, -0.4, 0.6, 0.5, 0.5, 0.9])


def plane_function(x):  # not a sum over coordinates: a wrong conditional would show
    return jnp.sin(1.5 * x[0] + x[1] + 0.2) + 2 * x[0] * x[1]


def plane_expectation(t):
    nodes, w = np.polynomial.hermite_e.hermegauss(40)
    w = np.outer(w, w) / (2 * np.pi)
    total = 0
    for weight, loc, scale in zip(
        special.softmax(t[:2]), t[2:6].reshape(2, 2), t[6:10].reshape(2, 2), strict=True
    ):
        x, y = loc[0] + scale[0] * nodes[:, None], loc[1] + scale[1] * nodes
        total += weight * (w * (np.sin(1.5 * x + y + 0.2) + 2 * x * y)).sum()
    return total


@pytest.mark.parametrize(
    "make", [diagonal_mixture, pytest.param(general_diagonal_mixture, marks=pytest.mark.exhaustive)]
)
def test_pathwise_gradient_of_a_diagonal_mixture(make):
    theta = jnp.array(DIAGONAL, jnp.float32)
    measured = moments(
        lambda key: jax.grad(lambda t: plane_function(pathwise.sample(make(t), key)))(theta),
        jax.random.key(4),
        400_000,
    )
    exact = derivatives_of(plane_expectation, DIAGONAL)
    assert_mean(measured.mean, measured.standard_error, exact)


@pytest.mark.parametrize("name", ["VonMises", "MixtureSameFamily", "diagonal"])
def test_implicit_derivatives_integrated_over_all_draws(name):
    # The rule's derivatives at the nodes of a quadrature, weighted by the density: no noise, so second ones too, to 0.2 %.
    if name == "diagonal":
        theta, f, expectation = DIAGONAL, plane_function, plane_expectation
        (x, w), means = np.polynomial.hermite_e.hermegauss(40), DIAGONAL[2:6].reshape(2, 2)
        scales, nodes, weights = DIAGONAL[6:10].reshape(2, 2), [], []
        for share, loc, scale in zip(special.softmax(DIAGONAL[:2]), means, scales, strict=True):
            nodes.append(loc + scale * np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2))
            weights.append(share * np.outer(w, w).ravel() / (2 * np.pi))
        nodes, weights = np.concatenate(nodes), np.concatenate(weights)

        def value(t, x):
            return f(
                pathwise._mixture_draw(
                    x, jax.nn.log_softmax(t[:2]), t[2:6].reshape(2, 2), t[6:10].reshape(2, 2)
                )
            )

    else:
        _, theta, density, limits, f, _ = PATHWISE[name]
        nodes, weights = gauss(*limits, 100)

        def expectation(t):
            return expect(f, density(t), *limits)

        def value(t, x):
            if name == "VonMises":  # of the angle to the mean direction
                return f(pathwise._von_mises_draw(x, t[1]) + t[0])
            return f(
                pathwise._mixture_draw(x[None], jax.nn.log_softmax(t[:2]), t[2:4, None], t[4:6, None])[0]
            )

        weights = weights * density([0.0, theta[1]] if name == "VonMises" else np.array(theta))(nodes)

    @jax.jit
    def derivatives(theta, nodes):
        first, second = jax.grad(value), jax.hessian(value)
        return jax.vmap(lambda x: (first(theta, x), second(theta, x)))(nodes)

    first, second = derivatives(jnp.array(theta, jnp.float32), nodes.astype(np.float32))
    exact_first = derivatives_of(expectation, theta)
    exact_second = derivatives_of(lambda t: derivatives_of(expectation, t), theta)
    for computed, exact in ((first, exact_first), (second, exact_second)):
        computed = np.tensordot(weights, np.asarray(computed, np.float64), 1)
        np.testing.assert_allclose(computed, exact, atol=2e-3 * np.abs(exact).max())


@pytest.mark.exhaustive
def test_second_derivatives_of_a_gamma():
    make, theta, density, limits, f, _ = PATHWISE["Gamma"]
    measured = moments(
        lambda key: jax.hessian(lambda t: f(pathwise.sample(make(t), key)))(jnp.array(theta)),
        jax.random.key(5),
        420_000,
    )
    exact = derivatives_of(lambda t: derivatives_of(lambda t: expect(f, density(t), *limits), t), theta)
    assert_mean(measured.mean, measured.standard_error, exact)


def test_second_derivatives_of_a_gamma_in_reverse_mode_are_refused():
    draw = lambda a: pathwise.sample(dist.Gamma(a, 1.0), jax.random.key(0))  # noqa: E731
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(jax.grad(draw))(1.5)


def test_second_derivatives_of_implicit_draws_agree_in_all_modes():
    def draw(t):
        keys = jax.random.split(jax.random.key(0))
        return pathwise.sample(mixture(t), keys[0]) + pathwise.sample(dist.VonMises(t[0], t[4]), keys[1])

    theta = jnp.array(MIXTURE)
    modes = [jax.jacfwd(jax.jacfwd(draw)), jax.jacrev(jax.jacrev(draw)), jax.jacfwd(jax.jacrev(draw))]
    first, *others = jax.jit(lambda t: [mode(t) for mode in modes])(theta)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3, atol=1e-4)


def test_von_mises_velocity_in_the_tails_and_for_all_concentrations():
    def one_minus_a(k):
        return 1 - special.ive(1, k) / special.ive(0, k) if k < 300 else (0.5 + (0.125 + 0.125 / k) / k) / k

    def exact(x, k):
        def integrand(t):
            return (one_minus_a(k) - 2 * np.sin(t / 2) ** 2) * np.exp(
                2 * k * np.sin((x + t) / 2) * np.sin((x - t) / 2)
            )

        if 2 * np.sin(x / 2) ** 2 < one_minus_a(k):
            return -integrate.quad(integrand, 0, x, epsabs=0)[0]
        return integrate.quad(integrand, x, min(np.pi, x + 40 / np.sqrt(k)), epsabs=0, limit=200)[0]

    k = np.repeat([1e-3, 0.1, 1, 5, 29, 31, 100, 1e4, 1e6], 7).astype(np.float32)
    x = np.tile([0.1, 0.5, 0.9, 1.1, 2.0, 4.0, 6.0], 9) / np.where(k > 1, np.sqrt(k), 2.1)
    x = np.minimum(x, 3.1).astype(np.float32)
    velocity = jax.jit(pathwise._von_mises_velocity)
    wanted = np.array([exact(float(a), float(b)) for a, b in zip(x, k, strict=True)])
    np.testing.assert_allclose(velocity(x, k), wanted, rtol=3e-5)
    np.testing.assert_allclose(velocity(-x, k), -wanted, rtol=3e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: dist.VonMises(t, 2.0),
        lambda t: dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.zeros(2)), dist.Normal(jnp.arange(2), t[..., None])
        ),
        lambda t: dist.TransformedDistribution(dist.VonMises(t, 2.0), transforms.AffineTransform(t, 2.0)),
        lambda t: dist.Normal(t, 1.0),
    ],
)
def test_pathwise_draws_each_wrapped_element_independently(make):
    base = make(jnp.ones((3, 1)))
    for fn in (
        base.expand((2, 3, 4)),
        base.expand((3, 4)).to_event(1).expand((2, 3)),
        base.expand((2, 3, 4)).mask(False),
    ):
        assert pathwise.is_reparameterised(fn)
        draw = np.asarray(jax.jit(lambda key, fn=fn: pathwise.sample(fn, key, (5,)))(jax.random.key(0)))
        assert draw.shape == (5, *fn.batch_shape, *fn.event_shape) == (5, 2, 3, 4)
        assert np.unique(draw).size == draw.size


def test_pathwise_draws_numpyros_own_numbers_where_it_uses_numpyros_sampler():
    for fn in (dist.Gamma(jnp.array([1.0, 2.0]), 1.0), dist.Normal(0.0, 1.0).expand((3,)).to_event(1)):
        key = jax.random.key(7)
        np.testing.assert_array_equal(pathwise.sample(fn, key, (4,)), fn.sample(key, (4,)))


class Undeclared(dist.Distribution):
    support = constraints.real

    def sample(self, key, sample_shape=()):
        return jax.random.randint(key, sample_shape, 0, 2) * 1.0


@pytest.mark.parametrize(
    "fn",
    [
        dist.Bernoulli(0.5).expand((3,)).to_event(1),
        dist.Poisson(1.0),
        Undeclared(),
        dist.WishartCholesky(3.0, scale_tril=jnp.eye(2)),
        OneHotCategorical(probs=jnp.array([0.5, 0.5])),
        dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(2)), dist.Gamma(jnp.ones(2), 1.0)),
        dist.MixtureGeneral(
            dist.Categorical(logits=jnp.zeros(2)), [dist.Normal(0.0, 1.0), dist.Cauchy(0.0, 1.0)]
        ),
    ],
)
def test_pathwise_refuses_what_it_cannot_differentiate(fn):
    assert not pathwise.is_reparameterised(fn)
    with pytest.raises(TypeError, match=type(pathwise.unwrap(fn)).__name__ + ".*ScoreFunction"):
        pathwise.sample(fn, jax.random.key(0))


# Measure-valued ------------------------------------------------------------------------------------------------------


def smooth(x):
    return xp(x).logaddexp(0.0, x - 0.5)


def jump(x):
    return (x > 0.8) * 1.0


def density_on(make, low, high):
    def expectation(*t):
        # The range is cut at the jump.
        return lambda f: expect(f, make(*t).pdf, low, 0.8) + expect(f, make(*t).pdf, 0.8, high)

    return expectation


def masses(make, count):
    return lambda *t: lambda f: (f(np.arange(count) * 1.0) * make(*t).pmf(np.arange(count))).sum()


def categorical(t):
    return special.softmax(np.array([t[0], t[1], 0.0]))


MEASURE_VALUED = {
    "BernoulliProbs": (lambda p: dist.Bernoulli(probs=p), [0.3], masses(stats.bernoulli, 2)),
    "BernoulliLogits": (lambda a: dist.Bernoulli(logits=a), [-0.8],
                        masses(lambda a: stats.bernoulli(special.expit(a)), 2)),
    "CategoricalLogits": (lambda a, b: dist.Categorical(logits=jnp.stack([a, b, 0.0])), [0.4, -0.3],
                          masses(lambda a, b: stats.rv_discrete(values=(range(3), categorical((a, b)))), 3)),
    # Not normalised on purpose: the law is that of the normalised probabilities.
    "CategoricalProbs": (lambda a, b: dist.Categorical(probs=jnp.stack([a, b, 0.3])), [0.5, 0.4],
                         masses(lambda a, b: stats.rv_discrete(values=(range(3), np.array([a, b, 0.3]) / (a + b + 0.3))), 3)),
    "Poisson": (dist.Poisson, [1.7], masses(stats.poisson, 200)),
    "GeometricProbs": (lambda p: dist.Geometric(probs=p), [0.4], masses(lambda p: stats.geom(p, loc=-1), 200)),
    "GeometricLogits": (lambda a: dist.Geometric(logits=a), [-0.3],
                        masses(lambda a: stats.geom(special.expit(a), loc=-1), 200)),
    "Exponential": (dist.Exponential, [0.8], density_on(lambda r: stats.expon(scale=1 / r), 0, 60)),
    "Gamma": (dist.Gamma, [1.6, 0.8], density_on(lambda a, r: stats.gamma(a, scale=1 / r), 0, 80)),
    "Gamma large": (dist.Gamma, [6.0, 7.0], density_on(lambda a, r: stats.gamma(a, scale=1 / r), 0, 5)),
    "Chi2": (dist.Chi2, [2.6], density_on(stats.chi2, 0, 80)),
    "Normal": (dist.Normal, [0.6, 0.9], density_on(stats.norm, -8, 9)),
}  # fmt: skip


def weak_derivatives(make, theta, f, key, num_draws):
    """Derivatives ``[parameters, draws]`` of ``E[f]`` in ``theta``, one draw each."""

    def total(theta):
        key_draw, key_pair = jax.random.split(key)
        fn = make(*theta)
        value = jax.lax.stop_gradient(fn.sample(key_draw, (num_draws,)))
        f32 = lambda x: f(value if x is None else x).astype(jnp.float32)  # noqa: E731
        return sum(
            d.coefficient * (f32(d.positive) - f32(d.negative)) * d.parameter
            for d in measure_valued.derivatives(fn, value, key_pair)
        )

    return jax.jacfwd(total)(theta).T


@pytest.mark.parametrize(
    "name",
    [n if n != "Gamma large" else pytest.param(n, marks=pytest.mark.exhaustive) for n in MEASURE_VALUED],
)
def test_measure_valued_derivative(name):
    make, theta, expectation = MEASURE_VALUED[name]
    num_draws = {"Gamma": 1_200_000, "Chi2": 1_600_000, "Gamma large": 4_000_000}.get(name, 800_000)

    @jax.jit
    def run(theta, key):
        both = jnp.stack([weak_derivatives(make, theta, f, key, num_draws) for f in (smooth, jump)], 1)
        return both.mean(-1), both.std(-1) / num_draws**0.5

    mean, error = run(jnp.array(theta, jnp.float32), jax.random.key(11))
    exact = derivatives_of(lambda t: [expectation(*t)(f) for f in (smooth, jump)], theta)
    for i in range(2):
        assert_mean(mean[:, i], error[:, i], exact[:, i])


def test_coupled_pairs_have_less_variance_than_independent_ones():
    loc, scale, rate = 0.6, 0.9, 20.0
    normal, poisson = dist.Normal(loc, scale), dist.Poisson(rate)

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 6)
        x, n = normal.sample(keys[0], (100_000,)), poisson.sample(keys[1], (100_000,))
        by_loc, by_scale = measure_valued.derivatives(normal, x, keys[2])
        other_loc, other_scale = measure_valued.derivatives(normal, x, keys[3])
        (by_rate,) = measure_valued.derivatives(poisson, n, keys[4])
        even, growing = (lambda x: jnp.cos(x - loc)), (lambda x: jnp.exp(0.3 * x))
        pairs = [  # f, positive, coupled negative, independent negative
            (even, by_loc.positive, by_loc.negative, other_loc.negative),
            (growing, by_scale.positive, by_scale.negative, other_scale.negative),
            (growing, by_rate.positive / 10, n / 10, poisson.sample(keys[5], (100_000,)) / 10),
        ]
        return jnp.array([[(f(p) - f(m)).var() for m in (c, i)] for f, p, c, i in pairs])

    coupled, independent = np.asarray(run(jax.random.key(0))).T
    assert np.all(coupled < [1e-9, 0.5, 0.05] * independent)


@pytest.mark.parametrize(
    ("fn", "value"),
    [
        (dist.Bernoulli(0.3), np.array([[True, False, True]])),
        (dist.Bernoulli(logits=0), np.array([[1, 0, 1]])),
        (dist.Categorical(probs=np.array([0.2, 0.8])), np.array([[1, 0, 1]])),
        (dist.Poisson(2), np.array([[3, 0, 1]])),
        (dist.Normal(0, 1), np.array([[0.3, -0.2, 1.0]], np.float32)),
        (dist.Gamma(2, 1.5), np.array([[0.3, 0.2, 1.0]], np.float32)),
        (dist.Geometric(0.3), np.array([[0.0, 2.0, 1.0]], np.float32)),
    ],
)
def test_measure_valued_values_keep_type_and_shape(fn, value):
    value = jnp.asarray(value)
    for d in jax.eval_shape(lambda v: measure_valued.derivatives(fn, v, jax.random.key(0)), value):
        assert d.parameter.shape == d.coefficient.shape == value.shape
        assert jnp.issubdtype(d.parameter.dtype, jnp.floating)
        drawn = [x for x in (d.positive, d.negative) if x is not None]
        assert drawn
        assert all(x.shape == value.shape and x.dtype == value.dtype for x in drawn)


def test_measure_valued_values_carry_no_gradient():
    def moved(scale):
        d = measure_valued.derivatives(dist.Normal(scale, scale), jnp.zeros(2), jax.random.key(0))
        return sum((e.coefficient + e.positive + e.negative).sum() for e in d)

    assert jax.jit(jax.grad(moved))(0.7) == 0


class Louder(dist.Normal):
    """A subclass may have another law."""


def test_measure_valued_refuses_other_distributions_and_subclasses():
    for fn in (dist.Cauchy(0.0, 1.0), Louder(0.0, 1.0), dist.Normal(0.0, 1.0).expand((2,))):
        assert not measure_valued.supports(fn)
        with pytest.raises(
            TypeError, match=type(fn).__name__ + ".*rules for BernoulliLogits.*Poisson.*ScoreFunction"
        ):
            measure_valued.derivatives(fn, jnp.zeros(2), jax.random.key(0))


# Relaxations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_straight_through_has_the_bias_that_is_known(kind):
    t, p = 0.3, 0.8
    logit = np.log(p / (1 - p))

    def draw(key):
        def cost(a):
            fn = dist.Bernoulli(logits=a) if kind == "logits" else dist.Bernoulli(probs=jax.nn.sigmoid(a))
            return (relaxations.straight_through(fn, key) - t) ** 2

        return jax.grad(cost)(logit)

    measured = moments(draw, jax.random.key(1), 500_000)
    bias = (2 * p - 1) * p * (1 - p)
    assert_mean(measured.mean, measured.standard_error, (1 - 2 * t) * p * (1 - p) + bias)


@pytest.mark.parametrize(
    "make", [lambda a: dist.Bernoulli(logits=a), lambda a: OneHotCategorical(logits=jnp.stack([a, 0.0]))]
)
def test_the_bias_of_gumbel_softmax_is_that_of_the_relaxation_and_shrinks_with_the_temperature(make):
    logit = 0.6
    p = special.expit(logit)
    exact = (np.exp(3) - 1) * p * (1 - p)  # of E[exp(3 b)]
    noise, weight = gauss(-40, 40)  # logistic: also the difference of two Gumbel variables

    def cost(a, key, temperature):
        b = relaxations.gumbel_softmax(make(a), key, (), temperature)
        return jnp.exp(3 * (b if b.ndim == 0 else b[0]))

    biases = []
    for temperature, num_draws in ((1.0, 50_000), (0.3, 400_000)):
        b = special.expit((logit + noise) / temperature)
        relaxed = 3 * np.exp(3 * b) * b * (1 - b) / temperature * special.expit(noise) * special.expit(-noise)
        measured = moments(
            lambda key, t=temperature: jax.grad(cost)(logit, key, t), jax.random.key(2), num_draws
        )
        assert_mean(measured.mean, measured.standard_error, (relaxed * weight).sum())
        biases.append(abs(float(measured.mean) - exact) / exact)
    assert biases[0] > 0.2
    assert biases[1] < 0.05


@pytest.mark.parametrize(
    "wrap", [lambda fn: fn, lambda fn: fn.expand((4, 3)).to_event(1), lambda fn: fn.mask(False)]
)
@pytest.mark.parametrize(
    "base",
    [dist.Bernoulli(probs=jnp.full(3, 0.3)), OneHotCategorical(logits=jnp.array([[0.0, 1.0, 2.0]] * 3))],
)
def test_relaxed_draws_have_the_shape_and_the_law_of_the_discrete_ones(base, wrap):
    fn = wrap(base)

    @jax.jit
    def draw(key):
        return (
            relaxations.straight_through(fn, key, (20_000,)),
            relaxations.gumbel_softmax(fn, key, (20_000,), 0.5),
        )

    hard, soft = map(np.asarray, draw(jax.random.key(0)))
    assert hard.shape == soft.shape == (20_000, *fn.batch_shape, *fn.event_shape)
    assert set(np.unique(hard)) == {0.0, 1.0}
    assert 0 <= soft.min() < soft.max() <= 1
    rounded = soft > 0.5
    if isinstance(base, OneHotCategorical):
        np.testing.assert_array_equal(hard.sum(-1), 1)
        np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-5)
        rounded = soft == soft.max(-1, keepdims=True)
    for discrete in (hard, rounded):  # the largest entry of a relaxed draw is the category drawn
        means = np.broadcast_to(np.asarray(base.probs), hard.shape[1:])
        np.testing.assert_allclose(discrete.mean(0), means, atol=4.5 * 0.5 / 20_000**0.5)


def test_straight_through_of_categories_is_exact_for_a_linear_cost():
    logits, cost = jnp.array([0.3, -0.2, 0.5]), jnp.array([1.0, 2.0, -1.0])

    def relaxed(a):
        return relaxations.straight_through(OneHotCategorical(logits=a), jax.random.key(0)) @ cost

    exact = jax.grad(lambda a: jax.nn.softmax(a) @ cost)(logits)
    np.testing.assert_allclose(jax.jit(jax.grad(relaxed))(logits), exact, rtol=1e-5)


def test_relaxations_refuse_integers_other_distributions_and_bad_temperatures():
    key = jax.random.key(0)
    for fn in (dist.Categorical(probs=np.ones(2) / 2), dist.Categorical(logits=np.ones((3, 2))).to_event(1)):
        assert not relaxations.supports(fn)
        with pytest.raises(TypeError, match="OneHotCategorical, whose values are vectors"):
            relaxations.straight_through(fn, key)
    with pytest.raises(TypeError, match=r"GumbelSoftmax relaxes .* not Normal"):
        relaxations.gumbel_softmax(dist.Normal(0.0, 1.0), key, (), 1.0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        relaxations.gumbel_softmax(dist.Bernoulli(0.5), key, (), 0)


# One-hot categorical -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_one_hot_categorical_is_a_categorical(kind):
    given = jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    given = given if kind == "probs" else jnp.log(given) + 2.0
    fn, integer = OneHotCategorical(**{kind: given}), dist.Categorical(**{kind: given})
    assert fn.is_discrete
    assert (fn.batch_shape, fn.event_shape) == ((2,), (3,))

    @jax.jit
    def evaluate(
        fn, integer, key
    ):  # the distribution goes through jit and vmap, with a property read in between
        support, draws = fn.enumerate_support(), fn.sample(key, (20_000,))
        assert support.shape == (3, 2, 3)
        assert fn.logits.shape == (2, 3)
        mapped = jax.vmap(lambda d, v: d.log_prob(v))(fn, draws[0])
        return [
            (fn.log_prob(support), integer.log_prob(integer.enumerate_support())),
            (fn.entropy(), integer.entropy()),
            (fn.mean, integer.probs),
            (mapped, fn.log_prob(draws[0])),
            (draws.mean(0), integer.probs),
            (draws.var(0), fn.variance),
        ]

    *equal, mean, variance = evaluate(fn, integer, jax.random.key(0))
    for ours, theirs in equal:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(*mean, atol=4.5 * 0.5 / 20_000**0.5)
    np.testing.assert_allclose(*variance, atol=0.02)
    assert jax.tree.structure(OneHotCategorical(**{kind: given})) == jax.tree.structure(fn)


def test_one_hot_log_prob_is_linear_and_guards_impossible_categories():
    fn = OneHotCategorical(probs=jnp.array([0.25, 0.75, 0.0]))
    evaluate = jax.jit(jax.value_and_grad(fn.log_prob))
    value, by_value = evaluate(jnp.array([0.4, 0.6, 0.0]))
    np.testing.assert_allclose(value, 0.4 * np.log(0.25) + 0.6 * np.log(0.75), rtol=1e-5)
    np.testing.assert_allclose(by_value, [np.log(0.25), np.log(0.75), 0], rtol=1e-5)
    assert evaluate(jnp.array([0.0, 0.0, 1.0]))[0] == -np.inf
    np.testing.assert_allclose(fn.entropy(), stats.entropy([0.25, 0.75]), rtol=1e-5)


def test_one_hot_categorical_in_plates_wrappers_and_enumeration():
    base = OneHotCategorical(logits=jnp.zeros(3))
    wide = base.expand((4, 2))
    assert isinstance(wide, OneHotCategorical)
    assert wide.enumerate_support().shape == (3, 4, 2, 3)
    assert wide.enumerate_support(expand=False).shape == (3, 1, 1, 3)
    log_prob = jax.eval_shape(lambda key: wide.to_event(1).log_prob(wide.sample(key)), jax.random.key(0))
    assert log_prob.shape == (4,)

    def program():
        with numpyro.plate("n", 5):
            numpyro.sample("z", base)

    def draw(key):
        return numpyro.handlers.trace(numpyro.handlers.seed(program, key)).get_trace()["z"]["value"]

    assert jax.eval_shape(draw, jax.random.key(0)).shape == (5, 3)
    with pytest.raises(ValueError, match="exactly one of probs and logits"):
        OneHotCategorical()
    with pytest.raises(ValueError, match="probs must have the categories as its last axis"):
        OneHotCategorical(probs=0.5)
    with pytest.raises(ValueError, match="invalid probs"):
        OneHotCategorical(probs=jnp.array([0.5, 0.6]), validate_args=True)
