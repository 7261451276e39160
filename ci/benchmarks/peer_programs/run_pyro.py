"""What Pyro estimates of the exactly solvable cases, and how long its steps take; runs in its environment."""

import math

import common
import common_torch
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import Unsupported
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)

PARTICLES = 10_000


def estimates(objective, model, guide, params, repeats):
    """Draws [repeats, 1 + parameters] of an objective that is to be maximised and of its gradient."""
    rows = []
    for _ in range(repeats):
        pyro.clear_param_store()
        for name, value in params.items():
            pyro.param(name, torch.tensor(float(value)))
        loss = objective.loss_and_grads(model, guide)
        loss = loss[-1] if isinstance(loss, tuple) else loss
        store = pyro.get_param_store()
        gradients = [store._params[name].grad for name in params]
        rows.append([-float(loss), *(0.0 if g is None else -float(g) for g in gradients)])
    return np.array(rows)


def averaged(repeats, enumerated=False, particles=PARTICLES):
    """Pyro's objectives for the ELBO, each averaging many particles, and how often to repeat them."""
    options = {"num_particles": particles, "vectorize_particles": True}
    exact = {"TraceEnum_ELBO, enumerated": (TraceEnum_ELBO(max_plate_nesting=1), 20)} if enumerated else {}
    return {
        "Trace_ELBO": (Trace_ELBO(**options), repeats),
        "TraceGraph_ELBO": (TraceGraph_ELBO(**options), repeats),
        "TraceMeanField_ELBO": (TraceMeanField_ELBO(**options), repeats),
        **exact,
    }


def systems_of(model, guide, params, draws, enumerated=False, value=False):
    repeats = max(20, 5 * draws // PARTICLES)

    def system(objective, guide, repeats):
        return lambda: estimates(objective, model, guide, params, repeats)[:, 0 if value else 1 :]

    return {
        f"pyro {name}": system(
            objective, config_enumerate(guide, "parallel") if "Enum" in name else guide, repeats
        )
        for name, (objective, repeats) in averaged(repeats, enumerated).items()
    }


def observe(name, distribution, value):
    return pyro.sample(name, distribution, obs=torch.tensor(value))


# ---- the cases


def gaussian(draws, loc, log_scale, y):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(x, 1.0), y)

    def guide():
        pyro.sample("x", dist.Normal(pyro.param("loc"), pyro.param("log_scale").exp()))

    return systems_of(model, guide, {"loc": loc, "log_scale": log_scale}, draws, value=True)


def two_sites(draws, m, s):
    # A model that has the guide for its prior: the ELBO is then the expectation of the factor.
    def guide():
        return [pyro.sample(name, dist.Normal(pyro.param("m"), pyro.param("s"))) for name in "xy"]

    def model():
        x, y = guide()
        pyro.factor("product", x * y)

    return systems_of(model, guide, {"m": m, "s": s}, draws)


def flip(draws, t):
    def guide():
        return pyro.sample("b", dist.Bernoulli(pyro.param("t")))

    def model():
        pyro.factor("loss", -(1 - guide()) * pyro.param("t") / 2)

    return systems_of(model, guide, {"t": t}, draws, enumerated=True)


def coin(prior, y):
    def model():
        b = pyro.sample("b", dist.Bernoulli(prior))
        observe("y", dist.Normal(2 * b - 1, 1.0), y)

    def guide():
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logits")))

    return model, guide


def discrete_elbo(draws, logits, prior, y):
    return systems_of(*coin(prior, y), {"logits": logits}, draws, enumerated=True)


