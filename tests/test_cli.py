"""The command line as a user types it, and ci/expected.py; notebooks are run for real in test_notebook_tools.py."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_notebook_tools import notebook

from vinb import cli, experiment
from vinb.data import files
from vinb.experiment import notebooks


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with one notebook and a record committed at preset cpu, another at smoke."""
    path = notebook(tmp_path)
    monkeypatch.setenv("VINB_ROOT", str(tmp_path))
    for preset in ("smoke", "cpu"):
        monkeypatch.setenv("VINB_OUTPUT_DIR", str(path.with_suffix("") / preset))
        namespace = {"preset": preset, "seed": 0}
        presets = {p: {} for p in ("smoke", "cpu", "paper")}
        record = experiment.begin(namespace, notebook="toy", paper="kingma2014aevb", presets=presets)
        record.claim("good", "Holds.", 1.0, at_least=0.0)
        record.claim("odd", "Does not.", 1.0, at_least=2.0, known_miss="We tried.")
        record._add("figure", "figure-4", {"name": "figure-4", "caption": "A caption.", "alt": "An image."})
        record.finish()
    monkeypatch.delenv("VINB_OUTPUT_DIR")
    return tmp_path


def test_list_shows_title_paper_and_verdicts(root, capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "A toy" in out
    assert "Kingma & Welling (2014)" in out
    assert " ".join(out.split()).count("1 held, 1 known miss") >= 1


def test_cite_prefers_the_larger_preset(root, capsys):
    assert cli.main(["cite", "toy", "figure-4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("@inproceedings{kingma2014aevb,")
    assert "@misc{vinb-toy-cpu-" in out
    assert "% figure     figure-4: A caption." in out
    assert cli.main(["cite", "toy", "--preset", "smoke"]) == 0
    assert "@misc{vinb-toy-smoke-" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cite", "toi"], "Did you mean 'toy'"),
        (["cite", "toy", "figure-5"], "Did you mean 'figure-4'"),
        (["cite", "toy", "--preset", "paper"], "no committed record at preset paper"),
        (["run", "toi"], "Did you mean 'toy'"),
        (["run", "nothing.ipynb"], "no file 'nothing.ipynb'"),
        (["run", "toy", "-p", "step=3"], "Did you mean 'steps'"),
        (["run", "toy", "-p", "steps"], "write NAME=VALUE"),
        (["run", "toy", "-p", "preset=huge"], "not one of smoke, cpu, paper"),
        (["run", "toy", "-p", "seed=false"], "seed: needs an integer"),
        (["run", "toy", "--timeout", "0"], "timeout: got 0.0"),
        (["run", "toy", "-p", "step=3"], "steps               the preset's value  count"),
        (["run", "toy", "-p", "preset=cpu", "--preset", "smoke"], "contradict"),
        (["list", "--root", "/nowhere"], "--root names '/nowhere'"),
        (["data", "verify", "mnits"], "Did you mean 'mnist'"),
    ],
)
def test_a_wrong_call_is_exit_code_2_and_says_what_is_right(root, capsys, arguments, words):
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("true", True),
        ("None", None),
        ("null", None),
        ("[2, 5]", [2, 5]),
        ("(2, 5)", [2, 5]),
        ("[adam, sgd]", ["adam", "sgd"]),
        ("'3'", "3"),
        ("adam", "adam"),
        ("a=b", "a=b"),
    ],
)
def test_values_are_read_as_typed(text, value):
    found = cli.literal(text)
    assert found == value
    assert type(found) is type(value)


def fake(monkeypatch, root, *, failure=None, record=True):
    """Replaces the kernel by a run that is already there; returns the calls."""
    calls = []

    def execute(path, **options):
        calls.append(options)
        folder = root / "notebooks" / "toy" / "cpu"
        return notebooks.Run(folder, folder / path.name, folder / "record.json" if record else None, failure)

    monkeypatch.setattr(notebooks, "execute", execute)
    return calls


