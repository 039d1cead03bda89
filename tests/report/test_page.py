import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from krakenlm.errors import InputError
from krakenlm.report import breakdown, ttft
from krakenlm.report.figures import Palette
from krakenlm.report.numbers import digits


class Page(HTMLParser):
    """What a browser would see: start tags, tables by id as rows of (shown, value), texts of scripts, visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.scripts, self.text = [], {}, [], ""
        self.inside = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.inside.append(tag)
        if tag == "table":
            self.rows = self.tables[attributes["id"]] = []
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append(["", attributes.get("data-value")])
        if tag == "script":
            self.scripts.append("")
        if tag in ("meta", "link", "img", "br", "hr", "input"):
            self.inside.pop()

    def handle_endtag(self, tag):
        if tag == "td" and self.rows[-1][-1][1] is None:
            self.rows[-1][-1][1] = self.rows[-1][-1][0]
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, text):
        if self.inside and self.inside[-1] == "script":
            self.scripts[-1] += text
        elif "style" not in self.inside:
            self.text += text
            if "td" in self.inside:
                self.rows[-1][-1][0] += text

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def marks(self):
        """{what a chart's mark says: the place of its architecture}"""
        return {found["data-text"]: found.get("data-place") for _, found in self.tags if "data-text" in found}


def test_the_page_loads_nothing_from_anywhere(inputs):
    page = Page(inputs.page())
    loads = {"src", "srcset", "poster", "data", "background", "action", "formaction"}
    assert not [(tag, name) for tag, attributes in page.tags for name in attributes if name in loads]
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "embed", "img", "base")]
    assert not re.search(r"@import|url\(", inputs.page().split("<style>")[1].split("</style>")[0])
    names = {"https://arxiv.org/abs/2408.07802", "http://www.w3.org/2000/svg"}  # a link to follow, and a name of SVG's
    assert set(re.findall(r"""https?://[^"'<>\s]+""", inputs.page())) == names


def test_its_policy_forbids_all_but_the_scripts_that_are_in_it(inputs):
    page = Page(inputs.page())
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    own = [t for t, attributes in zip(page.scripts, page.all("script"), strict=True) if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in own]
    assert len(own) == 2
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes


def test_what_stands_in_the_tables_is_what_stands_in_the_csvs(inputs):
    page = Page(inputs.page())
    for table in ("ttft", "perplexity", "superglue", "engines", "breakdown"):
        shown = [[cell[0] for cell in row] for row in page.tables[f"{table}-verbatim"][1:]]
        assert shown == [list(row.values()) for row in inputs.rows(table)]
    medians = {row["ttft_ms_median"] for row in inputs.rows("ttft")}
    assert medians <= {cell[1] for row in page.tables["ttft-table"][1:] for cell in row}
    assert ["4.482", "4.4816890703380645"] in page.tables["perplexity-table"][1]


def test_charts_have_the_values_of_the_csvs(inputs):
    said = list(Page(inputs.page()).marks())
    for table, column in (("ttft", "ttft_ms_median"), ("perplexity", "perplexity"), ("engines", "ttft_ms_median")):
        for row in inputs.rows(table):
            name, value = row.get("model") or row["architecture"], digits(row[column])
            assert name == "bigram" or any(text.startswith(name) and f": {value}" in text for text in said), value


def test_the_headline_is_the_geometric_mean_of_the_cells_with_two_ranks(inputs):
    page = Page(inputs.page())
    assert "1.25\u00d7 as fast as standard\u2019s: the geometric mean over 2 cells" in " ".join(page.text.split())
    assert "it takes 20.0% less time." in " ".join(page.text.split())
    kraken, paper = page.tables["ttft-summary"][1:]
    assert float(kraken[1][1]) == pytest.approx(8.123456789 / 6.5)
    assert [cell[0] for cell in paper[:3]] == ["kraken (paper)", "1.36\u00d7", "26.3% less"]


def test_a_speed_up_over_the_best_other_row_is_that_over_the_fastest_of_each_cell(inputs):
    rows = inputs.rows("ttft")
    # At a context of 16 ladder is the fastest other row, at 32 standard.
    ladder = [row | {"architecture": "ladder", "degree": ""} for row in rows if row["architecture"] == "standard"]
    for row in ladder:
        row["speedup_vs_standard"] = "1.1" if row["context"] == "16" else "0.9"
    inputs.replace("ttft", [*rows, *ladder])
    summary = {row[0][0]: row for row in Page(inputs.page()).tables["ttft-summary"][1:]}
    speedup = 8.123456789 / 6.5
    assert float(summary["kraken"][3][1]) == pytest.approx((speedup / 1.1 * speedup / 1.0) ** 0.5)
    assert float(summary["kraken"][4][1]) == pytest.approx(1 - 1 / (speedup / 1.1**0.5))
    assert float(summary["ladder"][3][1]) == pytest.approx((1.1 * 0.9) ** 0.5 / speedup)


