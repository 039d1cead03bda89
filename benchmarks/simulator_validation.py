"""Simulated beside measured time to first token, on the machine that this runs on.

    python benchmarks/simulator_validation.py calibrate loopback FOLDER     # each under 5 minutes on two cores
    python benchmarks/simulator_validation.py measure loopback FOLDER
    python benchmarks/simulator_validation.py calibrate 1gbit FOLDER
    python benchmarks/simulator_validation.py measure 1gbit FOLDER
    python benchmarks/simulator_validation.py compare FOLDER docs/simulator-validation.svg

Calibration measures kernels on a grid, no model; the models' widths, heads and contexts are not on it. Over loopback
one rank alone is measured, too. `compare` simulates every measured cell from the description of its link, prints the
table and the errors, and draws the scatter plot.
"""

import csv
import itertools
import sys
from pathlib import Path
from statistics import median

import numpy as np

from krakenlm.latency import calibrate, hardware, sweep
from krakenlm.latency.links import LOOPBACK
from krakenlm.latency.ttft import CHUNKS, built_as, measure_ttft
from krakenlm.models.sizing import sizes_of

RANKS, THREADS, DTYPE = 2, 1, "float32"
ARCHITECTURES = ["standard", "standard-chunked", "parallel", "ladder", "kraken"]
CONTEXTS = [48, 96, 320]
SHAPES = {
    "width-384": {"n_layer": 6, "width": 384, "n_head": 6},
    "width-640": {"n_layer": 6, "width": 640, "n_head": 10},
    "width-896": {"n_layer": 6, "width": 896, "n_head": 14},
}
VOCAB_SIZE = 50304
LARGE_DIFFERENCE = 0.10  # between architectures, whose order the simulator has to know
COLOURS = {"standard": "#0069a8", "standard-chunked": "#3b97d3", "parallel": "#007d5f", "ladder": "#ab4a8c",
           "kraken": "#d04a00"}  # fmt: skip


def description_of(folder: Path, link: str) -> Path:
    return folder / f"this-machine-{link}.yaml"


def measure(folder: Path, link: str) -> None:
    """Write a table of every shape over a link; over loopback also of one rank."""
    for tp, size in itertools.product([RANKS, 1] if link == LOOPBACK else [RANKS], SHAPES):
        measure_ttft(
            size=size,
            tp=tp,
            out_csv=folder / f"measured-{link}-{size}-tp{tp}.csv",
            breakdown_csv=folder / f"breakdown-{link}-{size}-tp{tp}.csv",
            scale="",
            run="",
            links=[link],
            architectures=ARCHITECTURES,
            vocab_size=VOCAB_SIZE,
            contexts=CONTEXTS,
            batch=1,
            runs=21,
            most_runs=21,
            precision=0.02,
            warmup=1,
            profiled_runs=1,
            dtype=DTYPE,
            threads=THREADS,
            seed=0,
            **SHAPES[size],
        )


def simulated_ms(row: dict, place: hardware.Hardware) -> float:
    """Milliseconds that the simulator predicts for a measured row."""
    shape, tp = SHAPES[row["size"]], int(row["tp"])
    sizes = sizes_of(built_as(row["architecture"]), shape["width"], shape["n_head"], tp)
    sizes |= {"n_layer": shape["n_layer"], "vocab_size": VOCAB_SIZE, "block_size": max(CONTEXTS)}
    model = sweep.Model(row["architecture"], sizes, CHUNKS.get(row["architecture"], 1))
    trace = model.trace(tp, batch=1, new_tokens=int(row["context"]), cached=0, dtype=DTYPE, engine=place.engine)
    return 1e3 * sweep.timeline_of(trace, place).seconds


def cells_of(folder: Path) -> list[dict]:
    """Every measured cell with what is simulated for it."""
    cells = []
    for path in sorted(folder.glob("measured-*.csv")):
        link = path.name.split("-")[1]
        place = hardware.load(description_of(folder, link))
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                row["joined"] = link if int(row["tp"]) > 1 else "one rank"
                row["measured"], row["simulated"] = float(row["ttft_ms_median"]), simulated_ms(row, place)
                row["error"] = row["simulated"] / row["measured"] - 1
                cells.append(row)
    return cells


def order_of_pairs(cells: list[dict]) -> tuple[int, int]:
    """(pairs of architectures in one cell that differ by more than LARGE_DIFFERENCE, those in the right order)."""
    right = large = 0
    key = ("joined", "size", "context")
    by_cell = sorted(cells, key=lambda cell: [cell[each] for each in key])
    for _, rows in itertools.groupby(by_cell, key=lambda cell: [cell[each] for each in key]):
        for one, other in itertools.combinations(rows, 2):
            slower, faster = sorted((one, other), key=lambda cell: cell["measured"], reverse=True)
            if slower["measured"] > (1 + LARGE_DIFFERENCE) * faster["measured"]:
                large += 1
                right += slower["simulated"] > faster["simulated"]
    return large, right


