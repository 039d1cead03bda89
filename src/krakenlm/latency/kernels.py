"""Measured times of kernels over a grid of shapes, and what they say of the shapes between.

What is interpolated, linearly over the logarithms of the shape, is the logarithm of how many times as long a kernel
took as a simple model of it (`Roofline`, or a link's): that is smooth where times are not, so that few points suffice,
and beyond the grid and on a device of other bandwidths the model goes on from the nearest point.
"""

import bisect
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from krakenlm.errors import InputError
from krakenlm.files import read_json, write_text

# Values of an axis that are kept lie at least this far apart.
THINNING = (8.0, 4.0, 2.0, 1.0)
# Held-out points that a grid is judged by, about, where there are as many.
JUDGES = 2000
# The median of the absolute errors that is good enough, and tables so small that they are kept whole.
GOOD_ENOUGH, SMALL = 0.06, 100
INTERVAL = (0.05, 0.95)  # quantiles of the errors that are kept


@dataclass(frozen=True)
class Roofline:
    """The least time of a kernel: FLOP/s and bytes/s that cannot be exceeded, behind the seconds of a launch."""

    flops: float
    bytes: float
    launch: float

    def seconds(self, flops: float, moved: float) -> float:
        return self.launch + max(flops / self.flops, moved / self.bytes)


@dataclass(frozen=True)
class HeldOut:
    """How far interpolation is from measured points that it does not go through: time predicted over measured, - 1.

    median: of the absolute errors. low, high: quantiles of the errors (`INTERVAL`). Of a table that has every measured
    point, those at every second value of its longest axis when they are left out.
    """

    points: int
    median: float
    low: float
    high: float


class Table:
    """One kernel's measured seconds on a grid, over a model's."""

    def __init__(
        self,
        axes: Mapping[str, Sequence[float]],
        seconds: Sequence[float | None],
        model: Callable[..., float],
        held_out: HeldOut | None = None,
    ) -> None:
        """`seconds` in the order of the axes, the last one fastest, None where nothing was measured; `model(**at)` in
        seconds."""
        self.axes = {name: [float(value) for value in values] for name, values in axes.items()}
        self.seconds, self.held_out = list(seconds), held_out
        points = itertools.product(*self.axes.values())
        modelled = [model(**dict(zip(self.axes, point, strict=True))) for point in points]
        ratios = [math.nan if s is None else math.log(s / m) for s, m in zip(seconds, modelled, strict=True)]
        self.logs = [[math.log(value) for value in values] for values in self.axes.values()]
        grid = np.array(ratios).reshape([len(values) for values in self.logs])
        self.ratios: list[float] = filled(grid, self.logs).ravel().tolist()

    def ratio(self, **at: float) -> float:
        """How many times the model's time the kernel takes at a point; outside the grid, at the nearest one of it."""
        corners = [(0, 1.0)]
        for values, name in zip(self.logs, self.axes, strict=True):
            low, share = between(values, math.log(at[name]))
            corners = [
                (place * len(values) + low + step, weight * part)
                for place, weight in corners
                for step, part in ((0, 1 - share), (1, share))
                if part
            ]
        return math.exp(sum(weight * self.ratios[place] for place, weight in corners))


def between(values: Sequence[float], value: float) -> tuple[int, float]:
    """(place of the value below, how far `value` is from it to the next, 0 to 1), within the ends."""
    if value <= values[0]:
        return 0, 0.0
    if value >= values[-1]:
        return len(values) - 1, 0.0
    high = bisect.bisect_right(values, value)
    return high - 1, (value - values[high - 1]) / (values[high] - values[high - 1])


def filled(ratios: np.ndarray, logs: Sequence[Sequence[float]]) -> np.ndarray:
    """The grid with every missing value (NaN) as the nearest one that is there."""
    there = np.argwhere(~np.isnan(ratios))
    places = [np.array([logs[axis][i] for i in there[:, axis]]) for axis in range(ratios.ndim)]
    for missing in np.argwhere(np.isnan(ratios)):
        distance = sum((places[axis] - logs[axis][i]) ** 2 for axis, i in enumerate(missing))
        ratios[tuple(missing)] = ratios[tuple(there[int(np.argmin(distance))])]
    return ratios


def smallest_table(points: Mapping[tuple, float], names: Sequence[str], model: Callable[..., float]) -> Table:
    """A small grid of measured points from which the others follow well enough.

    From the coarsest grid on, the axis is made finer that this helps most, until the grid is good enough. A small table
    keeps all points (`whole_table`).

    Args:
        points: {(value of each axis): seconds}.
        names: of the axes.
        model: seconds at a point, by the axes' names.
    """
    if len(points) < SMALL:
        return whole_table(points, names, model)
    finest = len(THINNING) - 1
    steps = [0] * len(names)
    table = grid(points, names, model, steps)
    while table.held_out.median > GOOD_ENOUGH and min(steps) < finest:
        finer = [[s + (i == axis) for i, s in enumerate(steps)] for axis, step in enumerate(steps) if step < finest]
        tables = [grid(points, names, model, each) for each in finer]
        best = min((i for i in range(len(finer)) if tables[i].held_out), key=lambda i: tables[i].held_out.median)
        steps, table = finer[best], tables[best]
    return table


