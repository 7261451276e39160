"""The package as a whole: what imports what, what is pinned, what the repository must not name."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import vinb

ROOT = Path(__file__).resolve().parents[1]
# Upper rooms may import lower ones (rightwards), never the other way; rooms that have no file yet keep their place.
ROOMS = ["__main__", "cli", "experiment", "training", "models", "diagnostics", "audit", "objectives", "programs", "estimators",
         "distributions", "analysis", "numerics", "coding", "data", "accelerator", "tables"]  # fmt: skip


def tracked(*patterns):
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def room_of(path):
    return path.relative_to(ROOT / "vinb").parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module] if node.module != "vinb" else [f"vinb.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("vinb."))


def test_imports_only_go_downwards():
    files = [
        path
        for path in sorted((ROOT / "vinb").rglob("*.py"))
        if path.name != "__init__.py" or path.parent.name != "vinb"
    ]
    edges = [(path, room_of(path), room) for path in files for room in imported_rooms(path)]
    assert len(edges) > 30
    up = [
        f"{path.relative_to(ROOT)} imports {low}"
        for path, room, low in edges
        if ROOMS.index(low) < ROOMS.index(room)
    ]
    assert not up


@pytest.mark.parametrize("module", ["vinb", "vinb.experiment", "vinb.cli", "vinb.data"])
def test_importing_does_not_load_the_heavy_packages(module):
    code = f"import sys, {module}; print([m for m in ('jax', 'numpyro', 'matplotlib', 'pandas', 'papermill') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_importing_vinb_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import vinb; print(sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "['vinb']"


def test_every_pinned_package_has_a_version_and_hashes_and_no_address():
    text = (ROOT / "ci" / "requirements.txt").read_text()
    assert "://" not in text
    assert "index-url" not in text
    entries = re.split(r"\n(?=[a-z])", text[text.index("\nabsl") :].strip())
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==[\w.!+]+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_every_dependency_is_pinned():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.match(r"[A-Za-z0-9._-]+", line).group().lower()
        for line in (ROOT / "ci" / "requirements.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = {
        re.match(r"[A-Za-z0-9._-]+", spec).group().lower()
        for spec in project["dependencies"] + project["optional-dependencies"]["test"]
    }
    assert wanted <= pinned


def test_the_citation_file_is_of_its_format_and_broken_ones_are_not(tmp_path):
    good = ROOT / "CITATION.cff"
    content = yaml.safe_load(good.read_text(encoding="utf-8"))
    broken = [{name: value for name, value in content.items() if name != "title"}]
    broken += [
        content | change
        for change in ({"date-released": "soon"}, {"authors": []}, {"autors": "A"}, {"license": "Free"})
    ]
    files = []
    for i, each in enumerate(broken):
        files.append(tmp_path / f"{i}.cff")
        files[-1].write_text(yaml.safe_dump(each), encoding="utf-8")
    # The schema is in the package, so this needs no network.
    command = [
        Path(sys.executable).parent / "check-jsonschema",
        "--builtin-schema",
        "vendor.citation-file-format",
    ]
    command += ["--force-filetype", "yaml", "--output-format", "json", good, *files]
    check = subprocess.run(command, capture_output=True, text=True)
    assert check.returncode == 1, check.stderr
    assert {Path(error["filename"]) for error in json.loads(check.stdout)["errors"]} == set(files), (
        check.stdout
    )


def test_the_citation_file_is_of_this_version_and_dated_when_it_is_released():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == vinb.__version__
    version, date = re.search(
        r"^## \[([\d.]+)\] - (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    ).groups()
    assert version == vinb.__version__
    assert str(citation.get("date-released", "unreleased")) == date


def test_no_file_names_a_machine_path():
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w|/work/|pypi\.org|/opt/wheels")
    odd = []
    for path in tracked(
        "*.py", "*.md", "*.toml", "*.sh", "*.ipynb", "*.json", "*.cff", "*.bib", "*.svg", "Makefile", "*.txt"
    ):
        if (
            path.resolve() != Path(__file__).resolve()
            and "checking" not in path.name
            and not path.name.startswith("test_")
        ):
            found = pattern.search(path.read_text(encoding="utf-8"))
            odd += [f"{path.relative_to(ROOT)}: {found.group()}"] if found else []
    assert not odd


def test_ruff_has_nothing_to_say():
    ruff = Path(sys.executable).parent / "ruff"
    assert subprocess.run([ruff, "check", "--quiet", "."], cwd=ROOT).returncode == 0
    assert subprocess.run([ruff, "format", "--check", "--quiet", "."], cwd=ROOT).returncode == 0


def test_every_source_in_a_docstring_is_in_the_bibliography():
    known = set(
        re.findall(r"^@\w+\{([^,]+)", (ROOT / "notebooks" / "references.bib").read_text(), re.MULTILINE)
    )
    missing = {}
    for path in (ROOT / "vinb").rglob("*.py"):
        text = path.read_text()
        known_here = known | set(re.findall(r"@\w+\{([^,]+)", text))  # data sets carry their own entries
        cited = set(re.findall(r"\b[a-z]+(?:19|20)\d\d[a-z]+\b", text))
        if cited - known_here:
            missing[path.name] = sorted(cited - known_here)
    assert not missing
