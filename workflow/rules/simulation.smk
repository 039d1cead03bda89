# Shapes and descriptions of machines in, predicted time to first token out. Nothing is measured here.


rule simulate:
    input:
        [str(settings.hardware_file(name)) for name in CONFIG["simulation"]["hardware"]],
    output:
        table=f"results/{SIMULATION}/ttft_simulated.csv",
        layers=f"results/{SIMULATION}/layers.csv",
    log:
        f"results/{SIMULATION}/logs/simulate.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        settings=json.dumps(CONFIG["simulation"]),
        scale=SCALE,
    message:
        "Time to first token, simulated on machines that are not here"
    shell:
        "{params.launcher} krakenlm simulate --settings {params.settings:q} --scale {params.scale}"
        " --layers {output.layers:q} --out {output.table:q} > {log:q} 2>&1"


rule simulation_table:
    input:
        rules.simulate.output.table,
    output:
        report(
            "results/ttft_simulated.csv",
            caption="../report/ttft_simulated.rst",
            category="Results",
        ),
    log:
        f"results/{SIMULATION}/logs/table.log",
    # Put together where snakemake runs: on a cluster no job waits in a queue for it.
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
    message:
        "results/ttft_simulated.csv"
    shell:
        "{params.launcher} krakenlm collect {input:q} --out {output:q} > {log:q} 2>&1"
