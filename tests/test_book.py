"""The book: made from the records, complete, every link and picture in place; what its pages' words are made of."""

import html
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from vinb.experiment import citation, figures, notebooks
from vinb.experiment.tables import _VERDICTS, claims_table, metrics_table, verdict_counts

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks" / "book"))

from vinb_book import committed  # noqa: E402

# Name -> preset -> record, the largest preset first.
RECORDS = {name: committed.records(ROOT / "notebooks", name) for name in notebooks.discover(ROOT)}


class Page(HTMLParser):
    """Links, identities, pictures, headings and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.images, self.words = [], [], [], []
        self.titles, self.in_article = 0, False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.in_article |= tag == "article"
        self.titles += tag == "h1" and self.in_article
        if given.get("id"):
            self.ids.append(given["id"])
        if tag == "img":
            self.images.append(given)
        for name in ("href", "src"):
            if given.get(name):
                self.links.append(given[name])

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self.in_article &= tag != "article"

    def handle_data(self, text):
        self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def pages(book):
    paths = {path.relative_to(book).as_posix(): path for path in sorted(book.rglob("*.html"))}
    return {place: Page(path) for place, path in paths.items() if not place.startswith("_static/")}


def test_every_link_leads_somewhere_and_every_picture_is_described(book, pages):
    wrong, external = [], []
    for place, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                external.append(link)
                continue
            if parts.scheme or (place in ("search.html", "genindex.html") and link == "#"):
                continue
            target = (book / place).parent / unquote(parts.path) if parts.path else book / place
            if not target.exists():
                wrong.append(f"{place}: {link}")
            elif parts.fragment and target.suffix == ".html":
                there = pages[target.resolve().relative_to(book.resolve()).as_posix()]
                if unquote(parts.fragment) not in there.ids:
                    wrong.append(f"{place}: {link} has no such place")
        wrong += [f"{place}: {i.get('src')} has no words" for i in page.images if not i.get("alt")]
        wrong += [f"{place}: {i} twice" for i in set(page.ids) if page.ids.count(i) > 1]
        if page.titles != (place != "search.html"):
            wrong.append(f"{place}: {page.titles} titles")
    assert not wrong
    assert all(
        re.match(r"https://(arxiv|doi|www|proceedings|sphinx|github|ebook|pydata)", e) for e in external
    )


def test_every_notebook_has_a_page_with_its_figures_and_record(pages):
    for name, runs in RECORDS.items():
        page = pages[f"{name}.html"]
        assert f"{name}.html" in [link.split("#")[0] for link in pages["index.html"].links]
        assert ("What the committed runs found" in page.text) == bool(runs)
        described = [image["alt"] for image in page.images]
        for preset, record in runs.items():
            for figure in record.result["figures"]:
                assert committed.anchor(record, figure["name"]) in page.ids
                assert figure["alt"] in described
            assert f"@misc{{vinb-{name}-{preset}-" in page.text


def test_the_gallery_shows_every_figure_with_its_citation(book, pages):
    gallery = (book / "book" / "gallery.html").read_text(encoding="utf-8")
    page = pages["book/gallery.html"]
    for name, runs in RECORDS.items():
        for record in list(runs.values())[:1]:
            for figure in record.result["figures"]:
                assert f"../{name}.html#{committed.anchor(record, figure['name'])}" in page.links
                assert figure["alt"] in [image["alt"] for image in page.images]
                assert sum(Path(link).name == f"{figure['name']}.svg" for link in page.links) >= 1
                first = citation.bibtex(record, figure["name"]).split("@misc{vinb")[1].split(",")[0]
                assert first in html.unescape(re.sub(r"<[^>]*>", "", gallery))


def letters(text):
    """Letters and digits alone: spaces are the page's, and so are the forms of quotation marks."""
    return re.sub(r"\W", "", text)


