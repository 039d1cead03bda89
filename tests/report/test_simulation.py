"""The section on simulated times: what it says of Kraken, and the grid that the page carries."""

import json
import re

import pytest

from krakenlm.report import simulation
from krakenlm.report.figures import Palette
from krakenlm.report.tables import read


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


def test_the_papers_grid_is_simulated_beside_the_papers_figure(rows):
    assert simulation.paper_grid(rows) == []  # none of the paper's machine
    grid = [row | {"hardware": "a100-40gb"} for row in rows if row["hardware"] == "h100"]
    (table,) = simulation.paper_grid(grid)
    # Of 1b at 8 ranks Kraken takes half of standard's time, of 7b as long; 4 ranks were not simulated.
    found = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert found["kraken"][:2] == ["1.41\u00d7", "1.41\u00d7"]
    assert found["kraken (paper)"][:2] == ["", "1.36\u00d7"]


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


def test_without_a_simulation_the_page_says_so(layers):
    section = simulation.section([], layers, Palette([]))
    assert section.lead == ["No time to first token was simulated in this run."]
    assert section.explorer is None


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
