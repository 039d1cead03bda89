"""Result files become tables and a page."""

from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.stage import Out, locked, parse_json, writing_stage

commands = typer.Typer()


@commands.command()
def collect(parts: Annotated[list[Path], typer.Argument(help="Tables of equal columns.")], out: Out) -> None:
    """Put the parts of a table together."""
    with writing_stage("collect", out, name=out.name) as run:
        from krakenlm.report.tables import collect as stage
        from krakenlm.report.tables import rows_of

        stage(parts, out)
        if out.suffix == ".csv":
            run.table(out.stem, rows_of(out))


@commands.command()
def report(
    metrics: Annotated[list[Path], typer.Argument(help="metrics.json of every model.")],
    perplexity: Annotated[Path, typer.Option()],
    superglue: Annotated[Path, typer.Option()],
    comparisons: Annotated[Path, typer.Option()],
    engines: Annotated[Path, typer.Option()],
    ttft: Annotated[Path, typer.Option()],
    simulated: Annotated[Path, typer.Option(help="ttft_simulated.csv")],
    layers: Annotated[Path, typer.Option(help="layers.csv of the same simulation.")],
    corpus: Annotated[Path, typer.Option(help="corpus.json")],
    manifest: Annotated[Path, typer.Option(help="manifest.json")],
    samples: Annotated[Path, typer.Option(help="What the models wrote (krakenlm samples).")],
    config: Annotated[str, typer.Option(help="The whole configuration as JSON.")],
    run: Annotated[str, typer.Option(help="Where the record of this run goes, below results/.")],
    out: Out,
    breakdown: Annotated[Path | None, typer.Option(help="ttft_breakdown.csv, where there is one.")] = None,
    figures: Annotated[Path | None, typer.Option(help="A folder for the charts as SVG and PDF.")] = None,
    tables: Annotated[Path | None, typer.Option(help="A folder for the tables as LaTeX.")] = None,
) -> None:
    """Write one self-contained page from result files."""
    with writing_stage("report", out, writes=[figures, tables], kind="report") as wandb_run:
        from krakenlm.report.build import build
        from krakenlm.report.environment import record

        run_json = out.parent / run
        wandb_run.summary(record(run_json, parse_json("config", config), metrics))
        build(
            perplexity_csv=perplexity,
            superglue_csv=superglue,
            comparisons_csv=comparisons,
            ttft_csv=ttft,
            breakdown_csv=breakdown,
            engines_csv=engines,
            simulated_csv=simulated,
            layers_csv=layers,
            metrics=metrics,
            corpus_json=corpus,
            manifest_json=manifest,
            samples_json=samples,
            run_json=run_json,
            out_html=out,
            out_figures=figures,
            out_tables=tables,
        )


@commands.command()
def report_so_far(results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("results")) -> None:
    """Write report-so-far.html: the page of what the newest run has made, with what failed or is not made yet."""
    from krakenlm.report.so_far import write
    from krakenlm.status import REPORT_SO_FAR

    out = results / REPORT_SO_FAR
    with locked("report-so-far", out, timing=False):
        write(results, out)
    print(f"krakenlm: this run's report so far: {out}")
