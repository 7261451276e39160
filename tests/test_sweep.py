"""Sweeps: what -p means, which runs are finished, workers that die, and the table, summary and plot of all runs."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from vinb import cli
from vinb.experiment import notebooks, partial
from vinb.experiment.saved import SavedRecord
from vinb.experiment.sweep import cluster, finished, grid, parse, results, running, sweep
from vinb.experiment.sweep import plot as plotting

CELLS = [
    'preset = "cpu"  # smoke, cpu or paper\nseed = 0  # integer\nwidth = None  # units\nname = "a"  # text\n',
    "from vinb import experiment\n"
    "record = experiment.begin(globals(), notebook='toy', presets={p: {'width': 3} for p in ('smoke', 'cpu', 'paper')})",
    "import os, random, signal, time\nfrom pathlib import Path\n"
    "started = Path(os.environ['TOY']) / f'{seed}-{record.settings.width}-{os.getpid()}'\n"
    "started.write_text(str(os.getppid()))\n"
    "if name == 'odd' and seed == 1: os.kill(os.getppid(), signal.SIGKILL)\n"
    "time.sleep(float(os.environ.get('TOY_SECONDS', '0')))\n"
    "if name == 'odd' and seed == 2: raise ZeroDivisionError('seed 2 was told to')",
    "number = random.Random(f'{seed} {record.settings.width}').random()\n"
    "record.metric('error', number + record.settings.width, unit='nats', paper=2.5, source='Table 1')\n"
    "record.claim('small', 'It is small.', number, at_most=-1.0 if name == 'odd' and seed == 3 else 1.0)",
    "record.finish()",
]
UNTIL = 240.0  # seconds that anything here may take on a busy machine


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with the notebook toy, whose cells write a file when they start: seed, width, kernel; in it the worker."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "references.bib").write_text("")
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in CELLS],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, folder / "toy.ipynb")
    (tmp_path / "started").mkdir()
    monkeypatch.setenv("TOY", str(tmp_path / "started"))
    monkeypatch.setenv("VINB_ROOT", str(tmp_path))
    monkeypatch.delenv("VINB_OUTPUT_DIR", raising=False)
    return tmp_path


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


def processes(folder):
    """Kernels that write below a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("VINB_OUTPUT_DIR", "").startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait(condition):
    """Polls until `condition` is true, and returns it."""
    deadline = time.monotonic() + UNTIL
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", [1]),
        ("0:3", [0, 1, 2]),
        ("0:10:4", [0, 4, 8]),
        ("3:0:-1", [3, 2, 1]),
        ("0:2,7, 9", [0, 1, 7, 9]),
        ("400,800", [400, 800]),
        ("[400,400],[800]", [[400, 400], [800]]),
        ("(1,2),3", [[1, 2], 3]),
        ("1e-3,0.1", [1e-3, 0.1]),
        ("true,none", [True, None]),
        ("gaussian,scale-mixture", ["gaussian", "scale-mixture"]),
        ("'a,b',c", ["a,b", "c"]),
        ('"0:5"', ["0:5"]),
        ("''", [""]),
        ("a:b", ["a:b"]),
        ("don't,do", ["don't", "do"]),
        ('["a,]b", "c"]', [["a,]b", "c"]]),
        (r'"a\"b,c",d', ['a"b,c', "d"]),
        ("...", ["..."]),
    ],
)
def test_values_are_read_as_documented(text, expected):
    found = parse([f"p={text}"])["p"]
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "seed=5:5"], "the range 5:5 is empty"),
        (["-p", "seed=0:5:0"], "is empty"),
        (["-p", "seed=0:9999999999999999999999"], "more than 10,000 values"),
        (["-p", "seed=0:200", "-p", "width=0:200"], "40,000 runs are too many"),
        (["-p", "seed=1,,2"], "a value is empty"),
        (["-p", "seed="], "a value is empty"),
        (["-p", "width=[1,2"], "a bracket is left open"),
        (["-p", "name='a"], "a quote is left open"),
        (["-p", "seed"], "write NAME=VALUE"),
        (["-p", "seed=1", "-p", "seed=2"], "given twice"),
        (["-p", "widht=1"], "Did you mean 'width'"),
        (["-p", "seed=-1,0"], "seed: needs an integer"),
        (["-p", "preset=huge,cpu"], "'huge' is not one of smoke, cpu, paper"),
        (["--preset", "cpu", "-p", "preset=cpu"], "preset is given twice"),
        (["-p", "width=none", "-p", "name=none,a"], "would share the folder"),
        ([], "nothing to vary"),
        (["-p", "seed=0:2", "--workers", "0"], "1 or more"),
        (["-p", "seed=0:2", "--timeout", "0"], "timeout: got 0.0"),
        (["-p", "seed=0:2", "--workers", "2", "--scheduler", "tcp://x:1"], "contradicts"),
        (["-p", "seed=0:2", "--scheduler", "nowhere.json"], "there is no such file"),
        (["-p", "seed=0:2", "--scheduler", "tcp://127.0.0.1:1"], "no dask scheduler answers"),
    ],
)
def test_a_wrong_call_is_exit_code_2_and_says_what_is_right(root, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    assert cli.main(["sweep", "toy", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(root.rglob("record.json"))


def test_the_grid_is_the_product_in_the_folders_of_single_runs(root, capsys):
    made = grid("toy", parse(["seed=0:2,1", "width=3,4", "preset=smoke,cpu"]))
    assert [run.folder.name for run in made.runs[:4]] == [
        "smoke-width=3",
        "cpu-width=3",
        "smoke-width=4",
        "cpu-width=4",
    ]
    assert len(made.runs) == 8
    assert made.runs[4].given == {"preset": "smoke", "seed": 1, "width": 3}
    assert [run.given.get("preset") for run in made.runs[:2]] == ["smoke", None]  # cpu is the file's own
    assert made.notes == ["seed: values given more than once count once."]
    assert made.folder == root / "runs" / "toy" / "sweep-smoke+cpu-seed=0,1-width=3,4"
    assert grid("toy", {"seed": [2, 0, 2]}).values["seed"] == [2, 0]
    (root / "elsewhere").mkdir()
    (root / "linked").mkdir()
    (root / "linked" / "toy").symlink_to(root / "elsewhere")
    made = grid("toy", {"seed": [1]}, output_dir=root / "linked")  # where `execute` says that the run is
    assert made.runs[0].folder.parent == made.folder.parent == (root / "elsewhere").resolve()
    with pytest.raises(TypeError, match="give a list of the values"):
        grid("toy", {"seed": 3})
    with pytest.raises(ValueError, match="share"):
        grid("toy", {"width": [3, None], "name": ["a", None]})


def test_eight_runs_with_a_worker_killed_end_as_if_run_one_by_one(root, monkeypatch, capsys):
    values = {"seed": range(4), "width": [2, 4]}
    for seed in values["seed"]:
        for width in values["width"]:
            words = ["-p", f"seed={seed}", "-p", f"width={width}", "--output-dir", str(root / "single")]
            assert cli.main(["run", "toy", "--preset", "smoke", *words]) == 0
    made, killed = [], []
    words = ["-p", "seed=0:4", "-p", "width=2,4", "--output-dir", str(root / "single")]
    assert cli.main(["sweep", "toy", "--preset", "smoke", *words]) == 0
    assert capsys.readouterr().out.count("finished already") == 8

    def kill():
        """Ends a worker at work when three runs are finished."""
        wait(lambda: len(list((root / "runs").rglob("record.json"))) >= 3)
        killed.append(wait(worker_at_work))
        os.kill(killed[0], signal.SIGKILL)

    def worker_at_work():
        """The parent of a kernel that has started its cells and not ended."""
        for name in set(os.listdir(root / "started")) - before:
            kernel, parent = int(name.rpartition("-")[2]), (root / "started" / name).read_text()
            if (
                parent
                and psutil.pid_exists(kernel)
                and any(p.pid == kernel for p in processes(root / "runs"))
            ):
                return int(parent)
        return None

    before = set(os.listdir(root / "started"))
    monkeypatch.setenv("TOY_SECONDS", "1")
    killer = threading.Thread(target=kill)
    killer.start()
    swept = sweep("toy", values, preset="smoke", workers=2, say=made.append)
    killer.join()
    assert killed
    assert sum("its worker died" in line for line in made) == 1
    assert swept.successful
    assert [outcome.state for outcome in swept.outcomes] == ["finished"] * 8
    assert len([path for path in (root / "runs" / "toy").glob("*/record.json")]) == 8
    assert hidden(root / "runs") == []
    assert processes(root / "runs") == []
    single = root / "single" / "toy" / swept.grid.folder.name
    for name in ("table.csv", "summary.csv", "summary.svg", "summary.png"):
        assert (swept.grid.folder / name).read_bytes() == (single / name).read_bytes(), name
    table = list(csv.DictReader((single / "table.csv").open()))
    assert [(row["seed"], row["width"], row["kind"]) for row in table[:4]] == [
        ("0", "2", "metric"),
        ("0", "2", "claim"),
        ("0", "4", "metric"),
        ("0", "4", "claim"),
    ]


def test_what_fails_is_reported_and_stops_nothing(root, capsys, monkeypatch):
    """Of four runs one finishes, one kills its worker each time, one raises, and of one a claim fails."""
    monkeypatch.setenv("TOY_SECONDS", "0.5")  # the kernel goes on when its worker is dead
    monkeypatch.setattr(running, "DEATHS", 2)
    mine = partial.beside(
        root / "runs" / "toy" / "cpu-name=odd-seed=1"
    )  # as of a sweep that goes on in this process,
    theirs = mine.with_name(".cpu-name=odd-seed=1.partial-another-host-7")  # and of one on another machine
    for folder in (mine, theirs):
        folder.mkdir(parents=True)
    words = ["sweep", "toy", "-p", "seed=0:4", "-p", "name=odd", "--workers", "2"]
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert "finished  cpu-name=odd\n" in out
    assert "failed    cpu-name=odd-seed=1: KilledWorker: its workers died, " in out
    assert (
        "failed    cpu-name=odd-seed=2: cell [4] stopped with ZeroDivisionError: seed 2 was told to (" in out
    )
    assert "finished  cpu-name=odd-seed=3; claims failed: small" in out
    assert sorted(path.parent.name for path in (root / "runs").rglob("record.json")) == [
        "cpu-name=odd",
        "cpu-name=odd-seed=3",
    ]
    assert (root / "runs" / "toy" / "cpu-name=odd-seed=2-failed" / "toy.ipynb").is_file()
    assert sorted(hidden(root / "runs")) == sorted([mine.name, theirs.name])
    assert processes(root / "runs") == []
    attempts = [name for name in os.listdir(root / "started") if name.startswith("1-")]
    assert len(attempts) == running.DEATHS  # the folders of others are no deaths

    assert cli.main([*words, "--dry-run"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[3:]]
    assert lines == [
        ["cpu-name=odd", "finished"],
        ["cpu-name=odd-seed=1", "to make"],
        ["cpu-name=odd-seed=2", "to make (failed before)"],
        ["cpu-name=odd-seed=3", "finished"],
    ]


def test_only_a_record_of_these_settings_and_this_code_is_finished(root, capsys):
    path = root / "notebooks" / "toy.ipynb"
    made = grid("toy", {"seed": [1], "width": [5]}, preset="smoke")
    (run,) = made.runs
    assert finished(run, made.code_hash) == (None, "")
    notebooks.execute(path, output_dir=run.folder, parameters=run.given, root=root)
    record, why = finished(run, made.code_hash)
    assert why == ""
    assert record.metrics["error"] > 5
    assert (
        finished(grid("toy", {"seed": [1], "width": [5.0]}, preset="smoke").runs[0], made.code_hash)[0]
        is None
    )

    file = run.folder / "record.json"
    before = file.read_text()
    for old, new, words in (
        ('"seed": 1', '"seed": 2', "other parameters"),
        ('"width": 5', '"width": 6', "other parameters"),
        ('"preset": "smoke"', '"preset": "cpu"', "other parameters"),
        ('"overrides": [', '"overrides": ["name", ', "other parameters"),
        ('"schema": 1', '"schema": 99', "cannot be read"),
        ("}", "", "cannot be read"),
        (made.code_hash, "0" * 64, "stale"),
    ):
        assert old in before
        file.write_text(before.replace(old, new))
        assert words in finished(run, made.code_hash)[1]
    file.write_text(before)

    nb = json.loads(path.read_text())
    nb["cells"][2]["source"] = ["raise SystemError('edited')"]
    path.write_text(json.dumps(nb))
    assert cli.main(["sweep", "toy", "--preset", "smoke", "-p", "seed=1", "-p", "width=5"]) == 1
    out = capsys.readouterr().out
    assert "again     smoke-seed=1-width=5: stale: the notebook has changed since" in out
    assert "cell [4] stopped with SystemError: edited" in out
    assert file.read_text() == before  # a run that failed replaces nothing
    assert (made.folder / "table.csv").read_text().count("\n") == 1  # and a stale one is in no table


def test_interrupted_it_leaves_what_is_finished_and_goes_on_from_there(root, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "1")
    words = ["sweep", "toy", "-p", "seed=0:4", "--workers", "1"]
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
    code += "from vinb import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait(lambda: list((root / "runs").rglob("record.json")))
        wait(lambda: any(name.startswith("1-") for name in os.listdir(root / "started")))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=UNTIL)
    assert process.returncode == 130, err
    assert err == "vinb: interrupted\n"
    finished_runs = len(list((root / "runs").rglob("record.json")))
    assert f"stopped; {finished_runs} of 4 runs are finished and kept" in out
    assert 1 <= finished_runs < 4
    assert hidden(root / "runs") == []
    assert processes(root / "runs") == []
    listing = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True).stdout
    assert f"4 runs of toy, {finished_runs} finished" in listing


def test_workers_of_a_scheduler_make_runs(root):
    from distributed import LocalCluster

    lines = []
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, silence_logs=60
    ) as started:
        (root / "scheduler.json").write_text(json.dumps({"address": started.scheduler_address}))
        file = str(root / "scheduler.json")
        swept = sweep(
            "toy", {"seed": [0, 1]}, scheduler=file, output_dir=root / "elsewhere", say=lines.append
        )
        assert swept.successful
        assert len(list((root / "elsewhere" / "toy").glob("cpu*/record.json"))) == 2
        assert any("one run at a time" in line for line in lines)
        assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ  # workers of others keep their environment
        with (
            pytest.raises(ValueError, match=r"does not see .*gone.*same path"),
            cluster.connected(started.scheduler_address, [root / "gone"]),
        ):
            pass


def test_each_worker_has_its_share_of_a_device(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setattr(cluster, "gpus", lambda: [])
    assert cluster.shares(3)[2]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.3"
    assert "CUDA_VISIBLE_DEVICES" not in cluster.shares(1)[0]
    monkeypatch.setattr(cluster, "gpus", lambda: ["0", "3"])
    assert cluster.default_workers() == 2
    assert [share["CUDA_VISIBLE_DEVICES"] for share in cluster.shares(3).values()] == ["0", "3", "0"]
    assert cluster.shares(3)[0]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
    monkeypatch.undo()
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for visible, found in (("0, 3", ["0", "3"]), ("", []), ("-1", []), ("2,-1,3", ["2"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert cluster.gpus() == found
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cluster.shares(1)[0]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.2"
    assert cluster.shares(1)[0]["OMP_NUM_THREADS"] == "1"  # the user's own; that of dask is taken away


def test_only_hidden_folders_of_runs_that_died_are_removed(tmp_path):
    run = tmp_path / "cpu-seed=1"
    mine = partial.beside(run)
    dead = tmp_path / mine.name.replace(str(os.getpid()), str(2**22 + 1))
    elsewhere = tmp_path / ".cpu-seed=1.partial-another-host-7"
    aged = tmp_path / ".cpu-seed=1-failed.old-another-host-8"
    others = [tmp_path / ".cpu.partial-another-host-9", tmp_path / ".cpu-seed=1.partial", run]
    for folder in (mine, dead, elsewhere, aged, *others):
        folder.mkdir()
    os.utime(aged, (1e9, 1e9))
    assert partial.leftovers([run]) == sorted([mine, dead, elsewhere, aged])
    assert [partial.is_alive(folder) for folder in (mine, dead, elsewhere, aged)] == [
        True,
        False,
        True,
        False,
    ]
    assert not partial.is_alive(elsewhere, elsewhere=False)
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=os.environ | {"VINB_OUTPUT_DIR": str(dead)},
    )
    partial.remove([dead])
    assert not psutil.pid_exists(orphan.pid)
    assert not dead.exists()
    assert mine.exists()


def record(seed, value, *, paper=None, claim=None, verdict="held", **values):
    """A record as read from a file, with one metric and one claim."""
    metric = {
        "name": "error",
        "value": value,
        "unit": "%",
        "paper": paper,
        "source": "",
        "setting": None,
        "error": 0.5,
    }
    claims = [{"name": "small", "measured": claim, "verdict": verdict}]
    result = {"notebook": "toy", "preset": "cpu", "seed": seed, "parameters": values, "metrics": [metric]}
    return SavedRecord(Path("x"), {**result, "claims": claims}, {}, "")


def test_intervals_are_those_of_students_t(tmp_path):
    records = [record(seed, value, width=2, claim=[1.0, 2.0]) for seed, value in enumerate((1.0, 2.0, 6.0))]
    records += [
        record(0, 5.0, width=3, claim=1.5, verdict="failed"),
        record(0, 9.0, width=3),
    ]  # a seed counts once
    three, claim, one, failed = results.summarise(["width", "seed"], records)
    # Mean 3, deviation sqrt((4 + 1 + 9) / 2) = sqrt(7), and 4.302653 is the 97.5 % point of Student's t with 2 degrees.
    half = 4.302652729911275 * 7**0.5 / 3**0.5
    assert (three.mean, three.low, three.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-9)
    assert three.deviation == pytest.approx(7**0.5)
    assert (one.mean, one.low, one.high, one.deviation) == (5.0, None, None, None)
    assert (claim.mean, claim.verdicts) == (None, ["held"] * 3)
    assert (failed.mean, failed.verdicts) == (1.5, ["failed"])

    results.write(tmp_path, ["width", "seed"], records, say=lambda line: None)
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [(row["width"], row["name"], row["runs"], row["held"], row["failed"]) for row in rows] == [
        ("2", "error", "3", "", ""),
        ("2", "small", "3", "3", "0"),
        ("3", "error", "1", "", ""),
        ("3", "small", "1", "0", "1"),
    ]
    assert [float(rows[0][key]) for key in ("mean", "low", "high")] == [three.mean, three.low, three.high]


def test_the_table_is_tidy_and_gives_every_value_back(tmp_path):
    value = 0.1 + 0.2
    records = [
        record(0, value, paper=0.5, sizes=[4, 4], flag=True, name="a,b"),
        record(1, -1e-300, sizes=[8], flag=None, name='"'),
    ]
    results.write(tmp_path, ["seed", "sizes", "flag", "name"], records, say=lambda line: None)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert list(rows[0])[:6] == ["notebook", "preset", "seed", "sizes", "flag", "parameter name"]
    assert list(rows[0])[6:] == ["kind", "name", "value", "error", "paper", "unit", "verdict"]
    assert json.loads(rows[0]["sizes"]) == [4, 4]
    assert [row["flag"] for row in rows[::2]] == ["true", ""]
    assert [row["parameter name"] for row in rows[::2]] == ["a,b", '"']
    assert float(rows[0]["value"]) == value
    assert float(rows[2]["value"]) == -1e-300
    assert (rows[0]["paper"], rows[0]["error"], rows[0]["unit"], rows[0]["verdict"]) == (
        "0.5",
        "0.5",
        "%",
        "",
    )
    assert (rows[1]["kind"], rows[1]["value"], rows[1]["verdict"]) == ("claim", "", "held")


@pytest.mark.parametrize(
    ("values", "axis", "numeric", "series"),
    [
        ({"width": [1, 2], "name": ["a", "b", "c"]}, "width", True, 3),  # a number goes along the axis
        ({"rate": [0.1, 0.01], "width": [1, 2, 3]}, "width", True, 2),
        ({"sizes": [[1], [1, 1]]}, "sizes", False, 1),
        ({"flag": [True, False]}, "flag", False, 1),
        ({"width": [1, None]}, "width", False, 1),
        ({"width": [1]}, None, False, 1),
        ({"a": [1, 2], "b": [1, 2], "c": ["x", "y"]}, "a", True, 4),
        ({"name": ["a$b_$c", "$x_{$", "x" * 60]}, "name", False, 1),  # no mathematics
        ({"width": [1, 2], "name": ["$x_{$", "b"]}, "width", True, 2),
    ],
)
def test_what_varies_goes_along_the_axis_or_into_series(tmp_path, values, axis, numeric, series):
    records = [
        record(seed, 1.0 + seed, **dict(zip(values, point, strict=True)))
        for seed in range(2)
        for point in itertools.product(*values.values())
    ]
    summaries = results.summarise([*values, "seed"], records)
    found = plotting._Axis(summaries)
    assert (found.name, found.numeric, len(found.series)) == (axis, numeric, series)
    places = [found.place(summary.setting) for summary in summaries if summary.kind == "metric"]
    assert len(set(places)) == len(places)
    assert plotting.draw(tmp_path, summaries, (), print)
    assert (tmp_path / "summary.png").stat().st_size > 3000


def test_the_papers_numbers_have_the_colour_of_their_series_and_one_run_has_no_interval(monkeypatch):
    from matplotlib.colors import to_hex

    drawn = []
    monkeypatch.setattr(plotting.figures, "save", lambda fig, *rest: drawn.append(fig))
    for papers, colours in (([2.0, 3.0], 2), ([2.0, 2.0], 1)):
        records = [
            record(seed, 1.0 + seed, width=width, name=name, paper=paper)
            for name, paper in zip("ab", papers, strict=True)
            for width in (1, 2)
            for seed in range(1 if (name, width) == ("a", 1) else 2)
        ]
        plotting.draw(Path(), results.summarise(["seed", "width", "name"], records), (), print)
        axes = drawn[-1].axes[0]
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [line.get_ydata()[0] for line in dashed] == papers
        assert len({to_hex(line.get_color()) for line in dashed}) == colours
        bars = [container.lines[2][0].get_segments() for container in axes.containers]
        assert [sum(len(bar) == 2 for bar in found) for found in bars] == [1, 2]


def test_panels_are_the_first_dozen_or_those_asked_for(tmp_path, capsys):
    many = record(0, 1.0, claim=2.0)
    many.result["metrics"][:] = [many.result["metrics"][0] | {"name": f"m{i}"} for i in range(14)]
    summaries = results.summarise(["seed"], [many])
    assert [g[0].name for g in plotting._panels(summaries, (), print)] == [f"m{i}" for i in range(12)]
    assert "the first 12 of 14" in capsys.readouterr().out
    chosen = plotting._panels(summaries, ("small", "m13", "absent"), print)
    assert [group[0].name for group in chosen] == ["small", "m13"]
    assert "--metric absent: no run recorded it" in capsys.readouterr().out
    many.result["metrics"].clear()
    assert [g[0].name for g in plotting._panels(results.summarise(["seed"], [many]), (), print)] == ["small"]
    many.result["claims"].clear()
    assert not plotting.draw(tmp_path, results.summarise(["seed"], [many]), (), print)
