"""Small problems whose gradients are known exactly: their constants, and what is right, in float64.

Expectations are sums over all outcomes or Gauss-Hermite sums, and derivatives are complex steps, so the values
below are right to about 1e-12. Nothing here is typed in from a paper; only numpy is needed.
"""

from dataclasses import dataclass, field

import numpy as np

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(150)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class Case:
    """`exact` [quantities]: gradients of an objective that is to be maximised, unless `what` says otherwise."""

    name: str
    what: str
    quantities: tuple[str, ...]
    exact: np.ndarray
    constants: dict = field(default_factory=dict)


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gradient(function, *point):
    """Derivatives of an analytic function of real numbers, by complex steps."""
    return [
        function(*[x + 1e-30j * (i == j) for j, x in enumerate(point)]).imag / 1e-30
        for i in range(len(point))
    ]


# ---- the expectations


def gaussian_elbo(loc, log_scale, y):
    """x ~ N(0, 1), y ~ N(x, 1), guide N(loc, exp(log_scale))."""
    x = loc + np.exp(log_scale) * NODES
    log_q = log_normal(NODES, 0.0, 1.0) - log_scale
    return WEIGHTS @ (log_normal(x, 0.0, 1.0) + log_normal(y, x, 1.0) - log_q)


def product(m, s):
    """E[x y] for two independent draws from N(m, s)."""
    x = m + s * NODES
    return WEIGHTS @ np.outer(x, x) @ WEIGHTS


def flip(t):
    """E[0 if b else -t/2] for b ~ Bernoulli(t)."""
    return t * 0.0 + (1 - t) * (-t / 2)


def discrete_log_weights(logits, prior, y):
    """log p(b, y) - log q(b) at b = 0, 1: b ~ Bernoulli(prior), y ~ N(2b - 1, 1), guide Bernoulli(logits)."""
    q = np.array([1 - sigmoid(logits), sigmoid(logits)])
    log_p = np.log([1 - prior, prior]) + log_normal(y, np.array([-1.0, 1.0]), 1.0)
    return q, log_p - np.log(q)


def discrete_elbo(logits, prior, y):
    q, log_weight = discrete_log_weights(logits, prior, y)
    return q @ log_weight


def discrete_iwelbo(logits, prior, y):
    """With two particles."""
    q, log_weight = discrete_log_weights(logits, prior, y)
    weight = np.exp(log_weight)
    return q @ np.log((weight[:, None] + weight) / 2) @ q


def wake_phi(loc, log_scale, y, num_particles):
    """Gradient of E[sum of normalised weights times log q(x_i)], the draws and weights held fixed."""
    x = loc + np.exp(log_scale) * NODES
    weight = np.exp(log_normal(x, 0.0, 1.0) + log_normal(y, x, 1.0) - log_normal(x, loc, np.exp(log_scale)))
    scores = np.array([(x - loc) * np.exp(-2 * log_scale), NODES**2 - 1])
    if num_particles == 1:
        return scores @ WEIGHTS
    share = weight[:, None] / (weight[:, None] + weight)
    first = np.einsum("i,j,ij,ci->c", WEIGHTS, WEIGHTS, share, scores)
    return 2 * first


# ---- the cases


def cases() -> dict[str, Case]:
    gaussian = {"loc": 0.3, "log_scale": -0.5, "y": 1.2}
    coin = {"logits": 0.3, "prior": 0.6, "y": 0.8}
    many = {"logits": 0.3, "prior": 0.6, "ys": [0.8, 0.4, 1.0, 0.6, 1.2, 0.9], "subsample": 2}
    marginal = {"x": 0.7, "inner_scale": 1.5, "test_loc": 0.0, "test_scale": 0.5, "num_particles": [1, 5, 50]}
    point = gaussian["loc"], gaussian["log_scale"]
    elbo = lambda loc, log_scale: gaussian_elbo(loc, log_scale, gaussian["y"])  # noqa: E731
    discrete = lambda logits: discrete_elbo(logits, coin["prior"], coin["y"])  # noqa: E731
    weighted = lambda logits: discrete_iwelbo(logits, coin["prior"], coin["y"])  # noqa: E731
    plate = lambda logits: sum(discrete_elbo(logits, many["prior"], y) for y in many["ys"])  # noqa: E731
    density = WEIGHTS @ np.exp(log_normal(marginal["x"], NODES, marginal["inner_scale"]))
    observed = [1.0, 1.0, 0.0]

    def likelihood(logits):
        return sum(np.log(sigmoid(logits if y else -logits)) for y in observed)

    both = ("d loc", "d log scale")
    listed = [
        Case(
            "gaussian",
            "ELBO, normal guide",
            ("value", *both),
            [elbo(*point), *gradient(elbo, *point)],
            gaussian,
        ),
        Case(
            "two sites",
            "E[x y], two reparameterised sites x, y ~ N(m, s)",
            ("d m", "d s"),
            gradient(product, 0.7, 1.3),
            {"m": 0.7, "s": 1.3},
        ),
        Case("flip", "E[0 if b else -t/2], b ~ Bernoulli(t)", ("d t",), gradient(flip, 0.3), {"t": 0.3}),
        Case(
            "discrete elbo", "ELBO, Bernoulli guide", ("d logits",), gradient(discrete, coin["logits"]), coin
        ),
        Case(
            "discrete iwelbo",
            "importance-weighted bound, 2 particles, Bernoulli guide",
            ("d logits",),
            gradient(weighted, coin["logits"]),
            coin,
        ),
        Case(
            "subsampled plate",
            "ELBO, Bernoulli local latents, 2 of 6 data per draw",
            ("d logits",),
            gradient(plate, many["logits"]),
            many,
        ),
        Case(
            "logits at zero",
            "likelihood and ELBO of Bernoulli(logits) where the logits start at 0",
            ("likelihood, d logits", "elbo, d logits"),
            gradient(likelihood, 0.0) + gradient(discrete, 0.0),
            {**coin, "logits": 0.0, "observed": observed},
        ),
        Case(
            "marginal",
            "u ~ N(0, 1), x ~ N(u, 1.5), u integrated out: E[w] = p(x) at x = 0.7, and E[h(x) / w] = 1 for a density h",
            tuple(f"{what}, {n}" for n in marginal["num_particles"] for what in ("E[w]", "E[h/w]")),
            [density, 1.0] * 3,
            marginal,
        ),
        Case(
            "wake phi",
            "minus the wake-phi loss; with one particle its gradient is 0",
            tuple(f"{name}, {n}" for n in (1, 2) for name in both),
            [*wake_phi(*point, gaussian["y"], 1), *wake_phi(*point, gaussian["y"], 2)],
            gaussian,
        ),
    ]
    return {
        case.name: Case(
            case.name, case.what, case.quantities, np.asarray(case.exact, dtype=float), case.constants
        )
        for case in listed
    }
