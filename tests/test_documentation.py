"""What the documentation points at is there, and what it says of the configuration is so."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "config" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_named_file_is_there(page):
    text = page.read_text()
    links = re.findall(r"\]\(((?!http)[^)#]+)", text)
    named = re.findall(r"`((?:src|docs|benchmarks|config|workflow)/[\w./-]+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_figure_is_left_to_be_filled_in(page):
    assert re.findall(r"@[A-Z]+@", page.read_text()) == []


def keys(schema, defs):
    """The last words of all keys that a schema allows."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rsplit("/", 1)[-1]] | {k: v for k, v in schema.items() if k != "$ref"}
    for name, value in schema.get("properties", {}).items():
        yield name
        yield from keys(value, defs)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from keys(schema["additionalProperties"], defs)


def test_every_key_of_the_configuration_is_documented():
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())
    documented = set(re.findall(r"[`.,\s](\w+)`", (ROOT / "config" / "README.md").read_text()))
    assert (
        set(keys(schema, schema["$defs"])) - documented
        == {"budget", "wandb", "superglue", "sizes", "models"} - documented
    )
