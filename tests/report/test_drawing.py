"""Charts as parts of the page: what a mark says, whose it is, and that nothing else is in them."""

import json
import re
from xml.etree import ElementTree

import pytest

from krakenlm.report.drawing import WIDTH, for_page
from krakenlm.report.figures import Palette, bars_by_context, curves, dots

PALETTE = Palette(["standard", "kraken"])


def bars(*values):
    common = {"context": 64, "low": None, "high": None}
    return bars_by_context([common | value for value in values], PALETTE, "ms")


def marks(svg, kind="*"):
    """Of the marks that say something: their attributes."""
    root = ElementTree.fromstring(svg)
    return [part.attrib for part in root.iterfind(f".//{{*}}{kind}") if "data-text" in part.attrib]


@pytest.fixture
def two_bars():
    return bars(
        {"series": "standard", "place": "0", "value": 20.0, "low": 19.0, "high": 22.0, "text": "standard: 20 ms"},
        {"series": "kraken 2", "place": "4", "value": 10.0, "text": "kraken 2: 10 ms"},
    )


def test_a_mark_says_what_it_is_and_whose(two_bars):
    found = {(mark["data-text"], mark["data-place"], mark.get("fill")) for mark in marks(for_page(two_bars), "path")}
    assert found == {("standard: 20 ms", "0", "var(--place-0)"), ("kraken 2: 10 ms", "4", "var(--place-4)")}


def test_a_bar_is_as_high_as_its_value_and_its_interval_leaves_with_it(two_bars):
    svg = for_page(two_bars)
    heights = [float(re.search(r"v([\d.]+)", mark["d"])[1]) for mark in marks(svg, "path")]
    assert heights[0] / heights[1] == pytest.approx(2, rel=0.01)
    (whisker,) = marks(svg, "line")
    assert (whisker["data-text"], whisker["data-place"]) == ("standard: 20 ms", "0")


def test_a_chart_is_as_wide_as_its_column_and_has_nothing_for_other_readers(two_bars):
    root = ElementTree.fromstring(for_page(two_bars))
    assert list(root.attrib) == ["viewBox"]
    assert root.get("viewBox").split()[2] == str(WIDTH)
    names = {name for part in root.iter() for name in part.attrib}
    assert not names & {"role", "id", "aria-label", "font-family", "style"}


LONG_NAME = "a-model-whose-name-is-longer-than-an-axis-has-room-for"


def test_names_on_an_axis_leave_with_their_architecture():
    values = [
        {"label": name, "place": place, "value": 1.0, "low": 0.5, "high": 1.5, "text": f"{name}: 1.0"}
        for name, place in (("standard", "0"), ("kraken-2way", "4"), (LONG_NAME, "2"))
    ]
    root = ElementTree.fromstring(for_page(dots(values, PALETTE, "x")))
    texts = {part.text: part.get("data-place") for part in root.iterfind(".//{*}text")}
    assert (texts["standard"], texts["kraken-2way"], texts["x"]) == ("0", "4", None)
    assert [place for text, place in texts.items() if text.startswith("a-model") and text.endswith("\u2026")] == ["2"]


def test_a_line_says_whose_it_is():
    values = [
        {"series": series, "place": "4", "variant": 0, "step": step, "value": 5.0 - step, "text": f"{series} {step}"}
        for series in ("a, seed 0", "a, seed 1")
        for step in range(3)
    ]
    lines = [mark["data-text"] for mark in marks(for_page(curves(values, PALETTE, "loss")))]
    assert lines == ["a, seed 0", "a, seed 1"]
    dotted = {mark["data-text"] for mark in marks(for_page(curves(values, PALETTE, "loss", points=True)))}
    assert dotted == {*lines, *(value["text"] for value in values)}


def test_shades_keep_their_strength():
    values = [{"x": name, "strength": strength, "text": name} for name, strength in (("a", 0.12), ("b", 0.14))]
    strength = {"field": "strength", "type": "quantitative", "scale": None}
    encoding = {"x": {"field": "x", "type": "nominal"}, "fillOpacity": strength, "description": {"field": "text"}}
    spec = {"mark": "rect", "data": {"name": "shades"}, "datasets": {"shades": values}, "encoding": encoding}
    assert {mark["fill-opacity"] for mark in marks(for_page(spec))} == {"0.12", "0.14"}


def test_what_is_said_stays_text(two_bars):
    evil = '"><script>alert(1)</script>&amp;'
    spec = json.loads(json.dumps(two_bars).replace("kraken 2: 10 ms", json.dumps(evil)[1:-1]))
    svg = for_page(spec)
    assert "<script" not in svg
    assert evil in {mark["data-text"] for mark in marks(svg)}