def discrete_iwelbo(draws, logits, prior, y):
    bound = RenyiELBO(alpha=0, num_particles=2)
    estimate = lambda: estimates(bound, *coin(prior, y), {"logits": logits}, draws // 100)[:, 1:]  # noqa: E731
    return {"pyro RenyiELBO": estimate}


def subsampled_plate(draws, logits, prior, ys, subsample):
    ys = torch.tensor(ys)

    def plate():
        return pyro.plate("data", len(ys), subsample_size=subsample, dim=-1)

    def model():
        with plate() as rows:
            b = pyro.sample("b", dist.Bernoulli(prior))
            pyro.sample("y", dist.Normal(2 * b - 1, 1.0), obs=ys[rows])

    def guide():
        with plate():
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("logits")))

    def system(objective, guide):
        return lambda: estimates(objective, model, guide, {"logits": logits}, draws // 50)[:, 1:]

    # All particles of a call share the rows, so that calls are what has to be many.
    objectives = averaged(0, enumerated=True, particles=100)
    return {
        f"pyro {name}": system(objective, config_enumerate(guide, "parallel") if "Enum" in name else guide)
        for name, (objective, _) in objectives.items()
    }


def logits_at_zero(draws, logits, prior, y, observed):
    model, guide = coin(prior, y)

    def observations():
        with pyro.plate("data", len(observed)):
            pyro.sample("y", dist.Bernoulli(logits=pyro.param("logits")), obs=torch.tensor(observed))

    def both():
        likelihood = estimates(Trace_ELBO(), observations, lambda: None, {"logits": logits}, 20)
        enumerated = TraceEnum_ELBO(max_plate_nesting=1)
        elbo = estimates(enumerated, model, config_enumerate(guide, "parallel"), {"logits": logits}, 20)
        return np.column_stack([likelihood[:, 1], elbo[:, 1]])

    return {"pyro": both}


def marginal(draws, **constants):
    def system():
        raise Unsupported("no marginal density of a program")

    return {"pyro": system}


def wake_phi(draws, loc, log_scale, y):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        observe("y", dist.Normal(x, 1.0), y)

    def guide():
        pyro.sample("x", dist.Normal(pyro.param("loc"), pyro.param("log_scale").exp()))

    params = {"loc": loc, "log_scale": log_scale}

    def system(num_particles):
        wake = ReweightedWakeSleep(num_particles=num_particles, insomnia=1.0)
        drawn = estimates(wake, model, guide, params, draws // 10)[:, 1:]
        absent = np.full_like(drawn, np.nan)
        return np.column_stack([drawn, absent] if num_particles == 1 else [absent, drawn])

    return {
        "pyro ReweightedWakeSleep(1)": lambda: system(1),
        "pyro ReweightedWakeSleep(2)": lambda: system(2),
    }


CASES = {
    "gaussian": gaussian,
    "two sites": two_sites,
    "flip": flip,
    "discrete elbo": discrete_elbo,
    "discrete iwelbo": discrete_iwelbo,
    "subsampled plate": subsampled_plate,
    "logits at zero": logits_at_zero,
    "marginal": marginal,
    "wake phi": wake_phi,
}


def correctness(request):
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    return common.answer_cases(CASES, request)


# ---- the timed steps


def parameters(params, *prefixes):
    return {name: pyro.param(name) for name in params if name.startswith(prefixes)}


def vae_programs(params, latents):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([latents]).to_event(1))
            logits = common_torch.decode(parameters(params, "decoder"), z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*common_torch.encode(parameters(params, "encoder"), x)).to_event(1))

    return model, guide


def score_programs(params, latents):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(latents)).to_event(1))
            logits = common_torch.decode(parameters(params, "decoder"), z)
            likelihood = dist.Bernoulli(logits=logits).to_event(1)
            pyro.factor("x", likelihood.log_prob(x) + x.shape[-1] * math.log(2.0))

    def guide(x):
        logits = common_torch.encode_bits(parameters(params, "encoder"), x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    return model, guide


def mixture_programs(params, latents):
    def model(x):
        p = parameters(params, "means", "log_scale", "weights")
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=p["weights"]))
            pyro.sample("x", dist.Normal(p["means"][k], p["log_scale"].exp()).to_event(1), obs=x)

    def guide(x):
        logits = common_torch.affine(parameters(params, "guide"), "guide", x)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits))

    return model, config_enumerate(guide, "parallel")


def iwelbo_programs(params, latents):
    """Pyro's RenyiELBO takes the data together; a plate of particles would be the user's own bound."""
    raise Unsupported("RenyiELBO has one bound for all the data together, not one for each datum")


STEPPED = {
    "vae": {"Trace_ELBO": Trace_ELBO(), "TraceMeanField_ELBO": TraceMeanField_ELBO()},
    "score": {"TraceGraph_ELBO": TraceGraph_ELBO()},
    "mixture": {"TraceEnum_ELBO": TraceEnum_ELBO(max_plate_nesting=1)},
    "iwelbo": {"RenyiELBO": RenyiELBO(alpha=0, num_particles=50, vectorize_particles=True)},
}


def steps(request):
    pyro.set_rng_seed(0)
    pyro.enable_validation(False)
    kind = request["kind"]
    params, _, _ = common_torch.load(request)
    latents = params["decoder_in_w"].shape[0] if "decoder_in_w" in params else 0

    def row(name, objective):
        try:
            model, guide = globals()[f"{kind}_programs"](params, latents)

            def gradient(current, x):
                pyro.clear_param_store()
                for key, value in current.items():
                    pyro.param(key, value.detach().clone())  # it becomes the leaf, with its gradient
                objective.loss_and_grads(model, guide, x)
                store = pyro.get_param_store()
                return {key: store._params[key].grad for key in current}

            return common_torch.measure(f"pyro {name}", gradient, request)
        except Unsupported as error:
            return {"system": f"pyro {name}", "unsupported": str(error)}
        except Exception as error:  # what a system says of a case is the result
            return {"system": f"pyro {name}", "error": common.words(error)}

    return [row(name, objective) for name, objective in STEPPED[kind].items()]


if __name__ == "__main__":
    common.main({"correctness": correctness, "steps": steps})