def compare(folder: Path, out_svg: Path) -> None:
    """Print the table and the errors, and draw measured against simulated."""
    cells = cells_of(folder)
    print("| ranks joined by | shape | context | " + " | ".join(ARCHITECTURES) + " |")
    print("|" + "---|" * (3 + len(ARCHITECTURES)))
    table: dict[tuple, dict] = {}
    for cell in cells:
        shown = f"{cell['measured']:.1f}, {cell['simulated']:.1f} ({cell['error']:+.0%})"
        table.setdefault((cell["joined"], cell["size"], cell["context"]), {})[cell["architecture"]] = shown
    for key, row in table.items():
        print("| " + " | ".join([*key, *(row.get(name, "") for name in ARCHITECTURES)]) + " |")
    print()
    for label in ("all", *dict.fromkeys(cell["joined"] for cell in cells)):
        print(summary(label, [cell for cell in cells if label in ("all", cell["joined"])]))
    large, right = order_of_pairs(cells)
    print(f"pairs of architectures apart by more than {LARGE_DIFFERENCE:.0%}: {large}, in the right order {right}")
    out_svg.write_text(scatter(cells), encoding="utf-8")


def summary(label: str, cells: list[dict]) -> str:
    errors = [abs(cell["error"]) for cell in cells]
    signed = median(cell["error"] for cell in cells)
    return (
        f"{label}: {len(cells)} cells, absolute error {median(errors):.1%} in the median, "
        f"{np.quantile(errors, 0.9):.1%} for nine in ten, at most {max(errors):.1%}; signed median {signed:+.1%}"
    )


def scatter(cells: list[dict]) -> str:
    """Simulated over measured milliseconds, both logarithmic, as SVG; the band is 10%."""
    size, margin = 420, 46
    values = [cell[key] for cell in cells for key in ("measured", "simulated")]
    low, high = np.log(min(values) / 1.2), np.log(max(values) * 1.2)

    def at(milliseconds: float) -> float:
        return (np.log(milliseconds) - low) / (high - low) * (size - 2 * margin)

    def point(x: float, y: float) -> str:
        return f"{margin + at(x):.1f},{size - margin - at(y):.1f}"

    ends = np.exp([low, high])
    band = [point(ends[0], 0.9 * ends[0]), point(ends[1], 0.9 * ends[1]),
            point(ends[1], 1.1 * ends[1]), point(ends[0], 1.1 * ends[0])]  # fmt: skip
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" font-size="11">',
        f'<rect width="{size}" height="{size}" fill="#fff"/>',
        f'<polygon points="{" ".join(band)}" fill="#e6e9ec"/>',
        f'<polyline points="{point(ends[0], ends[0])} {point(ends[1], ends[1])}" stroke="#757b83" fill="none"/>',
    ]
    for tick in (step * 10**power for power in range(-1, 5) for step in (1, 2, 5)):
        if ends[0] <= tick <= ends[1]:
            x, y = point(tick, tick).split(",")
            parts.append(f'<text x="{x}" y="{size - margin + 16}" text-anchor="middle">{tick:g}</text>')
            parts.append(f'<text x="{margin - 6}" y="{y}" text-anchor="end" dy="4">{tick:g}</text>')
    hollow = {joined: place for place, joined in enumerate(dict.fromkeys(cell["joined"] for cell in cells))}
    fills = ("1", "0.35", "0")
    for cell in cells:
        x, y = point(cell["measured"], cell["simulated"]).split(",")
        colour = COLOURS[cell["architecture"]]
        fill = fills[hollow[cell["joined"]] % len(fills)]
        parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}" fill-opacity="{fill}" stroke="{colour}"/>')
    for place, (name, colour) in enumerate(COLOURS.items()):
        parts.append(f'<circle cx="{margin + 8}" cy="{16 + 15 * place}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{margin + 18}" y="{20 + 15 * place}">{name}</text>')
    for joined, place in hollow.items():
        y = 16 + 15 * (place + len(COLOURS))
        fill = fills[place % len(fills)]
        parts.append(f'<circle cx="{margin + 8}" cy="{y}" r="4" fill="#333" fill-opacity="{fill}" stroke="#333"/>')
        parts.append(f'<text x="{margin + 18}" y="{y + 4}">{joined}</text>')
    parts += [
        f'<text x="{size / 2}" y="{size - 8}" text-anchor="middle">measured TTFT, ms</text>',
        f'<text transform="translate(14 {size / 2}) rotate(-90)" text-anchor="middle">simulated TTFT, ms</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        _, _, folder, out_svg = sys.argv
        compare(Path(folder), Path(out_svg))
        return
    _, piece, link, folder = sys.argv
    if piece == "calibrate":
        out = description_of(Path(folder), link)
        calibrate.calibrate(out, ranks=RANKS, threads=THREADS, link=link, dtype=DTYPE)
    else:
        measure(Path(folder), link)


if __name__ == "__main__":
    main()
