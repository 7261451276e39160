"""README.md, CONTRIBUTING.md and the book's pages: examples run, and every command, name, variable and link in them exists."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

import vinb
from vinb import cli
from vinb.experiment import notebooks

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "notebooks" / "index.md", *(ROOT / "notebooks" / "book").glob("*.md"))
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", *PAGES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROGRAMS = ("make", "vinb", "papermill", "pytest", "python", "nbdime", "pip")


def blocks(document, language):
    """The fenced code blocks of a document, also indented ones."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", TEXTS[document], re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for _, code in found]


def prose(document):
    """A document without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", TEXTS[document], flags=re.DOTALL | re.MULTILINE)


def commands():
    """Every command line in the documents, without comments and with the placeholder NAME filled in."""
    lines = []
    for document in TEXTS:
        lines += [line for block in blocks(document, "sh") for line in block.splitlines()]
        inline = [code.removeprefix(".venv/bin/") for code in re.findall(r"`([^`\n]+)`", prose(document))]
        lines += [code for code in inline if code.split()[0] in PROGRAMS and " " in code and "|" not in code]
    lines = [shlex.join(shlex.split(line, comments=True)) if "|" not in line else line for line in lines]
    lines = [line.replace(" verify NAME", " verify digits").replace("NAME", "vae") for line in lines if line]
    return sorted(set(lines))


def known_parameters(notebook):
    return set(notebooks.parameters_of(notebooks.read(notebooks.discover(ROOT)[notebook])))


def check_vinb(words, capsys):
    if len(words) == 1:  # `vinb run`, mentioned without arguments
        words = [*words, "--help"]
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0, capsys.readouterr().err
        return
    options = cli._parser().parse_args(words)
    if words[0] in ("run", "sweep"):
        assert {name.split("=")[0] for name in options.parameter} <= known_parameters(options.notebook)
    elif words[0] == "new":  # it would write a notebook; tests/test_new.py has it write one
        return
    elif words[:2] != ["data", "download"] and "runs/" not in shlex.join(words):
        assert cli.main(words) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.strip()


def check_make(words, capsys):
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    dry = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert dry.returncode == 0, dry.stderr
    for line in dry.stdout.splitlines():
        if line.startswith(".venv/bin/vinb "):
            check_vinb(shlex.split(line)[1:], capsys)
        for script in re.findall(r"\bci/[\w/]+\.(?:py|sh)\b", line):
            assert (ROOT / script).is_file(), f"{line}: there is no {script}"


def check_papermill(words):
    from papermill.cli import papermill

    given = papermill.make_context("papermill", words).params
    assert (ROOT / given["notebook_path"]).is_file()
    assert {name for name, _ in given["parameters"]} <= known_parameters(Path(given["notebook_path"]).stem)


def check_pytest(words):
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            assert any(
                mark.startswith(f"{word}:") for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
            )
        elif not word.startswith("-"):
            assert (ROOT / word).exists()


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(line)
    if program == "vinb":
        check_vinb(words, capsys)
    elif program == "make":
        check_make(words, capsys)
    elif program == "papermill":
        check_papermill(words)
    elif program == "pytest":
        check_pytest(words)
    elif program == "python":
        script = subprocess.run(
            [sys.executable, words[0], "--help"], capture_output=True, text=True, check=False
        )
        assert script.returncode == 0, script.stderr
        assert set(re.findall(r"--\w+", line)) <= set(re.findall(r"--\w+", script.stdout))
    elif program == "pip":
        assert words[-1].strip(".[]") in PROJECT["project"]["optional-dependencies"]
    elif program == "gzip":  # size and sha256 of a data file, as the registry has them
        from vinb.data import DATASETS

        number = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        (file,) = DATASETS["digits"].files
        assert number in (file.sha256, str(file.size))
    elif program == "nbdime":
        assert (Path(sys.executable).parent / program).exists()
        assert "diff=jupyternotebook" in (ROOT / ".gitattributes").read_text()
    elif program == "ruff":
        assert words[0] == "format"
        assert (ROOT / words[1]).exists()
    elif program.startswith("ci/"):
        assert os.access(program, os.X_OK)
    else:
        assert (program, *words) in {("source", ".venv/bin/activate"), ("mkdir", "-p", "runs")}


CHECKS = """
import numpy as np
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

assert set(record.verdicts.values()) <= {"held", "failed", "not-applicable", "known-miss"}
assert len(table) == 2

# NumPyro's SVI and vinb end at the same posterior, and share the layout of their parameters.
assert jax.tree.structure(constrained) == jax.tree.structure(result.params)
np.testing.assert_allclose(constrained["loc"], result.params["loc"], atol=0.1)
np.testing.assert_allclose(constrained["scale"], result.params["scale"], rtol=0.25)

# Automatic guides, as the README says; only traced, which is where they would fail.
def trace(guide):
    params = estimators.init((model, guide), key, x, y)
    return jax.eval_shape(objectives.elbo(model, guide, kl="monte-carlo"), params, key, x, y)

for automatic in (AutoMultivariateNormal(model), AutoNormal(model)):
    numpyro.handlers.seed(automatic, key)(x, y)
    trace(automatic)