def test_the_results_are_those_of_the_records_known_misses_first(pages):
    text = pages["book/results.html"].text
    misses, numbers = text.split("All numbers #")
    numbers = letters(numbers)
    for runs in RECORDS.values():
        for record in runs.values():
            for table in (metrics_table(record.result["metrics"]), claims_table(record.result["claims"])):
                for row in table.rows:
                    assert letters("".join(row)) in numbers
    missed = {
        (f"{name}: {claim['name']}", claim["reason"])
        for name, runs in RECORDS.items()
        for record in runs.values()
        for claim in record.result["claims"]
        if claim["verdict"] == "known-miss"
    }
    for title, reason in missed:
        assert f"{title} " in misses
        assert letters(reason) in letters(misses)
    assert misses.count("Measured") == len(missed)


def test_the_reference_has_every_public_name(pages):
    rooms = [Path(place).stem for place in pages if place.startswith("book/api/")]
    assert {"estimators", "objectives", "programs", "analysis", "training", "experiment"} <= set(rooms)
    for room in rooms:
        module = importlib.import_module(f"vinb.{'models.' if room == 'bayesian' else ''}{room}")
        for name in getattr(module, "__all__", ()):
            if isinstance(getattr(module, name), type | types.FunctionType):
                assert f"{module.__name__}.{name}" in pages[f"book/api/{room}.html"].ids, (room, name)
    assert "FloatArraybatchheightwidth" in letters(pages["book/api/models.html"].text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, set()),
        ("Table 1", {"table 1"}),
        ("Tables 4 and 8", {"table 4", "table 8"}),
        ("section 2.3, equations 6 and 7", {"section 2.3", "equation 6", "equation 7"}),
        ("Table 1 (1.8 to 2.3)", {"table 1"}),
        ("Figure 2 (the paper prints no numbers)", {"figure 2"}),
        ("Burda et al., Table 1", {"burda: table 1"}),
        ("Molchanov et al. 2017, equation 14", {"molchanov: equation 14"}),
        ("Doersch 2016, section 2", {"doersch: section 2"}),
        ("Kingma and Welling 2014, equation 2", {"kingma: equation 2"}),
        ("appendix D", {"appendix d"}),
        ("here, section 5", {"here: section 5"}),
        ("the stand-in", {"the stand-in"}),
    ],
)
def test_places(text, expected):
    assert committed.places(text) == expected


def test_claims_about_a_metric():
    def claim(name, measured, source):
        return {"name": name, "measured": measured, "source": source}

    claims = [
        claim("a", None, "Table 1"),
        claim("b", [0.25, 1.0], None),
        claim("c", 3.0, "Burda et al., Table 1"),
        claim("m", None, None),
    ]

    def about(value, source):
        metric = {"name": "m", "value": value, "source": source}
        return [c["name"] for c in committed.claims_about(metric, claims)]

    assert about(7.0, None) == ["m"]
    assert about(0.25, None) == ["b", "m"]
    assert about(1.0, None) == ["m"]  # a round number proves nothing
    assert about(7.0, "Tables 1 and 2") == ["a", "m"]


def test_words_of_figures():
    names = ("figure-4", "figures-2-3", "figure-2-grey", "well-log")
    assert [figures.label(name) for name in names] == [
        "Figure 4",
        "Figures 2 and 3",
        "Figure 2 grey",
        "Well log",
    ]
    assert [committed.of_the_paper(name) for name in names] == [True, True, True, False]
    assert committed.caption({"name": "figure-4", "caption": "Figure 4: means."}) == "Means."
    assert (
        committed.caption({"name": "figure-4", "caption": "Left, Figure 4: means."})
        == "Left, Figure 4: means."
    )


def test_the_pages_know_the_colours_of_all_verdicts():
    style = (ROOT / "notebooks" / "book" / "static" / "vinb.css").read_text(encoding="utf-8")
    for _, colour in _VERDICTS.values():
        for scheme in ("light", "dark"):
            assert f'html[data-theme="{scheme}"] td[style*="color: {colour}"]' in style


def test_themes():
    assert committed.themes({"A": ["x"]}, ["x", "y"]) == {"A": ["x"], "More": ["y"]}
    assert committed.themes({"A": ["x"]}, ["x"]) == {"A": ["x"]}
    with pytest.raises(ValueError, match="no notebook z"):
        committed.themes({"A": ["z"]}, ["x"])


