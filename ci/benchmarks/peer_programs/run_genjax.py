"""What genjax estimates of the exactly solvable cases, and how long its steps take; runs in its environment.

Two forms of its own: `vi`, whose ELBO takes a guide and a target; and `adev`, whose expectation of a program
is differentiated. Sites that genjax cannot draw independently are given as one vector site where there is one.
"""

import common
import common_jax
import genjax
import handwritten
import harness
import jax
import jax.numpy as jnp
import numpy as np
from common import Unsupported
from genjax import ChoiceMapBuilder as C
from genjax import adev, gen, vi
from genjax._src.adev.core import invoke_closed_over
from jax.scipy.special import logsumexp

FLIPS = ("flip_enum", "flip_reinforce", "flip_mvd", "flip_enum_parallel")


def draws_of(function, draws, seed=0):
    """`function(key)` [draws], in one compiled program."""
    return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), draws))


def gradients(program, params, draws, sign=1.0):
    """Draws [draws, parameters] of the gradient of an `adev` expectation."""
    estimates = draws_of(lambda key: jnp.stack(program.grad_estimate(key, params)), draws)
    return sign * np.asarray(estimates, np.float64)


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def floats(*values):
    return tuple(jnp.float32(v) for v in values)


# ---- the cases


def gaussian(draws, loc, log_scale, y):
    @gen
    def model():
        x = genjax.normal(0.0, 1.0) @ "x"
        genjax.normal(x, 1.0) @ "y"

    @gen
    def guide(loc, log_scale):
        vi.normal_reparam(loc, jnp.exp(log_scale)) @ "x"

    @genjax.marginal()
    @gen
    def marginal_guide(target):
        vi.normal_reparam(target.args[0], jnp.exp(target.args[1])) @ "x"

    @gen
    def model_of_params(loc, log_scale):
        x = genjax.normal(0.0, 1.0) @ "x"
        genjax.normal(x, 1.0) @ "y"

    params = floats(loc, log_scale)
    observed = C["y"].set(y)

    @adev.expectation
    def loss(loc, log_scale):
        trace = guide.simulate(jax.random.key(0), (loc, log_scale))
        log_p, _ = model.assess(trace.get_choices() | observed, ())
        return trace.get_score() - log_p

    def vi_elbo():
        estimate = vi.ELBO(marginal_guide, lambda *p: genjax.Target(model_of_params, p, observed))
        return with_nan(-draws_of(lambda key: jnp.stack(estimate(key, params)), draws))

    return {
        "genjax vi.ELBO": vi_elbo,
        "genjax adev.expectation": lambda: with_nan(gradients(loss, params, draws, -1.0)),
    }


def with_nan(gradient):
    """The value of the objective is not what these functions return."""
    return np.column_stack([np.full(len(gradient), np.nan), gradient])


def two_sites(draws, m, s):
    @adev.expectation
    def scalars(m, s):
        return adev.normal_reparam(m, s) * adev.normal_reparam(m, s)

    @adev.expectation
    def vector(m, s):
        x = adev.mv_normal_diag_reparam(jnp.stack([m, m]), jnp.stack([s, s]))
        return x[0] * x[1]

    params = floats(m, s)
    return {
        "genjax normal_reparam, twice": lambda: gradients(scalars, params, draws),
        "genjax mv_normal_diag_reparam": lambda: gradients(vector, params, draws),
    }


def flip(draws, t):
    def system(name):
        @adev.expectation
        def program(t):
            b = getattr(adev, name)(t)
            return jax.lax.cond(b, lambda t: 0.0, lambda t: -t / 2, t)

        return lambda: gradients(program, floats(t), draws)

    @adev.expectation
    def with_baseline(t):
        b = adev.baseline(adev.flip_reinforce)(-0.1, t)
        return jax.lax.cond(b, lambda t: 0.0, lambda t: -t / 2, t)

    systems = {f"genjax {name}": system(name) for name in FLIPS}
    systems["genjax baseline(flip_reinforce)"] = lambda: gradients(with_baseline, floats(t), draws)
    return systems


def discrete_log_weight(b, p, prior, y):
    """log p(b, y) - log q(b), written out."""
    sign = jnp.where(b, 1.0, -1.0)
    log_q = jnp.where(b, jnp.log(p), jnp.log1p(-p))
    return jnp.where(b, jnp.log(prior), jnp.log1p(-prior)) + normal(y, sign, 1.0) - log_q


