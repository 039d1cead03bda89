"""The page's charts and tables as files for a paper: SVG and PDF, and LaTeX.

Charts have the page's light colours and carry their own legend and title. Tables need the package booktabs.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import vl_convert

from krakenlm.files import refuse_other_files, writing, writing_folder
from krakenlm.report.drawing import draw
from krakenlm.report.elements import Figure, Section, Table
from krakenlm.report.figures import Palette

WIDTH = 360  # of a chart, in pixels of 1/72 inch
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u00d7": r"$\times$"}
    | {"\u00b1": r"$\pm$", "\u00b7": r"$\cdot$", "\u2019": "'", "\u201c": "``", "\u201d": "''"}
)


def write_figures(sections: Sequence[Section], palette: Palette, style: str, folder: Path) -> None:
    """Every chart as `<section>-<group>-<chart>.svg` and `.pdf`.

    Args:
        style: page.css, whose light colours the charts take.
        folder: replaced as a whole.
    """
    refuse_other_files(folder, ("*.svg", "*.pdf"))
    colours = light_colours(style)
    with writing_folder(folder) as temporary:
        for name, figure in figures(sections):
            drawn = draw(standing_alone(figure, palette))
            svg = re.sub(r"var\(--([\w-]+)\)", lambda found: colours.get(found[1], found[0]), drawn)
            (temporary / f"{name}.svg").write_text(svg, encoding="utf-8")
            (temporary / f"{name}.pdf").write_bytes(vl_convert.svg_to_pdf(svg))


def figures(sections: Sequence[Section]) -> Iterator[tuple[str, Figure]]:
    seen: Counter[str] = Counter()
    for section in sections:
        for group in section.groups:
            for figure in group.figures:
                name = "-".join([section.name, slug(group.title), slug(figure.title)])
                seen[name] += 1
                yield f"{name}-{seen[name]}" if seen[name] > 1 else name, figure


def slug(title: str) -> str:
    """`width-64-2-ranks` of `width-64, 2 ranks`."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def light_colours(style: str) -> dict[str, str]:
    """The colours of the first rule of page.css, which are those of its light scheme: `ink`, `place-0`, `part-0`."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", style[: style.index("}")]))


def standing_alone(figure: Figure, palette: Palette) -> dict:
    """The specification with a width, a title, a legend and a ground of its own."""
    title = {"text": figure.title, "anchor": "start", "fontSize": 12}
    return legend(figure.spec, palette) | {"width": WIDTH, "title": title, "background": "white"}


def legend(spec: dict, palette: Palette) -> dict:
    """The specification with a legend of the architectures that it shows, where there are several, or of the parts."""
    values = [value for part in spec.get("datasets", {}).values() for value in part]
    found = {value["place"] for value in values if "place" in value}
    names = {place: name for name in palette.architectures if (place := palette.place(name)) in found}
    shown = {"values": list(names), "labelExpr": f"({names!r})[datum.label]", "title": None}
    legends = {"part": {"title": None, "columns": 4}} | ({"place": shown} if len(names) > 1 else {})

    def with_legend(part: object) -> object:
        if isinstance(part, list):
            return [with_legend(item) for item in part]
        if not isinstance(part, dict):
            return part
        changed = {key: value if key == "datasets" else with_legend(value) for key, value in part.items()}
        has_one = "legend" in part and part["field"] in legends
        return changed | {"legend": legends[part["field"]]} if has_one else changed

    return with_legend(spec)


def write_tables(sections: Sequence[Section], folder: Path) -> None:
    """Every table that the page shows unfolded as `<name>.tex`; `folder` is replaced as a whole."""
    refuse_other_files(folder, ("*.tex",))
    with writing_folder(folder) as temporary:
        for section in sections:
            for table in [*([section.summary] if section.summary else []), *section.tables]:
                with writing(temporary / f"{table.name}.tex") as file:
                    file.write_text(latex(table), encoding="utf-8")


def latex(table: Table) -> str:
    """A tabular with the rules of booktabs; the caption and the columns' explanations are comments."""
    kinds = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [f"% {table.caption}".replace("\n", " ")]
    lines += [f"% In every row: {table.same}".replace("\n", " ")] if table.same else []
    lines += [f"% {column.title}: {column.explanation}" for column in table.columns if column.explanation]
    lines += [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", row(column.title for column in table.columns), r"\midrule"]
    lines += [row(f"{cell.text} {cell.note}".strip() for cell in cells) for cells in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def row(texts: Iterator[str]) -> str:
    """A line of a tabular; what TeX cannot read (an empty line, a control character) is a blank."""
    return " & ".join(re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).translate(LATEX) for text in texts) + r" \\"
