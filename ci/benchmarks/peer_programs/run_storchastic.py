"""What storchastic estimates of the exactly solvable cases; runs in its environment.

storchastic has sites and costs but no models: each case's cost is written out with torch's distributions.
"""

import common
import common_torch
import numpy as np
import storch
import torch
from common import Unsupported
from torch.distributions import Bernoulli, Normal

SAMPLES = 1000


def gradients(cost, params, repeats, scale=1.0):
    """Draws [repeats, parameters] of the gradient of `cost(*params)`."""
    rows = []
    for _ in range(repeats):
        storch.reset()
        leaves = [torch.tensor(float(value), requires_grad=True) for value in params]
        storch.add_cost(cost(*leaves), "cost")
        storch.backward()
        rows.append([scale * float(leaf.grad) for leaf in leaves])
    return np.array(rows)


def discrete_methods(name):
    method = storch.method
    return {
        "ScoreFunction": lambda: method.ScoreFunction(name, n_samples=SAMPLES),
        "ScoreFunction, leave one out": lambda: method.ScoreFunction(
            name, n_samples=4, baseline_factory="batch_average"
        ),
        "Expect": lambda: method.Expect(name),
    }


def repeats_of(name, draws):
    return 5 if "Expect" in name else draws // (4 if "leave one out" in name else SAMPLES) // 4


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


# ---- the cases


