# Tokens in, models out: trained here, or read from elsewhere. Checkpoints live in the model's folder and are never
# declared: Snakemake deletes the outputs of a failed job, and a run of days would go with them. The outputs are
# `update`: Snakemake leaves an earlier version where it is until the job replaces it, and restores it if the job fails.


rule train:
    input:
        train=rules.tokens.output.train,
        validation=rules.tokens.output.validation,
        manifest=rules.tokens.output.manifest,
        tokenizer=rules.tokenizer.output,
    output:
        config=update(f"{ROOT}/models/{{model}}/seed{{seed}}-{{hash}}/config.json"),
        weights=update(
            f"{ROOT}/models/{{model}}/seed{{seed}}-{{hash}}/model.safetensors"
        ),
        tokenizer=update(
            f"{ROOT}/models/{{model}}/seed{{seed}}-{{hash}}/tokenizer.json"
        ),
        metrics=report(
            update(f"{ROOT}/models/{{model}}/seed{{seed}}-{{hash}}/metrics.json"),
            caption="../report/training.rst",
            category="Training",
            labels={"model": "{model}", "seed": "{seed}"},
        ),
    log:
        f"{ROOT}/logs/train-{{model}}-seed{{seed}}-{{hash}}.log",
    wildcard_constraints:
        model="|".join(map(re.escape, settings.trained(CONFIG))),
    conda:
        "../../envs/pipeline.yaml"
    threads: lambda wildcards: settings.training_threads(CONFIG, wildcards.model)
    resources:
        gpu=lambda wildcards: settings.recipe(CONFIG, wildcards.model)["gpus"] or None,
        nodes=1,
        # What SLURM has to know of a job that starts its processes itself: see docs/clusters.md.
        mpi=lambda wildcards: "srun" if tasks(wildcards.model) > 1 else None,
        tasks=lambda wildcards: tasks(wildcards.model),
        tasks_per_gpu=0,
        cpus_per_task=lambda wildcards, threads: threads // tasks(wildcards.model),
    params:
        launcher=lambda wildcards, resources: settings.launcher(resources),
        steps=lambda wildcards: settings.recipe(CONFIG, wildcards.model)["steps"],
        tokens=subpath(input.manifest, parent=True),
        architecture=lambda wildcards: json.dumps(
            settings.architecture(CONFIG, wildcards.model)
        ),
        recipe=lambda wildcards: json.dumps(
            settings.weights_recipe(CONFIG, wildcards.model)
        ),
        out=subpath(output.config, parent=True),
    message:
        "Training {wildcards.model}, seed {wildcards.seed}: {params.steps} steps"
    shell:
        "{params.launcher} krakenlm train --tokens {params.tokens:q} --tokenizer {input.tokenizer:q}"
        " --model {params.architecture:q} --recipe {params.recipe:q} --seed {wildcards.seed}"
        " --identity {wildcards.hash} --name {wildcards.model:q} --out {params.out:q} > {log:q} 2>&1"


if settings.imported(CONFIG):

    rule import_model:
        input:
            tokenizer=rules.tokenizer.output,
        output:
            config=f"{ROOT}/models/{{model}}/seed{{seed}}-{{hash}}/config.json",
            weights=f"{ROOT}/models/{{model}}/seed{{seed}}-{{hash}}/model.safetensors",
            tokenizer=f"{ROOT}/models/{{model}}/seed{{seed}}-{{hash}}/tokenizer.json",
            metrics=f"{ROOT}/models/{{model}}/seed{{seed}}-{{hash}}/metrics.json",
        log:
            f"{ROOT}/logs/import-{{model}}-seed{{seed}}-{{hash}}.log",
        wildcard_constraints:
            model="|".join(map(re.escape, settings.imported(CONFIG))),
        conda:
            "../../envs/pipeline.yaml"
        params:
            launcher=LAUNCHER,
            source=lambda wildcards: CONFIG["models"][wildcards.model]["from"],
            kind=lambda wildcards: settings.import_kind(
                CONFIG["models"][wildcards.model]["from"]
            ),
            out=subpath(output.config, parent=True),
        message:
            "Reading {wildcards.model} from {params.source}"
        shell:
            "{params.launcher} krakenlm import {params.kind} {params.source:q} {params.out:q}"
            " --tokenizer {input.tokenizer:q} > {log:q} 2>&1"
