"""Charts as Vega-Lite specifications. They carry no colours of their own: `drawing` gives them the variables of
page.css, in the order of `ARCHITECTURES`: an architecture looks the same in every chart, legend and table.

What is said of a mark under the pointer is its description.
"""

from collections.abc import Iterable, Mapping, Sequence

import altair as alt

# The order of the colours in page.css and of the shapes. Others, as they appear, take those that are left.
ARCHITECTURES = ("standard", "standard-chunked", "parallel", "ladder", "kraken")
# What Vega calls a shape, and the path that shows it in a legend, 11 pixels high around its middle.
SHAPES = {
    "circle": "M4.5,0A4.5,4.5,0,1,1,-4.5,0A4.5,4.5,0,1,1,4.5,0Z",
    "diamond": "M0,-5.5L4.5,0L0,5.5L-4.5,0Z",
    "square": "M-4,-4H4V4H-4Z",
    "triangle-up": "M0,-5L5,4H-5Z",
    "triangle-down": "M0,5L5,-4H-5Z",
    "cross": "M-5,-1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z",
    "triangle-right": "M5,0L-4,5V-5Z",
    "triangle-left": "M-5,0L4,5V-5Z",
}
BAR = "M-5,-1H5V1H-5Z"  # of what is no architecture
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 4, 1, 4])
REFERENCE = "reference"  # what is no architecture (n-grams): grey
PLACES = (*(str(index) for index in range(len(SHAPES))), REFERENCE)
SWATCHES = dict(zip(PLACES, (*SHAPES.values(), BAR), strict=True))
# Of the specifications, as altair writes them.
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
POINTS_PER_CURVE = 300
FAINT = ("part-2", "part-5")  # colours of parts that need an outline to be told from the ground
STRONGEST = 0.55  # opacity of a field, so that the number on it can be read
Values = Sequence[Mapping]


class Palette:
    """The architectures of this page in the order of their colours."""

    def __init__(self, found: Iterable[str]) -> None:
        self.found = {name for name in found if name and name != REFERENCE}
        self.architectures = [*ARCHITECTURES, *sorted(self.found.difference(ARCHITECTURES))]

    def place(self, architecture: str) -> str:
        """`0`, `1`, ...: which colour and shape; `reference` for what is no architecture."""
        if architecture not in self.architectures:
            return REFERENCE
        return str(self.architectures.index(architecture) % len(SHAPES))

    def colour(self) -> alt.Color:
        return alt.Color("place:N", scale=alt.Scale(domain=list(PLACES)), legend=None)

    def shape(self) -> alt.Shape:
        return alt.Shape("place:N", scale=alt.Scale(domain=list(PLACES), range=[*SHAPES, "circle"]), legend=None)


def specification(chart: alt.LayerChart, height: int) -> dict:
    """The chart as a dictionary without a width, which whoever draws it gives; without addresses of schemas."""
    value = chart.properties(height=height).to_dict()
    for key in ("$schema", "config", "usermeta"):
        value.pop(key, None)
    return value


def data(values: Values) -> alt.InlineData:
    return alt.InlineData(values=list(values))


def histogram(values: Values, title: str) -> dict:
    """A bar for each range, in grey: {bin, value, text}, in their order; the vertical axis starts at 0."""
    chart = alt.Chart(data([value | {"place": REFERENCE} for value in values])).encode(
        x=alt.X("bin:N", sort=[value["bin"] for value in values], title=None, axis=alt.Axis(labelAngle=0))
    )
    bars = chart.mark_bar(fillOpacity=0.8).encode(
        y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=True, nice=True)),
        color=Palette([]).colour(),
        description="text:N",
    )
    return specification(alt.layer(bars), 180)


