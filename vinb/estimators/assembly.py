"""The surrogate of a planned program: its runs, and the sum whose derivative is the estimate.

Design notes. A *surrogate* is a number whose value is the estimate and whose derivative, as JAX takes it, is the estimate of the
derivative. With ``box(l) = exp(l - stop_gradient(l))``, which is one in value, it is the sum of

- ``weight * term * box(log densities of the score-function sites upstream)`` over terms and over configurations of enumerated
  sites, the weight being the configuration's probability (right for derivatives of all orders: foerster2018dice);
- ``baseline * (1 - box(log density))`` per element of score-function sites with a baseline;
- ``(parameter - stop_gradient(parameter)) * stop_gradient(coefficient * difference)`` per element of measure-valued sites, the
  difference being that of the cost downstream between two alternative values. Its second derivative would be wrong, and is
  refused.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from vinb.estimators.baselines import LeaveOneOut
from vinb.estimators.plan import Plan, as_terms
from vinb.estimators.run import Run
from vinb.estimators.strategies import Enumerate, MeasureValued, ScoreFunction
from vinb.estimators.surrogates import constants, first_derivatives_only

RUNS = "vinb_runs"  # names the axis of num_particles for LeaveOneOut


def baselines_of(plan: Plan) -> dict[str, Any]:
    """The baselines of a plan's score-function sites, by site."""
    found = {s: plan.strategy(s).baseline for s in plan.of_kind(ScoreFunction)}
    return {s: b for s, b in found.items() if b is not None}


# ---- arrays with configurations: [configurations ..., axes ...]


def _align(array, axes, rank, lead, reduce):
    """From element axes to a term's: reduce those that the term mixes, put the others in place."""
    array = reduce(array, tuple(lead + a for a, target in enumerate(axes) if target is None))
    targets = [t for t in axes if t is not None]
    order = sorted(range(len(targets)), key=targets.__getitem__)
    array = jnp.transpose(array, (*range(lead), *(lead + k for k in order)))
    missing = [t for t in range(rank) if t not in targets]
    return jnp.expand_dims(array, tuple(lead + t for t in missing))


def _align_back(array, axes, lead):
    """From a term's axes to element axes: sum what the site does not index; size one where the term mixes."""
    rank = array.ndim - lead
    array = jnp.sum(array, tuple(lead + t for t in range(rank) if t not in axes))
    kept = sorted(t for t in axes if t is not None)
    array = jnp.transpose(array, (*range(lead), *(lead + kept.index(t) for t in axes if t is not None)))
    return jnp.expand_dims(array, tuple(lead + a for a, t in enumerate(axes) if t is None))


