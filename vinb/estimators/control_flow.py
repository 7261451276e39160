"""NumPyro's ``scan`` and ``cond`` within an expectation: ``run`` is the run that meets their message."""

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.ops.pytree import PytreeTrace


def scan(run, msg):
    """Let a child run draw within the steps of NumPyro's scan; :func:`after_scan` gets its records out of the loop."""
    body, *rest = msg["args"]
    identity = run.identity("scan")
    msg["kwargs"]["rng_key"] = run.key_of(identity)

    def step(carry, x):
        child = run.child(f"{identity}/", numpyro.prng_key())
        child.plate_key = child.key
        child.looped, child.substituted = True, msg["kwargs"]["substitute_stack"]
        with child:
            carry, y = body(carry, x)
        run.sites.update(child.sites)
        run.notes.update(child.notes)
        return carry, (y, child.records)

    msg["args"] = (step, *rest)


def after_scan(run, msg):
    """Take the records of all steps, stacked, from among the loop's outputs."""
    carry, (trace, (ys, records)) = msg["value"]
    msg["value"] = carry, (trace, ys)
    run.records.update(records)
    if run.mode == "analyse":
        for identity, record in records.items():
            site = run.sites[identity]
            site.shape = (record["log_prob"].shape[0], *site.shape)


def cond(run, msg):
    """Both branches are run, each in its scope; what the branch not taken has drawn is selected away."""
    pred, *branches, operand = msg["args"]
    identity, taken = run.identity("cond"), jnp.asarray(pred).astype(bool)
    outs, traces = [], []
    for label, live, branch in zip(("true", "false"), (taken, ~taken), branches, strict=True):
        for kind, values in msg["kwargs"]["substitute_stack"]:
            handler = handlers.condition if kind == "condition" else handlers.substitute
            keyword = "data" if isinstance(values, dict) else f"{kind}_fn"
            branch = handler(branch, **{keyword: values})
        with run.scope(f"{identity.removeprefix(run.prefix)}/{label}/", live), handlers.trace() as trace:
            outs.append(branch(operand))
        traces.append({n: s for n, s in trace.items() if s["type"] in ("sample", "deterministic")})
    if set(traces[0]) != set(traces[1]):
        raise ValueError(
            f"the branches of a cond have different sites, {sorted(traces[0])} and {sorted(traces[1])}; "
            "give both the same (NumPyro asks for this too)"
        )
    merged = {name: _merge(taken, site, traces[1][name]) for name, site in traces[0].items()}
    msg["value"] = _select(taken, *outs), PytreeTrace(merged)


def _merge(taken, first, second):
    first = {key: value for key, value in first.items() if key != "stop"}  # it was seen within a block
    if first["type"] == "deterministic":
        return {**first, "value": _select(taken, first["value"], second["value"])}
    kinds = [jax.tree.structure(site["fn"]) for site in (first, second)]
    if kinds[0] != kinds[1]:
        names = [type(site["fn"]).__name__ for site in (first, second)]
        raise ValueError(
            f"site {first['name']!r} is {names[0]} in one branch of a cond and {names[1]} in the other; "
            "use one distribution with different parameters, or different names in separate conds"
        )
    infer = {k: v for k, v in first["infer"].items() if k != "_drawn_in_loop"}
    fn, value = (_select(taken, first[k], second[k]) for k in ("fn", "value"))
    return {**first, "fn": fn, "value": value, "infer": infer, "_control_flow_done": True}


def _select(taken, first, second):
    return jax.tree.map(lambda a, b: jnp.where(taken, a, b), first, second)


def substitutes(kind, values, msg):
    if kind == "replay" or isinstance(values, dict):
        return msg["name"] in values
    return values(msg) is not None