def bars_by_context(values: Values, palette: Palette, title: str) -> dict:
    """A bar with its interval for each series at each context.

    Args:
        values: {series, place, context, value, low, high, text}; low and high None where unknown.
        title: of the vertical axis, which starts at 0.
    """
    series = list(dict.fromkeys(value["series"] for value in values))
    chart = alt.Chart(data(values)).encode(
        x=context_axis(paddingInner=0.25), xOffset=alt.XOffset("series:N", sort=series), description="text:N"
    )
    bounded = [value for value in values if value["low"] is not None]
    layers = [
        chart.mark_bar(fillOpacity=0.8).encode(
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=True, nice=True)),
            color=palette.colour(),
        )
    ]
    if bounded:
        layers.append(chart.properties(data=data(bounded)).mark_rule(style="whisker").encode(y="low:Q", y2="high:Q"))
    return specification(alt.layer(*layers), 220)


def dots_by_context(values: Values, palette: Palette, title: str, limits: tuple[float, float], mark: float) -> dict:
    """A dot with its interval for each series at each context, side by side.

    Args:
        values: {series, place, context, value, low, high, text}; low and high None where unknown.
        title: of the vertical axis; limits: its ends; mark: where a dashed line is drawn across.
    """
    series = list(dict.fromkeys(value["series"] for value in values))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(domain=limits, nice=True, zero=False))
    chart = alt.Chart(data(values)).encode(
        x=context_axis(paddingInner=0.4),
        xOffset=alt.XOffset("series:N", sort=series),
        color=palette.colour(),
        description="text:N",
    )
    layers = [
        alt.Chart(data([{"value": mark}])).mark_rule(strokeDash=[3, 3]).encode(y=y),
        chart.mark_point(filled=True, size=65, opacity=1).encode(y=y, shape=palette.shape()),
    ]
    bounded = [value for value in values if value["low"] is not None]
    if bounded:
        bars = chart.properties(data=data(bounded)).mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
        layers.insert(1, bars)
    return specification(alt.layer(*layers), 220)


def lines_by_bandwidth(values: Values, palette: Palette, title: str, limits: tuple[float, float], mark: float) -> dict:
    """A line through each series' dots against the bandwidth of a link, on a logarithmic axis.

    Args:
        values: {series, place, bandwidth, value, text}; bandwidth in Gbit/s.
        title: of the vertical axis; limits: its ends; mark: where a dashed line is drawn across.
    """
    y = alt.Y("value:Q", title=title, scale=alt.Scale(domain=limits, nice=True, zero=False))
    x = alt.X("bandwidth:Q", title="link, Gbit/s", scale=alt.Scale(type="log", nice=False, padding=12))
    chart = alt.Chart(data(values)).encode(x=x, y=y, color=palette.colour())
    layers = [
        alt.Chart(data([{"value": mark}])).mark_rule(strokeDash=[3, 3]).encode(y=y),
        chart.mark_line(strokeWidth=1.5).encode(detail="series:N", description="series:N"),
        chart.mark_point(filled=True, size=65, opacity=1).encode(shape=palette.shape(), description="text:N"),
    ]
    return specification(alt.layer(*layers), 220)


def stacked_bars(values: Values, parts: Sequence[str], title: str) -> dict:
    """A row of its own for each label, its parts one after another in the colours --part-0, --part-1, ...

    Args:
        values: {label, part, order, value, text} in the order of the rows; `order` is that of the parts.
        parts: the names of all parts in their order.
        title: of the horizontal axis, which starts at 0.
    """
    chart, labels = rows_of_parts(values, parts)
    chart = chart.encode(
        x=alt.X("value:Q", title=title, stack="zero", axis=alt.Axis(tickCount=5)),
        order="order:O",
    )
    return specification(alt.layer(chart.mark_bar()), max(26 * len(labels), 44))


def lanes(values: Values, parts: Sequence[str], title: str) -> dict:
    """A row of its own for each label, a bar from start to end for each event in its part's colour.

    Args:
        values: {label, part, start, end, text} in the order of the rows.
        parts: the names of all parts in their order.
        title: of the horizontal axis, which starts at 0.
    """
    chart, labels = rows_of_parts(values, parts)
    chart = chart.encode(
        x=alt.X("start:Q", title=title, scale=alt.Scale(zero=True, nice=False), axis=alt.Axis(tickCount=5)),
        x2="end:Q",
    )
    return specification(alt.layer(chart.mark_bar()), 26 * len(labels))


