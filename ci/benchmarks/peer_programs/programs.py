"""The benchmarked cases as NumPyro models and guides: what NumPyro and vinb are given alike.

Each returns `(model, guide)` over the parameters of the case in `handwritten`, by the same names.
"""

import importlib.util

import handair
import handwritten
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def parameters(case, *prefixes):
    return {
        name: numpyro.param(name, value) for name, value in case.params.items() if name.startswith(prefixes)
    }


def vae(case):
    latents = case.params["encoder_out_b"].shape[0] // 2

    def model(x):
        params = parameters(case, "decoder")
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([latents]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=handwritten.decode(params, z)).to_event(1), obs=x)

    def guide(x):
        loc, scale = handwritten.encode(parameters(case, "encoder"), x)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


def score(case):
    latents = case.params["encoder_out_b"].shape[0]

    def model(x):
        params = parameters(case, "decoder")
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Bernoulli(0.5).expand([latents]).to_event(1))
            # Against fair coins as one term, for a term of its own would not count as a consequence of z.
            likelihood = dist.Bernoulli(logits=handwritten.decode(params, z)).to_event(1)
            numpyro.factor("x", likelihood.log_prob(x) + x.shape[-1] * jnp.log(2.0))

    def guide(x):
        logits = handwritten.encode_bits(parameters(case, "encoder"), x)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    return model, guide


def mixture(case):
    def model(x):
        params = parameters(case, "means", "log_scale", "weights")
        with numpyro.plate("data", x.shape[0]):
            k = numpyro.sample("k", dist.Categorical(logits=params["weights"]))
            means, scale = params["means"][k], jnp.exp(params["log_scale"])
            numpyro.sample("x", dist.Normal(means, scale).to_event(1), obs=x)

    def guide(x):
        logits = handwritten.affine(parameters(case, "guide"), "guide", x)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("k", dist.Categorical(logits=logits))

    return model, guide


iwelbo = vae


def air_losses(estimator):
    """By system, as `losses` below: AIR holds its networks as two trees of arrays."""
    model = handair.small()
    from numpyro.infer import TraceEnum_ELBO, TraceGraph_ELBO

    from vinb.estimators import Enumerate, MeasureValued, ScoreFunction, strategies
    from vinb.objectives import elbo

    structure = jax.tree.structure((model.recognition, model.decoder))

    def networks(params):
        recognition, decoder = jax.tree.unflatten(structure, [params[name] for name in sorted(params)])
        return {"recognition$params": recognition, "decoder$params": decoder}

    chosen = {"MeasureValued": MeasureValued, "ScoreFunction": ScoreFunction, "Enumerate": Enumerate}[
        estimator
    ]()
    guide = strategies(model.guide, {f"present_{t}": chosen for t in range(model.max_steps)})
    objective = elbo(model.model, guide, kl="monte-carlo")
    losses = {"vinb": lambda params, key, x: -objective(networks(params), key, x)}

    def numpyro_loss(objective, guide):
        return lambda params, key, x: objective.loss(key, networks(params), model.model, guide, x)

    if estimator == "ScoreFunction":
        losses["numpyro TraceGraph_ELBO"] = numpyro_loss(TraceGraph_ELBO(), model.guide)
    if estimator == "Enumerate" and importlib.util.find_spec("funsor"):
        from numpyro.contrib.funsor import config_enumerate

        enumerated = numpyro_loss(TraceEnum_ELBO(max_plate_nesting=1), config_enumerate(model.guide))
        losses["numpyro TraceEnum_ELBO"] = enumerated
    return losses


# ---- losses of NumPyro: functions of (params, key, x), summed over the batch


def numpyro_loss(objective, model, guide):
    return lambda params, key, x: objective.loss(key, params, model, guide, x)


def numpyro_losses(kind, case):
    """By system: the NumPyro objectives that are meant for this case, or why one is not there."""
    from numpyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

    model, guide = globals()[kind](case)
    chosen = {
        "vae": {"TraceMeanField_ELBO": TraceMeanField_ELBO(), "Trace_ELBO": Trace_ELBO()},
        "score": {"TraceGraph_ELBO": TraceGraph_ELBO(), "Trace_ELBO": Trace_ELBO()},
        "mixture": {"TraceGraph_ELBO": TraceGraph_ELBO()},
        "iwelbo": {"RenyiELBO": RenyiELBO(alpha=0, num_particles=handwritten.PARTICLES)},
    }[kind]
    losses = {f"numpyro {name}": numpyro_loss(value, model, guide) for name, value in chosen.items()}
    if kind == "mixture":
        try:
            from numpyro.contrib.funsor import config_enumerate

            enumerated = config_enumerate(guide)
            losses["numpyro TraceEnum_ELBO"] = numpyro_loss(
                TraceEnum_ELBO(max_plate_nesting=1), model, enumerated
            )
        except ImportError:
            print("numpyro TraceEnum_ELBO skipped: it needs funsor (pip install funsor)")
    return losses


# ---- losses of vinb


def vinb_loss(kind, case):
    from vinb.estimators import Enumerate, ScoreFunction, strategies
    from vinb.objectives import elbo, iwelbo

    model, guide = globals()[kind](case)
    if kind == "iwelbo":
        bound = iwelbo(model, guide, num_particles=handwritten.PARTICLES)
        each = lambda params, keys, x: jax.vmap(lambda key, x: bound(params, key, x[None]))(keys, x)  # noqa: E731
        return lambda params, key, x: -jnp.sum(each(params, jax.random.split(key, x.shape[0]), x))
    chosen = {"score": {"z": ScoreFunction()}, "mixture": {"k": Enumerate()}}.get(kind)
    objective = elbo(model, guide if chosen is None else strategies(guide, chosen))
    return lambda params, key, x: -objective(params, key, x)


def losses(kind, size, case):
    """Loss by system: vinb's, and those of NumPyro that are meant for this case."""
    if kind == "air":
        return air_losses(**size)
    return {"vinb": vinb_loss(kind, case), **numpyro_losses(kind, case)}
