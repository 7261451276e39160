"""Who supports what: a matrix made of the rows of `correctness.py`, and of what was read in the releases' files.

An entry says what was found and how it is known: `ran` (here, by the case named) or `read` (in the release's own
files, when the paper was studied; nothing here runs it). Releases: genjax 0.10.3, NumPyro 0.22.0, Pyro 1.9.2, storchastic 0.3.7.
"""

# Feature: the case that shows it, and a word in the names of the systems that are meant (all, if none).
SHOWN = {
    "reparameterisation, several sites": ("two sites", ("",)),
    "score function": ("flip", ("ScoreFunction", "flip_reinforce", "Trace_ELBO", "TraceGraph_ELBO")),
    "score function with a baseline": ("flip", ("baseline", "leave one out")),
    "enumeration": ("flip", ("Enum", "flip_enum", "Expect")),
    "measure-valued derivatives": ("flip", ("MeasureValued", "flip_mvd")),
    "evidence lower bound, normal guide": ("gaussian", ("",)),
    "evidence lower bound, discrete guide": ("discrete elbo", ("",)),
    "importance-weighted bound, discrete guide": ("discrete iwelbo", ("",)),
    "subsampled plate of discrete latents": ("subsampled plate", ("",)),
    "marginal density, both contracts": ("marginal", ("",)),
    "wake-phase objectives": ("wake phi", ("",)),
    "Bernoulli logits at exactly zero": ("logits at zero", ("",)),
}

_NO = "none"
READ = {
    "score function with a baseline": {
        "vinb": "constant, moving average, network, leave one out",
        "numpyro": _NO,
        "pyro": "decaying average, network, given value (TraceGraph_ELBO)",
    },
    "measure-valued derivatives": {"numpyro": _NO, "pyro": _NO, "storchastic": _NO},
    "implicit reparameterisation": {
        "vinb": "gamma family, von Mises, mixtures of normals",
        "numpyro": "gamma family, by jax",
        "genjax": "Beta",
        "pyro": "by torch",
        "storchastic": "by torch",
    },
    "hierarchical bounds (HVI, IWHVI, DIWHVI)": {
        "vinb": "all three",
        "numpyro": _NO,
        "genjax": "marginal is there, its weights are wrong",
        "pyro": _NO,
        "storchastic": _NO,
    },
    "strategy is chosen": {
        "vinb": "per site, inside or from outside the program",
        "numpyro": "by distribution",
        "genjax": "per site",
        "pyro": "by distribution and infer=",
        "storchastic": "per site",
    },
}


def matrix(rows: list[dict]) -> dict[str, dict[str, dict[str, str]]]:
    """`{system: {feature: {"says": ..., "known": "ran" | "read"}}}` from the rows of `correctness.py`."""
    result = {}
    for feature, (case, words) in SHOWN.items():
        for row in rows:
            system, _, variant = row["system"].partition(" ")
            if row["case"] != case or not any(word in variant for word in words):
                continue
            verdict = row["verdict"] + (f" ({row['unsupported']})" if "unsupported" in row else "")
            entry = result.setdefault(system, {}).setdefault(feature, {"says": "", "known": "ran"})
            said = f"{verdict}: {variant}" if variant else verdict
            entry["says"] = f"{entry['says']}; {said}" if entry["says"] else said
    for feature, systems in READ.items():
        for system, said in systems.items():
            if system in result:
                result[system].setdefault(feature, {"says": said, "known": "read"})
    return result