"""


def test_python_of_the_readme_runs(tmp_path):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks", target_is_directory=True)
    committed = ROOT / "notebooks" / "vae" / "cpu" / "record.json"
    for run in ("cpu", "cpu-seed=1"):  # two runs of the reader's own
        (tmp_path / "runs" / "vae" / run).mkdir(parents=True)
        shutil.copy(committed, tmp_path / "runs" / "vae" / run)
    run_python([*blocks("README.md", "python"), CHECKS], tmp_path)


def run_python(parts, folder):
    """Runs code in a process of its own, in `folder`; it must neither fail nor use what is about to go."""
    # ArviZ announces its next version once a day.
    options = ["-W", "error::FutureWarning", "-W", "ignore::FutureWarning:arviz"]
    command = [sys.executable, *options, "-c", "\n".join(parts)]
    script = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert script.returncode == 0, script.stderr


def test_the_test_of_contributing_runs(tmp_path):
    (test,) = blocks("CONTRIBUTING.md", "python")
    (name,) = re.findall(r"^def (test_\w+)", test, re.MULTILINE)
    run_python([test, f"{name}()"], tmp_path)


CHECKS_OF_PAGES = {
    "model": """
# The gradient across a jump is -10.5 times the standard normal density at 0.
assert abs(slope["theta"] + 10.5 / (2 * jnp.pi) ** 0.5) < 1e-4
assert support_match(*pair).verdict.name == "INVALID"
""",
    "objective": """
# The evidence is the sum of logarithms over data; the chi bound lies above it in expectation.
evidence = jax.nn.logsumexp(
    jnp.log(jnp.array([0.3, 0.7])) + dist.Normal(jnp.array([-1.0, 2.0]), 1.0).log_prob(points[:, None]), -1
).sum()
many = estimators.moments(lambda k: (chi(params, k, points), sharper(params, k, points)), key, 2000)
assert jnp.isfinite(value) and jnp.isfinite(gradient["slope"])
assert many.mean[1] < evidence < -minus_chi_bound(mixture, responsibilities, 1000)(params, key, points)
""",
    "strategy": """
# The rule for the Laplace distribution is right.
assert abs(measured.mean["m"] - jnp.exp(-0.5) / 2) < 5 * measured.standard_error["m"] < 0.1
""",
    "networks": """
assert probabilities.shape == (500, 1)
assert ((probabilities[:, 0] > 0.5) == y).mean() > 0.7
""",
}


@pytest.mark.parametrize("page", CHECKS_OF_PAGES)
def test_python_of_the_pages_runs(page, tmp_path):
    run_python([*blocks(f"notebooks/book/{page}.md", "python"), CHECKS_OF_PAGES[page]], tmp_path)


def test_every_page_with_python_is_run():
    assert {Path(page).stem for page in PAGES if blocks(page, "python")} == set(CHECKS_OF_PAGES)


@pytest.mark.parametrize("document", TEXTS)
def test_links_lead_somewhere_and_images_have_alternative_text(document):
    text = prose(document)
    targets = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("https://")]
    missing = [link for link in targets if not ((ROOT / document).parent / link).exists()]
    assert not missing
    assert all(len(alt) > 20 for alt in re.findall(r"!\[([^]]*)\]", text))


@pytest.mark.parametrize("document", [*TEXTS, "CHANGELOG.md"])
def test_names_in_prose_exist(document):
    text = prose(document) if document in TEXTS else (ROOT / document).read_text(encoding="utf-8")
    for name in set(re.findall(r"`(vinb(?:\.\w+)+)", text)):
        module, found = name, None
        while found is None:
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError:
                module = module.rpartition(".")[0]
        for attribute in name.removeprefix(module).strip(".").split(".") if name != module else ():
            assert hasattr(found, attribute), f"there is no {name}"
            found = getattr(found, attribute)
    paths = {
        path
        for path in re.findall(r"`((?:vinb|tests|ci|data|notebooks)/[^`\s]*)`", text)
        if not re.search("NAME|<", path)
    }
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_settings_are_all_of_them():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "vinb").rglob("*.py"))
    internal = {"VINB_NOTEBOOK"}  # set by `vinb run` for the kernel, of no use to a person
    assert (
        set(re.findall(r"`(VINB_[A-Z_]+)", TEXTS["README.md"]))
        == set(re.findall(r"\bVINB_[A-Z_]+", source)) - internal
    )


def test_the_tables_are_complete():
    listed = re.findall(r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\) \|", TEXTS["README.md"], re.MULTILINE)
    assert listed == list(notebooks.discover(ROOT))
    rooms = {
        path.stem
        for path in (ROOT / "vinb").iterdir()
        if path.stem[0] not in "_." and path.name != "py.typed"
    }
    assert set(re.findall(r"^      (\w+)/? ", TEXTS["README.md"], re.MULTILINE)) == rooms


def test_version_and_licence_agree_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format requires
    assert citation["version"] == vinb.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["project"]["authors"]
    ]
    assert (
        re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
        == vinb.__version__
    )
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")