def test_where_the_time_goes_is_a_bar_of_parts_that_add_up(inputs):
    page = Page(inputs.page())
    figures = [figure for group in breakdown.section(inputs.rows("breakdown")).groups for figure in group.figures]
    parts = [values for figure in figures for values in figure.spec["datasets"].values()]
    assert len(parts) == 2  # contexts
    for values in parts:
        for label, whole in (("standard", 8.875), ("kraken 2", 6.375)):
            assert sum(value["value"] for value in values if value["label"] == label) == whole
    hidden = [row[-1] for row in page.tables["breakdown-table"][1:]]
    assert [value for _, value in hidden] == ["0.125", "2.625"] * 2


def test_a_part_below_zero_is_said_to_be_noise(inputs):
    rows = inputs.rows("breakdown")
    assert not any("below zero" in text for text in breakdown.section(rows).lead)
    rows[0] |= {"norm_ms": "-0.5"}
    assert any("A part below zero is noise" in text for text in breakdown.section(rows).lead)


def test_what_holds_for_every_row_of_a_table_is_said_once_above_it(inputs):
    page = Page(inputs.page())
    assert "In every row: size width-64; runs 10; source measured; batch 1; engine torch; device CPU." in page.text
    assert "CPU" not in {cell[0] for row in page.tables["ttft-table"][1:] for cell in row}


def test_whether_a_row_drifted_is_yes_no_or_empty_where_it_was_not_recorded(inputs):
    rows = [row | {"drifted": ""} for row in inputs.rows("ttft")]
    rows[0]["drifted"], rows[1]["drifted"] = "True", "False"
    found = ttft.every_cell(rows)
    place = [column.title for column in found.columns].index("drifted")
    assert [row[place].text for row in found.rows] == ["yes", "no", *[""] * (len(rows) - 2)]


def test_no_two_columns_about_time_to_first_token_have_one_head(inputs):
    for found in (ttft.summary(inputs.rows("ttft")), ttft.every_cell(inputs.rows("ttft"))):
        titles = [column.title for column in found.columns]
        assert len(titles) == len(set(titles)), titles
    assert "p95, ms" in titles


def test_a_model_scored_by_two_protocols_is_one_model_and_two_charts(inputs):
    path = inputs.folder / "perplexity.csv"
    text = path.read_text()
    authors = [line.replace("whole validation set", "authors") for line in text.splitlines(keepends=True)[1:3]]
    path.write_text(text + "".join(authors))
    page = " ".join(Page(inputs.page()).text.split())
    assert "2 trained models, 1 seed" in page
    assert page.count("Protocol: whole validation set") == page.count("Protocol: authors") == 2


def test_the_price_stands_beside_each_speed_up(inputs):
    prices = Page(inputs.page()).tables["price-table"][1:]
    assert all("1.73\u00d7" in [cell[0] for cell in row] and "98.0%" in [cell[0] for cell in row] for row in prices)
    assert len(prices) == 2


def test_synthetic_data_is_called_synthetic_at_the_top_and_real_data_is_not(inputs):
    assert "Synthetic data." in Page(inputs.page()).text.split("This run")[0]
    for path in inputs.folder.glob("*.*"):
        path.write_text(path.read_text().replace(" (synthetic)", ""))
    # The folder of this test has its name, and stands in the commands.
    assert "ynthetic" not in Page(inputs.page()).text.replace(inputs.folder.name, "")


def test_where_superglue_alone_is_about_synthetic_text_no_model_is_said_to_be_trained_on_it(inputs):
    assert "trained and scored on text that a program wrote" in " ".join(Page(inputs.page()).text.split())
    for path in inputs.folder.glob("*.*"):
        if path.name != "superglue.csv":
            path.write_text(path.read_text().replace(" (synthetic)", ""))
    text = " ".join(Page(inputs.page()).text.split())
    assert "trained and scored on text that a program wrote" not in text
    assert "SuperGLUE's formats were asked about text that a program wrote" in text