def test_run_passes_overrides_and_shows_places_and_claims(root, monkeypatch, capsys):
    calls = fake(monkeypatch, root)
    monkeypatch.chdir(root)
    assert cli.main(["run", "toy", "--preset", "smoke", "-p", "steps=4", "--output-dir", "out"]) == 0
    assert calls[0]["parameters"] == {"preset": "smoke", "steps": 4}
    assert str(calls[0]["output_dir"]) == "out/toy/smoke-steps=4"
    out = capsys.readouterr().out
    assert "record    notebooks/toy/cpu/record.json" in out
    assert "1 held, 1 known miss" in out
    assert str(root) not in out


def test_the_default_preset_injects_nothing(root, monkeypatch):
    calls = fake(monkeypatch, root)
    assert cli.main(["run", "toy", "--preset", "cpu", "-p", "seed=0"]) == 0
    assert calls[0]["parameters"] == {}


def test_false_is_not_taken_for_zero(root, monkeypatch):
    notebook(root, parameters='preset = "cpu"\nseed = 0\nburn_in = 0\nsteps = None\n')
    calls = fake(monkeypatch, root)
    assert cli.main(["run", "toy", "-p", "burn_in=false"]) == 0
    assert calls[0]["parameters"] == {"burn_in": False}


BROKEN = ["<<<<<<< HEAD", '{"nbformat": 4, "cells": 3}', '{"nbformat": 4, "cells": [{"cell_type": "code"}]}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_notebook_is_named_and_hides_no_other(root, capsys, text):
    (root / "notebooks" / "broken.ipynb").write_text(text)
    assert cli.main(["run", "broken"]) == 2
    assert "broken.ipynb is not a notebook" in capsys.readouterr().err
    assert cli.main(["list"]) == 2
    out, err = capsys.readouterr()
    assert "A toy" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("broken")] == ["unreadable"]
    assert "broken.ipynb is not a notebook" in err


@pytest.mark.parametrize("change", [("{", "["), ('"figures": [', '"figures": [3, ')])
def test_a_broken_record_is_named(root, capsys, change):
    file = root / "notebooks" / "toy" / "cpu" / "record.json"
    file.write_text(file.read_text().replace(*change))
    assert cli.main(["list"]) == 2
    out, err = capsys.readouterr()
    assert "cpu: unreadable" in " ".join(out.split())
    assert "record.json' is not" in err
    assert cli.main(["cite", "toy"]) == 2


def test_run_exits_1_for_a_failed_claim(root, monkeypatch):
    fake(monkeypatch, root)
    file = root / "notebooks" / "toy" / "cpu" / "record.json"
    content = json.loads(file.read_text())
    content["result"]["claims"][0]["verdict"] = "failed"
    file.write_text(json.dumps(content))
    assert cli.main(["run", "toy"]) == 1


def test_run_exits_1_and_shows_the_cell_that_raised(root, monkeypatch, capsys):
    fake(
        monkeypatch,
        root,
        failure=notebooks.Failure(4, "1 / 0", "ZeroDivisionError: division by zero"),
        record=False,
    )
    assert cli.main(["run", "toy"]) == 1
    err = capsys.readouterr().err
    assert "cell [4]" in err
    assert "1 / 0" in err
    assert "ZeroDivisionError: division by zero" in err