@pytest.fixture
def small(tmp_path):
    """A book of one notebook: `changepoints`, and a run of it at the paper's setting."""
    source = tmp_path / "notebooks"
    (source / "book").mkdir(parents=True)
    for name in ("conf.py", "references.bib", "changepoints.ipynb"):
        shutil.copy(ROOT / "notebooks" / name, source)
    for name in ("vinb_book", "static", "gallery.md", "results.md", "bibliography.md"):
        copy = shutil.copytree if "." not in name else shutil.copy
        copy(ROOT / "notebooks" / "book" / name, source / "book" / name)
    text = (source / "conf.py").read_text()
    themes = re.compile(r"vinb_themes = \{.*?^\}", re.DOTALL | re.MULTILINE)
    (source / "conf.py").write_text(themes.sub('vinb_themes = {"Models": ["changepoints"]}', text))
    toctree = "```{toctree}\nbook/gallery\nbook/results\nbook/bibliography\n```\n"
    (source / "index.md").write_text(f"# Book\n\n```{{notebooks}}\n```\n\n{toctree}")
    for preset in ("cpu", "paper"):
        folder = source / "changepoints" / preset
        shutil.copytree(ROOT / "notebooks" / "changepoints" / "cpu", folder)
    change(folder / "record.json", preset="paper")
    return source


def change(file, **values):
    content = json.loads(file.read_text())
    content["result"] |= values
    file.write_text(json.dumps(content))


def build(source, **environment):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", str(source)]
    return subprocess.run(
        [*command, str(source.parent / "html")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_at_the_papers_setting_is_shown_and_a_changed_record_changes_the_pages(small):
    built = build(
        small,
        VINB_BOOK_REPOSITORY="https://github.com/someone/vinb",
        VINB_BOOK_COLAB="https://colab.research.google.com",
        VINB_BOOK_BINDER="https://mybinder.org",
    )
    assert built.returncode == 0, built.stderr
    page = Page(small.parent / "html" / "changepoints.html")
    assert "The run at preset paper, seed 0" in page.text
    assert {"cpu-well-log", "paper-well-log"} <= set(page.ids)
    gallery = Page(small.parent / "html" / "book" / "gallery.html")
    assert "../changepoints.html#paper-well-log" in gallery.links  # the run that the gallery shows
    file = small / "changepoints" / "paper" / "record.json"
    claims = json.loads(file.read_text())["result"]["claims"]
    assert f"At preset paper, seed 0: {verdict_counts(claims)}" in page.text
    colab = "https://colab.research.google.com/github/someone/vinb/blob/main/notebooks/changepoints.ipynb"
    assert colab in page.links
    assert any(link.startswith("https://mybinder.org/v2/gh/someone/vinb/main") for link in page.links)

    claims[0] |= {"verdict": "known-miss", "reason": "Everything was tried."}
    change(file, claims=claims)
    built = build(small)
    assert built.returncode == 0, built.stderr
    text = Page(small.parent / "html" / "book" / "results.html").text
    assert f"changepoints: {claims[0]['name']}" in text.split("All numbers #")[0]
    assert "Everything was tried." in text
    assert (
        f"At preset paper, seed 0: {verdict_counts(claims)}"
        in Page(small.parent / "html" / "changepoints.html").text
    )

    (small / "changepoints" / "paper" / "figures" / "well-log.png").unlink()
    built = build(small)
    assert built.returncode != 0
    assert "well-log.png" in built.stderr


@pytest.mark.exhaustive
def test_pages_follow_when_a_run_or_a_notebook_comes_or_goes(small):
    """One without outputs, run and paper, as `vinb new` leaves it, is built too."""
    kept = small / "changepoints" / "paper"
    shutil.move(kept, small.parent / "kept")

    def page(place):
        built = build(small)
        assert built.returncode == 0, built.stderr
        return Page(small.parent / "html" / place)

    assert "preset paper" not in page("changepoints.html").text
    shutil.move(small.parent / "kept", kept)
    assert "The run at preset paper" in page("changepoints.html").text
    assert "preset paper" in page("book/results.html").text

    text = (ROOT / "vinb" / "experiment" / "template.ipynb").read_text()
    (small / "added.ipynb").write_text(text)
    assert "added.html" in page("index.html").links
    assert "No run of this notebook is committed." in page("added.html").text
    (small / "added.ipynb").unlink()
    assert "added.html" not in page("index.html").links
