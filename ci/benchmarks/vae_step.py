"""One optimiser step of a variational auto-encoder: vinb, a hand-written loop and NumPyro's SVI side by side.

MNIST, 784-400-20, tanh, Bernoulli decoder, analytic divergence, one sample, Adam, a fresh random order each
epoch, pixels drawn anew at each step. Every system gets the same initial weights, orders and binarisation.

    python ci/benchmarks/vae_step.py [--json PATH] [--rounds N] [--steps N] [--batch-size B ...]
"""

import sys
import zlib

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import A_A, REFERENCE, System
from numpyro.infer import SVI, TraceMeanField_ELBO

from vinb.data import binarize_dynamic, load_mnist
from vinb.estimators import init
from vinb.models import VAE
from vinb.objectives import elbo
from vinb.training import fit, permutation

STEP_SIZE = 1e-3


# ---- by hand


def negative_elbo(params, noise, x):
    """What a single-file program has: the networks, the likelihood and the divergence written out.

    Of the usual ways to write the Bernoulli likelihood (softplus, log_sigmoid, optax's), this is the fastest on CPU.
    """
    hidden = jnp.tanh(x @ params["encoder"]["weight"] + params["encoder"]["bias"])
    loc = hidden @ params["loc"]["weight"] + params["loc"]["bias"]
    log_var = hidden @ params["log_var"]["weight"] + params["log_var"]["bias"]
    z = loc + jnp.exp(0.5 * log_var) * noise
    hidden = jnp.tanh(z @ params["decoder"]["weight"] + params["decoder"]["bias"])
    logits = hidden @ params["logits"]["weight"] + params["logits"]["bias"]
    log_likelihood = jnp.sum(x * logits - jnp.maximum(logits, 0) - jnp.log1p(jnp.exp(-jnp.abs(logits))))
    divergence = 0.5 * jnp.sum(loc**2 + jnp.exp(log_var) - 1 - log_var)
    return (divergence - log_likelihood) / x.shape[0]


def epoch_by_hand(state, key, order, images):
    """`order` [steps, batch]: the rows each step takes."""
    optimizer = optax.adam(STEP_SIZE)

    def step(carry, inputs):
        params, opt_state = carry
        t, rows = inputs
        pixel_key, noise_key = jax.random.split(jax.random.fold_in(key, t))
        x = binarize_dynamic(pixel_key, take(images, rows))
        noise = jax.random.normal(noise_key, (x.shape[0], params["loc"]["bias"].shape[0]))
        loss, gradient = jax.value_and_grad(negative_elbo)(params, noise, x)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return jax.lax.scan(step, state, (jnp.arange(order.shape[0]), order))


def take(images, rows):
    # Without the mode XLA checks every index, which on CPU is slower than the rest of the data's preparation.
    return images.at[rows].get(mode="promise_in_bounds")


def dictionary(params):
    """vinb's parameters in the layout of `negative_elbo`."""
    encoder, decoder = params["encoder$params"], params["decoder$params"]
    layers = dict(zip(("loc", "log_var"), encoder.heads, strict=True))
    layers |= {"encoder": encoder.hidden[0], "decoder": decoder.hidden[0], "logits": decoder.heads[0]}
    return {name: {"weight": layer.weight, "bias": layer.bias} for name, layer in layers.items()}


# ---- NumPyro


def epoch_with_svi(svi):
    def epoch(state, key, order, images):
        def step(state, inputs):
            t, rows = inputs
            return svi.update(state, binarize_dynamic(jax.random.fold_in(key, t), take(images, rows)))

        return jax.lax.scan(step, state, (jnp.arange(order.shape[0]), order))

    return epoch


# ---- the systems


