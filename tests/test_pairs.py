"""vinb.models.pairs: the sites of each program against what the two papers' authors list, traced without computing anything.

The authors' counts are those of their regression data (the repository ``wonyeol/smoothness-analysis``, ``batch_diff.ml``), which
are Tables 4 and 8 of lee2023smoothness; total dimensions are from the summary sheet of lee2020verifiedsvi.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.util import log_density

from vinb.models.pairs import PAIRS, SCALES, make_pair

# For model and guide: continuous random variables and groups of parameters, discrete random variables.
AUTHORS = {
    "spnor": ((2, 0), (4, 0)),
    "br": ((5, 0), (10, 0)),
    "csis": ((1, 0), (6, 0)),
    "lda": ((3, 1), (7, 0)),
    "vae": ((3, 0), (4, 0)),
    "sgdef": ((6, 0), (18, 0)),
    "dmm": ((10, 0), (5, 0)),
    "ssvae": ((3, 1), (6, 1)),
    "air": ((4, 1), (16, 1)),
    "dpmm": ((2, 1), (6, 1)),
    "cvae": ((8, 0), (9, 0)),
    "scanvi": ((12, 1), (15, 1)),
    "prodlda": ((2, 0), (5, 0)),
    "mhmm": ((10, 1), (6, 0)),
}

LDA_MODEL = (
    "",
    "topic_weights:Gamma topic_words:Dirichlet doc_topics:Dirichlet word_topics:CategoricalProbs",
    "doc_words:CategoricalProbs",
)
LDA_PARAMS = "topic_weights_posterior topic_words_posterior layer1 layer2 layer3"
LDA_GUIDE = (LDA_PARAMS, "topic_weights:Gamma topic_words:Dirichlet doc_topics:Delta", "")
BR_MODEL = ("", "a:Normal bA:Normal bR:Normal bAR:Normal sigma:Uniform", "obs:Normal")
BR_PARAMS = "a_loc a_scale weights_loc weights_scale"
BR_GUIDE = (f"{BR_PARAMS} sigma_loc", "a:Normal bA:Normal bR:Normal bAR:Normal sigma:Normal", "")
CSIS = (("", "z:Normal", "x1:Normal x2:Normal"), ("first second third fourth fifth", "z:Normal", ""))
SSVAE = (
    ("decoder_fst decoder_snd", "z:Normal y:OneHotCategorical", "x:BernoulliProbs"),
    (
        "encoder_y_fst encoder_y_snd encoder_z_fst encoder_z_out1 encoder_z_out2",
        "y:OneHotCategorical z:Normal",
        "",
    ),
)
DEF_LATENTS = "w_top:Gamma w_mid:Gamma w_bottom:Gamma z_top:Gamma z_mid:Gamma z_bottom:Gamma"
DEF_PARAMS = " ".join(
    f"log_{moment}_{kind}_q_{layer}"
    for kind in "wz"
    for layer in ("top", "mid", "bottom")
    for moment in ("alpha", "mean")
)
AIR_LATENTS = "z_pres_{}:BernoulliProbs z_where_{}:Normal z_what_{}:Normal"


def fully_connected(*networks):
    return " ".join(f"{network}_fc_{i}" for network in networks for i in (1, 2, 4, 5))


# Of model and guide: parameters, latents and observations, in order; an ending _{} stands for all numbers.
SITES = {
    "spnor": (("", "z1:Normal z2:Normal", "x:Normal"), ("theta1 theta2", "z1:Normal z2:Normal", "")),
    "br": (BR_MODEL, BR_GUIDE),
    "br_original": (BR_MODEL, BR_GUIDE),
    "br_edited": (BR_MODEL, (BR_PARAMS, BR_MODEL[1], "")),
    "csis": CSIS,
    "csis_swapped": CSIS[::-1],
    "dpmm": (
        ("", "beta:Beta lambda:Gamma z:CategoricalProbs", "obs:Poisson"),
        ("kappa tau_0 tau_1 phi", "beta:Beta lambda:Gamma z:CategoricalProbs", ""),
    ),
    "lda": (LDA_MODEL, LDA_GUIDE),
    "lda_original": (LDA_MODEL, LDA_GUIDE),
    "lda_edited_1": (LDA_MODEL, (LDA_PARAMS, LDA_GUIDE[1].replace("Delta", "Dirichlet"), "")),
    "lda_edited_2": (
        LDA_MODEL,
        (LDA_PARAMS, LDA_MODEL[1].replace("CategoricalProbs", "CategoricalLogits"), ""),
    ),
    "prodlda": (
        ("decoder_beta", "logtheta:Normal", "obs:MultinomialProbs"),
        ("encoder_fc1 encoder_fc2 encoder_fcmu encoder_fclv", "logtheta:Normal", ""),
    ),
    "vae": (
        ("decoder_fc1 decoder_fc21", "latent:Normal", "obs:BernoulliProbs"),
        ("encoder_fc1 encoder_fc21 encoder_fc22", "latent:Normal", ""),
    ),
    "ssvae": SSVAE,
    "ssvae_unsupervised": SSVAE,
    "ssvae_supervised": (
        ("decoder_fst decoder_snd", "z:Normal", "y:OneHotCategorical x:BernoulliProbs"),
        ("encoder_z_fst encoder_z_out1 encoder_z_out2", "z:Normal", ""),
    ),
    "cvae": (
        (
            "prior_net_fc1 prior_net_fc2 prior_net_fc31 prior_net_fc32 gener_net_fc1 gener_net_fc2 gener_net_fc3",
            "z:Normal",
            "y:BernoulliProbs",
        ),
        (
            "prior_net_fc1 prior_net_fc2 prior_net_fc31 prior_net_fc32 "
            "recog_net_fc1 recog_net_fc2 recog_net_fc31 recog_net_fc32",
            "z:Normal",
            "",
        ),
    ),
    "sgdef": (("", DEF_LATENTS, "obs:Poisson"), (DEF_PARAMS, DEF_LATENTS, "")),
    "scanvi": (
        (
            fully_connected("z2_decoder", "x_decoder") + " inverse_dispersion",
            "z1:Normal y:OneHotCategorical z2:Normal l:LogNormal",
            "x:ZeroInflatedLogits",
        ),
        (
            fully_connected("z2l_encoder", "classifier", "z1_encoder"),
            "l:LogNormal z2:Normal y:OneHotCategorical z1:Normal",
            "",
        ),
    ),
    "dmm": (
        (
            "e_lin_z_to_hidden e_lin_hidden_to_hidden e_lin_hidden_to_input t_lin_gate_z_to_hidden "
            "t_lin_gate_hidden_to_z t_lin_proposed_mean_z_to_hidden t_lin_proposed_mean_hidden_to_z "
            "t_lin_sig t_lin_z_to_loc",
            "z_{}:Normal",
            "x_{}:BernoulliProbs",
        ),
        ("rnn c_lin_z_to_hidden c_lin_hidden_to_loc c_lin_hidden_to_scale", "z_{}:Normal", ""),
    ),
    "mhmm": (
        (
            "step_zi_param step_param_concentration step_param_rate angle_param_concentration angle_param_loc "
            "omega_zi_param omega_param_concentration0 omega_param_concentration1",
            "eps_g:Normal eps_i:Normal y_{}:CategoricalLogits",
            "step_zi_{}:CategoricalLogits step_{}:Gamma angle_{}:VonMises omega_zi_{}:CategoricalLogits omega_{}:Beta",
        ),
        ("loc_group scale_group loc_individual scale_individual", "eps_g:Normal eps_i:Normal", ""),
    ),
    "air": (
        ("decode_l1 decode_l2", AIR_LATENTS, "obs:Normal"),
        (
            "rnn bl_rnn predict_l1 predict_l2 bl_predict_l1 bl_predict_l2 encode_l1 encode_l2 "
            "h_init c_init bl_h_init bl_c_init z_where_init z_what_init",
            AIR_LATENTS,
            "baseline_{}:Normal",
        ),
    ),
}
POSITIVE = {
    *("a_scale", "weights_scale", "sigma_loc", "kappa", "tau_0", "tau_1", "inverse_dispersion"),
    *("topic_weights_posterior", "topic_words_posterior", "scale_group", "scale_individual"),
    *("step_param_concentration", "step_param_rate", "angle_param_concentration"),
    *("omega_param_concentration0", "omega_param_concentration1"),
}


def abstract(program, pair, **more):
    """The trace of a program, its values shapes and types only: nothing is computed. ``inside[name]``: an observation's support
    has the value, where that is not from a random batch."""
    trace, inside = {}, {}

    def run(key):
        trace.update(handlers.trace(handlers.seed(program, key)).get_trace(*pair.args, **pair.kwargs | more))
        for name, site in trace.items():
            if site["type"] == "sample" and site["is_observed"]:
                with jax.ensure_compile_time_eval():
                    holds = jnp.all(site["fn"].support(site["value"]))
                inside[name] = isinstance(holds, jax.core.Tracer) or bool(holds)
        return {name: site["value"] for name, site in trace.items() if site["type"] != "plate"}

    shapes = jax.eval_shape(run, jax.random.key(0))
    return {name: site | {"value": shapes.get(name)} for name, site in trace.items()}, inside


def law_of(site):
    """Its distribution without wrappers."""
    law = site["fn"]
    while isinstance(law, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        law = law.base_dist
    return law


def sites_of(trace):
    """Parameters, latents and observations, as in SITES."""
    drawn = {name: site for name, site in trace.items() if site["type"] == "sample"}

    def listed(is_observed):
        names = (
            f"{re.sub('_[0-9]+$', '_{}', name)}:{type(law_of(site)).__name__}"
            for name, site in drawn.items()
            if site["is_observed"] == is_observed
        )
        return " ".join(dict.fromkeys(names))

    params = " ".join(name for name, site in trace.items() if site["type"] == "param")
    return params, listed(False), listed(True)


def counts(trace):
    """As in AUTHORS, a guide's point masses being no random variables."""
    params, latents, _ = sites_of(trace)
    random = [latent.split(":") for latent in latents.split() if not latent.endswith(":Delta")]
    discrete = sum(law.startswith(("Categorical", "Bernoulli", "OneHot")) for _, law in random)
    return len(params.split()) + len(random) - discrete, discrete


