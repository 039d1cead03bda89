"""The page of all configuration keys, docs/configuration.md, from the schema and from the files that set the defaults.

`python workflow/schemas/reference.py` writes it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
HEAD = """# Configuration

<!-- Made by workflow/schemas/reference.py from the schema and the files of config/; `make docs` makes it anew. -->

A run's configuration is put together from four places; a later one wins, key by key:

1. the scale's file, `config/scales/<scale>.yaml`
2. `config/config.yaml`
3. `--configfile my.yaml`
4. `--config key=value`; nested keys as YAML: `--config training='{steps: 600}'`

It is checked before anything runs. Setting a model or a size to `null` leaves it out
(`--config models='{ladder: null}'`). Write small numbers with a point (`2.0e-4`): YAML reads `2e-4` as text.

Defaults are those of `config/config.yaml`, for every scale, or of the scales' files. Where there is none, the key may
be left out, except that a new model needs `architecture`, `n_layer`, `n_head` and `width` (a Kraken `degree`, too), or
`from` alone, and each `text.source` the keys that name it.
"""


def page() -> str:
    """The whole page, as Markdown."""
    schema, defaults = load("workflow/schemas/config.schema.yaml"), Defaults()
    sections: dict[str, list[str]] = {}
    for key, value in keys(schema, schema["$defs"]):
        section = "Top level" if "." not in key else f"`{key.split('.')[0]}`"
        if key.startswith("models.<name>."):
            section = "`models.<name>`"
        cells = [f"`{key}`", kind(value, schema["$defs"]), defaults.of(key), value["description"].strip()]
        sections.setdefault(section, []).append(f"| {' | '.join(cells)} |")
    lines = [HEAD]
    for section, rows in sections.items():
        lines += [f"## {section}", "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def load(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


class Defaults:
    """What config.yaml and the scales' files set."""

    def __init__(self) -> None:
        self.common = load("config/config.yaml")
        self.scales = {name: load(f"config/scales/{name}.yaml") for name in ("tiny", "single-gpu", "paper")}

    def of(self, key: str) -> str:
        """Default of a dotted key, by scale where they differ; empty where there is none. Of shapes the names."""
        common = at(self.common, key)
        found = {name: common if (value := at(scale, key)) is None else value for name, scale in self.scales.items()}
        by_value: dict[str, list[str]] = {}
        for name, value in found.items():
            if value is not None:
                by_value.setdefault(shown(value), []).append(name)
        if len(by_value) == 1 and None not in found.values():
            return next(iter(by_value))
        return "; ".join(f"{', '.join(names)}: {value}" for value, names in by_value.items())


def at(values: object, key: str) -> object:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def shown(value: object) -> str:
    if isinstance(value, Mapping):
        value = list(value)
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def keys(schema: Mapping, defs: Mapping, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """(dotted key, its schema) of everything that a user may set, sections themselves left out."""
    for name, value in resolved(schema, defs).get("properties", {}).items():
        key = f"{prefix}{name}"
        inner = resolved(value, defs)
        if key == "models":
            yield from keys(inner["additionalProperties"], defs, "models.<name>.")
        elif "properties" in inner and key != "models.<name>.training":
            yield from keys(inner, defs, f"{key}.")
        else:
            yield key, value


def resolved(schema: Mapping, defs: Mapping) -> dict:
    """The schema with what its $ref stands for."""
    if "$ref" not in schema:
        return dict(schema)
    return defs[schema["$ref"].rsplit("/", 1)[-1]] | {name: value for name, value in schema.items() if name != "$ref"}


def kind(schema: Mapping, defs: Mapping) -> str:
    """In words, what a value has to be."""
    schema = resolved(schema, defs)
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if types == ["array"]:
        return f"list: {kind(schema['items'], defs)}"
    words = {"object": "keys", "boolean": "true or false", "string": "text", "null": "null"}
    return " or ".join(words.get(each) or f"{each}{bounds(schema)}" for each in types)


def bounds(schema: Mapping) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    words = [f"from {low}"] if low is not None else []
    words += [f"above {schema['exclusiveMinimum']}"] if "exclusiveMinimum" in schema else []
    words += [f"to {high}"] if high is not None else []
    words += [f"below {schema['exclusiveMaximum']}"] if "exclusiveMaximum" in schema else []
    return " ".join(["", *words])


if __name__ == "__main__":
    (ROOT / "docs" / "configuration.md").write_text(page())
