"""What the documentation points at is there, what it says of the configuration is so, and the site builds from it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "config" / "README.md", *DOCS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_named_file_is_there(page):
    text = page.read_text()
    links = re.findall(r"\]\(((?!http)[^)#]+)", text)
    named = re.findall(r"`((?:src|docs|benchmarks|config|workflow)/[\w./-]+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_figure_is_left_to_be_filled_in(page):
    assert re.findall(r"@[A-Z]+@", page.read_text()) == []


def test_the_sites_pages_link_to_one_another_alone_and_each_has_its_place_in_the_menu():
    outside = [(page.name, link) for page in DOCS for link in re.findall(r"\]\((\.\./[^)]+)", page.read_text())]
    assert outside == []
    menu = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == [page.name for page in DOCS]


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="make install brings mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pages = list(tmp_path.glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in DOCS}
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]*\ssrc=\"([^\"]+)|<link[^>]*\shref=\"([^\"]+)", page.read_text()
        )
        assert [each for each in loaded if re.match(r"(?:\w+:)?//", "".join(each))] == []


def test_version_and_license_are_the_same_wherever_they_stand():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"\n## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "LICENSE").read_text() == (ROOT / "src" / "krakenlm" / "LICENSE").read_text()
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_the_page_of_all_keys_is_what_the_schema_and_the_files_of_config_say():
    path = ROOT / "workflow" / "schemas" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert (ROOT / "docs" / "configuration.md").read_text() == reference.page(), "make docs makes it anew"


def test_a_key_that_a_scale_sets_is_on_the_page_with_its_default():
    rows = (ROOT / "docs" / "configuration.md").read_text().splitlines()
    steps = next(row for row in rows if row.startswith("| `training.steps`"))
    paper = yaml.safe_load((ROOT / "config" / "scales" / "paper.yaml").read_text())
    assert f"paper: `{paper['training']['steps']}`" in steps