def rows_of_parts(values: Values, parts: Sequence[str]) -> tuple[alt.Chart, list[str]]:
    """A chart with a row for each label and the parts' colours, those too faint by themselves outlined; its labels."""
    names = [f"part-{order}" for order in range(len(parts))]
    fill = alt.Scale(domain=list(parts), range=[f"var(--{name})" for name in names])
    line = alt.Scale(domain=list(parts), range=["var(--soft)" if name in FAINT else "none" for name in names])
    labels = list(dict.fromkeys(value["label"] for value in values))
    chart = alt.Chart(data(values)).encode(
        y=alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(labelLimit=150, ticks=False, domain=False)),
        color=alt.Color("part:N", scale=fill, legend=None),
        stroke=alt.Stroke("part:N", scale=line, legend=None),
        description="text:N",
    )
    return chart, labels


def squares(values: Values, rows: Sequence[str], title: str) -> dict:
    """A field for each row and column with a factor in it: Kraken's colour above 1, standard's below, stronger with it.

    Args:
        values: {row, column, faster, strength, shown, text}; `faster` is kraken or standard, strength 0 to 1.
        rows: in their order; columns stand in that of their numbers.
        title: of the horizontal axis.
    """
    columns = sorted({value["column"] for value in values}, key=int)
    chart = alt.Chart(data(values)).encode(
        x=alt.X("column:N", sort=columns, title=title, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("row:N", sort=list(rows), title=None, axis=alt.Axis(ticks=False, domain=False)),
        description="text:N",
    )
    places = {name: f"var(--place-{ARCHITECTURES.index(name)})" for name in ("kraken", "standard")}
    colour = alt.Scale(domain=list(places), range=list(places.values()))
    strength = alt.Scale(domain=[0, 1], range=[0.05, STRONGEST], clamp=True)
    fields = chart.mark_rect().encode(
        color=alt.Color("faster:N", scale=colour, legend=None),
        fillOpacity=alt.FillOpacity("strength:Q", scale=strength, legend=None),
    )
    numbers = chart.mark_text(fontSize=11, fill="var(--ink)").encode(text="shown:N")
    return specification(alt.layer(fields, numbers), max(28 * len(rows), 60))


def dots_by_size(values: Values, palette: Palette, title: str) -> dict:
    """A dot with its interval for each model against its parameters, its name beside it.

    Args:
        values: {label, place, parameters, value, low, high, text}; low and high None where unknown; the label empty
            where the same model has one already.
        title: of the vertical axis, which does not start at 0.
    """
    scale = alt.Scale(zero=False, nice=False, padding=85)  # room for names on both sides
    x = alt.X("parameters:Q", title="parameters", scale=scale, axis=alt.Axis(tickCount=5, format="~s", grid=False))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False, nice=True, padding=12))
    chart = alt.Chart(data(values)).encode(x=x, color=palette.colour(), description="text:N")
    bounded = [value for value in values if value["low"] is not None]
    layers = [chart.mark_point(filled=True, size=65, opacity=1).encode(y=y, shape=palette.shape())]
    named = [value for value in values if value["label"]]
    left = [value for value in named if is_crowded(value, named)]
    for align, dx, part in (("right", -8, left), ("left", 8, [value for value in named if value not in left])):
        if part:
            names = alt.Chart(data(part)).mark_text(align=align, dx=dx, baseline="middle")
            layers.append(names.encode(x=x, y=y, text="label:N", description="text:N"))
    if bounded:
        layers.insert(0, chart.properties(data=data(bounded)).mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q"))
    return specification(alt.layer(*layers), 260)


def is_crowded(value: Mapping, values: Values) -> bool:
    """Whether the next dot to the right, or its interval, stands where this one's name would: then it goes left."""
    wide = max(v["parameters"] for v in values) - min(v["parameters"] for v in values)
    ends = [end for v in values for end in (v["value"], v["low"], v["high"]) if end is not None]
    line = 0.08 * (max(ends) - min(ends))  # that a name is high; it is about half as wide as all dots
    return any(
        0 < other["parameters"] - value["parameters"] < 0.45 * wide
        and (other["low"] or other["value"]) - line < value["value"] < (other["high"] or other["value"]) + line
        for other in values
    )


def context_axis(**scale: float) -> alt.X:
    return alt.X("context:O", title="context, tokens", axis=alt.Axis(labelAngle=0), scale=alt.Scale(**scale))


def dots(
    values: Values,
    palette: Palette,
    title: str,
    limits: tuple[float, float] | None = None,
    mark: float | None = None,
) -> dict:
    """A row of its own for each label, a dot for each value, with its interval.

    Args:
        values: {label, place, value, low, high, text} in the order of the rows.
        title: of the horizontal axis.
        limits: of the horizontal axis; without, those of the data.
        mark: where a dashed line is drawn (chance, the generator's floor).
    """
    labels = list(dict.fromkeys(value["label"] for value in values))
    ends = [end for v in values for end in (v["value"], v["low"], v["high"]) if end is not None]
    ends += [] if mark is None else [mark]
    low, high = limits or (min(ends), max(ends))
    scale = alt.Scale(domain=[low, high], zero=False, nice=limits is None, padding=6)
    x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(labelLimit=150, grid=True, ticks=False, domain=False))
    chart = alt.Chart(data(values)).encode(y=y, color=palette.colour(), description="text:N")
    bounded = [value for value in values if value["low"] is not None]
    layers = [chart.mark_point(filled=True, size=60, opacity=1).encode(x=x, shape=palette.shape())]
    if bounded:
        bars = chart.properties(data=data(bounded)).mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
        layers.insert(0, bars)
    if mark is not None:
        layers.insert(0, alt.Chart(data([{"value": mark}])).mark_rule(strokeDash=[4, 3]).encode(x="value:Q"))
    return specification(alt.layer(*layers), max(22 * len(labels), 44))


