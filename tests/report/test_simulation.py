"""The section on simulated times: what it says of Kraken, and the grid that the page carries."""

import json
import math
import re

import pytest

from krakenlm.report import simulation, timeline
from krakenlm.report.figures import Palette
from krakenlm.report.tables import read

NAMED = {"1.3b": "1b", "6.7b": "7b"}


@pytest.fixture
def rows(inputs):
    return read(inputs.folder / "simulated.csv", simulation.NEEDED)


@pytest.fixture
def layers(inputs):
    return read(inputs.folder / "layers.csv", simulation.LAYERS_NEEDED)


def test_kraken_pays_is_the_geometric_mean_over_sizes_that_fit_with_a_split_per_rank(rows, layers):
    found = simulation.speedups(rows)
    assert set(found) == {("h100", tp, context) for tp in ("2", "8") for context in ("128", "2048")}
    assert all(sorted(values) == [1, 2] for values in found.values())
    section = simulation.section(rows, layers, Palette([]))
    values = [v for figure in section.groups[0].figures for part in figure.spec["datasets"].values() for v in part]
    assert {(value["shown"], value["faster"]) for value in values} == {("1.41", "kraken")}
    assert {row[3].text for row in section.tables[0].rows} == {"1.41\u00d7"}


def paper_rows(rows, ranks):
    """The paper's grid: at 8 ranks Kraken takes half of standard's time of 1.3b, as long of 6.7b, in between of the
    others; at 4 ranks half of that each."""
    grid = [row for row in rows if row["hardware"] == "h100" and row["tp"] == "8" and row["degree"] in ("", "8")]
    small, large = ([row | {"size": size} for row in grid if row["size"] == named] for size, named in NAMED.items())
    middle = [row | {"speedup_vs_standard": repr(math.sqrt(2))} for row in small]
    grid = [*small, *large, *(row | {"size": size} for size in ("13b", "65b", "175b") for row in middle)]
    faster = {"4": 2, "8": 1}
    return [
        row
        | {"hardware": "a100-40gb", "tp": tp, "degree": row["degree"] and tp}
        | {"speedup_vs_standard": repr(faster[tp] * float(row["speedup_vs_standard"]))}
        for tp in ranks
        for row in grid
    ]


def test_the_papers_grid_is_simulated_beside_the_papers_figure(rows):
    assert simulation.paper_grid(rows) == []  # none of the paper's machine
    other = [row | {"size": "7b"} for row in paper_rows(rows, ["8"])[-1:]]  # a size of the user's own
    columns, found, caption = paper_cells([*paper_rows(rows, ["4", "8"]), *other])
    assert columns == ["4 ranks", "8 ranks", "4 and 8 ranks"]
    assert found["kraken"] == ["2.83\u00d7", "1.41\u00d7", "2.00\u00d7"]
    assert found["kraken (paper)"] == ["", "", "1.36\u00d7"]
    assert "context 128 and 2,048, sizes 1.3b, 6.7b, 13b, 65b, 175b;" in caption
    assert "sizes that do not fit on a device count, too" in caption


@pytest.mark.parametrize(
    "missing", [{"tp": "4"}, {"context": "2048"}, {"tp": "4", "context": "2048", "size": "6.7b"}, {"size": "13b"}]
)
def test_a_mean_over_the_papers_grid_stands_only_where_all_of_the_grid_was_simulated(rows, missing):
    grid = paper_rows(rows, ["4", "8"])
    part = [row for row in grid if any(row[key] != value for key, value in missing.items())]
    columns, found, caption = paper_cells(part)
    assert "8 ranks" in columns
    assert found["kraken"][-1] == ""
    assert found["kraken"][columns.index("8 ranks")] == "1.41\u00d7"
    assert found["kraken (paper)"][-1] == "1.36\u00d7"
    assert ("2,048" in caption) == any(row["context"] == "2048" for row in part)


def paper_cells(rows):
    """The titles of the columns of speed-ups, {architecture: what stands in them}, and the caption."""
    (table,) = simulation.paper_grid(rows)
    places = [place for place, column in enumerate(table.columns) if column.title.endswith("ranks")]
    titles = [table.columns[place].title for place in places]
    return titles, {row[0].text: [row[place].text for place in places] for row in table.rows}, table.caption


