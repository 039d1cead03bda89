# Shapes in, time to first token out. Random weights: nothing is trained for it.


# One job holds every architecture of one size and number of ranks, interleaved, alone on the machine.
rule ttft:
    output:
        table=f"results/{LATENCY}/{{size}}-tp{{tp}}.csv",
        breakdown=f"results/{LATENCY}/{{size}}-tp{{tp}}-breakdown.csv",
    log:
        f"results/{LATENCY}/logs/{{size}}-tp{{tp}}.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: workflow.resource_settings.cores or 1
    resources:
        timing=1,
        gpu=lambda wildcards: timing_gpus(int(wildcards.tp)),
    params:
        launcher=LAUNCHER,
        shape=lambda wildcards: json.dumps(CONFIG["latency"]["sizes"][wildcards.size]),
        settings=json.dumps(
            {
                key: value
                for key, value in CONFIG["latency"].items()
                if key not in ("sizes", "tp")
            }
        ),
        scale=SCALE,
    message:
        "Time to first token: {wildcards.size}, {wildcards.tp} rank(s), every architecture, alone on the machine"
    shell:
        "{params.launcher} krakenlm ttft {wildcards.size} --shape {params.shape:q} --tp {wildcards.tp}"
        " --settings {params.settings:q} --scale {params.scale} --breakdown {output.breakdown:q}"
        " --out {output.table:q} > {log:q} 2>&1"


rule ttft_table:
    input:
        expand(
            (
                f"results/{LATENCY}/tensorrt/{{size}}-tp{{tp}}.csv"
                if ENGINE == "tensorrt_llm"
                else f"results/{LATENCY}/{{size}}-tp{{tp}}.csv"
            ),
            size=CONFIG["latency"]["sizes"],
            tp=CONFIG["latency"]["tp"],
        ),
    output:
        report(
            "results/ttft.csv",
            caption="../report/ttft.rst",
            category="Results",
        ),
    log:
        f"results/{LATENCY}/logs/table.log",
    # Put together where snakemake runs: on a cluster no job waits in a queue for it.
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
    message:
        "results/ttft.csv"
    shell:
        "{params.launcher} krakenlm collect {input:q} --out {output:q} > {log:q} 2>&1"


# Of the PyTorch engine alone: TensorRT-LLM's trace is nsys's (docs/tensorrt-llm.md).
rule ttft_breakdown_table:
    input:
        expand(
            f"results/{LATENCY}/{{size}}-tp{{tp}}-breakdown.csv",
            size=CONFIG["latency"]["sizes"],
            tp=CONFIG["latency"]["tp"],
        ),
    output:
        report(
            "results/ttft_breakdown.csv",
            caption="../report/ttft_breakdown.rst",
            category="Results",
        ),
    log:
        f"results/{LATENCY}/logs/breakdown-table.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
    message:
        "results/ttft_breakdown.csv"
    shell:
        "{params.launcher} krakenlm collect {input:q} --out {output:q} > {log:q} 2>&1"