@pytest.mark.parametrize("arguments", [["list"], ["cite", "toy", "figure-4"]])
def test_list_and_cite_do_not_import_what_is_slow(root, arguments):
    code = (
        "import sys\nfrom vinb import cli\n"
        f"assert cli.main({arguments!r}) == 0\n"
        "slow = {'jax', 'numpyro', 'pandas', 'matplotlib', 'papermill', 'numpy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_data_verify_passes_over_what_was_never_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VINB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["data", "verify"]) == 0
    out = capsys.readouterr().out
    assert "ok    mnist: 4 files" in out
    assert "-     uci-mushroom: not here; vinb data download uci-mushroom" in out
    assert cli.main(["data", "verify", "uci-mushroom"]) == 1


def test_data_list_says_where_files_are_without_paths(tmp_path, monkeypatch, capsys):
    def found():
        assert cli.main(["data", "list"]) == 0
        out = capsys.readouterr().out
        assert "/" not in "".join(
            line[:90] for line in out.splitlines() if line.startswith(("mnist", "digits"))
        )
        rows = {row[0]: row[4] for row in cli.data_table().rows}
        return [rows[name] for name in ("mnist", "digits", "frey-face")]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert found() == ["embedded", "embedded", "yours"]
    (tmp_path / "own" / "digits").mkdir(parents=True)
    (tmp_path / "own" / "digits" / "digits.csv").touch()
    monkeypatch.setenv("VINB_DATA", str(tmp_path / "own"))
    assert found() == ["embedded", "VINB_DATA", "yours"]
    monkeypatch.setattr("vinb.data.files._places", lambda: [files.cache_folder()])
    assert found() == ["not here", "not here", "yours"]
    (files.cache_folder() / "digits").mkdir(parents=True)
    (files.cache_folder() / "digits" / "digits.csv.gz").touch()
    assert found() == ["not here", "cache", "yours"]


def test_data_list_names_a_folder_that_is_none(monkeypatch, capsys):
    monkeypatch.setenv("VINB_DATA", "/nowhere")
    assert cli.main(["data", "list"]) == 2
    assert "VINB_DATA=/nowhere is not a folder" in capsys.readouterr().err


@pytest.fixture
def expected(root, monkeypatch):
    """ci/expected.py called on the root's committed smoke record."""
    spec = importlib.util.spec_from_file_location(
        "ci_expected", Path(__file__).parents[1] / "ci" / "expected.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "FOLDER", root / "expected")
    run = root / "notebooks" / "toy" / "smoke"
    monkeypatch.setattr(sys, "argv", ["expected.py", "toy", "--run", str(run)])
    return module, run / "record.json"


def test_expected_values_of_zero_have_a_tolerance(expected):
    module, file = expected
    content = json.loads(file.read_text())
    fields = dict.fromkeys(("unit", "paper", "source", "setting", "error"))
    content["result"]["metrics"] = [
        {"name": n, "value": v} | fields for n, v in (("none", 0.0), ("ten", -10))
    ]
    file.write_text(json.dumps(content))
    assert module.main() == 0
    metrics = json.loads((module.FOLDER / "toy.json").read_text())["metrics"]
    assert {name: metric["tolerance"] for name, metric in metrics.items()} == {"none": 1e-6, "ten": 0.2}


@pytest.mark.parametrize("change", [('"held"', '"failed"'), ('"overrides": []', '"overrides": ["steps"]')])
def test_expected_values_come_from_no_failed_or_changed_run(expected, change):
    module, file = expected
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change))
    assert module.main() == 1
    assert not module.FOLDER.exists()


def test_python_dash_m_and_version():
    out = subprocess.run(
        [sys.executable, "-m", "vinb", "--version"], check=True, capture_output=True, text=True
    ).stdout
    assert out.startswith("vinb ")


def test_doctor_exits_1_only_if_something_failed(monkeypatch, capsys):
    from vinb.experiment import doctor

    for state, code in (("warn", 0), ("fail", 1)):
        monkeypatch.setattr(
            doctor, "examine", lambda root, state=state: iter([("ok", "a", "b"), (state, "c", "d")])
        )
        assert cli.main(["doctor"]) == code
    assert "fail  c" in capsys.readouterr().out


def test_doctor_finds_packages_and_kernel():
    from vinb.experiment import doctor

    lines = [*doctor._packages(), *doctor._kernels(), *doctor._disk()]
    assert {subject for _, subject, _ in lines} >= {"packages", "kernel", "disk"}
    assert all(state != "fail" for state, _, _ in lines), lines