def test_a_model_named_like_a_tag_stays_text(inputs):
    name = "<script>alert(1)</script>"
    inputs.write({"standard": ("standard", ""), name: ("kraken", "2")})
    text = inputs.page()
    page = Page(text)
    assert "<script>alert" not in text
    assert name in [row[0][0] for row in page.tables["perplexity-table"] if row]
    assert any(text.startswith(name) for text in page.marks())


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("ttft", "No time to first token was measured in this run."),
        ("perplexity", "No perplexity was measured in this run."),
        ("superglue", "No SuperGLUE task was scored in this run."),
        ("engines", "No engine was built in this run."),
    ],
)
def test_a_table_that_is_missing_or_empty_is_a_sentence(inputs, table, sentence):
    path = inputs.folder / f"{table}.csv"
    header = path.read_text().splitlines()[0]
    for make in (path.unlink, path.touch, lambda: path.write_text(f"{header}\n")):
        make()
        assert sentence in Page(inputs.page()).text


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("layers.csv", "the simulation\u2019s layers.csv"),
        ("simulated.csv", "ttft_simulated.csv"),
        ("breakdown.csv", "ttft_breakdown.csv"),
        ("comparisons.csv", "comparisons.csv"),
        ("corpus.json", "corpus.json"),
        ("manifest.json", "the tokens\u2019 manifest.json"),
        ("samples.json", "samples of generated text"),
    ],
)
def test_each_part_that_is_missing_is_named_at_the_top(inputs, file, name):
    assert "Not in this report" not in inputs.page()
    (inputs.folder / file).unlink()
    (missing,) = re.findall(r"These parts are missing or failed:\s+(.*?)\. Run", inputs.page())
    assert missing == name


def test_what_is_missing_is_made_by_the_runs_own_command(inputs):
    (inputs.folder / "ttft.csv").unlink()
    assert "Run <code>snakemake --config scale=tiny</code> again" in inputs.page()


def test_every_result_and_the_page_have_the_command_that_makes_them(inputs):
    inputs.metrics.append(inputs.json("corpus/models/standard/seed1-abc/metrics.json", {}))
    rows = [[cell[0] for cell in row] for row in Page(inputs.page()).tables["commands-table"][1:]]
    commands = dict(rows)
    assert len(commands) == len(rows)  # nothing is named twice, either of two seeds included
    targets = {what: line.split()[1] for what, line in commands.items() if what != "everything"}
    assert all(line.split()[2:] == ["--config", "scale=tiny"] for what, line in rows if what != "everything")
    assert targets["this page, its charts and tables"] == "results/report.html"
    assert targets["training of standard, seed 1"] == str(inputs.metrics[-1])
    for file in ("breakdown.csv", "layers.csv", "corpus.json", "manifest.json", "samples.json"):
        assert str(inputs.folder / file) in targets.values()
        (inputs.folder / file).unlink()
    left = {cell[0] for row in Page(inputs.page()).tables["commands-table"][1:] for cell in row}
    assert not [text for text in left if "samples.json" in text or "corpus.json" in text]


def test_without_n_grams_and_floor_the_page_says_so(inputs):
    path = inputs.folder / "perplexity.csv"
    lines = [line.replace("1.25,3.4903429574618414", ",") for line in path.read_text().splitlines(keepends=True)]
    path.write_text("".join(lines[:-1]))
    text = " ".join(Page(inputs.page()).text.split())
    assert "No n-grams were scored in this run." in text
    assert "so no floor is drawn" in text


def test_without_corpus_manifest_and_curves_there_is_still_a_page(inputs):
    (inputs.folder / "corpus.json").unlink()
    (inputs.folder / "manifest.json").unlink()
    inputs.metrics = []
    assert "No training curves were given." in Page(inputs.page()).text


def test_values_that_are_empty_or_infinite_are_left_out_of_charts(inputs):
    for name in ("perplexity", "superglue", "ttft", "engines"):
        path = inputs.folder / f"{name}.csv"
        lines = path.read_text().splitlines()
        columns = lines[0].split(",")
        numbers = {"perplexity", "loss", "value", "stderr", "chance", "ci_low", "ttft_ms_median", "speedup_vs_standard"}
        lines[1] = ",".join(
            "inf" if column == "perplexity" else "" if column in numbers else text
            for column, text in zip(columns, re.split(r",(?! )", lines[1]), strict=True)
        )
        path.write_text("\n".join(lines) + "\n")
    charts = re.findall(r"<svg xmlns.*?</svg>", inputs.page())
    assert charts
    assert not [chart for chart in charts if re.search(r"NaN|Infinity|undefined|null|None", chart)]


def test_a_table_without_a_needed_column_is_named(inputs):
    path = inputs.folder / "ttft.csv"
    path.write_text(path.read_text().replace("ttft_ms_median", "median"))
    with pytest.raises(InputError, match=r"ttft\.csv: .*found none named ttft_ms_median"):
        inputs.page()


def test_equal_inputs_give_equal_bytes_below_one_megabyte(inputs):
    first = inputs.page("first.html")
    assert first == inputs.page("second.html")
    assert len(first.encode()) < 1_000_000