@pytest.fixture(scope="module")
def traces():
    made = {}

    def get(name, scale):
        if (name, scale) not in made:
            pair = make_pair(name, scale)
            made[name, scale] = abstract(pair.model, pair), abstract(pair.guide, pair)
        return made[name, scale]

    return get


def test_every_pair_has_its_sites_listed():
    assert set(SITES) == set(PAIRS)
    assert set(AUTHORS) <= set(PAIRS)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SITES)
def test_sites(name, scale, traces):
    assert make_pair(name, scale).name == name
    for (trace, inside), expected in zip(traces(name, scale), SITES[name], strict=True):
        assert sites_of(trace) == expected
        assert all(inside.values()), inside
        constrained = {
            n: site["kwargs"].get("constraint", constraints.real)
            for n, site in trace.items()
            if site["type"] == "param"
        }
        assert {n for n, c in constrained.items() if c is constraints.positive} == POSITIVE & set(constrained)
        assert {n for n, c in constrained.items() if c is constraints.simplex} == {"phi"} & set(constrained)


@pytest.mark.parametrize("name", AUTHORS)
def test_counts_are_the_authors(name, traces):
    assert tuple(counts(trace) for trace, _ in traces(name, "small")) == AUTHORS[name]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", [name for name in SITES if name != "csis_swapped"])