def discrete_elbo(draws, logits, prior, y):
    def system(name):
        @adev.expectation
        def program(logits):
            p = jax.nn.sigmoid(logits)
            return discrete_log_weight(getattr(adev, name)(p), p, prior, y)

        return lambda: gradients(program, floats(logits), draws)

    @gen
    def model(logits):
        b = genjax.flip(prior) @ "b"
        genjax.normal(jnp.where(b, 1.0, -1.0), 1.0) @ "y"

    @genjax.marginal()
    @gen
    def guide(target):
        vi.flip_enum(jax.nn.sigmoid(target.args[0])) @ "b"

    def vi_elbo():
        estimate = vi.ELBO(guide, lambda *p: genjax.Target(model, p, C["y"].set(y)))
        return -draws_of(lambda key: jnp.stack(estimate(key, floats(logits))), draws)

    systems = {f"genjax {name}": system(name) for name in FLIPS}
    return {"genjax vi.ELBO, flip_enum": vi_elbo, **systems}


def discrete_iwelbo(draws, logits, prior, y):
    def system(name):
        @adev.expectation
        def program(logits):
            p = jax.nn.sigmoid(logits)
            bits = [getattr(adev, name)(p) for _ in range(2)]
            weights = jnp.stack([discrete_log_weight(b, p, prior, y) for b in bits])
            return logsumexp(weights) - jnp.log(2.0)

        return lambda: gradients(program, floats(logits), draws)

    @gen
    def model(logits):
        b = genjax.flip(prior) @ "b"
        genjax.normal(jnp.where(b, 1.0, -1.0), 1.0) @ "y"

    @genjax.marginal()
    @gen
    def guide(target):
        vi.flip_enum(jax.nn.sigmoid(target.args[0])) @ "b"

    def vi_iwelbo():
        estimate = vi.IWELBO(guide, lambda *p: genjax.Target(model, p, C["y"].set(y)), 2)
        return -draws_of(lambda key: jnp.stack(estimate(key, floats(logits))), draws)

    return {"genjax vi.IWELBO, flip_enum": vi_iwelbo, **{f"genjax {name}": system(name) for name in FLIPS}}


def subsampled_plate(draws, logits, prior, ys, subsample):
    @adev.expectation
    def program(logits, rows):
        p = jax.nn.sigmoid(logits)
        weights = [discrete_log_weight(adev.flip_enum(p), p, prior, y) for y in rows]
        return sum(weights) * len(ys) / subsample

    def by_hand():
        def one(key):
            rows = jax.random.choice(key, jnp.asarray(ys), (subsample,), replace=False)
            return program.grad_estimate(jax.random.fold_in(key, 1), (jnp.float32(logits), rows))[0]

        return draws_of(one, draws)

    def plate():
        raise Unsupported("no subsampling plate")

    return {"genjax": plate, "genjax flip_enum, rows drawn by hand": by_hand}


def logits_at_zero(draws, logits, prior, y, observed):
    @gen
    def model(logits):
        for i in range(len(observed)):
            genjax.flip(jax.nn.sigmoid(logits)) @ f"y{i}"

    values = C.n()
    for i, value in enumerate(observed):
        values = values | C[f"y{i}"].set(bool(value))
    likelihood = jax.grad(lambda logits: model.assess(values, (logits,))[0])

    @adev.expectation
    def program(logits):
        p = jax.nn.sigmoid(logits)
        return discrete_log_weight(adev.flip_enum(p), p, prior, y)

    def both():
        elbo = gradients(program, floats(logits), 2)[:, 0]
        return np.column_stack([np.full(2, likelihood(jnp.float32(logits))), elbo])

    return {"genjax flip of sigmoid": both}


def marginal(draws, x, inner_scale, test_loc, test_scale, num_particles):
    @gen
    def program():
        u = genjax.normal(0.0, 1.0) @ "u"
        genjax.normal(u, inner_scale) @ "x"

    def system(index, n):
        def estimate():
            algorithm = genjax.inference.smc.ImportanceK(
                genjax.Target(program, (), C["x"].set(x)), k_particles=n
            )
            kept = genjax.marginal(selection=genjax.Selection.at["x"], algorithm=algorithm)(program)

            def one(key):
                first, second = jax.random.split(key)
                density = jnp.exp(kept.estimate_logpdf(first, C["x"].set(x)))
                log_w, choices = kept.random_weighted(second)
                test = jnp.exp(normal(choices["x"], test_loc, test_scale) - log_w)
                return jnp.stack([density, test])

            columns = np.full((draws, 2 * len(num_particles)), np.nan)
            columns[:, 2 * index : 2 * index + 2] = draws_of(one, draws)
            return columns

        return estimate

    return {f"genjax marginal, ImportanceK({n})": system(i, n) for i, n in enumerate(num_particles)}


def wake_phi(draws, loc, log_scale, y):
    @gen
    def model(loc, log_scale):
        x = genjax.normal(0.0, 1.0) @ "x"
        genjax.normal(x, 1.0) @ "y"

    @genjax.marginal()
    @gen
    def guide(target):
        vi.normal_reparam(target.args[0], jnp.exp(target.args[1])) @ "x"

    def estimate():
        make_target = lambda *p: genjax.Target(model, p, C["y"].set(y))  # noqa: E731
        q_wake = vi.QWake(guide, guide, make_target)
        one = draws_of(lambda key: jnp.stack(q_wake(key, floats(loc, log_scale))), draws)
        # With two particles it would need a SIR of the same guide as proposal: not asked here.
        return np.column_stack([-one, np.full((draws, 2), np.nan)])

    return {"genjax vi.QWake, proposal = guide": estimate}


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
    return common.answer_cases(CASES, request)


