import re
from xml.etree import ElementTree

import pytest

from krakenlm.errors import InputError
from krakenlm.files import refuse_other_files
from krakenlm.report.elements import Cell, Column, Figure, Group, Section, Table
from krakenlm.report.paper import figures, latex


@pytest.fixture
def folders(inputs):
    inputs.page(out_figures=inputs.folder / "figures", out_tables=inputs.folder / "tables")
    return inputs.folder / "figures", inputs.folder / "tables"


def test_every_chart_is_an_svg_with_its_legend_and_a_pdf(folders, inputs):
    svgs = sorted(folders[0].glob("*.svg"))
    assert len(svgs) == (inputs.folder / "report.html").read_text().count('class="chart"')
    for path in svgs:
        ElementTree.parse(path)
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")
    bars = (folders[0] / "ttft-width-64-2-ranks-gloo-time-to-first-token.svg").read_text()
    assert {"standard", "kraken", "Time to first token"} <= set(re.findall(r">([^<>]+)</text>", bars))
    assert "#0069a8" in bars  # the light colour of standard
    assert "var(" not in bars


def test_every_table_is_a_tabular_with_a_cell_for_each_column(folders):
    names = {"ttft-summary", "ttft-table", "price-table", "perplexity-table", "superglue-table", "engines-table"}
    assert names <= {path.stem for path in folders[1].glob("*.tex")}
    for path in folders[1].glob("*.tex"):
        lines = path.read_text().splitlines()
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", path.read_text())[1])
        body = [line for line in lines if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {columns - 1}


def test_what_latex_would_read_as_a_command_is_text():
    table = Table("t", "c", [Column("a", "a_b & 5%")], [[Cell(r"\input{x} $1$ #2 1.5" + "\u00d7")]])
    text = latex(table)
    assert r"a\_b \& 5\% \\" in text
    assert r"\textbackslash{}input\{x\} \$1\$ \#2 1.5$\times$ \\" in text


def test_two_charts_of_one_name_are_two_files():
    group = Group("a b", [Figure("C", "", {}), Figure("c", "", {})], "")
    assert [name for name, _ in figures([Section("s", "S", [], groups=[group])])] == ["s-a-b-c", "s-a-b-c-2"]


def test_parts_of_a_bar_have_a_legend_of_their_own_names_and_colours(folders):
    (bars,) = folders[0].glob("breakdown-*-context-16.svg")
    shown = re.findall(r">([^<>]+)</text>", bars.read_text())
    assert {"GEMM", "GEMM under an AllReduce", "attention", "AllReduce, exposed", "other"} <= set(shown)
    assert "#2f7fb8" in bars.read_text()  # the light colour of GEMM
    assert "var(" not in bars.read_text()


def test_a_folder_that_holds_more_than_charts_is_not_replaced(tmp_path):
    (tmp_path / "ttft.svg").touch()
    (tmp_path / ".hidden").touch()
    refuse_other_files(tmp_path, ("*.svg", "*.pdf"))
    refuse_other_files(tmp_path / "none-yet", ("*.svg", "*.pdf"))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"expected a folder of \*\.svg and \*\.pdf alone, .* found thesis\.tex"):
        refuse_other_files(tmp_path, ("*.svg", "*.pdf"))
