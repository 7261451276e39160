"""Every notebook: run at smoke by papermill, compared with its expected values, repeated, and checked as committed."""

import json
import math
import os
from pathlib import Path

import pytest
from filelock import FileLock

from vinb.experiment import load, notebooks

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = ROOT / "tests" / "expected"
NOTEBOOKS = notebooks.discover(ROOT)


def smoke_run(path, folder):
    # Another folder than the notebook's or the repository's: no cell may depend on the working directory.
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        run = notebooks.execute(
            path, output_dir=folder / "run", parameters={"preset": "smoke"}, root=ROOT, timeout=600
        )
    finally:
        os.chdir(before)
    assert run.failure is None, (
        f"cell [{run.failure.cell}] raised {run.failure.error}\n{run.failure.traceback}"
    )
    return load(run.record)


@pytest.fixture
def first_run(request, tmp_path_factory):
    """The record of a notebook's first smoke run, made once however many worker processes there are."""
    name = request.param
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / f"smoke-{name}"
    with FileLock(shared / f"smoke-{name}.lock"):
        if not (folder / "run" / "record.json").exists():
            smoke_run(NOTEBOOKS[name], folder)
    return name, load(folder / "run" / "record.json")


each_notebook = pytest.mark.parametrize("first_run", sorted(NOTEBOOKS), indirect=True)


@each_notebook
def test_no_claim_failed_and_metrics_are_as_expected(first_run):
    name, record = first_run
    expected = json.loads((EXPECTED / f"{name}.json").read_text())
    hint = f"if the change is meant: make expected NOTEBOOKS={name}"
    assert record.verdicts == expected["verdicts"], hint
    assert "failed" not in record.verdicts.values()
    assert sorted(record.metrics) == sorted(expected["metrics"]), hint
    odd = {
        metric: (record.metrics[metric], want)
        for metric, want in expected["metrics"].items()
        if not math.isclose(record.metrics[metric], want["value"], rel_tol=0, abs_tol=want["tolerance"])
    }
    assert not odd, f"metric: (now, expected) {odd}; {hint}"


# Every run repeats one notebook; all of them, when the exhaustive tests run.
@pytest.mark.parametrize(
    "first_run",
    [
        name if name == "vae" else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in sorted(NOTEBOOKS)
    ],
    indirect=True,
)
def test_the_same_seed_gives_the_same_result(first_run, tmp_path):
    name, record = first_run
    again = smoke_run(NOTEBOOKS[name], tmp_path / "again")
    assert json.dumps(again.result) == json.dumps(record.result)


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_committed_outputs_and_records_belong_to_the_source(name):
    assert notebooks.check(NOTEBOOKS[name]) == []
    assert notebooks.to_dos(NOTEBOOKS[name]) == []  # of the template of `vinb new`


def test_there_are_notebooks_and_each_has_expected_values():
    assert NOTEBOOKS
    assert {path.stem for path in EXPECTED.glob("*.json")} == set(NOTEBOOKS)
