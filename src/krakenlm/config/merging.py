"""One configuration over another, and what the command line brings as text."""

import copy
import math
from collections.abc import Mapping

import yaml

from krakenlm.errors import InputError


def merge(base: Mapping, over: Mapping) -> dict:
    """`base` with `over` on top, key by key."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def without_nulls(config: Mapping) -> dict:
    """The merged configuration without the models and sizes that a user has set to null."""
    kept = {}
    for key, value in config.items():
        if key in ("models", "sizes") and isinstance(value, Mapping):
            value = {name: item for name, item in value.items() if item is not None}
        kept[key] = without_nulls(value) if isinstance(value, Mapping) else value
    return kept


def check_nulls(scale: Mapping, given: Mapping) -> None:
    """Refuse a null for a model or size that the scale does not have: a slip of the pen would go unseen.

    Raises:
        InputError: naming the key.
    """
    for section, named in {"models": "models", "sizes": "latency.sizes"}.items():
        known, wanted = ((part if section == "models" else part.get("latency", {})) for part in (scale, given))
        for name, value in wanted.get(section, {}).items():
            if value is None and name not in known.get(section, {}):
                names = ", ".join(known.get(section, {}))
                raise InputError(f"{named}.{name}: expected one of {names} to leave out, found {name!r}; correct it")


def read_scalars(value: object) -> object:
    """The strings that Snakemake's `--config` brings, read as the YAML scalars that the user typed."""
    if isinstance(value, Mapping):
        return {key: read_scalars(item) for key, item in value.items()}
    if isinstance(value, list):
        return [read_scalars(item) for item in value]
    if not isinstance(value, str):
        return value
    for parse in (int, float):
        try:
            number = parse(value)
        except ValueError:
            continue
        return number if math.isfinite(number) else value
    try:
        scalar = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return scalar if scalar is None or isinstance(scalar, bool) else value
