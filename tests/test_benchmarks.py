"""The benchmarks' harness, and a tiny run of each benchmark: what they write and count, never how long they
took."""

import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "ci" / "benchmarks"
KEYS = {"case", "system", "seconds", "compile_seconds", "flops", "temp_bytes"}
SHORT = ["--num-data", "1000", "--steps", "10"]  # the full network: what is compiled depends on it alone


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark as running its file does: with its own folder first on the path."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name):
        # Other tests of this process may have a module of the same name.
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return load


def systems(harness, calls):
    names = (harness.REFERENCE, harness.A_A, "vinb")

    def system(name):
        def run():
            calls.append(name)
            return name

        return harness.System(name, run, 10, 0.5, None if name == "vinb" else 2.0, 100)

    return [system(name) for name in names]


def test_measure_interleaves_and_rotates(load):
    harness, calls = load("harness"), []
    results = harness.measure("case", systems(harness, calls), 6)
    assert len(calls) == 3 * 7  # one warm-up each
    rounds = [calls[i : i + 3] for i in range(3, 21, 3)]
    assert all(sorted(one) == sorted(calls[:3]) for one in rounds)
    assert {one[0] for one in rounds} == set(calls[:3])  # each goes first at times
    before = {(a, b) for one in rounds for a, b in itertools.pairwise(one)}
    assert len(before) == 6  # and follows each of the others
    assert {name: result.last for name, result in results.items()} == {name: name for name in calls[:3]}


def test_medians_ratios_and_spread(load):
    harness = load("harness")
    seconds = {harness.REFERENCE: [2.0, 4.0, 2.0], harness.A_A: [2.2, 4.0, 1.8], "vinb": [3.0, 6.0, 4.0]}
    results = {
        system.name: harness.Result("case", system, jnp.array(times), jnp.array(times), None)
        for system, times in zip(systems(harness, []), seconds.values(), strict=True)
    }
    assert harness.ratios(results, "vinb").tolist() == pytest.approx([1.5, 1.5, 1.75])
    assert harness.spread(results) == pytest.approx(0.05)
    row = results["vinb"].row()
    assert set(row) == KEYS
    assert row["seconds"] == 4.0
    assert row["flops"] is None
    lines = harness.table(results, "step").splitlines()
    assert lines[0] == "case"
    assert all(line.count("1.000 (0.950-1.050)") >= 1 for line in lines[3:])  # the A/A column
    assert "1.500 (1.500-1.750)" in lines[-1]


def test_error_of_a_median(load):
    draws = np.random.default_rng(0).normal(1.0, 0.03, size=(4000, 101))
    errors = [load("harness").median_error(np.quantile(d, [0.25, 0.5, 0.75]), d.size) for d in draws]
    # The deviation of 4,000 medians is known to 1.1 %, and the formula, for large samples, is about 1 % off at 101.
    assert np.mean(errors) == pytest.approx(np.median(draws, axis=1).std(), rel=0.05)


def test_compiled_counts_a_loops_body_once_and_donates(load):
    harness = load("harness")

    def steps(x, count):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=count)[0]

    programs = [harness.compiled(lambda x, n=n: steps(x, n), jnp.eye(64), donate=(0,)) for n in (2, 40)]
    assert programs[0].flops == pytest.approx(programs[1].flops, rel=0.01)
    assert programs[0].flops == pytest.approx(2 * 64**3, rel=0.01)
    x = jnp.eye(64)
    programs[0].call(x)
    assert x.is_deleted()


def test_write_leaves_the_old_file_or_the_new_one(load, tmp_path):
    harness, path = load("harness"), tmp_path / "folder" / "rows.json"
    harness.write(path, [{"case": "a"}])
    with pytest.raises(ValueError, match="JSON compliant"):
        harness.write(path, [{"seconds": float("nan")}])
    assert json.loads(path.read_text()) == [{"case": "a"}]


