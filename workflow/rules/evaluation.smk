# Trained models in, scores out.


rule tasks:
    input:
        SUPERGLUE_FILES,
    output:
        expand(f"{TASKS}/{{task}}.jsonl", task=SUPERGLUE),
        f"{TASKS}/tasks.json",
    log:
        f"{TASKS}/tasks.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        source=settings.superglue_flags(CONFIG),
        out=subpath(output[0], parent=True),
    message:
        "SuperGLUE tasks: {params.source}"
    shell:
        "{params.launcher} krakenlm tasks {params.source} --out {params.out:q} > {log:q} 2>&1"


rule perplexity:
    input:
        config=rules.train.output.config,
        weights=rules.train.output.weights,
        tokenizer=rules.train.output.tokenizer,
        metrics=rules.train.output.metrics,
        validation=rules.tokens.output.validation,
        manifest=rules.tokens.output.manifest,
    output:
        table=f"{ROOT}/evaluation/{{model}}/seed{{seed}}-{{hash}}/perplexity.csv",
        documents=f"{ROOT}/evaluation/{{model}}/seed{{seed}}-{{hash}}/perplexity.parquet",
    log:
        f"{ROOT}/logs/perplexity-{{model}}-seed{{seed}}-{{hash}}.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: CONFIG["evaluation"]["threads"] * CONFIG["evaluation"]["ranks"]
    resources:
        gpu=EVALUATION_GPUS,
        # Not among the params: scores do not depend on it.
        ranks=CONFIG["evaluation"]["ranks"],
    params:
        launcher=LAUNCHER,
        model=subpath(input.weights, parent=True),
        tokens=subpath(input.manifest, parent=True),
        scale=SCALE,
        threads=CONFIG["evaluation"]["threads"],
        protocols=settings.perplexity_flags(CONFIG),
    message:
        "Perplexity of {wildcards.model}, seed {wildcards.seed}"
    shell:
        "{params.launcher} krakenlm perplexity {params.model:q} --tokens {params.tokens:q}"
        " --name {wildcards.model:q} --seed {wildcards.seed} --threads {params.threads} --ranks {resources.ranks}"
        " {params.protocols} --scale {params.scale} --out {output.table:q} > {log:q} 2>&1"


rule ngrams:
    input:
        train=rules.tokens.output.train,
        validation=rules.tokens.output.validation,
        manifest=rules.tokens.output.manifest,
        tokenizer=rules.tokenizer.output,
    output:
        f"{ROOT}/evaluation/ngrams/perplexity.csv",
    log:
        f"{ROOT}/logs/ngrams.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        tokens=subpath(input.manifest, parent=True),
        scale=SCALE,
    message:
        "Perplexity of unigram, bigram and Kneser-Ney 5-gram over the same tokens"
    shell:
        "{params.launcher} krakenlm ngrams --tokens {params.tokens:q} --tokenizer {input.tokenizer:q}"
        " --scale {params.scale} --out {output:q} > {log:q} 2>&1"


rule superglue:
    input:
        config=rules.train.output.config,
        weights=rules.train.output.weights,
        tokenizer=rules.train.output.tokenizer,
        metrics=rules.train.output.metrics,
        tasks=[] if SUPERGLUE_SOURCE == "hub" else rules.tasks.output,
    output:
        table=f"{ROOT}/evaluation/{{model}}/seed{{seed}}-{{hash}}/{SUPERGLUE_SCORES}.csv",
        predictions=f"{ROOT}/evaluation/{{model}}/seed{{seed}}-{{hash}}/{SUPERGLUE_SCORES}.parquet",
    log:
        f"{ROOT}/logs/{SUPERGLUE_SCORES}-{{model}}-seed{{seed}}-{{hash}}.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: CONFIG["evaluation"]["threads"] * CONFIG["evaluation"]["ranks"]
    resources:
        gpu=EVALUATION_GPUS,
        # Not among the params: scores do not depend on it.
        ranks=CONFIG["evaluation"]["ranks"],
    params:
        launcher=LAUNCHER,
        model=subpath(input.weights, parent=True),
        # Of the input: where files travel through a storage, it lies elsewhere.
        tasks=lambda wildcards, input: (
            f"--tasks {Path(input.tasks[0]).parent}" if input.tasks else ""
        ),
        scale=SCALE,
        threads=CONFIG["evaluation"]["threads"],
    message:
        "SuperGLUE of {wildcards.model}, seed {wildcards.seed}"
    shell:
        "{params.launcher} krakenlm superglue {params.model:q} {params.tasks}"
        " --name {wildcards.model:q} --seed {wildcards.seed} --threads {params.threads} --ranks {resources.ranks}"
        " --scale {params.scale} --out {output.table:q} > {log:q} 2>&1"


rule perplexity_table:
    input:
        tables=expand(f"{ROOT}/evaluation/{{model}}/perplexity.csv", model=MODELS),
        ngrams=rules.ngrams.output if CONFIG["evaluation"]["ngrams"] else [],
        documents=expand(
            f"{ROOT}/evaluation/{{model}}/perplexity.parquet", model=MODELS
        ),
    output:
        table=report(
            "results/perplexity.csv",
            caption="../report/perplexity.rst",
            category="Results",
        ),
        documents="results/perplexity.parquet",
    log:
        f"{ROOT}/logs/perplexity-table.log",
    # Put together where snakemake runs: on a cluster no job waits in a queue for it.
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
    message:
        "results/perplexity.csv"
    shell:
        "({params.launcher} krakenlm collect {input.tables:q} {input.ngrams:q} --out {output.table:q} &&"
        " {params.launcher} krakenlm collect {input.documents:q} --out {output.documents:q}) > {log:q} 2>&1"


rule superglue_table:
    input:
        tables=expand(
            f"{ROOT}/evaluation/{{model}}/{SUPERGLUE_SCORES}.csv", model=MODELS
        ),
        predictions=expand(
            f"{ROOT}/evaluation/{{model}}/{SUPERGLUE_SCORES}.parquet", model=MODELS
        ),
    output:
        table=report(
            "results/superglue.csv",
            caption="../report/superglue.rst",
            category="Results",
        ),
        predictions="results/superglue.parquet",
    log:
        f"{ROOT}/logs/superglue-table.log",
    # Put together where snakemake runs: on a cluster no job waits in a queue for it.
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
    message:
        "results/superglue.csv"
    shell:
        "({params.launcher} krakenlm collect {input.tables:q} --out {output.table:q} &&"
        " {params.launcher} krakenlm collect {input.predictions:q} --out {output.predictions:q}) > {log:q} 2>&1"


rule comparisons:
    input:
        perplexity=rules.perplexity_table.output.documents,
        superglue=rules.superglue_table.output.predictions,
    output:
        "results/comparisons.csv",
    log:
        f"{ROOT}/logs/comparisons.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        loss_margin=CONFIG["evaluation"]["loss_margin"],
        score_margin=CONFIG["evaluation"]["score_margin"],
    message:
        "results/comparisons.csv"
    shell:
        "{params.launcher} krakenlm compare --perplexity {input.perplexity:q} --superglue {input.superglue:q}"
        " --loss-margin {params.loss_margin} --score-margin {params.score_margin} --out {output:q} > {log:q} 2>&1"