def test_model_and_guide_agree_in_shapes_and_plates(name, scale, traces):
    (model, _), (guide, _) = traces(name, scale)
    latents = [n for n, site in guide.items() if site["type"] == "sample" and not site["is_observed"]]
    assert latents
    for latent in latents:
        assert not model[latent]["is_observed"]
        assert guide[latent]["value"].shape == model[latent]["value"].shape
        assert guide[latent]["fn"].event_dim == model[latent]["fn"].event_dim
        assert guide[latent]["cond_indep_stack"] == model[latent]["cond_indep_stack"]
    missing = {n for n, site in model.items() if site["type"] == "sample" and not site["is_observed"]}
    for latent in missing - set(latents):
        assert model[latent]["infer"] == {"enumerate": "parallel"}


# The sheet leaves out the biases of csis.
@pytest.mark.parametrize(("name", "total"), [("br", 189), ("csis", 484), ("sgdef", 1_773_280)])
def test_total_dimension_is_the_authors(name, total, traces):
    values = [
        leaf
        for trace, _ in traces(name, "original")
        for path, leaf in jax.tree_util.tree_leaves_with_path({n: s["value"] for n, s in trace.items()})
        if "bias" not in jax.tree_util.keystr(path)
    ]
    assert sum(math.prod(value.shape) for value in values) == total


