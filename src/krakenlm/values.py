"""Values from outside, such as settings given as JSON, held against the annotations of the function that takes them."""

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from krakenlm.errors import InputError


class AtLeast(NamedTuple):
    """The smallest number that fits, or how many entries a list needs."""

    least: int


Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
Share = Annotated[float, AtLeast(0)]
Counts = Annotated[Sequence[Count], AtLeast(1)]
Names = Annotated[Sequence[str], AtLeast(1)]
Dtype = Literal["float32", "float16", "bfloat16"]
HeadRule = Literal["head_size", "head_count"]

PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def check_arguments(where: str, values: Mapping, function: Callable, given: set[str]) -> None:
    """Refuse values that are not exactly the parameters of `function` but `given`, or not of their annotations' kinds.

    Raises:
        InputError: naming the key, as `where: key`.
    """
    parameters = inspect.signature(function).parameters
    wanted = set(parameters) - given
    for key in sorted(wanted ^ set(values)):
        expected, found = ("a value", "none") if key in wanted else ("no such key", repr(values[key]))
        raise InputError(f"{where}: {key}: expected {expected}, found {found}; see docs/configuration.md")
    for key in sorted(wanted):
        kind = parameters[key].annotation
        if not fits(values[key], kind):
            raise InputError(
                f"{where}: {key}: expected {in_words(kind)}, found {values[key]!r}; see docs/configuration.md"
            )


def fits(value: object, kind: Any) -> bool:
    """Whether a value that was read from JSON is of an annotation's kind."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, inner[0]) and (value if isinstance(value, (int, float)) else len(value)) >= inner[1].least
    if origin is Literal:
        return value in inner
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(fits(each, inner[1]) for each in value.values())
    if origin is types.UnionType:
        return any(fits(value, each) for each in inner)
    if kind is float:  # a whole number is one, too; true, which Python counts as one, is not
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def in_words(kind: Any) -> str:
    """An annotation as an error names it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        least = inner[1].least
        return in_words(inner[0]) + (f" of at least {least}" if inner[0] in PLAIN else f", {least} entry at least")
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (list, Sequence):
        return f"a list, each entry {in_words(inner[0])}"
    if origin is Mapping:
        return f"an object, each value {in_words(inner[1])}"
    if origin is types.UnionType:
        return " or ".join(map(in_words, inner))
    return PLAIN.get(kind, getattr(kind, "__name__", str(kind)))
