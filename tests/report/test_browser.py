"""The page as a browser shows it: Debian's Chromium, without a window, through its DevTools protocol."""

import json
import re
import shutil

import pytest

from krakenlm.report import timeline

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("no chromium here (Debian: apt-get install chromium)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")

# Charts whose marks have no extent: what is in an SVG without being seen.
BLANK = """[...document.querySelectorAll('.chart')].filter((chart) =>
    ![...chart.querySelectorAll('.mark-rect path, .mark-symbol path, .mark-line path, .mark-rule line')].some(
        (mark) => mark.getBoundingClientRect().width + mark.getBoundingClientRect().height > 1)
).map((chart) => chart.id)"""
COLUMN = """([table, column]) => [...document.querySelectorAll(`#${table} tbody tr:not([hidden])`)].map(
    (row) => row.cells[column].dataset.value ?? row.cells[column].textContent)"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, inputs):
    """`opened(width, scheme)`: the report in a tab; at the end of the test nothing was complained of or asked for."""
    complaints, asked, tabs = [], [], []

    def open_page(width=1280, scheme="light"):
        path = inputs.folder / "report.html"
        if not path.exists():
            inputs.page()
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        tabs.append(tab)
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert not complaints
    assert asked == [(inputs.folder / "report.html").as_uri()] * len(tabs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_plot_is_drawn_and_nothing_is_wider_than_the_screen(opened, width, scheme):
    tab = opened(width, scheme)
    assert tab.locator(".chart").count() >= 8
    assert tab.evaluate(BLANK) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_no_table_of_several_rows_has_to_be_moved_sideways_on_a_screen(opened):
    wide = """[...document.querySelectorAll(':not(details) > .scroll')].filter((box) =>
        box.querySelectorAll('tr').length > 2 && box.scrollWidth > box.clientWidth
    ).map((box) => box.firstElementChild.id)"""
    assert opened().evaluate(wide) == []


def test_charts_take_the_colours_of_the_scheme_as_it_changes(opened):
    tab = opened()
    colour = "getComputedStyle(document.querySelector('.chart .mark-rect path')).fill"
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(f"[{colour}, {paper}]")
    tab.emulate_media(color_scheme="dark")
    dark = tab.evaluate(f"[{colour}, {paper}]")
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    tab.emulate_media(color_scheme="dark", media="print")
    assert tab.evaluate(f"[{colour}, {paper}]") == light


def test_a_table_is_sorted_by_pointer_and_by_keyboard(opened):
    tab = opened()
    head = tab.locator("#ttft-table th", has_text="median, ms").locator("button")
    values = lambda: [float(text) for text in tab.evaluate(COLUMN, ["ttft-table", 3])]  # noqa: E731
    unsorted = values()
    head.click()
    assert values() == sorted(unsorted) != unsorted
    head.focus()
    tab.keyboard.press("Enter")
    assert values() == sorted(unsorted, reverse=True)
    assert tab.locator("#ttft-table th[aria-sort=descending]").count() == 1


def test_a_table_is_filtered_by_what_is_typed(opened, inputs):
    path = inputs.folder / "ttft.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines, *(line.replace("width-64", "width-128") for line in lines)]) + "\n")
    tab = opened()
    tab.get_by_label("Filter").first.fill("WIDTH-128")
    assert set(tab.evaluate(COLUMN, ["ttft-table", 1])) == {"width-128"}
    assert tab.locator("#ttft-table-count").text_content() == "8 of 16 rows"


def test_an_architecture_that_is_switched_off_leaves_charts_and_tables(opened):
    tab = opened()

    def shown(mark: str) -> int:
        # Playwright's own `:visible` wants an area, which an upright line has none of.
        visible = "marks => marks.filter(mark => mark.checkVisibility({visibilityProperty: true})).length"
        return tab.locator(f"#ttft-1-1 {mark}").evaluate_all(visible)

    bars, whiskers = ".mark-rect path", ".mark-rule line"
    assert (shown(bars), shown(whiskers)) == (4, 4)
    tab.get_by_role("checkbox", name="kraken").focus()
    tab.keyboard.press("Space")
    assert (shown(bars), shown(whiskers)) == (2, 2)
    assert set(tab.evaluate(COLUMN, ["ttft-table", 0])) == {"standard"}
    tab.get_by_role("checkbox", name="kraken").check()
    assert (shown(bars), shown(whiskers)) == (4, 4)


def test_every_plot_has_its_words_and_a_pointer_shows_the_spread(opened):
    tab = opened()
    assert tab.get_by_role("img", name=re.compile("table|quantiles|One layer")).count() == tab.locator(".chart").count()
    tab.locator("#ttft-1-1 .mark-rect path").first.hover()
    playwright.expect(tab.locator("#said")).to_contain_text("95% interval")
    tab.locator("h1").hover()
    playwright.expect(tab.locator("#said")).to_be_hidden()


def test_a_chosen_cells_timeline_says_in_words_what_the_chart_of_a_layer_says(opened):
    tab = opened()
    words = [timeline.told(12.5, 9.5, 6.5)] * 2
    names = tab.locator("#explorer svg[role=img]").evaluate_all("all => all.map((each) => each.ariaLabel)")
    assert names == [f"{name}: {told}" for name, told in zip(("standard", "kraken 8-way"), words, strict=True)]
    (chart,) = tab.get_by_role("img", name=re.compile("One layer")).all()
    assert all(name.casefold() in chart.get_attribute("aria-label").casefold() for name in names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_has_no_room_is_said_in_words_and_shown_at_full_strength(opened, scheme):
    tab = opened(scheme=scheme)
    tab.locator("#explorer select").first.select_option(label="small")
    row = tab.locator("#explorer .row").first
    playwright.expect(row.locator(".value")).to_contain_text("no room: ")
    style = lambda where, what: tab.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")  # noqa: E731
    assert style("#explorer .row", "opacity") == "1"
    assert "repeating-linear-gradient" in style("#explorer .row .bar", "maskImage")
    assert style("#explorer .row .name", "color") == style("body", "color")


def test_each_search_field_and_each_explanation_of_columns_has_a_name_of_its_own(opened, inputs):
    inputs.replace("ttft", [row | {"size": size} for size in ("small", "large") for row in inputs.rows("ttft")])
    tab = opened()
    for places in (tab.locator("input[type=search]"), tab.locator("details.columns > summary")):
        names = places.evaluate_all("all => all.map((each) => each.ariaLabel)")
        assert len(names) > 1
        assert len(set(names)) == len(names)
    playwright.expect(tab.get_by_role("searchbox", name="Filter The command for each number")).to_be_visible()


def test_without_scripts_every_plot_and_its_legend_are_there(browser, inputs):
    inputs.page()
    tab = browser.new_page(java_script_enabled=False)
    tab.goto((inputs.folder / "report.html").as_uri())
    assert tab.locator(".chart svg:visible").count() == tab.locator(".chart").count() >= 8
    assert tab.locator(".legend .swatch path[d=''], .chart [data-text][d='']").count() == 0
    tab.close()


def test_what_a_text_says_never_becomes_a_part_of_the_page(opened, inputs):
    evil = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    for path in (*inputs.folder.glob("*.csv"), *inputs.folder.glob("*.json")):
        name = json.dumps(evil)[1:-1] if path.suffix == ".json" else evil
        path.write_text(path.read_text().replace("embedded, 600 words (synthetic)", name))
    tab = opened()
    assert tab.locator("img").count() == 0
    assert "a <b>kraken</b>" in tab.locator("#samples-table").text_content()
    assert evil in tab.locator(".facts").text_content()


def test_a_run_of_which_nothing_is_left_opens_and_says_so(opened, inputs):
    for path in (*inputs.folder.glob("*.csv"), *inputs.folder.glob("*.json")):
        path.unlink()
    inputs.json("run.json", {"scale": "tiny", "config": {"models": {"standard": {}, "ladder": None}, "seeds": [0, 1]}})
    inputs.metrics = inputs.metrics[:1]
    tab = opened()
    missing = tab.locator(".warning").first.text_content()
    assert "the training of standard, seed 1" in missing
    assert "the training of standard, seed 0" not in missing
    assert "ladder" not in missing
    assert "superglue.csv" in missing
    assert tab.locator(".claim .word").all_text_contents() == ["\u2013 not measured"] * 3
