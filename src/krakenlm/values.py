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

    def admits(self, value: float) -> bool:
        return value >= self.least

    def __str__(self) -> str:
        return f"of at least {self.least}"


class Above(NamedTuple):
    """The largest number that does not fit."""

    most: int

    def admits(self, value: float) -> bool:
        return value > self.most

    def __str__(self) -> str:
        return f"above {self.most}"


Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
Share = Annotated[float, Above(0)]
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
        if not is_of_kind(values[key], kind):
            raise InputError(
                f"{where}: {key}: expected {in_words(kind)}, found {values[key]!r}; see docs/configuration.md"
            )


def is_of_kind(value: object, kind: Any) -> bool:
    """Whether a value that was read from JSON is of an annotation's kind."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return is_of_kind(value, inner[0]) and inner[1].admits(value if isinstance(value, (int, float)) else len(value))
    if origin is Literal:
        return value in inner
    if origin in (list, Sequence):
        return isinstance(value, list) and all(is_of_kind(each, inner[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(is_of_kind(each, inner[1]) for each in value.values())
    if origin is types.UnionType:
        return any(is_of_kind(value, each) for each in inner)
    if kind is float:  # a whole number is one, too; true, which Python counts as one, is not
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def in_words(kind: Any) -> str:
    """An annotation as an error names it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return in_words(inner[0]) + (f" {inner[1]}" if inner[0] in PLAIN else f", {inner[1].least} entry at least")
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (list, Sequence):
        return f"a list, each entry {in_words(inner[0])}"
    if origin is Mapping:
        return f"an object, each value {in_words(inner[1])}"
    if origin is types.UnionType:
        return " or ".join(map(in_words, inner))
    return PLAIN.get(kind, getattr(kind, "__name__", str(kind)))
