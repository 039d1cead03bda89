# Engines of TensorRT-LLM, where it is the engine (docs/tensorrt-llm.md). Its environment has of this project no more
# than the source on PYTHONPATH, so builds and timing are module entry points, not the installed command.
SOURCE = Path(settings.__file__).parents[1]


# One GPU builds the engines of all ranks of a trained model from its shards.
rule tensorrt_build:
    input:
        rules.shard.output,
    output:
        directory(f"{ROOT}/tensorrt/{{model}}/seed{{seed}}-{{hash}}/tp{{tp}}"),
    log:
        f"{ROOT}/logs/tensorrt-{{model}}-seed{{seed}}-{{hash}}-tp{{tp}}.log",
    conda:
        "../../envs/tensorrt_llm.yaml"
    resources:
        gpu=1,
    params:
        launcher=LAUNCHER,
        source=SOURCE,
        dtype=CONFIG["latency"]["dtype"],
        batch=1,
        prompt=CONFIG["engines"]["prompt_tokens"],
        new=CONFIG["engines"]["new_tokens"],
    message:
        "TensorRT-LLM builds {output}"
    shell:
        "{params.launcher} env PYTHONPATH={params.source:q} python -m krakenlm.inference.tensorrt.build {input:q}"
        " --out {output:q} --dtype {params.dtype} --batch {params.batch} --prompt {params.prompt} --new {params.new}"
        " > {log:q} 2>&1"


# One process a rank: what the engine generates against its whole model, and its time to first token.
rule tensorrt_engines:
    input:
        engine=rules.tensorrt_build.output,
        config=rules.train.output.config,
        weights=rules.train.output.weights,
        validation=rules.tokens.output.validation,
        manifest=rules.tokens.output.manifest,
    output:
        f"{ROOT}/tensorrt/{{model}}/seed{{seed}}-{{hash}}/tp{{tp}}.csv",
    log:
        f"{ROOT}/logs/tensorrt-engines-{{model}}-seed{{seed}}-{{hash}}-tp{{tp}}.log",
    conda:
        "../../envs/tensorrt_llm.yaml"
    threads: workflow.resource_settings.cores or 1
    resources:
        timing=1,
        gpu=lambda wildcards: timing_gpus(int(wildcards.tp)),
        mpi="mpirun",
        tasks=lambda wildcards: int(wildcards.tp),
    params:
        source=SOURCE,
        model=subpath(input.weights, parent=True),
        tokens=subpath(input.manifest, parent=True),
        settings=json.dumps(CONFIG["engines"]),
        run=lambda wildcards: f"{CORPUS.partition('/')[2]}/models/{wildcards.model}",
        scale=SCALE,
    message:
        "TensorRT-LLM's engine of {wildcards.model}, {wildcards.tp} rank(s), alone on the machine"
    shell:
        "env PYTHONPATH={params.source:q} {resources.mpi} -n {resources.tasks} python -m krakenlm.latency.tensorrt engines"
        " {input.engine:q} --model {params.model:q} --name {wildcards.model} --tokens {params.tokens:q}"
        " --settings {params.settings:q} --scale {params.scale} --run {params.run} --out {output:q} > {log:q} 2>&1"


# Shards of a shape that is timed without training: sizes and a seed, 0.6 kB.
rule tensorrt_shards:
    output:
        directory(
            f"results/{LATENCY}/tensorrt/{{size}}-tp{{tp}}/{{architecture}}.shards"
        ),
    log:
        f"results/{LATENCY}/logs/tensorrt-shards-{{size}}-tp{{tp}}-{{architecture}}.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        launcher=LAUNCHER,
        shape=lambda wildcards: json.dumps(
            CONFIG["latency"]["sizes"][wildcards.size]
            | {
                "vocab_size": CONFIG["latency"]["vocab_size"],
                "block_size": max(CONFIG["latency"]["contexts"]),
            }
        ),
        seed=CONFIG["latency"]["seed"],
    message:
        "Shards of {wildcards.size}, {wildcards.architecture}, for {wildcards.tp} ranks"
    shell:
        "{params.launcher} krakenlm shard --random {params.shape:q} {wildcards.architecture} --tp {wildcards.tp}"
        " --seed {params.seed} --out {output:q} > {log:q} 2>&1"


# Weights are drawn at the build. An engine is as large as its model, and goes when it has been timed.
use rule tensorrt_build as tensorrt_build_shape with:
    input:
        rules.tensorrt_shards.output,
    output:
        temp(
            directory(
                f"results/{LATENCY}/tensorrt/{{size}}-tp{{tp}}/{{architecture}}.engines"
            )
        ),
    log:
        f"results/{LATENCY}/logs/tensorrt-{{size}}-tp{{tp}}-{{architecture}}.log",
    params:
        launcher=LAUNCHER,
        source=SOURCE,
        dtype=CONFIG["latency"]["dtype"],
        batch=CONFIG["latency"]["batch"],
        prompt=max(CONFIG["latency"]["contexts"]),
        new=1,


# One job holds every architecture of one size and number of ranks, interleaved, alone on the machine.
rule tensorrt_ttft:
    input:
        expand(
            f"results/{LATENCY}/tensorrt/{{{{size}}}}-tp{{{{tp}}}}/{{architecture}}.engines",
            architecture=TENSORRT_ARCHITECTURES,
        ),
    output:
        f"results/{LATENCY}/tensorrt/{{size}}-tp{{tp}}.csv",
    log:
        f"results/{LATENCY}/logs/tensorrt-ttft-{{size}}-tp{{tp}}.log",
    conda:
        "../../envs/tensorrt_llm.yaml"
    threads: workflow.resource_settings.cores or 1
    resources:
        timing=1,
        gpu=lambda wildcards: timing_gpus(int(wildcards.tp)),
        mpi="mpirun",
        tasks=lambda wildcards: int(wildcards.tp),
    params:
        source=SOURCE,
        settings=json.dumps(CONFIG["latency"]),
        run=LATENCY.partition("/")[2],
        scale=SCALE,
    message:
        "Time to first token in TensorRT-LLM: {wildcards.size}, {wildcards.tp} rank(s), alone on the machine"
    shell:
        "env PYTHONPATH={params.source:q} {resources.mpi} -n {resources.tasks} python -m krakenlm.latency.tensorrt ttft"
        " {input:q} --size {wildcards.size} --settings {params.settings:q} --scale {params.scale} --run {params.run}"
        " --out {output:q} > {log:q} 2>&1"
