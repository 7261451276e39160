"""Running, publishing and checking notebooks, with a small notebook in real kernels."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from vinb import experiment
from vinb.experiment import notebooks, partial

CELLS = {
    "parameters": 'preset = "cpu"   # smoke, cpu or paper\nseed = 0   # integer\nsteps = None   # count\n',
    "begin": (
        "import sys\nfrom vinb import experiment\n"
        "jax_before = 'jax' in sys.modules\n"
        "presets = {'smoke': {'steps': 1}, 'cpu': {'steps': 2}, 'paper': {'steps': 3}}\n"
        "record = experiment.begin(globals(), notebook='toy', paper='kingma2014aevb', presets=presets)\n"
        "assert not jax_before\n"
        "record.settings"
    ),
    "metric": "record.metric('steps', record.settings.steps, unit=None)",
    "claim": "record.claim('few', 'There are few steps.', record.settings.steps, at_most=5)\n",
    "finish": "record.finish()",
    "after": "print(record.bibtex()[:16])",
}


def notebook(root: Path, **changed: str) -> Path:
    """A committed-style notebook in a root of its own."""
    folder = root / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parents[1] / "notebooks" / "references.bib"
    (folder / "references.bib").write_bytes(source.read_bytes())
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# A toy\n")],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    for name, text in (CELLS | changed).items():
        nb.cells.append(nbformat.v4.new_code_cell(text, id=name))
    nb.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(nb, folder / "toy.ipynb")
    return folder / "toy.ipynb"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("VINB_ROOT", raising=False)
    monkeypatch.delenv("VINB_OUTPUT_DIR", raising=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A root whose notebook was run as it stands and published; tests that change it copy the bytes back."""
    root = tmp_path_factory.mktemp("published")
    path = notebook(root)
    run = notebooks.execute(path, output_dir=root / "runs" / "toy" / "cpu", root=root)
    assert run.failure is None
    notebooks.publish(path, run.folder)
    return root


def test_a_run_as_it_stands_is_published_and_passes_the_check(published):
    path = published / "notebooks" / "toy.ipynb"
    assert notebooks.check(path) == []
    nb = json.loads(path.read_text())
    assert path.read_text().endswith("}\n")
    assert "papermill" not in json.dumps(nb["metadata"])
    assert [cell["id"] for cell in nb["cells"] if cell["cell_type"] == "code"] == list(CELLS)
    assert nb["metadata"]["vinb"]["code_hash"] == notebooks.code_hash(nb)
    assert experiment.load(path.with_suffix("") / "cpu").metrics == {"steps": 2}
    assert str(published) not in (published / "runs" / "toy" / "cpu" / "toy.ipynb").read_text()


def test_publishing_again_changes_no_byte(published):
    path = published / "notebooks" / "toy.ipynb"
    before = path.read_bytes()
    notebooks.publish(path, published / "runs" / "toy" / "cpu")
    assert path.read_bytes() == before


def test_another_preset_keeps_its_record_and_leaves_the_notebook(tmp_path):
    path = notebook(tmp_path)
    before = path.read_bytes()
    run = notebooks.execute(path, parameters={"preset": "paper"}, output_dir=tmp_path / "run", root=tmp_path)
    notebooks.publish(path, run.folder)
    assert path.read_bytes() == before
    assert experiment.load(path.with_suffix("") / "paper").metrics == {"steps": 3}
    run = notebooks.execute(path, parameters={"steps": 1}, output_dir=tmp_path / "run", root=tmp_path)
    with pytest.raises(ValueError, match="overrides"):
        notebooks.publish(path, run.folder)


def _code(nb, i):
    return [cell for cell in nb["cells"] if cell["cell_type"] == "code"][i]


def _output(nb, text, name="stdout"):
    _code(nb, 2)["outputs"] = [{"output_type": "stream", "name": name, "text": [text]}]


