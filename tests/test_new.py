"""`vinb new`: the template runs and passes the standard's checks, and what is wrong is refused before anything is written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vinb import cli, experiment
from vinb.experiment import bibliography, citation, new, notebooks

ROOT = Path(__file__).resolve().parents[1]
BLEI = """
 @article{Blei_2017, title={Variational Inference: A Review for {S}tatisticians}, volume={112},
 DOI={10.1080/01621459.2017.1285773},
 number={518}, journal="Journal of the {American} Statistical Association",
 author={Blei, David M. and L{\\'e}onard, N. and others}, year=2017, month=apr }
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / "references.bib", folder)
    monkeypatch.setenv("VINB_ROOT", str(tmp_path))
    monkeypatch.delenv("VINB_OUTPUT_DIR", raising=False)
    return tmp_path


def written(root):
    return {path.name: path.read_bytes() for path in (root / "notebooks").iterdir()}


def test_a_new_notebook_runs_at_smoke_and_passes_the_checks_after_a_run_at_cpu(root, capsys):
    assert cli.main(["new", "my_first_paper", "--paper", "roeder2017stl"]) == 0
    path = root / "notebooks" / "my_first_paper.ipynb"
    out = capsys.readouterr().out
    assert "vinb run my_first_paper --preset smoke" in out
    assert (
        "| [my_first_paper](notebooks/my_first_paper.ipynb) | Roeder, Wu and Duvenaud, *Sticking the Landing: "
        in out
    )

    ruff = Path(sys.executable).parent / "ruff"
    for words in (["check"], ["format", "--check"]):  # as if it were here, for this repository's settings
        tool = subprocess.run(
            [ruff, *words, "--stdin-filename", f"notebooks/{path.name}", "-"],
            cwd=ROOT,
            input=path.read_text(encoding="utf-8"),
            capture_output=True,
            text=True,
        )
        assert tool.returncode == 0, tool.stdout + tool.stderr
    assert any("it has no outputs" in problem for problem in notebooks.check(path))

    for preset in ("smoke", "cpu"):  # cpu last: it is the one to be published
        given = {"preset": preset} if preset == "smoke" else {}
        run = notebooks.execute(path, output_dir=root / "runs" / preset, parameters=given, root=root)
        assert run.failure is None, run.failure
        record = experiment.load(run.record)
        assert set(record.verdicts.values()) == {"held"}
        assert [figure["name"] for figure in record.result["figures"]] == ["data", "figure-1"]
        assert record.environment["seconds"]["total"] < 60
        assert record.result["paper"] == "roeder2017stl"
    notebooks.publish(path, run.folder)
    assert notebooks.check(path) == []
    assert len(notebooks.to_dos(path)) == 10
    assert cli.main(["list"]) == 0
    assert "Sticking the Landing" in capsys.readouterr().out


def test_the_template_follows_the_standard_and_says_what_to_do_in_each_section(root):
    cli.main(["new", "mine", "--title", 'Of "quotes" and {{paper}}'])
    nb = notebooks.read(root / "notebooks" / "mine.ipynb")
    assert (nb["nbformat"], nb["nbformat_minor"]) == (4, 5)
    assert nb["metadata"]["kernelspec"]["name"] == "python3"
    assert notebooks.title(nb) == 'Of "quotes" and {{paper}}'
    assert notebooks.paper_key(nb) is None
    text = "\n".join("".join(cell["source"]) for cell in nb["cells"] if cell["cell_type"] == "markdown")
    headings = [line.lstrip("# 0123456789.") for line in text.splitlines() if line.startswith("## ")]
    assert headings[:3] == ["The idea", "Data", "Model, objective and estimators"]
    assert headings[-3:] == ["Claims", "What differs from the paper", "Cite"]
    assert text.count("{{") == 1  # the title's
    assert len(notebooks.to_dos(root / "notebooks" / "mine.ipynb")) == 11  # one more, about the paper
    ids = [cell["id"] for cell in nb["cells"]]
    template = json.loads(new.TEMPLATE.read_text(encoding="utf-8"))
    assert ids == [cell["id"] for cell in template["cells"]]  # the same in every new notebook
    assert len(set(ids)) == len(ids)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in template["cells"])


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("> **To do:** write.", 1),
        ("*To do: write.*", 1),
        ("Text.\n# To do: write\n- to do: more", 2),
        ("There is nothing to do: all is done.", 0),
    ],
)
def test_what_is_left_to_do_is_found(root, source, count):
    file = root / "one.ipynb"
    file.write_text(json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": source}]}))
    assert len(notebooks.to_dos(file)) == count


def test_an_entry_from_a_publisher_is_added_in_the_form_of_the_file(root, tmp_path, capsys):
    before = (root / "notebooks" / "references.bib").read_text(encoding="utf-8")
    (tmp_path / "entry.bib").write_text(BLEI, encoding="utf-8")
    assert cli.main(["new", "review", "--bibtex", str(tmp_path / "entry.bib")]) == 0
    assert "with Blei_2017 at its end" in capsys.readouterr().out
    after = (root / "notebooks" / "references.bib").read_text(encoding="utf-8")
    assert after == before + (
        "\n@article{Blei_2017,\n"
        "  title   = {Variational Inference: A Review for {S}tatisticians},\n"
        "  author  = {Blei, David M. and L{\\'e}onard, N. and others},\n"
        "  volume  = {112},\n"
        "  doi     = {10.1080/01621459.2017.1285773},\n"
        "  number  = {518},\n"
        "  journal = {Journal of the {American} Statistical Association},\n"
        "  year    = {2017},\n"
        "  month   = {April}\n"
        "}\n"
    )
    assert citation.short(citation.references(root)["Blei_2017"]) == "Blei et al. (2017)"
    nb = notebooks.read(root / "notebooks" / "review.ipynb")
    assert notebooks.paper_key(nb) == "Blei_2017"
    assert "".join(nb["cells"][0]["source"]).splitlines()[2] == (
        "David M. Blei, N. Léonard et al., *Variational Inference: A Review for Statisticians*, "
        "Journal of the American Statistical Association, 2017, "
        "[doi:10.1080/01621459.2017.1285773](https://doi.org/10.1080/01621459.2017.1285773). Citation key `Blei_2017`."
    )


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (r"S{\o}ren K{\"u}hn", "Søren Kühn"),
        (r"Fish & \texttt{x_y}, 100% of Schr{\"o}dinger", "Fish & x_y, 100% of Schrödinger"),
        (r"A \LaTeX{} {Guide}", r"A \LaTeX Guide"),
        (r"A \href{http://x}{text}", r"A \href{http://x}{text}"),
        (
            r"Erd{\H{o}}s, {\O}rsted, Stra{\ss}e, {\AA}ngstr\"om, \L{}ukasz",
            "Erdős, Ørsted, Straße, Ångström, Łukasz",
        ),
        (r"Ho{\v{r}}ej{\v s}{\'\i} and Mart\'{\i}nez", "Hořejší and Martínez"),
        (r"G{\"o}{\u{g}}{\"u}s, D{\k{a}}b, Fran\c{c}ois, Nguy{\~{\^e}}n", "Göğüs, Dąb, François, Nguyễn"),
        (r"{Upper} Bounds by $\chi$, $\varphi$ and $\cos$", r"Upper Bounds by $\chi$, $\varphi$ and $\cos$"),
        (r"An \emph{odd} \& ``quoted'' {\textit{title}}~--- 5\%", "An odd & “quoted” title — 5%"),
    ],
)
def test_a_field_in_plain_words(written, plain):
    entry = bibliography.parse(f"@misc{{a, title = {{{written}}}, author = {{A}}, year = 2011}}")
    assert entry.plain("title") == plain


