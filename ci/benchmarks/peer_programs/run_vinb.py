"""What vinb estimates of the exactly solvable cases, the programs being those that NumPyro is given."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import run_numpyro as programs
from common import answer_cases

from vinb.estimators import Enumerate, MeasureValued, Pathwise, ScoreFunction, expectation, strategies
from vinb.objectives import elbo, iwelbo, wake_phi
from vinb.programs import log_density, marginal, scalar, simulate

DISCRETE = {
    "default": None,
    "Enumerate": Enumerate(),
    "MeasureValued": MeasureValued(),
    "ScoreFunction": ScoreFunction(),
}
CONTINUOUS = {"Pathwise": Pathwise(), "ScoreFunction": ScoreFunction(), "MeasureValued": MeasureValued()}


def estimates(objective, params, draws):
    """Draws [draws, 1 + parameters] of an objective and of its gradient."""
    start = {name: jnp.float32(value) for name, value in params.items()}

    def one(key):
        value, gradient = jax.value_and_grad(objective)(start, key)
        return jnp.stack([value, *(gradient[name] for name in params)])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws)), np.float64)


def systems_of(make, guide, params, draws, site, kinds, value=False):
    """`make(guide)` is the objective for a guide with the strategies chosen."""

    def system(strategy):
        chosen = guide if strategy is None else strategies(guide, dict.fromkeys(site, strategy))
        return lambda: estimates(make(chosen), params, draws)[:, 0 if value else 1 :]

    return {f"vinb {name}": system(strategy) for name, strategy in kinds.items()}


# ---- the cases


def gaussian(draws, loc, log_scale, y):
    model, guide = programs.gaussian_programs(y)
    params = {"loc": loc, "log_scale": log_scale}
    make = lambda guide: elbo(model, guide, kl="monte-carlo")  # noqa: E731
    systems = systems_of(make, guide, params, draws, ["x"], CONTINUOUS, value=True)
    for kl in ("analytic", "sticking-the-landing"):
        systems[f"vinb Pathwise, kl={kl}"] = lambda kl=kl: estimates(elbo(model, guide, kl=kl), params, draws)
    return systems


def two_sites(draws, m, s):
    _, guide = programs.two_sites_programs()

    def make(guide):
        def product():
            x, y = guide()
            return x * y

        return expectation(product)

    return systems_of(make, guide, {"m": m, "s": s}, draws, ["x", "y"], CONTINUOUS)


def flip(draws, t):
    _, guide = programs.flip_programs()

    def make(guide):
        return expectation(lambda: -(1.0 - guide()) * numpyro.param("t") / 2)

    return systems_of(make, guide, {"t": t}, draws, ["b"], DISCRETE)


def discrete_elbo(draws, logits, prior, y):
    model, guide = programs.coin_programs(prior, y)
    return systems_of(lambda g: elbo(model, g), guide, {"logits": logits}, draws, ["b"], DISCRETE)


def discrete_iwelbo(draws, logits, prior, y):
    model, guide = programs.coin_programs(prior, y)
    make = lambda g: iwelbo(model, g, num_particles=2)  # noqa: E731
    systems = systems_of(make, guide, {"logits": logits}, draws, ["b"], DISCRETE)
    vimco = lambda g: iwelbo(model, g, num_particles=2, gradient="vimco")  # noqa: E731
    with_vimco = systems_of(
        vimco, guide, {"logits": logits}, draws, ["b"], {"ScoreFunction": ScoreFunction()}
    )
    return systems | {f"{name}, VIMCO": system for name, system in with_vimco.items()}


def subsampled_plate(draws, logits, prior, ys, subsample):
    model, guide = programs.plate_programs(prior, ys, subsample)
    return systems_of(lambda g: elbo(model, g), guide, {"logits": logits}, draws, ["b"], DISCRETE)


def logits_at_zero(draws, logits, prior, y, observed):
    likelihood, empty = programs.observed_programs(observed)
    model, guide = programs.coin_programs(prior, y)

    def system(strategy):
        def both():
            chosen = guide if strategy is None else strategies(guide, {"b": strategy})
            objectives = (elbo(likelihood, empty), elbo(model, chosen))
            return np.column_stack([estimates(o, {"logits": logits}, draws)[:, 1] for o in objectives])

        return both

    return {f"vinb {name}": system(strategy) for name, strategy in DISCRETE.items()}


def density_of_marginal(draws, x, inner_scale, test_loc, test_scale, num_particles):
    def program():
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(u, inner_scale))

    def system(index, n):
        kept = marginal(program, keep="x", num_particles=n)

        def drawn():
            q = simulate(kept)
            test = dist.Normal(test_loc, test_scale).log_prob(q.values["x"])
            return jnp.exp(test - scalar(q.log_density))

        density = expectation(lambda: jnp.exp(scalar(log_density(kept, {"x": jnp.float32(x)}))))

        def estimate():
            columns = np.full((draws, 2 * len(num_particles)), np.nan)
            for offset, objective in enumerate((density, expectation(drawn))):
                keys = jax.random.split(jax.random.key(offset), draws)
                columns[:, 2 * index + offset] = jax.jit(jax.vmap(lambda key, f=objective: f({}, key)))(keys)
            return columns

        return estimate

    return {f"vinb marginal({n})": system(index, n) for index, n in enumerate(num_particles)}


def wake(draws, loc, log_scale, y):
    model, guide = programs.gaussian_programs(y)
    params = {"loc": loc, "log_scale": log_scale}

    def both():
        parts = [estimates(wake_phi(model, guide, num_particles=n), params, draws)[:, 1:] for n in (1, 2)]
        return np.column_stack(parts)

    return {"vinb wake_phi": both}


CASES = {
    "gaussian": gaussian,
    "two sites": two_sites,
    "flip": flip,
    "discrete elbo": discrete_elbo,
    "discrete iwelbo": discrete_iwelbo,
    "subsampled plate": subsampled_plate,
    "logits at zero": logits_at_zero,
    "marginal": density_of_marginal,
    "wake phi": wake,
}


def correctness(request):
    return answer_cases(CASES, request)
