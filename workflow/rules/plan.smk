# `snakemake plan`: the price of the whole scale, from nothing, before any of it is paid.


rule plan:
    log:
        f"results/{SCALE}/logs/plan.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        config=json.dumps(EVERYTHING | {"engine": ENGINE}),
    message:
        "The price of scale {SCALE}"
    shell:
        "{params.launcher} krakenlm plan --config {params.config:q} 2>&1 | tee {log:q}"
