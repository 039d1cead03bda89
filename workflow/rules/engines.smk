# Trained models in, shards for tensor parallelism out; each engine against its whole model.


rule shard:
    input:
        config=rules.train.output.config,
        weights=rules.train.output.weights,
    output:
        directory(f"{ROOT}/engines/{{model}}/seed{{seed}}-{{hash}}/tp{{tp}}"),
    log:
        f"{ROOT}/logs/shard-{{model}}-seed{{seed}}-{{hash}}-tp{{tp}}.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        model=subpath(input.weights, parent=True),
    message:
        "Shards of {wildcards.model}, seed {wildcards.seed}, for {wildcards.tp} ranks"
    shell:
        "{params.launcher} krakenlm shard {params.model:q} --tp {wildcards.tp} --out {output:q} > {log:q} 2>&1"


# All trained models in one job, interleaved, alone on the machine.
rule engines:
    input:
        models=expand(f"{ROOT}/models/{{model}}/config.json", model=MODELS),
        weights=expand(f"{ROOT}/models/{{model}}/model.safetensors", model=MODELS),
        shards=expand(f"{ROOT}/engines/{{engine}}", engine=ENGINES),
        validation=rules.tokens.output.validation,
        manifest=rules.tokens.output.manifest,
    output:
        f"{ROOT}/engines/{ENGINE_TIMES}.csv",
    log:
        f"{ROOT}/logs/{ENGINE_TIMES}.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: workflow.resource_settings.cores or 1
    resources:
        timing=1,
        gpu=timing_gpus(CONFIG["engines"]["tp"]),
    params:
        launcher=LAUNCHER,
        root=subpath(input.manifest, ancestor=2),
        engines=ENGINES,
        settings=json.dumps(CONFIG["engines"]),
        tokens=subpath(input.manifest, parent=True),
        scale=SCALE,
    message:
        "Engines: what each generates against its whole model, and its time to first token"
    shell:
        "{params.launcher} krakenlm engines {params.engines:q} --root {params.root:q} --tokens {params.tokens:q}"
        " --settings {params.settings:q} --scale {params.scale} --out {output:q} > {log:q} 2>&1"


rule samples:
    input:
        configs=expand(f"{ROOT}/models/{{model}}/config.json", model=MODELS),
        weights=expand(f"{ROOT}/models/{{model}}/model.safetensors", model=MODELS),
        tokenizers=expand(f"{ROOT}/models/{{model}}/tokenizer.json", model=MODELS),
        validation=rules.tokens.output.validation,
        manifest=rules.tokens.output.manifest,
    output:
        f"{ROOT}/{SAMPLES}.json",
    log:
        f"{ROOT}/logs/{SAMPLES}.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        # Of the inputs: where files travel through a storage, they lie elsewhere.
        models=lambda wildcards, input: [
            str(Path(path).parent) for path in input.weights
        ],
        tokens=subpath(input.manifest, parent=True),
    message:
        "Samples of what every model writes"
    shell:
        "{params.launcher} krakenlm samples {params.models:q} --tokens {params.tokens:q} --out {output:q} > {log:q} 2>&1"


rule engines_table:
    input:
        rules.engines.output,
        [f"{ROOT}/tensorrt/{engine}.csv" for engine in ENGINES]
        if ENGINE == "tensorrt_llm"
        else [],
    output:
        report(
            "results/engines.csv",
            caption="../report/engines.rst",
            category="Results",
        ),
    log:
        f"{ROOT}/logs/engines-table.log",
    # Put together where snakemake runs: on a cluster no job waits in a queue for it.
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
    message:
        "results/engines.csv"
    shell:
        "{params.launcher} krakenlm collect {input:q} --out {output:q} > {log:q} 2>&1"
