# Result files in, one page out.

# What the captions of `snakemake --report` call it: the scale that ran, where auto was asked for.
config["scale"] = SCALE


rule report_page:
    input:
        perplexity=rules.perplexity_table.output.table,
        superglue=rules.superglue_table.output.table,
        comparisons=rules.comparisons.output,
        engines=rules.engines_table.output,
        ttft=rules.ttft_table.output,
        simulated=rules.simulation_table.output,
        layers=rules.simulate.output.layers,
        breakdown=rules.ttft_breakdown_table.output if ENGINE == "torch" else [],
        corpus=rules.corpus.output.description,
        manifest=rules.tokens.output.manifest,
        samples=rules.samples.output,
        metrics=expand(f"{ROOT}/models/{{model}}/metrics.json", model=MODELS),
    output:
        page=report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
        figures=report(
            directory("results/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        tables=directory("results/tables"),
    log:
        f"{ROOT}/logs/report.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        config=json.dumps(
            {
                key: EVERYTHING[key]
                for key in EVERYTHING
                if key not in ("budget", "wandb")
            }
        ),
        breakdown=(
            "--breakdown results/ttft_breakdown.csv" if ENGINE == "torch" else ""
        ),
        run=f"{CORPUS}/report-{REPRODUCTION}.json",
    message:
        "results/report.html"
    shell:
        "{params.launcher} krakenlm report --perplexity {input.perplexity:q} --superglue {input.superglue:q}"
        " --comparisons {input.comparisons:q} --engines {input.engines:q} --ttft {input.ttft:q}"
        " {params.breakdown} --simulated {input.simulated:q} --layers {input.layers:q} --corpus {input.corpus:q} --manifest {input.manifest:q}"
        " --samples {input.samples:q} --config {params.config:q} --run {params.run:q} --out {output.page:q}"
        " --figures {output.figures:q} --tables {output.tables:q} {input.metrics:q} > {log:q} 2>&1"
