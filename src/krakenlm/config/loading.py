"""From files and the command line to one checked configuration.

Files are read and the schema is held against them by Snakemake's own functions, as its rules will see them.
"""

from collections.abc import Mapping
from pathlib import Path

import yaml

from krakenlm.config.checks import check
from krakenlm.config.merging import check_nulls, merge, read_scalars, without_nulls
from krakenlm.errors import InputError

# What a schema's patterns mean.
PATTERNS = {
    "^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters, digits, points, dashes and underscores, the first a letter or digit",
    "^(loopback|[0-9]+([.][0-9]+)?[gm]bit)$": "loopback, or a rate such as 2.5gbit or 500mbit",
}


def scale_file(scale: str, directory: Path) -> Path:
    """Path of a scale's file.

    Raises:
        InputError: there is no scale of that name.
    """
    path = directory / f"{scale}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in directory.glob("*.yaml")))
        raise InputError(f"scale: expected one of auto, {names}; found {scale!r}; choose one with --config scale=tiny")
    return path


def own_config() -> dict:
    """The keys of config/config.yaml.

    Raises:
        InputError: it is not here.
    """
    path = Path("config/config.yaml")
    if not path.is_file():
        raise InputError(f"{path}: expected in the working directory, found none; start in the folder of the Snakefile")
    return yaml.safe_load(path.read_text())


def load(given: Mapping, scale: str, folder: Path) -> tuple[dict, dict]:
    """The configuration: the file of `scale`, over it what was `given`; checked.

    Args:
        given: config.yaml, over it --configfile, over it --config.
        folder: where config/ and workflow/ are.

    Returns: the configuration, and the same with the models and sizes that were set to null, which as a --configfile
        makes this run again.

    Raises:
        InputError: naming the key.
    """
    from snakemake.common.configfile import load_configfile
    from snakemake.exceptions import WorkflowError
    from snakemake.utils import validate

    base = load_configfile(scale_file(scale, folder / "config" / "scales"))
    check_nulls(base, given)
    everything = merge(base, given) | {"scale": scale}
    merged = without_nulls(everything)
    try:
        validate(merged, str(folder.resolve() / "workflow" / "schemas" / "config.schema.yaml"))
    except WorkflowError as error:
        raise InputError(describe_schema_error(error.__context__)) from None
    check(merged)
    return merged, everything


def describe_schema_error(error: object) -> str:
    """One line for a jsonschema ValidationError: the key, what was expected, what was found, what to do."""
    key = ".".join(str(part) for part in error.absolute_path)
    found, expected = error.instance, error.validator_value
    hint = "see docs/configuration.md for every key"
    if error.validator == "additionalProperties":
        unknown = sorted(set(found) - set(error.schema.get("properties", {})))
        names = ", ".join(f"{key}.{name}".lstrip(".") for name in unknown)
        return f"{names}: unknown key; expected one of {', '.join(sorted(error.schema['properties']))}; {hint}"
    if error.validator == "required":
        missing = next(name for name in expected if name not in found)
        return f"{key}.{missing}".lstrip(".") + f": expected a value, found none; set it ({hint})"
    wanted = {
        "type": f"a value of type {expected}",
        "enum": f"one of {', '.join(map(str, expected))}" if error.validator == "enum" else "",
        "minimum": f"a number of at least {expected}",
        "maximum": f"a number of at most {expected}",
        "exclusiveMinimum": f"a number above {expected}",
        "exclusiveMaximum": f"a number below {expected}",
        "minItems": f"a list of at least {expected}",
        "pattern": PATTERNS.get(str(expected), f"text like {expected}"),
        "minProperties": f"at least {expected} of them",
        "uniqueItems": "a list without repetitions",
    }.get(error.validator, error.message)
    if error.validator == "type" and expected in ("number", "integer") and isinstance(found, str):
        hint = f"write {written}" if (written := as_yaml_number(found, expected)) else hint
    return f"{key}: expected {wanted}, found {found!r}; {hint}"


def as_yaml_number(text: str, kind: str) -> str:
    """A `number` or `integer` as YAML 1.1 knows it, which takes 2e-4 for text and 2.0e-4 for a number; or ''."""
    number = read_scalars(text)
    if isinstance(number, bool) or not isinstance(number, int | float):
        return ""
    if kind == "integer" and isinstance(number, float):
        return str(int(number)) if number.is_integer() else ""
    mantissa, found, exponent = text.strip().lower().partition("e")
    return f"{float(mantissa)}e{int(exponent):+d}" if found else f"{text.strip()}, without quotes"
