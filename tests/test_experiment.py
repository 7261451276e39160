"""The run record: parameters, metrics, claims, figures, reading back, citing. No kernel is started here."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from vinb import experiment
from vinb.experiment import citation, paths
from vinb.experiment.parameters import assigned
from vinb.tables import Table

PARAMETERS = """preset = "cpu"       # smoke, cpu or paper
seed = 0             # integer
latent_dims = None   # sizes compared
rate = None          # learning rate
path = None          # of a file
"""
PRESETS = {
    "smoke": {"latent_dims": [2], "rate": 0.1},
    "cpu": {"latent_dims": [2, 5], "rate": 0.01},
    "paper": {"latent_dims": [2, 5, 10], "rate": 0.01},
}


@pytest.fixture(autouse=True)
def _outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("VINB_OUTPUT_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("VINB_ROOT", raising=False)


def begin(injected="", parameters=PARAMETERS, presets=PRESETS, before=(), paper="kingma2014aevb"):
    cells = ["", *before, parameters, *([f"# Parameters\n{injected}\n"] if injected else [])]
    namespace = {"In": cells}
    for cell in cells:
        exec(cell, namespace)
    return experiment.begin(namespace, notebook="toy", paper=paper, presets=presets)


def saved(record):
    record.finish()
    return experiment.load(record.folder)


# Parameters


def test_none_means_the_presets_value_and_an_override_wins():
    assert begin('preset = "smoke"').settings.latent_dims == [2]
    settings = begin('preset = "paper"\nrate = 1\nseed = 7').settings
    assert (settings.latent_dims, settings.rate, settings.seed) == ([2, 5, 10], 1.0, 7)
    assert type(settings.rate) is float  # an integer may stand for a float
    assert settings.overrides == ("rate",)


@pytest.mark.parametrize(
    ("injected", "words"),
    [
        ("latent_dim = [2]", r"no parameter 'latent_dim'. Did you mean 'latent_dims'"),
        ('preset = "cpuu"', r"'cpuu' is not one of smoke, cpu, paper. Did you mean 'cpu'"),
        ("seed = -1", "seed: needs an integer"),
        ("seed = True", "seed: needs an integer"),
        ("seed = 1.0", "seed: needs an integer"),
        ('rate = "0.1"', "rate: toy needs a number"),
        ("rate = True", "rate: toy needs a number"),
        ("latent_dims = [2, 0.5]", "list of integers"),
        ("latent_dims = 2", "list of integers"),
        ('latent_dims = "[2, 5]"', r"-y 'latent_dims: \[2, 5\]'"),
        ("path = {'a': 1}", "path: needs plain data"),
        ("rate = float('inf')", "rate: needs finite numbers"),
        ("path = [1.0, [float('nan')]]", "path: needs finite numbers"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(injected, words):
    with pytest.raises(experiment.ParameterError, match=words):
        begin(injected)


def test_the_refusal_lists_type_default_and_meaning_of_the_valid_ones():
    with pytest.raises(experiment.ParameterError) as caught:
        begin("latent_dimz = 3")
    assert re.search(r"latent_dims +list of integers +None +sizes compared", str(caught.value))
    assert caught.value._render_traceback_() == [f"ParameterError: {caught.value}"]


def test_the_latest_parameters_cell_wins_and_forgets_older_injections():
    old = PARAMETERS + "gone = 1\n"
    assert not hasattr(begin(before=[old, "# Parameters\ntypo = 1"]).settings, "gone")
    with pytest.raises(experiment.ParameterError, match="typo"):
        begin("typo = 1", before=[old])


def test_without_a_parameters_cell_it_says_to_run_it():
    with pytest.raises(experiment.ParameterError, match="run the parameters cell"):
        experiment.begin({"In": ["", "# Parameters\npreset='cpu'\nseed=0"]}, notebook="toy", presets=PRESETS)


def test_a_plain_script_has_no_history_to_check_against():
    namespace = {"preset": "smoke", "seed": 1, "rate": 0.5, "unrelated": 3}
    settings = experiment.begin(namespace, notebook="toy", presets=PRESETS).settings
    assert (settings.rate, settings.latent_dims, settings.overrides) == (0.5, [2], ("rate",))


@pytest.mark.parametrize(
    ("presets", "words"),
    [
        ({"smoke": {}, "cpu": {}}, "exactly the keys"),
        ({**PRESETS, "paper": {"rate": 1.0}}, "must set the same names.*latent_dims"),
        ({p: {**PRESETS[p], "depth": 1} for p in PRESETS}, "'depth', which the parameters cell does not"),
        ({p: {"rate": np.float32(1)} for p in PRESETS}, "is a float32"),
        ({**PRESETS, "paper": {**PRESETS["paper"], "rate": math.nan}}, "'paper'.*'rate'.*finite"),
        ({p: {"seed": 1} for p in PRESETS}, "must not set seed"),
    ],
)
def test_inconsistent_presets_are_refused(presets, words):
    with pytest.raises((ValueError, TypeError), match=words):
        begin(presets=presets)


@pytest.mark.parametrize("name", ["table", "as_dict", "overrides", "_values"])
def test_a_parameter_that_settings_could_not_show_is_refused(name):
    with pytest.raises(experiment.ParameterError, match=f"{name} cannot be a parameter"):
        begin(parameters=f"{PARAMETERS}{name} = 3\n")


def test_settings_show_all_presets_and_mark_overrides_and_are_read_only():
    settings = begin("rate = 0.5").settings
    assert re.search(r"rate +0.1 +0.01 +0.01 +0.5 \(override\)", str(settings))
    assert "cpu (active)" in settings._repr_html_()
    with pytest.raises(AttributeError, match="parameters cell"):
        settings.rate = 1.0
    with pytest.raises(AttributeError, match="did you mean 'latent_dims'"):
        _ = settings.latent_dim


def test_assigned_ignores_magics_and_what_is_no_assignment():
    assert assigned("%matplotlib inline\nx = 1") == {}
    assert list(assigned("import os\nx: int = 2\nfor i in []:\n    y = 1")) == ["x"]


# Metrics, claims, figures


def test_the_result_is_the_same_bytes_twice_and_free_of_the_environment():
    texts = []
    for _ in range(2):
        record = begin()
        record.metric("bound", np.float32(0.1), unit="nats", paper=-86.76, source="Table 1", error=0.2)
        record.claim("a", "It is so.", [np.float64(1.0), 2], at_least=1.0)
        record.data({"b.gz": "0" * 64, "a.gz": "1" * 64})
        record.timing("training", 1.5)
        record.finish()
        texts.append(json.loads((record.folder / "record.json").read_text()))
    assert json.dumps(texts[0]["result"]) == json.dumps(texts[1]["result"])
    assert texts[0]["result"]["metrics"][0]["value"] == 0.1  # float32's own digits
    assert list(texts[0]["result"]["data"]) == ["a.gz", "b.gz"]
    assert set(texts[0]["environment"]["seconds"]) == {"total", "training"}


def test_no_path_host_or_user_gets_into_the_record(tmp_path, monkeypatch):
    import getpass
    import os
    import platform
    import socket

    # Names that match nothing by chance; the real ones can be as short as a letter.
    host, user = "host-7f3a9c", "user-7f3a9c"
    system, _, *rest = os.uname()
    real = platform.uname()
    monkeypatch.setattr(platform, "uname", lambda: real._replace(node=host))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((system, host, *rest)))
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, user)
    assert (platform.node(), getpass.getuser()) == (host, user)
    record = begin()
    record.finish()
    text = (record.folder / "record.json").read_text()
    for secret in (str(tmp_path), sys.prefix, os.path.expanduser("~/"), host, user):
        assert secret not in text


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_what_is_not_finite_is_refused(value):
    record = begin()
    with pytest.raises(ValueError, match=r"'m'.*finite"):
        record.metric("m", value, unit=None)
    with pytest.raises(ValueError, match=r"'c'.*finite"):
        record.claim("c", "It is so.", [1.0, value], at_least=0)


@pytest.mark.parametrize(
    ("measured", "comparison", "verdict"),
    [
        (1.0, {"at_least": 1.0}, "held"),
        (0.99, {"at_least": 1.0}, "failed"),
        ([1.0, 2.0], {"at_most": 2.0}, "held"),
        ([1.0, 2.1], {"at_most": 2.0}, "failed"),
        (89.0, {"within": (90.0, 1.0)}, "held"),
        (91.1, {"within": (90.0, 1.0)}, "failed"),
        (None, {"holds": True}, "held"),
        (None, {"holds": np.bool_(False)}, "failed"),
        (0.0, {"at_least": 1.0, "known_miss": "We tried."}, "known-miss"),
        (2.0, {"at_least": 1.0, "known_miss": "We tried."}, "held"),
        (None, {"applicable": False, "reason": "Too few steps."}, "not-applicable"),
        (0.0, {"at_least": 1.0, "applicable": False, "reason": "Too few steps."}, "not-applicable"),
        (np.array([[1.0, 2.0], [3.0, 0.5]]), {"at_least": 1.0}, "failed"),
    ],
)
def test_verdicts(measured, comparison, verdict):
    assert begin().claim("c", "It is so.", measured, **comparison) == verdict


@pytest.mark.parametrize(
    ("measured", "comparison", "words"),
    [
        (1.0, {}, "exactly one"),
        (1.0, {"at_least": 0, "at_most": 2}, "exactly one"),
        ([], {"at_least": 0}, "empty list"),
        (None, {"at_least": 0}, "measured is None"),
        (1.0, {"within": 3.0}, r"\(target, tolerance\)"),
        (1.0, {"within": (1.0, -1.0)}, "negative"),
        (1.0, {"at_least": 0, "applicable": False}, "needs a reason"),
        ("1", {"at_least": 0}, "must be a number"),
    ],
)
def test_a_claim_that_says_nothing_is_refused(measured, comparison, words):
    with pytest.raises((ValueError, TypeError), match=words):
        begin().claim("c", "It is so.", measured, **comparison)


def test_a_failed_claim_raises_after_the_record_is_written():
    record = begin()
    record.claim("good", "Holds.", 1.0, at_least=0.0)
    record.claim("bad", "Does not hold.", 3.2, at_least=4.0)
    with pytest.raises(
        experiment.ClaimsFailed, match=r"1 of 2 claims failed\n  bad: Does not hold.: measured 3.2, asked ≥ 4"
    ):
        record.finish()
    assert experiment.load(record.folder).verdicts == {"good": "held", "bad": "failed"}


def test_begin_removes_an_older_record():
    folder = saved(begin()).path.parent
    begin()
    assert not (folder / "record.json").exists()


def test_names_are_used_once_and_the_papers_number_has_a_place():
    record = begin()
    record.metric("m", 1, unit=None)
    with pytest.raises(ValueError, match="'m' was recorded already"):
        record.metric("m", 1, unit=None)
    with pytest.raises(ValueError, match="source="):
        record.metric("n", 1, unit=None, paper=2.0)


def test_a_figure_is_the_same_file_twice_and_closed(tmp_path):
    import matplotlib.pyplot as plt

    files = []
    for _ in range(2):
        record = begin()
        fig, ax = plt.subplots()
        ax.plot([0, 1], [1, 2], "o-", label="a")
        ax.scatter(*np.random.default_rng(0).normal(size=(2, 500)), rasterized=True)
        ax.imshow(np.eye(3), extent=(0, 1, 0, 1))
        ax.legend()
        record.figure(fig, "figure-1", alt="A line.", caption="What to see.")
        assert not plt.fignum_exists(fig.number)
        files.append(
            [(record.folder / "figures" / f"figure-1.{kind}").read_bytes() for kind in ("svg", "png")]
        )
    assert files[0] == files[1]
    assert b"<dc:date>" not in files[0][0]


@pytest.mark.parametrize(
    ("name", "alt", "caption", "words"),
    [
        ("Figure 1", "a", "c", "figure-4"),
        ("../x", "a", "c", "figure-4"),
        ("figure-1", "", "c", "alt"),
        ("figure-1", "a", " ", "caption"),
    ],
)
def test_a_figure_needs_a_name_alt_text_and_a_caption(name, alt, caption, words):
    with pytest.raises(ValueError, match=words):
        begin().figure(None, name, alt=alt, caption=caption)


def test_tables_escape_html_and_keep_to_the_themes_colours():
    html = Table(["<a>"], [["x & y"]])._repr_html_()
    assert "&lt;a&gt;" in html
    assert "x &amp; y" in html
    assert "background" not in html


# Reading back and citing


def test_load_names_what_is_wrong(tmp_path):
    file = tmp_path / "record.json"
    with pytest.raises(FileNotFoundError, match="no record"):
        experiment.load(tmp_path)
    for content, words in (
        ("{", "not JSON"),
        ("{}", "no 'schema'"),
        ('{"schema": 2}', "reads 1"),
        ('{"schema": 1, "result": {}, "environment": {}, "bibtex": ""}', "result.notebook"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=words):
            experiment.load(file)


def test_load_refuses_an_unknown_verdict():
    record = begin()
    record.claim("c", "It is so.", 1.0, at_least=0.0)
    file = saved(record).path
    file.write_text(file.read_text().replace('"held"', '"perhaps"'))
    with pytest.raises(ValueError, match="'perhaps'"):
        experiment.load(file)


def test_compare_shows_what_differs():
    records = []
    for rate in (0.1, 0.2):
        record = begin(f"rate = {rate}")
        record.metric("bound", -rate, unit="nats")
        records.append(saved(record))
    table = experiment.compare(records)
    assert list(table["rate"]) == [0.1, 0.2]
    assert list(table["bound"]) == [-0.1, -0.2]
    assert "latent_dims" not in table


def test_compare_keeps_a_parameter_apart_from_a_metric_of_its_name():
    records = []
    for rate in (0.1, 0.2):
        record = begin(f"rate = {rate}")
        for name in ("rate", "path", "seed", "claims held"):
            record.metric(name, -1.0, unit=None)
        records.append(saved(record))
    table = experiment.compare(records)
    assert list(table["rate"]) == [0.1, 0.2]
    assert list(table["seed"]) == list(table["claims held"]) == [0, 0]
    assert {"metric rate", "metric path", "metric seed", "metric claims held"} <= set(table)
    assert list(table["metric rate"]) == [-1.0, -1.0]


def test_bibtex_cites_the_data_sets_used():
    from vinb.data import DATASETS

    record = begin()
    record.data({"a": DATASETS["mnist"].files[0].sha256, "b": "0" * 64})
    assert list(citation.entries(saved(record).bibtex()))[2:] == ["lecun1998mnist"]


def test_bibtex_names_paper_run_and_figure():
    import matplotlib.figure

    record = begin("rate = 0.5")
    record.figure(matplotlib.figure.Figure(), "figure-4", alt="Nothing.", caption="Nothing to see.")
    record.data({"train_images.gz": "ab" * 32})
    loaded = saved(record)
    entries = citation.entries(loaded.bibtex("Figure 4"))
    assert next(iter(entries)) == "kingma2014aevb"
    own = list(entries.values())[1]
    assert "figure-4" in own
    assert "rate=0.5" in own
    assert r"train\_images.gz sha256 abababababab" in own
    assert own.count("{") == own.count("}")
    text = experiment.provenance(loaded, "figure-4")
    assert all(line.startswith("% ") for line in text.splitlines())
    assert "rate = 0.5 (override)" in text
    with pytest.raises(ValueError, match="Did you mean 'figure-4'"):
        loaded.bibtex("figure-5")


def test_an_unknown_paper_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'kingma2014aevb'"):
        begin(paper="kingma2014")
    assert citation.short(citation.entry("rezende2014stochastic", paths.root())) == "Rezende et al. (2014)"


def test_importing_and_beginning_do_not_import_jax():
    code = (
        "import sys, vinb, vinb.experiment as e\n"
        "assert not {'matplotlib', 'pandas', 'papermill', 'numpy'} & set(sys.modules)\n"
        "preset, seed = 'smoke', 0\n"
        "e.begin(globals(), notebook='toy', presets={p: {} for p in ('smoke', 'cpu', 'paper')}).finish()\n"
        "assert not {'jax', 'numpyro', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
