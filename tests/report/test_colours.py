"""The page's colours can be told from their ground and from each other, by those who see all colours and those who
do not."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from krakenlm import report
from krakenlm.report.drawing import for_page
from krakenlm.report.figures import FAINT, lanes, stacked_bars

STYLE = (Path(report.__file__).parent / "page.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", rule)) for rule in STYLE.split(":root")[1:3])
SCHEMES = {"light": LIGHT, "dark": DARK}
# Linear RGB to what is seen without the cones for long, middle and short waves (Machado et al. 2009, severity 1).
COLOUR_BLINDNESS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}


def linear(colour):
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def contrast(one, other):
    """WCAG 2's contrast ratio, 1 to 21."""
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(one), linear(other)))
    return (high + 0.05) / (low + 0.05)


def lab(colour, matrix):
    """CIELAB under D65 of a colour as it is seen."""
    red, green, blue = (min(max(sum(a * b for a, b in zip(row, linear(colour), strict=True)), 0), 1) for row in matrix)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_the_contrast_that_wcag_asks_for(scheme):
    colours = SCHEMES[scheme]
    for name in ("ink", "soft", "link", "agrees", "differs"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    assert contrast(colours["warn-ink"], colours["warn-paper"]) >= 4.5
    assert contrast(colours["ink"], colours["shade"]) >= 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_marks_have_the_contrast_that_wcag_asks_for(scheme):
    colours = SCHEMES[scheme]
    places = [name for name in colours if name.startswith("place-")]
    assert len(places) == 9
    assert all(contrast(colours[name], colours["paper"]) >= 3 for name in places)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_part_is_told_from_the_ground_by_its_colour_or_by_an_outline(scheme):
    colours = SCHEMES[scheme]
    parts = [name for name in colours if name.startswith("part-")]
    assert len(parts) == 7
    assert {name for name in parts if contrast(colours[name], colours["paper"]) < 3} <= set(FAINT)
    assert contrast(colours["soft"], colours["paper"]) >= 3  # of an outline


def test_faint_parts_are_outlined_in_charts_in_the_grid_of_cells_and_in_legends():
    assert re.search(", ".join(rf"\.{name}" for name in FAINT) + r" \{ outline: 1px solid var\(--soft\)", STYLE)
    names = [f"part {place}" for place in range(7)]
    values = [{"label": "a", "part": name, "order": 0, "value": 1.0, "text": name} for name in names]
    spans = [{"label": "a", "part": name, "start": 0.0, "end": 1.0, "text": name} for name in names]
    for spec in (stacked_bars(values, names, "ms"), lanes(spans, names, "ms")):
        marks = [part.attrib for part in ElementTree.fromstring(for_page(spec)).iter() if "data-text" in part.attrib]
        outlined = {mark["fill"] for mark in marks if mark.get("stroke") == "var(--soft)"}
        assert len(marks) == 7
        assert outlined == {f"var(--{name})" for name in FAINT}


def test_no_text_and_no_border_of_a_field_is_fainter_than_the_softest_text():
    style = STYLE + (Path(report.__file__).parent / "simulation.css").read_text()
    assert not re.search(r"opacity: 0?\.", style)
    for rule in re.findall(r"(?:input|select) \{[^}]*\}", style):
        assert "border: 1px solid var(--soft)" in rule or "border" not in rule
    script = (Path(report.__file__).parent / "simulation.js").read_text()
    assert not re.search(r"class: `name place-", script)


@pytest.mark.parametrize("blindness", COLOUR_BLINDNESS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_five_architectures_are_told_apart_without_all_cones(scheme, blindness):
    matrix = COLOUR_BLINDNESS[blindness]
    seen = [lab(SCHEMES[scheme][f"place-{place}"], matrix) for place in range(5)]
    distances = [
        sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) ** 0.5 for pair in itertools.combinations(seen, 2)
    ]
    assert min(distances) > 10