def test_an_architecture_has_the_same_colour_in_every_chart_and_table(inputs):
    page = Page(inputs.page())
    assert {a["class"] for a in page.all("i") if "data-place" in a} == {
        "dot place-0",
        "dot place-4",
        "dot place-reference",
    }
    places = {(text.split()[0].split(",")[0], place) for text, place in page.marks().items() if ", context " in text}
    assert places >= {("standard", "0"), ("kraken", "4")}


def test_a_new_architecture_gets_a_colour_of_its_own(inputs):
    path = inputs.folder / "ttft.csv"
    path.write_text(path.read_text().replace("kraken,", "squid,"))
    page = Page(inputs.page())
    assert "dot place-5" in {attributes["class"] for attributes in page.all("i")}


def test_many_readings_become_few_points(inputs):
    curve = [{"step": step, "loss": 5.0, "learning_rate": 0.1, "gradient_norm": 1.0} for step in range(30_001)]
    metrics = {"curve": curve, "validation": [], "timings": {"seconds": 1.0}}
    inputs.metrics = [inputs.json("corpus/models/standard/seed0-abc/metrics.json", metrics)]
    text = inputs.page()
    assert "each point is the mean of 101 readings" in text
    assert len(text.encode()) < 1_000_000


def test_each_table_can_be_reached_and_sorted_with_the_keyboard(inputs):
    page = Page(inputs.page())
    assert len([a for a in page.all("div") if a.get("role") == "region" and a.get("tabindex") == "0"]) == len(
        page.tables
    )
    heads = [index for index, (tag, _) in enumerate(page.tags) if tag == "th"]
    assert all(page.tags[index + 1][0] == "button" for index in heads)


def test_what_a_columns_head_explains_under_the_pointer_stands_below_its_table_too(inputs):
    text = inputs.page()
    explained = re.findall(r'title="([^"]*)">([^<]*)</button>', text)
    assert ("standard deviation of the runs", "std, ms") in explained
    for explanation, title in explained:
        assert f"<dt>{title}</dt><dd>{explanation}</dd>" in text


def test_speedups_over_several_links_are_drawn_against_bandwidth(inputs):
    path = inputs.folder / "ttft.csv"
    header, *lines = path.read_text().splitlines()
    slow = [line.replace("gloo", "gloo over 1gbit") + ",1.1" for line in lines]
    path.write_text("\n".join([f"{header},link_gbit_measured", *(f"{line},11.0" for line in lines), *slow]) + "\n")
    page = Page(inputs.page())
    figures = [figure for group in ttft.section(inputs.rows("ttft"), Palette([])).groups for figure in group.figures]
    drawn = [text for figure in figures if '"bandwidth"' in (text := json.dumps(figure.spec))]
    assert len(drawn) == 2  # two ranks, at either context
    assert all('"bandwidth": 1.1' in text and '"bandwidth": 11.0' in text for text in drawn)
    assert "gloo over 1gbit" in page.text


def test_verdicts_with_margin_and_interval_stand_below_the_scores_that_they_compare(inputs):
    tables = Page(inputs.page()).tables
    (loss,) = tables["perplexity-comparisons"][1:]
    assert [cell[0] for cell in loss[:5]] == [
        "kraken-2way", "standard", "loss, whole validation set", "+0.1234", "+0.1000 to +0.1500"
    ]  # fmt: skip
    assert [loss[6][0], loss[8][0]] == ["0.02", "different"]
    assert loss[9][0] == "t"
    # What holds for every row (models, margin, test, seeds) stands above.
    assert [row[-1][0] for row in tables["superglue-comparisons"][1:]] == [
        "equivalent",
        "no difference at this sample size",
    ]
    (inputs.folder / "comparisons.csv").unlink()
    assert not {"perplexity-comparisons", "superglue-comparisons"} & set(Page(inputs.page()).tables)


def test_several_seeds_have_their_mean_and_spread_in_every_table_and_documents_an_interval(inputs):
    for table, column in (("perplexity", "perplexity"), ("superglue", "value")):
        rows = [row | {"ci_low": "3.5", "ci_high": "5.5"} for row in inputs.rows(table)]
        other = [row | {"seed": "1", column: str(float(row[column]) + 0.2)} for row in rows if row["seed"]]
        inputs.replace(table, rows + other)
    tables = Page(inputs.page()).tables
    assert "3.500 to 5.500" in [cell[0] for cell in tables["perplexity-table"][1]]
    standard = tables["perplexity-seeds"][1]
    assert [cell[0] for cell in standard[1:3]] == ["4.582", "0.1414"]
    means = [row for row in tables["superglue-table"] if row and row[1][0] == "mean of 2"]
    assert [row[0][0] for row in means] == ["standard", "kraken-2way"]
    assert "0.713" in means[0][2][0]
    assert "s.d. over seeds 0.141" in means[0][2][0]
