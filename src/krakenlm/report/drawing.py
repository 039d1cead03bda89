"""Charts drawn as SVG while the report is written: the page needs no plotting library, a paper gets the same charts.

Their colours are the variables of page.css, so a chart follows the page's colour scheme, and paper, by itself.
"""

import json
import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

import vl_convert
from markupsafe import Markup

from krakenlm.report.figures import PLACES, VEGA_LITE

WIDTH = 372  # of a chart in the page, in its own pixels; it grows and shrinks with its column
FONT = "Liberation Sans"  # as wide as Arial and Helvetica, which page.css names too
SVG = "http://www.w3.org/2000/svg"
# What Vega writes for readers of single marks, which a chart with words and a table of its own needs not, and for
# pointers; what page.css says; sizes, which are those of the column.
DROPPED = (
    "aria-hidden",
    "aria-label",
    "aria-roledescription",
    "font-family",
    "height",
    "pointer-events",
    "role",
    "width",
)
LONG_NUMBER = re.compile(r"\d+\.\d+(?:e[-+]?\d+)?|\d+e-\d+")
ElementTree.register_namespace("", SVG)


def theme() -> dict:
    """What all charts have in common."""
    ink, soft, line = ("var(--ink)", "var(--soft)", "var(--line)")
    return {
        "background": None,
        "font": FONT,
        "range": {"category": [f"var(--place-{place})" for place in PLACES]},
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft, "titleColor": soft, "titleFontWeight": "normal", "gridColor": line,
            "domainColor": soft, "tickColor": soft, "labelFontSize": 12, "titleFontSize": 12, "titlePadding": 8,
        },
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "rule": {"color": soft},
        "text": {"color": soft, "fontSize": 12},
        "title": {"color": ink},
        "legend": {"labelColor": ink, "orient": "top", "title": None},
        "style": {"whisker": {"stroke": ink, "strokeWidth": 1.5}},
    }  # fmt: skip


def draw(spec: Mapping) -> str:
    """A Vega-Lite specification as SVG."""
    return vl_convert.vegalite_to_svg(json.dumps({**spec, "config": theme()}), vl_version=VEGA_LITE)


def for_page(spec: Mapping) -> Markup:
    """The chart as a part of an HTML page, as wide as its column.

    A mark has what is said of it in `data-text` and, if an architecture has it, that one's place in `data-place`.
    """
    root = ElementTree.fromstring(draw({**spec, "width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}))
    size = {"viewBox": root.get("viewBox")}
    values = [value for part in spec.get("datasets", {}).values() for value in part]
    said = {value[key] for value in values for key in ("text", "series") if key in value}
    places = {
        value[key]: value["place"]
        for value in values
        for key in ("text", "series", "label")
        if "place" in value and key in value
    }
    slim(root, said, places)
    root.attrib.clear()
    root.attrib.update(size)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def slim(part: ElementTree.Element, said: set[str], places: Mapping[str, str]) -> None:
    """Take away what is not seen, and give marks their words and places."""
    label = part.get("aria-label") or part.text
    kept = dict(attributes(part))
    if label in said and label == part.get("aria-label"):
        kept["data-text"] = label
    if place := place_of(label, places):
        kept["data-place"] = place
    part.attrib.clear()
    part.attrib.update(kept)
    for child in list(part):
        if child.get("class") in ("background", "foreground"):  # of a group; none of ours has colours
            part.remove(child)
        else:
            slim(child, said, places)


def place_of(label: str | None, places: Mapping[str, str]) -> str | None:
    """The place of a name, also where an axis has cut it; None of what is no name, or could be two."""
    if label and label.endswith("\u2026"):
        found = {place for name, place in places.items() if name.startswith(label[:-1])}
        return found.pop() if len(found) == 1 else None
    return places.get(label)


def attributes(part: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for name, value in part.items():
        if name == "class":  # `mark-rect role-mark layer_0_marks`; axes have marks, too
            if "role-mark" in value:
                yield name, value.split()[0]
        elif name.endswith("opacity"):  # from 0 to 1: a tenth would be coarse
            if value != "1":
                yield name, value
        elif name not in DROPPED:
            yield name, LONG_NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
