"""Smoothness of programs and the choice of pathwise sites: the papers' pairs, what must not change a verdict, and reports."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from vinb.analysis import Level, integrability, select_pathwise, smoothness, support_match
from vinb.models.pairs import make_pair

# Of model and guide: continuous inputs, discrete ones, how many differentiable, how many locally Lipschitz (lee2023smoothness, the
# analyser's regression data, which the paper's Tables 4 and 8 count); and the sites selected at LIP and at DIFF.
PAIRS = {
    "spnor": ((2, 0, 1, 1), (4, 0, 4, 4), {"z1"}, {"z1"}),
    "br": (
        (5, 0, 5, 5),
        (10, 0, 10, 10),
        {"a", "bA", "bR", "bAR", "sigma"},
        {"a", "bA", "bR", "bAR", "sigma"},
    ),
    "csis": ((1, 0, 1, 1), (6, 0, 2, 6), {"z"}, {"z"}),
    "lda": ((3, 1, 3, 3), (7, 0, 7, 7), {"topic_weights", "topic_words"}, {"topic_weights", "topic_words"}),
    "vae": ((3, 0, 3, 3), (4, 0, 4, 4), {"latent"}, {"latent"}),
    "sgdef": ((6, 0, 6, 6), (18, 0, 18, 18), 6, 6),
    "dmm": ((10, 0, 4, 10), (5, 0, 4, 5), {"z_{}"}, set()),
    "ssvae": ((3, 1, 3, 3), (6, 1, 6, 6), {"z"}, {"z"}),
    "air": ((4, 1, 1, 4), (16, 1, 3, 15), {"z_what_{}"}, set()),
    "dpmm": ((2, 1, 2, 2), (6, 1, 6, 6), {"beta", "lambda"}, {"beta", "lambda"}),
    "cvae": ((8, 0, 3, 8), (9, 0, 5, 9), {"z"}, set()),
    "scanvi": ((12, 1, 6, 12), (15, 1, 8, 15), {"l", "z2", "z1"}, {"l"}),
    "prodlda": ((2, 0, 2, 2), (5, 0, 5, 5), {"logtheta"}, {"logtheta"}),
    "mhmm": ((10, 1, 10, 10), (6, 0, 6, 6), {"eps_g", "eps_i"}, {"eps_g", "eps_i"}),
}
DISCRETE = ("Bernoulli", "Categorical", "OneHot")


def grouped(report):
    """Worst level of each input, the steps of an unrolled loop taken together; and the discrete ones."""
    worst, discrete = {}, set()
    for name, level in report.levels.items():
        site = report.sites.get(name)
        label = re.sub(r"_\d+$", "_{}", name) if site is not None else name
        worst[label] = max(level, worst.get(label, level))
        if site is not None and site.distribution.startswith(DISCRETE):
            discrete.add(label)
    return worst, discrete


@pytest.mark.parametrize("name", PAIRS)
def test_smooth_sets_and_selections_are_the_papers(name):
    pair = make_pair(name, "small")
    model, guide, lipschitz, differentiable = PAIRS[name]
    for program, expected in ((pair.model, model), (pair.guide, guide)):
        worst, discrete = grouped(smoothness(program, pair.args, pair.kwargs))
        levels = [level for label, level in worst.items() if label not in discrete]
        counts = sum(level <= Level.DIFF for level in levels), sum(level <= Level.LIP for level in levels)
        assert (len(levels), len(discrete), *counts) == expected
        assert all(worst[label] == Level.ANY for label in discrete)
    for level, expected in ((Level.LIP, lipschitz), (Level.DIFF, differentiable)):
        chosen = select_pathwise(pair.model, pair.guide, pair.args, pair.kwargs, level=level)
        sites = {re.sub(r"_\d+$", "_{}", site) for site in chosen.sites}
        if level == Level.LIP:
            assert chosen.certified
        assert (len(sites) if isinstance(expected, int) else sites) == expected


@pytest.mark.parametrize("name", ["spnor", "csis", "lda", "dpmm", "ssvae", "cvae", "scanvi", "prodlda"])
def test_validation_precision_and_transformations_change_no_verdict(name):
    pair = make_pair(name, "small")

    def verdicts(model=pair.model):
        levels = [smoothness(p, pair.args, pair.kwargs).levels for p in (model, pair.guide)]
        return levels, support_match(model, pair.guide, pair.args, pair.kwargs).verdict

    plain = verdicts()
    with numpyro.validation_enabled(True):
        assert verdicts() == plain
    with numpyro.validation_enabled(False):
        assert verdicts() == plain
    with jax.enable_x64(True):
        assert verdicts() == plain


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_functions_within_jit_and_checkpoint(wrap):
    def network(z):
        return jnp.where(z > 0, 1.0, -1.0) + jax.nn.relu(z)

    def model(f):
        a, b = numpyro.sample("a", dist.Normal(0, 1)), numpyro.sample("b", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(f(a) + wrap(jax.nn.relu)(b), wrap(jnp.exp)(b)), obs=0.0)

    for f in (network, wrap(network)):
        assert smoothness(model, (f,)).levels == {"a": Level.ANY, "b": Level.LIP}


def test_control_flow_of_numpyro():
    def model(x):
        start = numpyro.sample("start", dist.Normal(0, 1))

        def step(carry, y):
            z = numpyro.sample("z", dist.Normal(carry, 1.0))
            numpyro.sample("x", dist.Normal(jax.nn.relu(z), 1.0), obs=y)
            return z, None

        last, _ = scan(step, start, x)
        w = cond(
            last > 0,
            lambda _: numpyro.sample("w", dist.Normal(1.0, 1.0)),
            lambda _: numpyro.sample("w", dist.Normal(-1.0, 2.0)),
            None,
        )
        numpyro.sample("y", dist.Normal(jnp.sin(w), 1.0), obs=0.0)

    levels = smoothness(model, (jnp.arange(3.0),)).levels
    assert levels == {"start": Level.DIFF, "z": Level.ANY, "w": Level.DIFF}


def test_branches_of_python():
    def model(flag):
        a, b = numpyro.sample("a", dist.Normal(0, 1)), numpyro.sample("b", dist.Normal(0, 1))
        loc = b if flag else -b
        if a > 0:
            loc = 2 * loc
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=0.0)

    report = smoothness(model, (True,))
    assert report.levels == {"a": Level.ANY, "b": Level.DIFF}
    assert "test_smoothness.py" in report.causes["a"]

    def number(n):
        k = numpyro.sample("k", dist.Poisson(2.0))
        for i in range(int(k)):
            numpyro.sample(f"x{i}", dist.Normal(0, 1))

    with pytest.raises(ValueError, match="depends on chance"):
        smoothness(number, (1,))

    def many():
        for i in range(8):
            if numpyro.sample(f"x{i}", dist.Normal(0, 1)) > 0:
                numpyro.factor(f"f{i}", 1.0)

    with pytest.raises(ValueError, match="more than 64 ways"):
        smoothness(many)


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
def test_automatic_guides(make):
    def model(x):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
        weights = numpyro.sample("weights", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(jax.nn.relu(weights).sum(), scale), obs=x)

    guide = make(model)
    chosen = select_pathwise(model, guide, (1.0,))
    assert chosen.certified
    drawn = {name for name, site in chosen.guide.sites.items() if not site.assigned}
    assert chosen.sites == drawn
    assert not select_pathwise(model, guide, (1.0,), level=Level.DIFF).sites & {"weights", "_auto_latent"}


def test_a_stopped_gradient_is_told():
    def model(stop):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(jax.lax.stop_gradient(z) if stop else z, 1.0), obs=0.0)

    assert smoothness(model, (True,)).stopped == {"z"}
    assert not smoothness(model, (False,)).stopped


def test_reports_name_site_primitive_and_line():
    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        s = numpyro.sample("s", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(jnp.linalg.qr(jnp.outer(z, z))[0].sum(), s), obs=0.0)

    report = smoothness(model)
    assert re.fullmatch(r"'\w+' at test_smoothness.py:\d+ \(model\)", report.causes["z"])
    assert report.unknown_primitives
    assert "scale of Normal at site 'x'" in report.causes["s"]
    assert report.smooth(Level.LIP) == frozenset()
    text = str(report)
    assert all(word in text for word in ("'x'", "test_smoothness.py", "not shown"))
    assert "<table>" in report._repr_html_()
    assert "/" not in report.causes["z"]


def test_selection_says_why():
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Normal(jnp.floor(z), 1.0), obs=0.0)

    def guide():
        numpyro.sample("z", dist.Normal(jnp.abs(numpyro.param("a", 0.3)), 1.0))

    chosen = select_pathwise(model, guide)
    assert chosen.certified
    assert "'floor' at test_smoothness.py" in chosen.reasons["z"]
    strict = select_pathwise(model, guide, level=Level.DIFF)
    assert not strict.certified
    assert "'a'" in strict.failed
    assert "score function" in str(strict)
    with pytest.raises(ValueError, match=r"Level\.LIP"):
        select_pathwise(model, guide, level=Level.CONT)


def test_what_a_site_is_made_of_counts():
    """The second condition: a pathwise site must move smoothly with the parameters."""

    def model():
        numpyro.sample(
            "x", dist.Normal(jax.nn.softplus(numpyro.sample("z", dist.Normal(0, 1))), 1.0), obs=0.0
        )

    def guide(fn):
        a = numpyro.param("a", 0.3)
        y = numpyro.sample("y", dist.Normal(a, 1.0), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Normal(fn(y), 1.0))

    smooth = select_pathwise(model, lambda: guide(jnp.sin))
    assert smooth.sites == {"y", "z"}
    rough = select_pathwise(model, lambda: guide(jnp.sign))
    assert rough.sites == {"z"}


def test_integrals_of_the_examples_are_known_to_be_finite():
    assert [
        integrability(p.model, p.guide, p.args).verdict for p in (make_pair("vae"), make_pair("spnor"))
    ] == ["VALID", "VALID"]


def test_data_are_numbers():
    """A branch on data is no branch, and a mask of data no jump."""

    def model(x, mask):
        z = numpyro.sample("z", dist.Normal(0, 1))
        loc = z if np.sum(x) > 0 else -z
        loc = 2 * loc if jnp.sum(jnp.asarray(x)) > 0 else loc
        numpyro.sample("x", dist.Normal(jnp.where(x > 0, loc, -loc), 1.0).mask(mask), obs=x)

    report = smoothness(model, (np.array([1.0, -0.5]), np.array([True, False])))
    assert report.levels == {"z": Level.DIFF}
