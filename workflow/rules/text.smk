# Text in, tokens out.


rule corpus:
    input:
        settings.text_files(TEXT),
    output:
        description=f"{ROOT}/corpus/corpus.json",
        # Text that there is only as tokens has neither index nor order.
        documents=(
            expand(f"{ROOT}/corpus/{{file}}", file=["index.bin", "order.npy"])
            if TEXT["source"] != "bin"
            else []
        ),
        stories=(
            expand(f"{ROOT}/corpus/{{split}}.jsonl", split=["train", "val"])
            if TEXT["source"] == "embedded"
            else []
        ),
    log:
        f"{ROOT}/logs/corpus.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: 1 if SHARDS == 1 else 16
    params:
        launcher=LAUNCHER,
        source=TEXT["source"],
        text=json.dumps(TEXT),
        shards=SHARDS,
        out=subpath(output.description, parent=True),
    message:
        "Corpus: {params.source} text, split into training and validation"
    shell:
        "{params.launcher} krakenlm corpus --text {params.text:q} --shards {params.shards} --processes {threads}"
        " --out {params.out:q} > {log:q} 2>&1"


rule tokenizer:
    input:
        corpus=rules.corpus.output,
    output:
        f"{ROOT}/tokenizer.json",
    log:
        f"{ROOT}/logs/tokenizer.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        corpus=lambda wildcards: f"{ROOT}/corpus",
        source=(
            f"--pretrained {shlex.quote(TEXT['tokenizer'])}"
            if "tokenizer" in TEXT
            else f"--vocabulary {TEXT['vocabulary']}"
        ),
    message:
        "Tokenizer"
    shell:
        "{params.launcher} krakenlm tokenizer --corpus {params.corpus:q} {params.source} --out {output:q} > {log:q} 2>&1"


rule shard_tokens:
    input:
        corpus=rules.corpus.output,
        tokenizer=rules.tokenizer.output,
    output:
        temp(
            multiext(
                f"{ROOT}/tokens/shards/{{shard}}",
                ids=".bin",
                ends=".ends",
                description=".json",
            )
        ),
    log:
        f"{ROOT}/logs/shard-{{shard}}.log",
    wildcard_constraints:
        shard=r"\d{5}",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        corpus=lambda wildcards: f"{ROOT}/corpus",
        number=lambda wildcards: int(wildcards.shard),
        out=lambda wildcards: f"{ROOT}/tokens",
    message:
        "Tokens: shard {wildcards.shard}"
    shell:
        "{params.launcher} krakenlm tokenize --corpus {params.corpus:q} --tokenizer {input.tokenizer:q}"
        " --shard {params.number} --threads {threads} --out {params.out:q} > {log:q} 2>&1"


rule tokens:
    input:
        corpus=rules.corpus.output,
        tokenizer=rules.tokenizer.output,
        # A corpus of one shard is tokenized here, by as many threads as there are cores.
        shards=(
            expand(
                f"{ROOT}/tokens/shards/{{shard:05d}}.{{part}}",
                shard=range(SHARDS),
                part=["bin", "ends", "json"],
            )
            if SHARDS > 1
            else []
        ),
    output:
        train=f"{ROOT}/tokens/train.bin",
        validation=f"{ROOT}/tokens/val.bin",
        manifest=f"{ROOT}/tokens/manifest.json",
    log:
        f"{ROOT}/logs/tokens.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        corpus=lambda wildcards: f"{ROOT}/corpus",
        out=subpath(output.manifest, parent=True),
    message:
        "Tokens: both splits as token ids, counted and checksummed"
    shell:
        "{params.launcher} krakenlm tokenize --corpus {params.corpus:q} --tokenizer {input.tokenizer:q}"
        " --out {params.out:q} > {log:q} 2>&1"