class Surrogate:
    """Runs a planned program and assembles its surrogate."""

    def __init__(self, plan, params, key, args, kwargs, bind, constrained):
        self.plan, self.params, self.key, self.args, self.kwargs = plan, params, key, args, kwargs
        self.bind, self.constrained = bind, constrained
        self.lead = len(plan.sizes)
        self.enumerated, self.scored = plan.of_kind(Enumerate), plan.of_kind(ScoreFunction)
        self.measured = plan.of_kind(MeasureValued)

    # ---- runs

    def run(self, moved=None, mask=None, number=None, records=None):
        """Terms and records of all configurations, with an axis of configurations per colour in front.

        With the site ``moved``: those where its elements in ``mask`` take their alternative value ``number``, as constants. What it
        does not influence is as in ``records``, those of the run without.
        """
        params, args, kwargs = self.params, self.args, self.kwargs
        kept, alternative = {}, None
        if moved is not None:
            params, args, kwargs = constants((params, args, kwargs))
            kept, alternative = self.kept(records, moved), (moved, number)

        def one(kept, *configurations):
            indices = {
                s: self.plan.support_indices(s, configurations[self.plan.colour[s]]) for s in self.enumerated
            }
            for s, (strategy, _) in self.plan.strategies.items():  # without influence on the cost
                if isinstance(strategy, Enumerate) and s not in indices:
                    indices[s] = jnp.zeros(self.plan.sites[s].shape, int)
            run = Run(
                "primal" if moved is None else "what-if",
                params,
                self.key,
                plan=self.plan,
                forced=indices | kept | ({} if moved is None else {moved: mask}),
                alternative=alternative,
                constrained=self.constrained,
            )
            with run:
                cost = as_terms(self.bind(args, kwargs)())
            if len(cost.arrays) != len(self.plan.upstream):
                raise ValueError("the program returned another number of terms in another run of it")
            records = run.records if moved is None else _probs(run.records)
            return (cost.arrays, cost.baselines), records, run.mutables

        for colour in reversed(range(self.lead)):
            axes = [0 if c == colour else None for c in range(self.lead)]
            over_kept = {s: 0 if v.shape[colour] > 1 else None for s, v in kept.items()}
            one = jax.vmap(one, in_axes=(over_kept, *axes))
        single = {s: tuple(c for c in range(self.lead) if v.shape[c] == 1) for s, v in kept.items()}
        kept = {s: jnp.squeeze(v, single[s]) for s, v in kept.items()}
        terms, records, mutables = one(kept, *(jnp.arange(n) for n in self.plan.sizes))
        if moved is not None:
            terms, records = constants((terms, records))
        return terms, records, mutables

    def kept(self, records, moved):
        """The values that stay where ``moved`` is moved, of size one over configurations that make no difference."""
        parents = self.plan.parents
        return {
            s: stop_gradient(self.narrow(r["value"], (s, *parents[s])))
            for s, r in records.items()
            if "value" in r and s != moved and moved not in parents[s]
        }

    def narrow(self, array, upstream):
        """Drop the configurations that make no difference to ``array``."""
        used = {self.plan.colour[s] for s in upstream if s in self.plan.colour}
        for colour in range(self.lead):
            if colour not in used and array.shape[colour] > 1:
                array = jax.lax.slice_in_dim(array, 0, 1, axis=colour)
        return array

    def probability(self, records, site):
        """Of each configuration of an enumerated site, [configurations, elements]."""
        prob = self.narrow(records[site]["prob"], (site, *self.plan.parents[site]))
        count, colour = self.plan.num_configurations(site), self.plan.colour[site]
        if count < self.plan.sizes[colour]:  # shares its axis with a site of more configurations
            shape = [-1 if c == colour else 1 for c in range(prob.ndim)]
            inside = jnp.arange(self.plan.sizes[colour]).reshape(shape) < count
            prob = jnp.where(inside, prob, 0.0)
        return prob

    def weighted(self, terms, records, index, without=()):
        """Term ``index`` times the probabilities of its configurations, summed over axes that no strategy asks for."""
        upstream = self.plan.upstream[index]
        special = [s for s in upstream if s in (*self.enumerated, *self.scored, *self.measured)]
        term = self.narrow(terms[0][index], upstream)
        rank = term.ndim - self.lead
        kept = {t for s in special for t in upstream[s]}
        term = jnp.sum(term, tuple(self.lead + t for t in range(rank) if t not in kept), keepdims=True)
        weight = self.weight(records, upstream, rank, without)
        if weight is None:
            return term
        # What cannot happen may cost infinitely much; a finite cost still counts in the derivative of its probability.
        return weight * jnp.where((weight > 0) | jnp.isfinite(term), term, 0.0)

    def weight(self, records, upstream, rank, without=()):
        weight = None
        for site in self.enumerated:
            if site in upstream and site not in without:
                one = _align(self.probability(records, site), upstream[site], rank, self.lead, jnp.prod)
                weight = one if weight is None else weight * one
        return weight

    def credit(self, terms, records, site, without=()):
        """The cost downstream of each element of ``site``: [configurations, elements], of size one along mixed axes.

        Configurations of what comes after the site are summed over.
        """
        before = {self.plan.colour[s] for s in self.plan.parents[site] if s in self.plan.colour}
        after = tuple(c for c in range(self.lead) if c not in before)
        total = 0.0
        for index in self.plan.downstream(site):
            cost = jnp.sum(self.weighted(terms, records, index, without), after, keepdims=True)
            total = total + _align_back(cost, self.plan.upstream[index][site], self.lead)
        return total

    # ---- the sum

    def assemble(self, state, num_particles, has_state):
        terms, records, mutables = self.run()
        log_boxes = {}
        for s in self.scored:
            log_prob = self.narrow(records[s]["log_prob"], (s, *self.plan.parents[s]))
            log_boxes[s] = log_prob - stop_gradient(log_prob)

        total = 0.0
        for index, upstream in enumerate(self.plan.upstream):
            cost = self.weighted(terms, records, index)
            rank = cost.ndim - self.lead
            boxes = [
                _align(log_boxes[s], upstream[s], rank, self.lead, jnp.sum)
                for s in self.scored
                if s in upstream
            ]
            total = total + jnp.sum(cost * jnp.exp(sum(boxes)) if boxes else cost)
            for frame, values in terms[1][index].items():
                total = total + self.frame_baseline(records, log_boxes, frame, values, upstream)

        costs = {}
        for site, baseline in baselines_of(self.plan).items():
            predicted, costs[site] = self.baseline(
                site, baseline, terms, records, state, num_particles, has_state
            )
            control = stop_gradient(predicted) * (1 - jnp.exp(log_boxes[site]))
            total = total + jnp.sum(self.times_weight(records, site, control))
        for site in self.measured:
            total = total + self.measure_valued(site, terms, records)
        if self.measured:
            total = first_derivatives_only(
                total,
                f"second derivatives with MeasureValued() at {', '.join(self.measured)} are not available; "
                "use ScoreFunction() or Enumerate() for them",
            )
        return total, costs, mutables

    def times_weight(self, records, site, array):
        """Times the probability of the configurations upstream of ``site``; ``array`` has its elements."""
        weight = self.weight(constants(_probs(records)), self.plan.parents[site], array.ndim - self.lead)
        return array if weight is None else weight * array

    def frame_baseline(self, records, log_boxes, frame, values, upstream):
        """Baselines that came with a term, for the score-function sites in a frame."""
        total = 0.0
        weight = self.weight(constants(_probs(records)), upstream, 0)
        for site in self.scored:
            if site in upstream and site.startswith(f"{frame}/"):
                boxes = jnp.exp(log_boxes[site])
                expected = stop_gradient(self.narrow(values, upstream))
                expected = jnp.expand_dims(expected, tuple(range(self.lead + 1, boxes.ndim)))
                control = expected * (1 - boxes)
                if weight is not None:
                    control = jnp.reshape(weight, weight.shape + (1,) * (control.ndim - self.lead)) * control
                total = total + jnp.sum(control)
        return total

    def baseline(self, site, baseline, terms, records, state, num_particles, has_state):
        """The baseline's prediction per element, and the cost it should have predicted."""
        shape = self.plan.sites[site].shape
        parents = [s for s in self.enumerated if s in self.plan.parents[site]]
        cost = stop_gradient(self.credit(terms, records, site, without=parents))
        over = tuple(range(self.lead))
        mean = self.times_weight(records, site, jnp.broadcast_to(cost, (*cost.shape[: self.lead], *shape)))
        mean = stop_gradient(jnp.sum(mean, over))  # over the configurations upstream
        if getattr(baseline, "inputs", None) is not None:
            inputs = baseline.inputs(*self.args, **self.kwargs)
        else:
            inputs = jax.tree.map(lambda a: a[(0,) * self.lead], records[site]["inputs"])
        if isinstance(baseline, LeaveOneOut):
            if num_particles == 1:
                raise ValueError(f"LeaveOneOut() at site {site!r} needs num_particles of at least 2, got 1")
            predicted = (jax.lax.psum(mean, RUNS) - mean) / (num_particles - 1)
        else:
            if not has_state and jax.tree.leaves(baseline.init(jax.random.key(0), shape, mean.dtype)):
                raise ValueError(
                    f"{type(baseline).__name__} at site {site!r} learns: pass has_state=True, and state= in each call"
                )
            own = state[site] if has_state else ()
            predicted = jnp.broadcast_to(baseline.predict(own, inputs, shape), shape)
        return predicted.reshape((1,) * self.lead + shape), (_Baseline(baseline), mean, inputs)

    def measure_valued(self, site, terms, records):
        """Sum over elements of (parameter - stop_gradient(parameter)) times the estimate of the derivative."""
        shape, mixed = self.plan.sites[site].shape, self.plan.mixed(site)
        moves = records[site]["moves"]
        number = sum(sum(move["present"].value) for move in moves)
        masks = jnp.eye(self.plan.num_mixed(site), dtype=bool)
        masks = masks.reshape(-1, *(n if a in mixed else 1 for a, n in enumerate(shape)))
        masks = jnp.broadcast_to(masks, (len(masks), *shape))

        def cost_of(alternative, mask):
            moved_terms, moved_records, _ = self.run(site, mask, alternative, records)
            return self.credit(moved_terms, moved_records, site)

        # Outside of the configurations: what comes before the site is computed once.
        over_masks = jax.vmap(cost_of, (None, 0)) if len(masks) > 1 else _unmapped(cost_of, 1)
        over_all = jax.vmap(over_masks, (0, None)) if number > 1 else _unmapped(over_masks, 0)
        moved = over_all(jnp.arange(number), masks)  # [alternatives, masks, configurations, elements]
        moved = _spread(moved, mixed, shape, self.lead)
        here = stop_gradient(self.credit(terms, records, site))

        total, position = 0.0, 0
        for move in moves:
            pair = []
            for present in move["present"].value:
                pair.append(moved[position] if present else here)
                position += present
            upstream = (site, *self.plan.parents[site])
            parameter, coefficient = (self.narrow(move[k], upstream) for k in ("parameter", "coefficient"))
            slope = coefficient * (pair[0] - pair[1])
            total = total + jnp.sum((parameter - stop_gradient(parameter)) * stop_gradient(slope))
        return total


def _unmapped(function, argument):
    """As ``jax.vmap`` over a leading axis of size one of one argument."""

    def call(*args):
        args = [a[0] if k == argument else a for k, a in enumerate(args)]
        return jax.tree.map(lambda x: x[None], function(*args))

    return call


def _spread(moved, mixed, shape, lead):
    """[alternatives, masks, configurations, elements] to the same without masks, which index the mixed axes."""
    sizes = [shape[a] for a in mixed]
    moved = moved.reshape(moved.shape[0], *sizes, *moved.shape[2:])
    for number, axis in enumerate(mixed):
        remaining = len(mixed) - number
        target = 1 + remaining - 1 + lead + axis  # once the leading one is taken out
        moved = jnp.squeeze(moved, 1 + remaining + lead + axis)
        moved = jnp.moveaxis(moved, 1, target)
    return moved


def _probs(records):
    return {s: r for s, r in records.items() if "prob" in r}


@jax.tree_util.register_static
class _Baseline:
    """A baseline on its way out of ``jax.vmap``."""

    def __init__(self, value):
        self.value = value