def gaussian(draws, loc, log_scale, y):
    def system(name):
        def cost(loc, log_scale):
            method = getattr(storch.method, name)("x", n_samples=SAMPLES)
            guide = Normal(loc, log_scale.exp())
            x = method(guide)
            log_q = -0.5 * ((x - loc) / log_scale.exp()) ** 2 - log_scale - 0.5 * np.log(2 * np.pi)
            return normal(x, 0.0, 1.0) + normal(y, x, 1.0) - log_q

        def estimate():
            drawn = gradients(cost, (loc, log_scale), draws // SAMPLES)
            return np.column_stack([np.full(len(drawn), np.nan), drawn])

        return estimate

    return {f"storchastic {name}": system(name) for name in ("Reparameterization", "ScoreFunction")}


def two_sites(draws, m, s):
    def cost(m, s):
        x, y = (storch.method.Reparameterization(name, n_samples=30)(Normal(m, s)) for name in "xy")
        return x * y

    return {"storchastic Reparameterization": lambda: gradients(cost, (m, s), draws // 30)}


def discrete(draws, cost_of, params):
    """`cost_of(method)` is the cost as a function of the parameters."""

    def system(name, make):
        cost = lambda *leaves: cost_of(make, *leaves)  # noqa: E731
        return lambda: gradients(cost, params, max(5, repeats_of(name, draws)))

    return {f"storchastic {name}": system(name, make) for name, make in discrete_methods("b").items()}


def flip(draws, t):
    return discrete(draws, lambda make, t: -(1 - make()(Bernoulli(t))) * t / 2, (t,))


def log_weight(b, logits, prior, y):
    log_q = b * torch.nn.functional.logsigmoid(logits) + (1 - b) * torch.nn.functional.logsigmoid(-logits)
    return b * np.log(prior) + (1 - b) * np.log(1 - prior) + normal(y, 2 * b - 1, 1.0) - log_q


def discrete_elbo(draws, logits, prior, y):
    cost = lambda make, logits: log_weight(make()(Bernoulli(logits=logits)), logits, prior, y)  # noqa: E731
    return discrete(draws, cost, (logits,))


def discrete_iwelbo(draws, logits, prior, y):
    def system(method):
        def cost(logits):
            # Two sites, so that their plates multiply: storchastic averages over the draws of one site.
            weights = [
                log_weight(method(name)(Bernoulli(logits=logits)), logits, prior, y) for name in ("b", "c")
            ]
            return torch.log((torch.exp(weights[0]) + torch.exp(weights[1])) / 2)

        return cost

    methods = {
        "Expect": (lambda name: storch.method.Expect(name), 5),
        "ScoreFunction": (lambda name: storch.method.ScoreFunction(name, n_samples=30), draws // 100),
    }
    return {
        f"storchastic {name}": lambda make=make, n=n: gradients(system(make), (logits,), n)
        for name, (make, n) in methods.items()
    }


def subsampled_plate(draws, logits, prior, ys, subsample):
    def cost(logits):
        rows = torch.randperm(len(ys))[:subsample]
        y = storch.denote_independent(torch.tensor(ys)[rows], 0, "data")
        b = storch.method.Expect("b")(Bernoulli(logits=logits.expand(subsample)))
        return log_weight(b, logits, prior, y)

    def plate():
        raise Unsupported("no subsampling plate")

    return {"storchastic": plate}


def logits_at_zero(draws, logits, prior, y, observed):
    def likelihood(logits):
        return Bernoulli(logits=logits).log_prob(torch.tensor(observed)).sum()

    def elbo(logits):
        return log_weight(storch.method.Expect("b")(Bernoulli(logits=logits)), logits, prior, y)

    def both():
        return np.column_stack([gradients(cost, (logits,), 5)[:, 0] for cost in (likelihood, elbo)])

    return {"storchastic": both}


def unsupported(what):
    def system():
        raise Unsupported(what)

    return lambda draws, **constants: {"storchastic": system}


CASES = {
    "gaussian": gaussian,
    "two sites": two_sites,
    "flip": flip,
    "discrete elbo": discrete_elbo,
    "discrete iwelbo": discrete_iwelbo,
    "subsampled plate": subsampled_plate,
    "logits at zero": logits_at_zero,
    "marginal": unsupported("no models, so no marginal density"),
    "wake phi": unsupported("no models, so no wake-sleep"),
}


def correctness(request):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return common.answer_cases(CASES, request)


# ---- the timed steps: minus the bound of each datum as a cost, averaged over the data by storchastic


def bernoulli(x, logits):
    return (x * logits - torch.nn.functional.softplus(logits)).sum(-1)


def vae_cost(params, x):
    loc, scale = common_torch.encode(params, x)
    z = storch.method.Reparameterization("z", n_samples=1)(
        torch.distributions.Independent(Normal(loc, scale), 1)
    )
    divergence = (0.5 * (loc**2 + scale**2 - 1) - torch.log(scale)).sum(-1)
    return divergence - bernoulli(x, common_torch.decode(params, z))


def score_cost(params, x):
    logits = common_torch.encode_bits(params, x)
    guide = torch.distributions.Independent(Bernoulli(logits=logits), 1)
    z = storch.method.ScoreFunction("z", n_samples=1)(guide)
    fair = (x.shape[-1] - z.shape[-1]) * np.log(2.0)
    return bernoulli(z, logits) - fair - bernoulli(x, common_torch.decode(params, z))


def mixture_cost(params, x):
    log_q = torch.log_softmax(common_torch.affine(params, "guide", x), -1)
    k = storch.method.Expect("k")(torch.distributions.OneHotCategorical(logits=log_q))
    residual = (x.unsqueeze(-2) - params["means"]) / params["log_scale"].exp()
    log_x = (-0.5 * residual**2 - params["log_scale"] - 0.5 * np.log(2 * np.pi)).sum(-1)
    return (k * (log_q - torch.log_softmax(params["weights"], -1) - log_x)).sum(-1)


def steps(request):
    torch.manual_seed(0)
    kind = request["kind"]
    costs = {"vae": vae_cost, "score": score_cost, "mixture": mixture_cost}

    def gradient(current, x):
        storch.reset()
        leaves = {name: value.clone().requires_grad_() for name, value in current.items()}
        data = storch.denote_independent(x, 0, "data")
        storch.add_cost(costs[kind](leaves, data), "cost")
        storch.backward()
        return {name: leaf.grad * len(x) for name, leaf in leaves.items()}

    if kind not in costs:
        return [{"system": "storchastic", "unsupported": "no importance-weighted bound of its own"}]
    try:
        return [common_torch.measure("storchastic", gradient, request)]
    except Exception as error:  # what a system says of a case is the result
        return [{"system": "storchastic", "error": common.words(error)}]


if __name__ == "__main__":
    common.main({"correctness": correctness, "steps": steps})