@pytest.mark.exhaustive
def test_vae_step_writes_its_rows(load, tmp_path, capsys):
    harness, vae_step = load("harness"), load("vae_step")
    assert vae_step.main([*SHORT, "--rounds", "1", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(set(row) == KEYS for row in rows)
    assert {row["case"] for row in rows} == {"vae 784-400-20, batch 100"}
    by_system = {row["system"]: row for row in rows}
    assert list(by_system) == [harness.REFERENCE, harness.A_A, "vinb", "numpyro"]
    assert all(row["seconds"] > 0 and row["compile_seconds"] > 0 for row in rows)
    reference = by_system[harness.REFERENCE]
    # At least the products of the forward pass and their two gradients each, less the first one's for x.
    products = 2 * 100 * 400 * (784 * 2 + 2 * 20 * 3 + 20 * 3 + 784 * 3)
    assert products < reference["flops"] < 1.1 * products
    assert by_system["vinb"]["flops"] <= 1.02 * by_system["numpyro"]["flops"]
    for what in ("flops", "temp_bytes"):
        assert by_system["vinb"][what] <= 1.02 * reference[what]
        assert by_system[harness.A_A][what] == reference[what]
    out = capsys.readouterr()
    assert "A/A" in out.out
    assert out.err == ""


def test_vae_step_notices_another_loss(load):
    vae_step = load("vae_step")
    parser = vae_step.make_parser()
    setting = vae_step.Setting(parser.parse_args(SHORT), 100)
    assert setting.difference() < 1e-5
    setting.objective = vae_step.elbo(setting.vae.model, setting.vae.guide, kl="monte-carlo")
    assert setting.difference() > 1e-4


def test_bayesian_layers_writes_its_rows(load, tmp_path, capsys):
    path = tmp_path / "rows.json"
    short = [
        "--rounds",
        "1",
        "--width",
        "32",
        "--batch-size",
        "16",
        "--separate-rounds",
        "1",
        "--work",
        "1e5",
    ]
    assert load("bayesian_layers").main(["--json", str(path), *short]) == 0
    rows = json.loads(path.read_text())
    assert {row["case"] for row in rows} == {"width=32,batch=16"}
    assert [row["system"] for row in rows] == [
        "deterministic",
        "shared",
        "flipout",
        "local",
        "hand-written-local",
        "separate",
    ]
    assert all(set(row) == KEYS for row in rows)
    assert "times faster" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_bayesian_layers_notices_a_wrong_gradient(load, monkeypatch, capsys):
    module = load("bayesian_layers")
    right = module.local_by_hand
    monkeypatch.setattr(module, "local_by_hand", lambda params, key, x: 1.01 * right(params, key, x))
    short = ["--rounds", "1", "--width", "16", "--batch-size", "8", "--separate-rounds", "0", "--work", "1e4"]
    assert module.main(short) == 1
    assert "the gradient of local differs" in capsys.readouterr().err


def test_changepoints_writes_its_rows_and_the_ways_agree(load, tmp_path, capsys):
    path = tmp_path / "rows.json"
    sizes = {
        "steps": [200, 400],
        "changepoints": [20, 40],
        "fixed": [200, 3],
        "against": [12, 3],
        "largest": [500, 3],
    }
    short = [word for name, values in sizes.items() for word in (f"--{name}", *map(str, values))]
    assert load("changepoints").main(["--json", str(path), "--rounds", "1", *short]) == 0
    rows = json.loads(path.read_text())
    assert {row["case"] for row in rows} == {"n=200,m=3", "n=400,m=3", "n=200,m=20", "n=200,m=40", "n=12,m=3"}
    assert {row["system"] for row in rows} >= {"vinb", "vinb, gradient", "all placements"}
    assert all(set(row) == KEYS and row["seconds"] > 0 for row in rows)
    out = capsys.readouterr().out
    assert "time grows like n^" in out
    assert "time grows like m^" in out
    assert "value and gradient in" in out


def test_analysis_writes_its_rows(load, tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert load("analysis").main(["--json", str(path), "--rounds", "1", "--pairs", "spnor", "dpmm"]) == 0
    rows = json.loads(path.read_text())
    assert [row["case"] for row in rows] == [
        f"{name}, {part}, small" for name in ("spnor", "dpmm") for part in ("model", "guide")
    ]
    assert all(row["seconds"] > 0 and row["equations"] > 0 for row in rows)
    assert "spnor" in capsys.readouterr().out