def test_names_and_addresses_as_people_write_them():
    entry = bibliography.parse(
        r"@MISC{a, TITLE={T}, AUTHOR={{Foo and Bar Team} and {OpenAI, Inc.} and Ho, Ann and King, Jr., Martin Luther "
        r"and Jan van der Berg}, Editor={Bo Li}, YEAR={2017}, doi={{10.1000/a\_b}}}"
    )
    assert entry.fields["editor"] == "Li, Bo"
    assert new._source(entry) == (
        "Foo and Bar Team, OpenAI, Inc., Ann Ho, Martin Luther King Jr. and Jan van der Berg, *T*, 2017, "
        "[doi:10.1000/a_b](https://doi.org/10.1000/a_b). Citation key `a`."
    )
    assert new._row(entry) == "Foo and Bar Team et al., *T*, 2017"


def test_an_entry_of_the_file_needs_no_author_and_its_mistakes_are_said(root):
    file = root / "notebooks" / "references.bib"
    book = "\n@book{edited, title = {Collected}, editor = {Bo Li}, date = {2017}}\n@misc{bad, title = {A} year = {1}}\n"
    file.write_text(file.read_text(encoding="utf-8") + book, encoding="utf-8")
    assert new.create("collected", root, paper="edited").row.split(" | ")[1] == "*Collected*"
    with pytest.raises(
        ValueError, match=r"--paper: the entry .bad. of notebooks/references\.bib: syntax error"
    ):
        new.create("mine", root, paper="bad")
    with pytest.raises(ValueError, match=r"references\.bib: syntax error"):
        new.create("mine", root, bibtex=BLEI)