# ---- the timed steps: gradients of minus the bound, by the densities of `handwritten`


def gradient_of(case, loss):
    """Value and gradient of an `adev` expectation, whose programs take arrays alone, not dicts of them.

    As its `grad_estimate`, which leaves the value out: without it a step would do less work than the others'.
    """
    names = sorted(case.params)
    program = adev.expectation(lambda x, *arrays: loss(dict(zip(names, arrays, strict=True)), x))

    def gradient(params, key, x):
        value, slopes = jax.value_and_grad(lambda arrays: invoke_closed_over(program, key, (x, *arrays)))(
            [params[name] for name in names]
        )
        return value, dict(zip(names, slopes, strict=True))

    return gradient


def per_datum(gradient):
    """A datum at a time, so that each has its own credit."""

    def summed(params, key, x):
        keys = jax.random.split(key, x.shape[0])
        each = jax.vmap(lambda key, x: gradient(params, key, x))(keys, x)
        return jax.tree.map(lambda g: jnp.sum(g, 0), each)

    return summed


def vae_gradient(case):
    def loss(params, x):
        loc, scale = handwritten.encode(params, x)
        # One vector site: scalar sites would share their noise.
        z = adev.mv_normal_diag_reparam(loc.ravel(), scale.ravel()).reshape(loc.shape)
        divergence = 0.5 * (loc**2 + scale**2 - 1) - jnp.log(scale)
        return jnp.sum(divergence) - jnp.sum(handwritten.bernoulli(x, handwritten.decode(params, z)))

    return gradient_of(case, loss)


flips = adev.reinforce(
    lambda key, logits: (jax.random.uniform(key, logits.shape) < jax.nn.sigmoid(logits)).astype(jnp.float32),
    lambda bits, logits: jnp.sum(handwritten.bernoulli(bits, logits)),
)


def score_gradient(case):
    def loss(params, x):
        logits = handwritten.encode_bits(params, x)
        z = flips(logits)
        fair = (x.shape[-1] - z.shape[-1]) * jnp.log(2.0)
        log_q = jnp.sum(handwritten.bernoulli(z, logits))
        return log_q - fair - jnp.sum(handwritten.bernoulli(x, handwritten.decode(params, z)))

    return per_datum(gradient_of(case, loss))


def mixture_gradient(case):
    def loss(params, x):
        log_q = jax.nn.log_softmax(handwritten.affine(params, "guide", x))
        k = adev.categorical_enum_parallel(jnp.exp(log_q))
        scale = jnp.exp(params["log_scale"])
        log_x = jnp.sum(normal(x, params["means"][k], scale))
        return log_q[k] - jax.nn.log_softmax(params["weights"])[k] - log_x

    return per_datum(gradient_of(case, loss))


def iwelbo_gradient(case):
    def loss(params, x):
        loc, scale = (
            jnp.broadcast_to(a, (handwritten.PARTICLES, *a.shape)) for a in handwritten.encode(params, x)
        )
        z = adev.mv_normal_diag_reparam(loc.ravel(), scale.ravel()).reshape(loc.shape)
        log_weight = jnp.sum(normal(z, 0.0, 1.0) - normal(z, loc, scale), -1)
        log_weight += jnp.sum(handwritten.bernoulli(x, handwritten.decode(params, z)), -1)
        return -jnp.sum(logsumexp(log_weight, 0) - jnp.log(handwritten.PARTICLES))

    return gradient_of(case, loss)


def steps(request):
    case = getattr(handwritten, request["kind"])(**request["size"])
    direction, case = common.arrays_of(request, case)
    gradients = {
        harness.REFERENCE: common_jax.by_hand(case),
        harness.A_A: common_jax.by_hand(case),
        "genjax": globals()[f"{request['kind']}_gradient"](case),
    }
    systems, checks, failed = [], {}, []
    for name, gradient in gradients.items():
        try:
            system, checks[name] = common_jax.system(name, gradient, case, request, direction)
            systems.append(system)
        except Exception as error:  # what a system says of a case is the result
            failed.append({"system": name, "error": common.words(error)})
    results = harness.measure(case.name, systems, request["rounds"])
    rows = []
    for name, result in results.items():
        row = {**result.row(), "check": checks[name].tolist()}
        row["ratio"] = list(harness.ratios(results, name))
        row["processor_ratio"] = list(harness.ratios(results, name, clock="cpu_seconds"))
        row["system"] = f"{name}@genjax" if name != "genjax" else name
        rows.append(row)
    return rows + failed


if __name__ == "__main__":
    common.main({"correctness": correctness, "steps": steps})