CHANGES = {
    "edited code": (lambda nb: _code(nb, 2).update(source="x = 1"), ["made by other code cells", "stale"]),
    "stderr": (lambda nb: _output(nb, "careful", "stderr"), ["wrote to stderr"]),
    "home folder": (lambda nb: _output(nb, "read /home/ada/x.npy"), ["names a path of a machine"]),
    "progress bar": (lambda nb: _output(nb, "10%\r20%"), ["progress bar"]),
    "error": (
        lambda nb: _code(nb, 2).update(
            outputs=[{"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}]
        ),
        ["raised KeyError"],
    ),
    "out of order": (lambda nb: _code(nb, 2).update(execution_count=9), ["not executed from top to bottom"]),
    "injected": (
        lambda nb: _code(nb, 2)["metadata"].update(tags=["injected-parameters"]),
        ["injected by papermill"],
    ),
    "two parameters cells": (
        lambda nb: _code(nb, 2)["metadata"].update(tags=["parameters"]),
        ["2 cells are tagged"],
    ),
    "long cell": (lambda nb: _code(nb, 2).update(source="x = 1\n" * 41), ["41 lines"]),
    "papermill metadata": (lambda nb: nb["metadata"].update(papermill={}), ["metadata of papermill"]),
    "too big": (lambda nb: _output(nb, "x" * 1_600_000), ["at most 1,500,000"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_check_finds(published, change):
    path = published / "notebooks" / "toy.ipynb"
    before = path.read_bytes()
    nb = json.loads(before)
    apply, words = CHANGES[change]
    apply(nb)
    try:
        path.write_text(json.dumps(nb))
        problems = notebooks.check(path)
    finally:
        path.write_bytes(before)
    for word in words:
        assert any(word in problem for problem in problems), problems


def test_check_finds_a_missing_a_failed_and_a_stale_record(published):
    path = published / "notebooks" / "toy.ipynb"
    file = path.with_suffix("") / "cpu" / "record.json"
    before = file.read_bytes()
    try:
        for old, new, words in (
            (b'"held"', b'"failed"', "claims failed: few"),
            (notebooks.code_hash(notebooks.read(path)).encode(), b"0" * 64, "stale"),
            (b'"preset": "cpu"', b'"preset": "smoke"', "at preset 'smoke'"),
        ):
            assert old in before
            file.write_bytes(before.replace(old, new))
            assert any(words in problem for problem in notebooks.check(path)), words
        file.unlink()
        assert any("no record" in problem or "record at" in problem for problem in notebooks.check(path))
    finally:
        file.write_bytes(before)


def test_publish_refuses_a_run_of_another_source(published):
    path = published / "notebooks" / "toy.ipynb"
    before = path.read_bytes()
    try:
        path.write_bytes(before.replace(b"at_most=5", b"at_most=6"))
        with pytest.raises(ValueError, match="not a run of"):
            notebooks.publish(path, published / "runs" / "toy" / "cpu")
    finally:
        path.write_bytes(before)


def test_plain_papermill_from_another_folder(tmp_path):
    path = notebook(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def papermill(*parameters):
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(path),
            "out.ipynb",
            "--no-progress-bar",
            *parameters,
        ]
        env = os.environ | {"VINB_ROOT": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True)

    good = papermill("-p", "preset", "smoke", "-p", "seed", "3")
    assert good.returncode == 0, good.stderr
    record = experiment.load(tmp_path / "runs" / "toy" / "smoke-seed=3")
    assert (record.seed, record.parameters) == (3, {"steps": 1})
    assert record.environment["notebook_hash"] == notebooks.code_hash(notebooks.read(path))
    bad = papermill("-p", "step", "3")
    assert bad.returncode != 0
    assert "no parameter 'step'. Did you mean 'steps'" in bad.stderr


def test_by_hand_in_one_kernel_twice_and_with_edits(tmp_path, monkeypatch):
    import nbclient

    path = notebook(tmp_path)
    monkeypatch.setenv("VINB_ROOT", str(tmp_path))
    nb = nbformat.read(path, 4)
    where = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(nb, kernel_name="python3", allow_errors=True, resources=where)

    def run(*names):
        errors = []
        for name in names:
            index = next(i for i, cell in enumerate(nb.cells) if cell.id == name)
            client.execute_cell(nb.cells[index], index)
            errors += [o.evalue for o in nb.cells[index].outputs if o.output_type == "error"]
        return errors

    file = tmp_path / "runs" / "toy" / "cpu" / "record.json"
    with client.setup_kernel():
        assert run("parameters", "begin", "metric", "metric", "claim", "finish") == []
        assert run("parameters", "begin", "metric", "claim", "finish") == []
        assert experiment.load(file).environment["notebook_hash"] == notebooks.code_hash(notebooks.read(path))
        parameters = next(cell for cell in nb.cells if cell.id == "parameters")
        parameters.source = parameters.source.replace("steps = None", "steps = '4'")
        assert "steps: toy needs an integer" in run("parameters", "begin")[0]
        parameters.source = parameters.source.replace("'4'", "4")
        assert run("parameters", "begin", "metric", "claim", "finish") == []
    edited = experiment.load(file.parent.with_name("cpu-steps=4"))
    assert edited.parameters == {"steps": 4}


@pytest.mark.parametrize(
    "edit",
    [{"claim": "record.claim('few', 'Few.', 1, at_most=9)"}, {"finish": "record.finish()  # another cell"}],
)
def test_cells_that_are_not_the_files_are_not_tied_to_it(tmp_path, monkeypatch, edit):
    path = notebook(tmp_path)
    changed = notebook(tmp_path / "copy", **edit)
    monkeypatch.setenv("VINB_NOTEBOOK", str(path))
    monkeypatch.setattr(notebooks, "_environment", lambda _: contextlib.nullcontext())
    monkeypatch.setenv("VINB_OUTPUT_DIR", str(tmp_path / "out"))
    run = notebooks.execute(changed, output_dir=tmp_path / "other", root=tmp_path)
    assert run.failure is None
    assert experiment.load(tmp_path / "out").environment["notebook_hash"] is None


def test_a_cell_that_raises_leaves_the_earlier_run_and_a_failed_one(tmp_path):
    path = notebook(tmp_path, claim="1 / 0")
    final = tmp_path / "runs" / "cpu"
    final.mkdir(parents=True)
    (final / "record.json").write_text("earlier")
    run = notebooks.execute(path, output_dir=final, root=tmp_path)
    assert run.failure.error == "ZeroDivisionError: division by zero"
    assert (run.failure.cell, run.failure.source) == (4, "1 / 0")
    assert run.notebook == tmp_path / "runs" / "cpu-failed" / "toy.ipynb"
    assert run.notebook.is_file()
    assert run.record is None
    assert (final / "record.json").read_text() == "earlier"


def test_a_failed_claim_is_a_complete_run_and_not_published(tmp_path):
    path = notebook(tmp_path, claim="record.claim('few', 'Few steps.', 9, at_most=5)")
    run = notebooks.execute(path, output_dir=tmp_path / "runs" / "cpu", root=tmp_path)
    assert run.failure.error.startswith("ClaimsFailed: 1 of 1")
    assert experiment.load(run.record).verdicts == {"few": "failed"}
    with pytest.raises(ValueError, match="claims failed"):
        notebooks.publish(path, run.folder)


def test_unknown_names_and_foreign_folders_are_refused_before_a_kernel_starts(tmp_path):
    path = notebook(tmp_path)
    with pytest.raises(experiment.ParameterError, match="Did you mean 'steps'"):
        notebooks.execute(path, parameters={"step": 3}, output_dir=tmp_path / "runs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        notebooks.execute(path, output_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_folder_with_another_notebook_or_the_notebook_itself_is_not_replaced(tmp_path, monkeypatch):
    path = notebook(tmp_path)
    monkeypatch.setattr(notebooks, "_papermill", lambda *_: pytest.fail("it ran"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.ipynb").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.ipynb"):
        notebooks.execute(path, output_dir=mine)
    (path.parent / "references.bib").unlink()
    with pytest.raises(FileExistsError, match="holds the notebook itself"):
        notebooks.execute(path, output_dir=path.parent)
    assert (mine / "thesis.ipynb").read_text() == "years of work"
    assert path.is_file()


@pytest.mark.parametrize(
    "failure", [None, notebooks.Failure(4, "1 / 0", "ZeroDivisionError: division by zero")]
)
def test_a_finders_file_is_no_obstacle_and_the_folder_for_failures_is_checked_too(
    tmp_path, monkeypatch, failure
):
    path, runs = notebook(tmp_path), []
    monkeypatch.setattr(notebooks, "_papermill", lambda *arguments: runs.append(arguments) or failure)
    for name in ("run", "run-failed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".DS_Store").touch()
    run = notebooks.execute(path, output_dir=tmp_path / "run")
    assert run.folder.name == ("run" if failure is None else "run-failed")
    (tmp_path / "run-failed").mkdir(exist_ok=True)
    (tmp_path / "run-failed" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        notebooks.execute(path, output_dir=tmp_path / "run")
    assert len(runs) == 1


@pytest.mark.parametrize("obstacle", ["a foreign file", "a full disk"])
def test_a_run_that_is_over_is_never_lost(tmp_path, monkeypatch, obstacle):
    path, final = notebook(tmp_path), tmp_path / "run"
    final.mkdir()
    (final / "record.json").write_text("earlier")

    def papermill(_, target, *__):
        (target.parent / "record.json").write_text("hours of work")
        if obstacle == "a foreign file":
            (final / "notes.txt").touch()
        else:
            real = Path.rename
            monkeypatch.setattr(
                Path, "rename", lambda a, b: (_ for _ in ()).throw(OSError("full")) if "partial" in a.name else real(a, b)
            )  # fmt: skip

    monkeypatch.setattr(notebooks, "_papermill", papermill)
    with pytest.raises(OSError, match=r"The run is over, and kept in .*\.run\.partial"):
        notebooks.execute(path, output_dir=final)
    (kept,) = tmp_path.glob(".run.partial-*")
    assert partial.leftovers([final]) == []  # a sweep removes those
    (final / "notes.txt").unlink(missing_ok=True)
    with pytest.raises(FileExistsError, match="move it away"):
        notebooks.execute(path, output_dir=final)
    assert (kept / "record.json").read_text() == "hours of work"
    assert (final / "record.json").read_text() == "earlier"
    monkeypatch.undo()
    monkeypatch.setattr(notebooks, "_papermill", lambda *_: None)
    final.rename(tmp_path / "elsewhere")
    kept.rename(final)
    notebooks.execute(path, output_dir=final)  # put in place by hand it is a run as others


def test_publishing_what_is_incomplete_changes_nothing(published):
    path, run = published / "notebooks" / "toy.ipynb", published / "runs" / "toy" / "cpu"
    beside = path.with_suffix("")
    before = path.read_bytes(), (run / "record.json").read_bytes()
    content = json.loads(before[1])
    content["result"]["figures"] = [{"name": "lost", "caption": "c", "alt": "a"}]
    try:
        (run / "record.json").write_text(json.dumps(content))
        path.write_bytes(before[0].replace(b'"code_hash"', b'"old_hash"'))  # which publishing would mend
        as_it_was = path.read_bytes()
        with pytest.raises(FileNotFoundError, match="lost"):
            notebooks.publish(path, run)
        assert path.read_bytes() == as_it_was
        assert [file.name for file in beside.rglob("*")] == ["cpu", "record.json"]
        assert (beside / "cpu" / "record.json").read_bytes() == before[1]
    finally:
        (run / "record.json").write_bytes(before[1])
        path.write_bytes(before[0])


def test_an_interrupted_run_leaves_nothing(tmp_path):
    path = notebook(
        tmp_path, metric=f"open({str(tmp_path / 'started')!r}, 'w').close()\nimport time; time.sleep(60)"
    )
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vinb.cli import main\n"
        f"sys.exit(main(['run', {str(path)!r}, '--root', {str(tmp_path)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (tmp_path / "started").exists()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert list((tmp_path / "runs" / "toy").iterdir()) == []


@pytest.mark.parametrize(("setting", "shown"), [(None, True), ("1", True), ("0", False)])
def test_the_bar_obeys_the_callers_progress_setting_not_the_kernels(tmp_path, monkeypatch, setting, shown):
    path = notebook(tmp_path)
    seen = []
    monkeypatch.setattr(notebooks, "_papermill", lambda *arguments: seen.append(arguments[-1]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("VINB_PROGRESS", raising=False)
    if setting is not None:
        monkeypatch.setenv("VINB_PROGRESS", setting)
    notebooks.execute(path, output_dir=tmp_path / "run", root=tmp_path)
    assert seen == [shown]