def whole_table(points: Mapping[tuple, float], names: Sequence[str], model: Callable[..., float]) -> Table:
    """A table of all points, with the errors at every second value of its longest axis when they are left out."""
    axes = [sorted({point[axis] for point in points}) for axis in range(len(names))]
    table = on_axes(points, names, model, axes)
    longest = max(range(len(axes)), key=lambda axis: len(axes[axis]))
    left = [*axes[longest][:-1:2], axes[longest][-1]]
    table.held_out = on_axes(points, names, model, [*axes[:longest], left, *axes[longest + 1 :]]).held_out
    return table


def grid(points: Mapping[tuple, float], names: Sequence[str], model: Callable, steps: Sequence[int]) -> Table:
    """The points on the axes' values thinned by THINNING[step] each."""
    values = [sorted({point[axis] for point in points}) for axis in range(len(names))]
    axes = [thinned(each, THINNING[step]) for each, step in zip(values, steps, strict=True)]
    return on_axes(points, names, model, axes)


def on_axes(
    points: Mapping[tuple, float], names: Sequence[str], model: Callable, axes: Sequence[Sequence[float]]
) -> Table:
    """The points on these values of the axes, and the errors at the others, or some of them."""
    seconds = [points.get(point) for point in itertools.product(*axes)]
    table = Table(dict(zip(names, axes, strict=True)), seconds, model)
    others = [(point, s) for point, s in points.items() if not on_grid(point, axes)]
    if others:
        table.held_out = errors(table, dict(others[:: max(1, len(others) // JUDGES)]), model)
    return table


def thinned(values: Sequence[float], factor: float) -> list[float]:
    """Values at least `factor` apart, the first and the last among them."""
    kept = [values[0]]
    for value in values[1:-1]:
        if value >= factor * kept[-1] and values[-1] >= factor * value:
            kept.append(value)
    return kept + [values[-1]] * (len(values) > 1)


def on_grid(point: tuple, axes: Sequence[Sequence[float]]) -> bool:
    return all(value in axis for value, axis in zip(point, axes, strict=True))


def errors(table: Table, points: Mapping[tuple, float], model: Callable[..., float]) -> HeldOut:
    """The table's errors at measured points, {(value of each axis): seconds}."""
    at = [dict(zip(table.axes, point, strict=True)) for point in points]
    found = np.array([table.ratio(**a) * model(**a) / s - 1 for a, s in zip(at, points.values(), strict=True)])
    low, high = np.quantile(found, INTERVAL)
    return HeldOut(len(points), float(np.median(np.abs(found))), float(low), float(high))


def write_tables(path: str | Path, about: Mapping, tables: Mapping[str, Table]) -> None:
    """Write tables, microseconds to three digits, one axis or table a line."""
    lines = [json.dumps(about, ensure_ascii=False)[:-1] + ', "tables": {']
    for number, (name, table) in enumerate(tables.items()):
        axes = {axis: [integral(value) for value in values] for axis, values in table.axes.items()}
        times = [None if s is None else float(f"{1e6 * s:.3g}") for s in table.seconds]
        held_out = None if table.held_out is None else rounded(table.held_out)
        lines.append(
            f"{json.dumps(name)}: " + '{"axes": ' + json.dumps(axes) + f', "held_out": {json.dumps(held_out)},'
        )
        lines.append(f' "us": {json.dumps([integral(t) for t in times])}' + "}" + "," * (number + 1 < len(tables)))
    write_text(path, "\n".join([*lines, "}}"]) + "\n")


def integral(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value


def rounded(held_out: HeldOut) -> dict[str, float]:
    return {key: round(value, 4) for key, value in vars(held_out).items()}


def read_tables(path: str | Path, models: Callable[[dict], Mapping[str, Callable[..., float]]]) -> tuple[dict, dict]:
    """(what the file says about itself, {name: Table}); `models(about)` gives each table's model.

    Raises:
        InputError: the file is missing or damaged.
    """
    about = read_json(path)
    try:
        known = models(about)
        tables = {
            name: Table(
                each["axes"],
                [None if us is None else us * 1e-6 for us in each["us"]],
                known[name],
                None if each["held_out"] is None else HeldOut(**each["held_out"]),
            )
            for name, each in about.pop("tables").items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: expected tables of kernels' times, found a damaged file ({type(error).__name__}: {error}); "
            "make it again: krakenlm hardware"
        ) from None
    return about, tables
