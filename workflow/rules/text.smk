# Text in, tokens out.


rule corpus:
    input:
        TEXT["files"] if TEXT["source"] == "files" else [],
    output:
        train=f"{ROOT}/corpus/train.jsonl",
        validation=f"{ROOT}/corpus/val.jsonl",
        description=f"{ROOT}/corpus/corpus.json",
    log:
        f"{ROOT}/logs/corpus.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        settings=TEXT,
        text=json.dumps(TEXT),
        out=subpath(output.description, parent=True),
    message:
        "Corpus: {params.settings[source]} text, split into training and validation"
    shell:
        "{params.launcher} krakenlm corpus --text {params.text:q} --out {params.out:q} > {log:q} 2>&1"


rule tokenizer:
    input:
        train=rules.corpus.output.train,
        description=rules.corpus.output.description,
    output:
        f"{ROOT}/tokenizer.json",
    log:
        f"{ROOT}/logs/tokenizer.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        corpus=subpath(input.description, parent=True),
        source=(
            f"--pretrained {TEXT['tokenizer']}"
            if "tokenizer" in TEXT
            else f"--vocabulary {TEXT['vocabulary']}"
        ),
    message:
        "Tokenizer"
    shell:
        "{params.launcher} krakenlm tokenizer --corpus {params.corpus:q} {params.source} --out {output:q} > {log:q} 2>&1"


rule tokens:
    input:
        train=rules.corpus.output.train,
        validation=rules.corpus.output.validation,
        description=rules.corpus.output.description,
        tokenizer=rules.tokenizer.output,
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
        corpus=subpath(input.description, parent=True),
        out=subpath(output.manifest, parent=True),
    message:
        "Tokens: both splits as token ids, counted and checksummed"
    shell:
        "{params.launcher} krakenlm tokenize --corpus {params.corpus:q} --tokenizer {input.tokenizer:q}"
        " --out {params.out:q} > {log:q} 2>&1"