def test_every_entry_of_the_bibliography_is_read_as_it_stands():
    for entry in citation.references(ROOT).values():
        read = bibliography.parse(entry)
        assert {name: citation.field(str(read), name) for name in read.fields} == {
            name: citation.field(entry, name) for name in read.fields
        }
        assert new._source(read).endswith(f"Citation key `{read.key}`.")
        assert "\\" not in new._source(read)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "one entry is needed, none found"),
        (BLEI + BLEI.replace("Blei_2017", "other"), "2 found: Blei_2017, other"),
        ("@article{a, title={x}, year=2011, author={A {B}}", "premature end of file"),
        ("@article{a, title={x} year=2011, author={A}}", "'}' expected"),
        ("@article{a, title={x}, year=2011, author=ada}", "undefined string in line 1: ada"),
        ('@article{a, title="x, year=2011, author={A}}', "unbalanced braces"),
        ("@article{a, title={x}, title={y}, year=1}", "duplicate title"),
        ("@article{a, title={x}}", "'a' lacks author and year"),
        ("@article{title={x}}", "the key of @article is 'title={x'; write one such as"),
        ('@article{a"b, title={x}, author={A}, year=1}', "the key of @article is 'a\"b'"),
        ("@string{j = {Journal}}", "none found"),
        ("@article(a, title={x})", "lacks author and year"),
        ("@article{kingma2014aevb, title={x}, year=1, author={A}}", "use it: --paper kingma2014aevb"),
        (
            "@misc{q, title={x}, year=1, author={A}, eprint={{1312.6114}}}",
            "has this paper (eprint 1312.6114)",
        ),
        (
            "@misc{q, title={x}, year=1, author={A}, eprint={arXiv:1312.6114v10}}",
            "has this paper (eprint 1312.6114)",
        ),
    ],
)
def test_an_entry_that_is_broken_or_known_is_refused_and_nothing_is_written(
    root, capsys, monkeypatch, text, words
):
    import io

    before = written(root)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert cli.main(["new", "mine", "--bibtex", "-"]) == 2
    assert words in capsys.readouterr().err
    assert written(root) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["My-Paper"], "try 'my_paper'"),
        (["2paper"], "try 'paper_2paper'"),
        (["class"], "try 'paper_class'"),
        (["../x"], "try 'x'"),
        (["there"], "notebooks/there.md is there already"),
        (["mine", "--paper", "kingma2014aev"], "Near ones: kingma2014aevb"),
        (["mine", "--paper", "burda"], "Near ones: burda2016iwae"),
        (["mine", "--bibtex", "nowhere.bib"], "nowhere.bib"),
    ],
)
def test_a_wrong_call_is_exit_code_2_and_nothing_is_written(root, capsys, arguments, words):
    (root / "notebooks" / "there.md").write_text("# A page")
    before = written(root)
    assert cli.main(["new", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert written(root) == before


def test_a_notebook_that_cannot_be_written_leaves_the_bibliography(root, monkeypatch):
    before, write = written(root), new.write_atomic

    def full(path, content):
        if path.suffix == ".ipynb":
            raise OSError("no space left")
        write(path, content)

    monkeypatch.setattr(new, "write_atomic", full)
    with pytest.raises(OSError, match="no space"):
        new.create("mine", root, bibtex=BLEI)
    assert written(root) == before


def test_the_wheel_holds_the_template(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    import zipfile

    (wheel,) = tmp_path.glob("*.whl")
    assert zipfile.ZipFile(wheel).read("vinb/experiment/template.ipynb") == new.TEMPLATE.read_bytes()