class Setting:
    """Data, model and initial weights of one case, and the orders that all systems visit the data in."""

    def __init__(self, options, batch_size):
        images = load_mnist().train_images[: options.num_data]
        self.images = jax.device_put(images.reshape(len(images), -1))
        self.batch_size = batch_size
        self.per_epoch = len(images) // batch_size
        self.steps = options.steps or 2 * self.per_epoch
        if self.steps > self.per_epoch and self.steps % self.per_epoch:
            raise SystemExit(
                f"--steps {self.steps}: more than an epoch of {self.per_epoch}, but no multiple."
            )
        self.key = jax.random.key(0)
        self.vae = VAE.init(jax.random.key(1), self.images.shape[1], options.latent, [options.hidden])
        self.params = init((self.vae.model, self.vae.guide), self.key, self.batch(jnp.arange(batch_size)))
        self.objective = elbo(self.vae.model, self.vae.guide, kl="analytic")

    def batch(self, rows):
        return binarize_dynamic(self.key, self.images[rows])

    def loss(self, params, key, x):
        """vinb's loss, as a notebook would write it."""
        pixel_key, key = jax.random.split(key)
        return -self.objective(params, key, binarize_dynamic(pixel_key, x)) / self.batch_size

    def scanned(self, name, epoch, state, per_datum=1.0):
        """A system whose epoch is one compiled program, the order being drawn by another."""
        steps = min(self.steps, self.per_epoch)
        shape = (steps, self.batch_size)

        def draw(key, epoch):
            order = permutation(jax.random.fold_in(key, epoch), len(self.images))
            return order[: steps * self.batch_size].reshape(shape)

        order = harness.compiled(draw, self.key, jnp.int32(0))
        arguments = (state, self.key, order.call(self.key, jnp.int32(0)), self.images)
        program = harness.compiled(epoch, *arguments, donate=(0,))

        def run():
            current, losses = jax.tree.map(jnp.copy, state), []
            for number in range(self.steps // steps):
                rows = order.call(self.key, jnp.int32(number))
                key = jax.random.fold_in(self.key, number)
                current, chunk = program.call(current, key, rows, self.images)
                losses.append(chunk)
            return np.concatenate(jax.device_get(losses)) * per_datum

        seconds = order.compile_seconds + program.compile_seconds
        return System(name, run, self.steps, seconds, program.flops, program.temp_bytes)

    def by_hand(self, name):
        params = dictionary(self.params)
        return self.scanned(name, epoch_by_hand, (params, optax.adam(STEP_SIZE).init(params)))

    def numpyro(self):
        svi = SVI(self.vae.model, self.vae.guide, optax.adam(STEP_SIZE), TraceMeanField_ELBO())
        state = svi.init(self.key, self.batch(jnp.arange(self.batch_size)))
        # SVI sums over the batch; Adam's steps do not depend on the scale of the loss, but for its epsilon.
        return self.scanned("numpyro", epoch_with_svi(svi), state, per_datum=1 / self.batch_size)

    def vinb(self):
        optimizer, loss = optax.adam(STEP_SIZE), self.loss  # the same objects each time: compiled once

        def train():
            return fit(
                loss,
                self.params,
                optimizer,
                self.key,
                data=(self.images,),
                batch_size=self.batch_size,
                num_steps=self.steps,
                loop="scan",
                progress=False,
            )

        first = train()
        run = lambda: train().losses  # noqa: E731
        return System("vinb", run, self.steps, first.compile_seconds, first.flops, first.temp_bytes)

    def difference(self):
        """Relative difference of vinb's loss from the hand-written one at the same weights and noise."""
        key = jax.random.key(2)
        x = self.batch(jnp.arange(self.batch_size))
        noise = jax.random.normal(
            jax.random.fold_in(key, zlib.crc32(b"z")), (self.batch_size, self.vae.latent_size)
        )
        ours = -jax.jit(self.objective)(self.params, key, x) / self.batch_size
        theirs = jax.jit(negative_elbo)(dictionary(self.params), noise, x)
        return abs(float(ours / theirs) - 1)


def compare(options, batch_size):
    """Rows and problems of one case; problems are wrong results and too much work, never times."""
    setting = Setting(options, batch_size)
    size = f"{setting.images.shape[1]}-{options.hidden}-{options.latent}"
    case = f"vae {size}, batch {batch_size}"
    difference = setting.difference()
    systems = [setting.by_hand(REFERENCE), setting.by_hand(A_A), setting.vinb(), setting.numpyro()]
    results = harness.measure(case, systems, options.rounds)
    print(harness.table(results, "step"))

    tail = max(1, setting.steps // 4)
    losses = {name: np.mean(result.last[-tail:]) for name, result in results.items()}
    print(f"loss at the same weights and noise: vinb and hand-written differ by {difference:.1e} (relative)")
    print(f"loss over the last {tail} of {setting.steps} steps:", end=" ")
    print(", ".join(f"{name} {loss:.2f}" for name, loss in losses.items()))
    noise = harness.spread(results)
    for name, to, allowed in (("vinb", REFERENCE, 1.05), ("vinb", "numpyro", 1.0)):
        ratio = harness.ratios(results, name, to)[1]
        verdict = "within" if ratio <= allowed + noise else "ABOVE"
        print(f"time of {name} over {to}: {ratio:.3f}, {verdict} {allowed} + A/A spread {noise:.3f}")

    problems = []
    if difference > 1e-5:
        problems.append(f"{case}: vinb's loss differs from the hand-written one by {difference:.1e}")
    for name, loss in losses.items():
        if abs(loss / losses[REFERENCE] - 1) > 0.05:
            problems.append(
                f"{case}: after training, the loss of {name} is {loss:.2f} and that of {REFERENCE} {losses[REFERENCE]:.2f}"
            )
    ours, reference = results["vinb"].system, results[REFERENCE].system
    for what in ("flops", "temp_bytes"):
        mine, theirs = getattr(ours, what), getattr(reference, what)
        if mine is not None and theirs and mine > 1.02 * theirs:
            problems.append(f"{case}: {what} {mine:,.0f} are over 1.02 times {theirs:,.0f}")
    return [result.row() for result in results.values()], problems


def make_parser():
    parser = harness.parser("Time per optimiser step of a variational auto-encoder on MNIST.")
    parser.add_argument(
        "--steps", type=int, help="steps per run (two epochs, which dwarfs what a call of fit costs once)"
    )
    parser.add_argument("--batch-size", type=int, nargs="+", default=[100])
    parser.add_argument("--num-data", type=int, default=60_000)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--latent", type=int, default=20)
    return parser


def main(arguments=None) -> int:
    options = make_parser().parse_args(arguments)
    return harness.run(options, compare, [(size,) for size in options.batch_size])


if __name__ == "__main__":
    sys.exit(main())
