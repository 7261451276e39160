"""What NumPyro estimates of the exactly solvable cases; runs in vinb's own process, for it is the same version."""

import importlib.util

import common
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import Unsupported
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO(),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
    "TraceGraph_ELBO": TraceGraph_ELBO(),
}


def estimates(objective, model, guide, params, draws):
    """Draws [draws, 1 + parameters] of an objective that is to be maximised and of its gradient."""
    start = {name: jnp.float32(value) for name, value in params.items()}

    def one(key):
        loss, gradient = jax.value_and_grad(lambda p: objective.loss(key, p, model, guide))(start)
        return -jnp.stack([loss, *(gradient[name] for name in params)])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws)), np.float64)


def systems_of(model, guide, params, draws, value=False, discrete=False):
    def system(objective, guide=guide):
        return lambda: estimates(objective, model, guide, params, draws)[:, 0 if value else 1 :]

    systems = {f"numpyro {name}": system(objective) for name, objective in OBJECTIVES.items()}
    if not discrete:
        return systems

    def enumerated():
        if importlib.util.find_spec("funsor") is None:
            raise Unsupported("TraceEnum_ELBO needs funsor: pip install funsor")
        from numpyro.contrib.funsor import config_enumerate

        return system(TraceEnum_ELBO(max_plate_nesting=1), config_enumerate(guide))()

    return systems | {"numpyro TraceEnum_ELBO, enumerated": enumerated}


# ---- the cases


def gaussian_programs(y):
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def guide():
        scale = jnp.exp(numpyro.param("log_scale", 0.0))
        numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.0), scale))

    return model, guide


def gaussian(draws, loc, log_scale, y):
    params = {"loc": loc, "log_scale": log_scale}
    return systems_of(*gaussian_programs(y), params, draws, value=True)


def two_sites_programs():
    """A model that has the guide for its prior: the ELBO is then the expectation of the factor."""

    def guide():
        m, s = numpyro.param("m", 0.0), numpyro.param("s", 1.0)
        return [numpyro.sample(name, dist.Normal(m, s)) for name in "xy"]

    def model():
        x, y = guide()
        numpyro.factor("product", x * y)

    return model, guide


def two_sites(draws, m, s):
    return systems_of(*two_sites_programs(), {"m": m, "s": s}, draws)


def flip_programs():
    def guide():
        return numpyro.sample("b", dist.Bernoulli(numpyro.param("t", 0.5)))

    def model():
        numpyro.factor("loss", -(1.0 - guide()) * numpyro.param("t", 0.5) / 2)

    return model, guide


def flip(draws, t):
    return systems_of(*flip_programs(), {"t": t}, draws, discrete=True)


def coin_programs(prior, y):
    def model():
        b = numpyro.sample("b", dist.Bernoulli(prior))
        numpyro.sample("y", dist.Normal(2.0 * b - 1.0, 1.0), obs=y)

    def guide():
        numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("logits", 0.0)))

    return model, guide


def discrete_elbo(draws, logits, prior, y):
    return systems_of(*coin_programs(prior, y), {"logits": logits}, draws, discrete=True)


def discrete_iwelbo(draws, logits, prior, y):
    bound = RenyiELBO(alpha=0, num_particles=2)
    estimate = lambda: estimates(bound, *coin_programs(prior, y), {"logits": logits}, draws)[:, 1:]  # noqa: E731
    return {"numpyro RenyiELBO": estimate}


def plate_programs(prior, ys, subsample):
    ys = jnp.asarray(ys)

    def plate():
        return numpyro.plate("data", len(ys), subsample_size=subsample, dim=-1)

    def model():
        with plate() as rows:
            b = numpyro.sample("b", dist.Bernoulli(prior))
            numpyro.sample("y", dist.Normal(2.0 * b - 1.0, 1.0), obs=ys[rows])

    def guide():
        logits = numpyro.param("logits", 0.0)
        with plate():
            numpyro.sample("b", dist.Bernoulli(logits=logits))

    return model, guide


def subsampled_plate(draws, logits, prior, ys, subsample):
    return systems_of(*plate_programs(prior, ys, subsample), {"logits": logits}, draws, discrete=True)


def observed_programs(observed):
    def model():
        logits = numpyro.param("logits", 0.0)
        with numpyro.plate("data", len(observed)):
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=jnp.asarray(observed))

    return model, lambda: None


def logits_at_zero(draws, logits, prior, y, observed):
    def system(name):
        def both():
            params = {"logits": logits}
            likelihood = estimates(OBJECTIVES[name], *observed_programs(observed), params, draws)
            elbo = estimates(OBJECTIVES[name], *coin_programs(prior, y), params, draws)
            return np.column_stack([likelihood[:, 1], elbo[:, 1]])

        return both

    return {f"numpyro {name}": system(name) for name in ("Trace_ELBO", "TraceGraph_ELBO")}


def unsupported(what):
    def system():
        raise Unsupported(what)

    return lambda draws, **constants: {"numpyro": system}


CASES = {
    "gaussian": gaussian,
    "two sites": two_sites,
    "flip": flip,
    "discrete elbo": discrete_elbo,
    "discrete iwelbo": discrete_iwelbo,
    "subsampled plate": subsampled_plate,
    "logits at zero": logits_at_zero,
    "marginal": unsupported("no marginal density of a program"),
    "wake phi": unsupported("no wake-sleep"),
}


def correctness(request):
    return common.answer_cases(CASES, request)