def test_every_simulated_cell_can_be_chosen_and_its_figures_are_the_tables(rows, layers):
    explored = simulation.explorer(rows, layers, Palette([]))
    assert len(explored["rows"]) == len(rows)
    for coded, row in zip(explored["rows"], rows, strict=True):
        keys = (*simulation.KEYS, "architecture")
        assert [explored["names"][key][place] for key, place in zip(keys, coded, strict=False)] == [
            row[key] for key in keys
        ]
        degree, ttft, memory, fits, *parts = coded[len(keys) :]
        assert (str(degree or ""), ttft) == (row["degree"], float(row["ttft_ms_median"]))
        assert (memory, fits) == (9.877, int(row["fits"] == "True"))
        assert parts == [float(row[f"{part}_ms"]) for part in simulation.PARTS]


def test_a_layers_events_are_those_of_its_model(rows, layers):
    explored = simulation.explorer(rows, layers, Palette([]))
    names = explored["names"]
    shown = {
        names["architecture"][timeline[5]]: [
            (stream, part, names["event"][name], start, end) for stream, part, name, start, end in timeline[-1]
        ]
        for timeline in explored["timelines"]
    }
    sums = len(simulation.PARTS)
    expected = [(0, simulation.PARTS.index("gemm"), "mlp.up", 0, 9.5), (1, sums, "sum", 3, 12.5)]
    assert shown == {"standard": expected, "kraken": expected}


WORDS = "layer 12.5 \u00b5s, AllReduce 9.5 \u00b5s, of which 6.5 hidden"


def test_one_layer_of_standard_and_of_kraken_is_a_chart_whose_figures_stand_in_words_below_it(layers):
    fewer = [row | {"tp": "4", "degree": row["degree"] and "4"} for row in layers]
    others = [row | {"architecture": "ladder"} for row in fewer] + [
        row | {"hardware": "b200", "tp": "2"} for row in fewer
    ]
    (group,) = timeline.groups([*layers, *fewer, *others])
    assert group.title == "What runs when in one layer: 1b, 4 ranks of h100, context 128, batch 1"
    assert f"Standard: {WORDS}; kraken 4-way: {WORDS}." in group.caption
    (figure,) = group.figures
    assert f"Standard: {WORDS}; kraken 4-way: {WORDS}." in figure.description
    drawn = [value for values in figure.spec["datasets"].values() for value in values]
    assert {(value["label"], value["part"], value["start"], value["end"]) for value in drawn} == {
        (f"{name}{lane}", part, start, start + 9.5)
        for name in ("standard", "kraken 4-way")
        for lane, part, start in (("", "GEMM", 0.0), (", AllReduce", "AllReduce", 3.0))
    }
    assert {(sample.name, sample.place) for sample in group.legend} == {("GEMM", "part-1"), ("AllReduce", "part-6")}


def test_a_chosen_cells_timeline_has_the_same_figures(rows, layers):
    explored = simulation.explorer(rows, layers, Palette([]))
    assert [timeline.told(*each[-2]) for each in explored["timelines"]] == [WORDS] * 2


def test_an_allreduce_beside_nothing_is_not_hidden(layers):
    late = [
        row | ({"start_us": "9.5", "end_us": "20"} if row["stream"] == "communication" else {}) for row in layers[:2]
    ]
    assert timeline.amounts(late) == (20, 10.5, 0)


def test_without_a_simulation_the_page_says_so(layers):
    section = simulation.section([], layers, Palette([]))
    assert section.lead == ["No time to first token was simulated in this run."]
    assert section.explorer is None


def test_without_layers_the_section_says_that_there_is_no_timeline(rows, layers):
    missing = "The simulation\u2019s layers.csv is missing: no timeline of a layer can be shown."
    assert missing in simulation.section(rows, [], Palette([])).notes
    assert missing not in simulation.section(rows, layers, Palette([])).notes


def test_the_page_carries_the_grid_and_the_script_that_shows_it(inputs):
    page = inputs.page()
    [text] = re.findall(r'<script type="application/json" id="simulation-data">(.*?)</script>', page, re.DOTALL)
    assert len(json.loads(text)["rows"]) == len(inputs.rows("simulated"))
    assert page.count("One cell of the simulated grid") == 1
    assert 'id="explorer"' in page


def test_the_batch_that_is_shown_is_named(rows):
    larger = [row | {"batch": str(4 * int(row["batch"]))} for row in rows]
    least = min(int(row["batch"]) for row in larger)
    assert f"batch {least}, a split per rank" in simulation.pays(larger).caption
