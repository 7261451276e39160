"""Which notebook file a history is tied to, where a run's files go, and writing them."""

import json

import pytest

from vinb import experiment
from vinb.experiment import paths, source


@pytest.fixture(autouse=True)
def _no_root(monkeypatch):
    monkeypatch.delenv("VINB_ROOT", raising=False)


PARAMETERS = 'preset = "cpu"\nseed = 0\nsteps = None\n'
FILE = ["import math", PARAMETERS, "begin()", "a = 1", "a", "a", "finish()", "b = 2"]
INJECTED = "# Parameters\nseed = 1"


@pytest.mark.parametrize(
    ("executed", "tied"),
    [
        (FILE[:7], True),
        ([*FILE[:2], INJECTED, *FILE[2:7]], True),
        ([*FILE[:4], "a = 1", *FILE[4:7]], True),  # twice, by hand
        (["1 / 0", *FILE, "x", *FILE[1:7]], True),  # what ran before the parameters cell was run anew
        ([*FILE[:7], "  "], False),
        ([*FILE[:4], "a = 9", *FILE[4:7]], False),  # a cell that is not in the file
        ([*FILE[:3], "a", "a", "a = 1", "finish()"], False),  # another order
        ([*FILE[:6], "a = 1", "finish()"], False),  # its last run came after those of later cells
        ([*FILE[:5], "finish()"], False),  # one of two equal cells was left out
        (FILE[1:7], False),
        ([*FILE[:2], "begin()", "b = 2", *FILE[3:7]], False),  # one from below
        ([*FILE, FILE[1], "begin()", "finish()"], False),  # not run since the parameters cell
    ],
)
def test_a_history_is_tied_to_the_file_only_if_it_ran_it_in_order(tmp_path, executed, tied):
    file = tmp_path / "toy.ipynb"
    cells = [{"cell_type": "code", "source": text, "metadata": {}} for text in FILE]
    file.write_text(json.dumps({"cells": cells}))
    found = source.Tie(file, {"In": ["", *executed]}).hash()
    assert found == (source.code_hash({"cells": cells}) if tied else None)


def test_code_hash_counts_code_and_nothing_else():
    def cell(kind, text, **metadata):
        return {"cell_type": kind, "source": text, "metadata": metadata, "outputs": [text]}

    def digest(*cells):
        return source.code_hash({"cells": cells})

    base = digest(cell("code", "x = 1"))
    assert base == digest(cell("markdown", "prose"), cell("code", ["x = ", "1\n"]), cell("code", " "))
    assert base == digest(cell("code", "x = 1"), cell("code", "x = 2", tags=["injected-parameters"]))
    assert base != digest(cell("code", "x = 2"))
    assert digest(cell("code", "a"), cell("code", "b")) != digest(cell("code", "a\nb"))


# Places


def test_root_is_explicit_then_environment_then_above(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name / "notebooks" / "deep").mkdir(parents=True)
        (tmp_path / name / "notebooks" / "references.bib").touch()
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.chdir(one / "notebooks" / "deep")
    assert experiment.root() == one
    monkeypatch.setenv("VINB_ROOT", str(two))
    assert experiment.root() == two
    assert experiment.root(one) == one
    with pytest.raises(experiment.RootNotFound, match="--root"):
        experiment.root(tmp_path)


def test_an_installed_package_alone_says_how_to_get_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "_MARK", paths.Path("no-such-folder") / "references.bib")
    assert experiment.root() is None
    with pytest.raises(experiment.RootNotFound, match="clone"):
        paths.require_root()


def test_run_names_are_safe_folder_names():
    assert paths.run_name("cpu", {}) == "cpu"
    assert paths.run_name("cpu", {"seed": 1, "dims": [2, 5]}) == "cpu-dims=2,5-seed=1"
    assert "/" not in paths.run_name("cpu", {"file": "../../x"})
    assert len(paths.run_name("cpu", {"text": "x" * 300})) < 80


def test_different_overrides_have_different_run_names():
    values = [
        [2, 5, 1],
        [[2, 5], [1]],
        [[2], [5, 1]],
        "2,5,1",
        "x y",
        "xy",
        ["x", "y"],
        ["xy"],
        "x,y",
        1,
        "1",
    ]
    values += [True, -1, [], "", {"x": 1}, "x1", "a/b", "ab"]
    names = {paths.run_name("cpu", {"p": value}) for value in values}
    assert len(names) == len(values)
    assert {"cpu-p=2,5,1", "cpu-p=xy", "cpu-p=-1"} <= names


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    paths.write_atomic(file, "old")
    monkeypatch.setattr(paths.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        paths.write_atomic(file, "new")
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "old"