def test_what_is_masked_scaled_and_subsampled(traces):
    for trace, _ in traces("air", "small"):
        masked = {n for n, s in trace.items() if isinstance(s["fn"], dist.MaskedDistribution)}
        assert masked == {f"z_{kind}_{t}" for kind in ("where", "what") for t in (1, 2, 3)}
    for trace, _ in traces("scanvi", "small"):
        scales = [s["scale"] for s in trace.values() if s["type"] == "sample"]
        np.testing.assert_allclose(scales, 4.56e-7, rtol=1e-3)
    for trace, _ in traces("dmm", "small"):
        annealed = {n for n, s in trace.items() if s["type"] == "sample" and s["scale"] == 0.2}
        assert annealed == {"z_1", "z_2", "z_3"}
    for trace, _ in traces("lda", "original"):
        assert trace["documents"]["args"] == (1000, 32)
        assert trace["doc_topics"]["scale"] == 1000 / 32


def test_labels_given_to_scanvi():
    pair = make_pair("scanvi")
    y = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    model, _ = abstract(pair.model, pair, y=y)
    guide, _ = abstract(pair.guide, pair, y=y)
    assert model["y"]["is_observed"]
    assert "y" not in guide
    assert isinstance(guide["classification_loss"]["fn"], dist.Unit)


def test_spnor_density():
    pair = make_pair("spnor")
    for z2, mean in ((0.5, 1.0), (-0.5, -2.0)):
        value, _ = log_density(pair.model, pair.args, {}, {"z1": 1.5, "z2": z2})
        laws = scipy.stats.norm([0, 1.5, mean], [5, 3, 1])
        assert value == pytest.approx(laws.logpdf([1.5, z2, 0]).sum(), rel=1e-5)
    value, _ = log_density(pair.guide, pair.args, {}, {"z1": 1.5, "z2": 0.5, "theta1": 1.0, "theta2": -1.0})
    assert value == pytest.approx(scipy.stats.norm.logpdf([0.5, 1.5]).sum(), rel=1e-5)


def test_dpmm_breaks_a_stick():
    pair = make_pair("dpmm")
    beta = jnp.array([0.5, 0.2, 0.9])
    rate = jnp.array([1.0, 2.0, 3.0, 4.0])
    fixed = handlers.substitute(pair.model, {"beta": beta, "lambda": rate, "z": jnp.arange(6) % 4})
    trace = handlers.trace(fixed).get_trace(*pair.args)
    np.testing.assert_allclose(law_of(trace["z"]).probs, [0.5, 0.1, 0.36, 0.04], rtol=1e-6)
    np.testing.assert_allclose(law_of(trace["obs"]).rate, [1, 2, 3, 4, 1, 2])


def test_guide_of_dmm_looks_ahead_up_to_the_end_of_each_sequence():
    pair = make_pair("dmm")
    x, lengths, annealing = pair.args
    assert list(lengths) == [3, 2]

    def locs(x):
        fixed = handlers.substitute(pair.guide, {f"z_{t}": jnp.zeros((2, 2)) for t in (1, 2, 3)})
        trace = handlers.trace(handlers.seed(fixed, 0)).get_trace(x, lengths, annealing)
        return jnp.stack([law_of(trace[f"z_{t}"]).loc.sum(-1) for t in (1, 2, 3)])

    slopes = jax.jit(jax.jacobian(locs))(jnp.asarray(x) + 1)  # [time, sequence, sequence, time, note]
    depends = np.abs(slopes).sum(-1) > 0
    np.testing.assert_array_equal(depends[:, 0, 0], [[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(depends[:2, 1, 1], [[1, 1, 0], [0, 1, 0]])
    assert not depends[:, 0, 1].any()
    assert not depends[:, 1, 0].any()


def test_make_pair_names_what_there_is():
    with pytest.raises(ValueError, match=r"no pair 'vea'; the pairs are spnor, br, csis, .*ssvae_supervised"):
        make_pair("vea")
    for name in PAIRS:
        with pytest.raises(ValueError, match="scale must be one of 'small', 'original', got 'large'"):
            make_pair(name, "large")