def curves(values: Values, palette: Palette, title: str, marks: Values = (), points: bool = False) -> dict:
    """Losses over training steps, a line for each series, on a logarithmic axis: the end is where models differ.

    Args:
        values: {series, place, variant, step, value, text}; `variant` is the place of the dash.
        marks: {value, name, lowest}: levels drawn across, with their names; `lowest` is true of the floor.
        points: draw each value as a dot too.
    """
    x = alt.X("step:Q", title="training step", axis=alt.Axis(tickCount=5, format="~s", grid=False))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(type="log", nice=False, domain=ends(values, marks)))
    dash = alt.StrokeDash("variant:N", scale=alt.Scale(domain=list(range(len(DASHES))), range=DASHES), legend=None)
    if not points:  # thousands of values; a line says whose it is
        values = [{key: value[key] for key in value if key != "text"} for value in values]
    chart = alt.Chart(data(values)).encode(x=x, y=y, color=palette.colour(), detail="series:N")
    layers = [chart.mark_line(strokeWidth=1.5).encode(strokeDash=dash, description="series:N")]
    if points:
        layers.append(
            chart.mark_point(filled=True, size=40, opacity=1).encode(shape=palette.shape(), description="text:N")
        )
    for mark in marks:
        level = alt.Chart(data([mark])).encode(y="value:Q")
        # The floor's name goes below its line and to the left, where no curve is; the others' above, to the right.
        place = {"align": "left", "baseline": "top", "dx": 4, "dy": 3}
        if not mark["lowest"]:
            place = {"align": "right", "baseline": "bottom", "dy": -2}
        layers.append(level.mark_rule(strokeDash=[4, 3]))
        layers.append(level.mark_text(**place).encode(x=alt.value(0 if mark["lowest"] else "width"), text="name:N"))
    return specification(alt.layer(*layers), 260)


def ends(values: Values, marks: Values) -> tuple[float, float]:
    """A little below the least and above the greatest of values and marks."""
    found = [value["value"] for value in (*values, *marks)]
    return min(found) / 1.22, max(found) * 1.03


def thinned(points: Values) -> tuple[list[dict], int]:
    """A curve as at most POINTS_PER_CURVE means of equally many consecutive points, and how many went into each."""
    size = -(-len(points) // POINTS_PER_CURVE)
    bins = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    means = [{key: sum(point[key] for point in group) / len(group) for key in ("step", "loss")} for group in bins]
    return means, size
