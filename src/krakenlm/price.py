"""What a run will cost, before it starts: tokens, FLOPs, hours, disk, and the memory that each device needs.

The figures are estimates, good for deciding whether to start, not for a paper. FLOPs and memory are the sizing
arithmetic's (krakenlm.models.sizing); a GPU's peak and memory are its description's (config/hardware); the share of
the peak that training reaches is stated, or measured on this machine (`krakenlm plan --measure`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from krakenlm import config as settings
from krakenlm.latency import hardware
from krakenlm.machine import cores, gpu_names, host_memory, memory_of_a_rank, processor
from krakenlm.models import ARCHITECTURES
from krakenlm.models.sizing import (
    forward_flops_per_token,
    parameter_count,
    prefill_flops,
    sizes_of,
    training_flops_per_token,
)
from krakenlm.training.recipe import Recipe

# What an unknown GPU, or none, is priced as: the paper's.
ASSUMED_HARDWARE = "a100-40gb"
PEAKS = {"32-true": "float32", "bf16-mixed": "bfloat16"}
# One core of a current laptop or server in float32 matrix products, where it trains small layers and where it computes
# forward passes alone: assumptions.
CORE_FLOPS, FORWARD_CORE_FLOPS = 30e9, 45e9
CORES_SOURCE = f"cores at {CORE_FLOPS / 1e9:.0f} GFLOP/s, {FORWARD_CORE_FLOPS / 1e9:.0f} in forward passes, assumed"
# On GPUs, a timing job with its process starts, weights and runs; an evaluation of one model: assumptions.
TIMING_HOURS, EVALUATION_HOURS = 0.25, 0.5
# On CPUs, the start of a stage, which is its imports mostly, and of an engine's ranks: assumptions.
START_HOURS = 8 / 3600
# Of the eight validation files of SuperGLUE, MultiRC's answers counted one by one.
OFFICIAL_EXAMPLES = 19_293
BYTES_PER_TOKEN_OF_TEXT = 4.6
# The index and the order take 32 bytes a document, here one of 640 bytes; longer ones leave a smaller share.
INDEX_SHARE = 0.05
# Per parameter: the last and the best model in float32, and checkpoints with AdamW's two moments, of which three lie on
# the disk while one is written.
MODEL_BYTES = 4 + 4 + 3 * 12
VOCABULARY_OF_GPT2 = 50304
# Rules in the order in which their costs are shown.
ORDER = ("corpus", "tokens", "train", "perplexity", "superglue", "shard", "engines", "tensorrt_build_shape", "ttft")


@dataclass(frozen=True)
class Devices:
    """What a run is priced on.

    gpus: in all machines together, 0 where nothing needs any. cores: this machine's.
    gpu_memory, host_memory: bytes of each GPU and of this machine.
    rates: FLOP/s that one device of each model's training reaches. source: in words, where they come from.
    """

    title: str
    gpus: int
    cores: int
    gpu_memory: float
    host_memory: float
    rates: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Cost:
    """Estimated cost of one part of a run.

    wall_hours: with its devices at work all the time. alone: nothing else runs meanwhile.
    tokens, flops: of a training. memory: bytes that it needs on each device, of the `room` there; fits: what becomes of
    that, in words.
    """

    what: str
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    wall_hours: float = 0.0
    disk_bytes: float = 0.0
    alone: bool = False
    tokens: int = 0
    flops: float = 0.0
    memory: float = 0.0
    room: float = 0.0
    fits: str = ""


def stated_devices(config: Mapping) -> Devices:
    """The hardware that `budget` names, at the share of its peak that `budget` states.

    Raises:
        InputError: there is no such hardware, or it has no peak for the precision of a training.
    """
    trained, most = settings.trained(config), most_gpus(config)
    if not most:
        rates = {model: CORE_FLOPS * settings.recipe(config, model)["threads"] for model in trained}
        return processor_alone(rates, CORES_SOURCE)
    wanted, utilisation = config["budget"]["hardware"], config["budget"]["utilisation"]
    here = gpu_names() if wanted == "auto" else []
    found = hardware.load(described_as(here) if wanted == "auto" else wanted)
    rates, peaks = {}, set()
    for model in trained:
        recipe = settings.recipe(config, model)
        if not recipe["gpus"]:
            rates[model] = CORE_FLOPS * recipe["threads"]
            continue
        peak = found.peak_of(PEAKS[recipe["precision"]])
        rates[model] = peak * utilisation
        peaks.add(f"{peak / 1e12:.0f} TFLOP/s")
    # This machine's, or those of as many of the named machines as a job takes.
    count = max(len(here), most) if wanted == "auto" else found.devices * -(-most // found.devices)
    source = f"GPUs at {utilisation:.0%} of {' or '.join(sorted(peaks))} (budget.utilisation), assumed"
    if not peaks:
        source = CORES_SOURCE
    title = f"{count} GPUs of {found.name} ({found.title})"
    return Devices(title, count, cores(), found.memory, host_memory(), rates, source)


def measured_devices(config: Mapping, gpus: int) -> Devices:
    """This machine with its `gpus`, at the rates that a short calibration of every model's training measures on it.

    Raises:
        InputError: a model trains on GPUs, and there is none here.
    """
    from krakenlm.training.calibration import training_rate

    rates = {}
    for model in settings.trained(config):
        recipe = Recipe.from_dict(settings.recipe(config, model))
        rates[model] = training_rate(sized(config, model), recipe)
    source = ", ".join(f"{model} {rate / 1e9:,.1f}" for model, rate in rates.items())
    source = f"measured on this machine, GFLOP/s of one device: {source}"
    most = most_gpus(config)
    if not most:
        return processor_alone(rates, source)
    count = max(gpus, most)
    title = f"{count} x {gpu_names()[0]}"
    return Devices(title, count, cores(), memory_of_a_rank(1), host_memory(), rates, source)


def processor_alone(rates: Mapping[str, float], source: str) -> Devices:
    return Devices(processor(), 0, cores(), 0.0, host_memory(), rates, source)


def described_as(gpus: Sequence[str]) -> str:
    """The description of the GPUs that the driver reports, by their name; else the paper's."""
    for name in hardware.names():
        if gpus and gpus[0] in hardware.load(name).title:
            return name
    return ASSUMED_HARDWARE


def most_gpus(config: Mapping) -> int:
    """The most GPUs that one job takes; 0 where everything runs on the processor."""
    training = max(settings.recipe(config, model)["gpus"] for model in settings.trained(config))
    if config["device"] != "cuda":
        return training
    return max(training, config["evaluation"]["ranks"], settings.most_ranks(config))


def all_jobs(config: Mapping) -> list[tuple[str, dict]]:
    """Every job that costs something in a run from nothing, as (rule, wildcards)."""
    trained = [
        (rule, {"model": model, "seed": str(seed)})
        for rule in ("train", "perplexity", "superglue", "shard")
        for model, seed in settings.model_seeds(config)
        if rule != "train" or model in settings.trained(config)
    ]
    latency = config["latency"]
    cells = [{"size": size, "tp": str(tp)} for size in latency["sizes"] for tp in latency["tp"]]
    timed = [("ttft", cell) for cell in cells]
    if config["engine"] == "tensorrt_llm":
        names = [name for name in latency["architectures"] if name in ARCHITECTURES]
        timed += [("tensorrt_build_shape", cell | {"architecture": name}) for cell in cells for name in names]
    return [("corpus", {}), ("tokens", {}), *trained, ("engines", {}), *timed]


def of_everything(config: Mapping, devices: Devices | None = None) -> str:
    """The price of a run from nothing, as a table; on the devices that `budget` names unless others are given."""
    devices = devices or stated_devices(config)
    return describe(estimate(config, all_jobs(config), devices), devices)


def estimate(config: Mapping, jobs: Sequence[tuple[str, dict]], devices: Devices) -> list[Cost]:
    """Cost of each part of a run that costs something; evaluations, engines and timings are one part each."""
    parts: dict[str, Cost] = {}
    models = list(config["models"])

    def place(job: tuple[str, dict]) -> tuple[int, ...]:
        rule, wildcards = job
        model = wildcards.get("model")
        return ORDER.index(rule) if rule in ORDER else len(ORDER), models.index(model) if model in models else 0

    for rule, wildcards in sorted(jobs, key=place):
        cost = job_cost(config, rule, wildcards, devices)
        if cost is not None:
            earlier = parts.get(cost.what)
            parts[cost.what] = cost if earlier is None else added(earlier, cost)
    return list(parts.values())


def added(one: Cost, other: Cost) -> Cost:
    sums = ("gpu_hours", "core_hours", "wall_hours", "disk_bytes", "tokens", "flops")
    return dataclasses.replace(one, **{key: getattr(one, key) + getattr(other, key) for key in sums})


def job_cost(config: Mapping, rule: str, wildcards: Mapping, devices: Devices) -> Cost | None:
    """Cost of one job, None where it is next to nothing."""
    model, text, gpus = wildcards.get("model"), config["text"], config["device"] == "cuda"
    if rule == "train":
        return training_cost(config, model, wildcards["seed"], devices)
    if rule in ("perplexity", "superglue") and not gpus:
        return evaluation_cost(config, model, rule)
    if rule == "superglue":  # with perplexity, which takes less
        return Cost("evaluation", gpu_hours=EVALUATION_HOURS, wall_hours=EVALUATION_HOURS)
    if rule == "shard" and model in settings.trained(config):
        return Cost("engines of trained models", disk_bytes=4 * parameter_count(sized(config, model)))
    if rule == "engines":
        return timing_cost(config, "timing of engines", "engines", config["engines"]["tp"], engines_hours(config))
    if rule == "tensorrt_build_shape":
        size = config["latency"]["sizes"][wildcards["size"]]
        held = engine_bytes(config, size, wildcards["architecture"], int(wildcards["tp"]))
        return Cost("engines of TensorRT-LLM", disk_bytes=held)
    if rule in ("ttft", "tensorrt_ttft"):
        tp = int(wildcards["tp"])
        return timing_cost(config, "TTFT", "latency", tp, ttft_hours(config, wildcards["size"], tp))
    if rule == "corpus":
        return Cost("text", disk_bytes=corpus_bytes(text))
    if rule == "tokens":
        # Two bytes a token; shards and the files that are put together of them are on the disk at once.
        return Cost("tokens", disk_bytes=2 * 2 * settings.text_bytes(text) / BYTES_PER_TOKEN_OF_TEXT)
    return None


def timing_cost(config: Mapping, what: str, section: str, ranks: int, hours_on_cores: float) -> Cost:
    """Cost of one timing job of `section`, engines or latency, with `ranks` processes."""
    if config["device"] == "cuda":
        return Cost(what, gpu_hours=TIMING_HOURS * ranks, wall_hours=TIMING_HOURS, alone=True)
    taken = hours_on_cores * ranks * config[section]["threads"]
    return Cost(what, core_hours=taken, wall_hours=hours_on_cores, alone=True)


def ttft_hours(config: Mapping, size: str, tp: int) -> float:
    """Hours of one TTFT job on cores: a start and every run of every architecture, as many as there may be.

    What a link slower than memory adds is not in it.
    """
    latency, shape = config["latency"], config["latency"]["sizes"][size]
    runs = latency["warmup"] + latency["most_runs"] + latency["profiled_runs"]
    links = len(latency["links"]) if tp > 1 else 1
    flops = 0.0
    for name in latency["architectures"]:
        for context in latency["contexts"]:
            sizes = timed_sizes(config, shape, name, tp)
            flops += links * runs * latency["batch"] * prefill_flops(sizes, context)
    return START_HOURS + flops / (FORWARD_CORE_FLOPS * tp * latency["threads"]) / 3600


def engines_hours(config: Mapping) -> float:
    """Hours of the job that times the trained models' engines on cores: their starts, for small models."""
    return START_HOURS * len(settings.model_seeds(config))


def evaluation_cost(config: Mapping, model: str, rule: str) -> Cost:
    """Cost of one evaluation of a model on cores: a start and the forward passes over what it scores."""
    evaluation, block_size = config["evaluation"], config["block_size"]
    if rule == "perplexity":
        held_out = settings.text_bytes(config["text"]) / BYTES_PER_TOKEN_OF_TEXT * config["text"]["validation_share"]
        times = 1 + (block_size / evaluation["stride"] if "stride" in evaluation else 0)
        tokens = held_out * times + evaluation["authors_windows"] * block_size
    else:
        superglue = evaluation["superglue"]
        embedded = superglue["source"] == "embedded"
        examples = len(settings.SUPERGLUE_FOLDERS) * superglue["examples"] if embedded else OFFICIAL_EXAMPLES
        tokens = examples * block_size  # a window each, with all its choices: an assumption
    used = evaluation["ranks"] * evaluation["threads"]
    flops = 0.0
    if model in settings.trained(config):  # the sizes of another are not known before it is read
        flops = tokens * forward_flops_per_token(sized(config, model), block_size)
    hours = START_HOURS + flops / (FORWARD_CORE_FLOPS * used) / 3600
    return Cost("evaluation", core_hours=hours * used, wall_hours=hours)


def training_cost(config: Mapping, model: str, seed: str, devices: Devices) -> Cost:
    """Cost of one training: its updates' forward and backward passes at the rate of its devices."""
    recipe, sizes = Recipe.from_dict(settings.recipe(config, model)), sized(config, model)
    tokens = recipe.tokens(config["block_size"])
    flops = tokens * training_flops_per_token(sizes)
    wall_hours = flops / (devices.rates[model] * recipe.devices) / 3600
    memory = recipe.memory(sizes).total
    # Processes on CPUs share one memory.
    room = devices.gpu_memory if recipe.gpus else devices.host_memory / recipe.devices
    return Cost(
        f"{model}, seed {seed}",
        gpu_hours=wall_hours * recipe.gpus,
        core_hours=0.0 if recipe.gpus else wall_hours * recipe.devices * recipe.threads,
        wall_hours=wall_hours,
        disk_bytes=MODEL_BYTES * parameter_count(sizes),
        tokens=tokens,
        flops=flops,
        memory=memory,
        room=room,
        fits=fit(recipe, sizes, room),
    )


def fit(recipe: Recipe, sizes: Mapping, room: float) -> str:
    """Whether a training fits in `room` bytes on each device and, if not, what would."""
    if recipe.fits(sizes, recipe.micro_batch, room):
        return "fits"
    smaller = recipe.fitting_micro_batch(sizes, room)
    return f"does not fit; micro_batch {smaller} would" if smaller else "does not fit"


def sized(config: Mapping, model: str) -> dict:
    """The model's configuration with the vocabulary that its tokenizer will have."""
    vocabulary = settings.text_settings(config).get("vocabulary", VOCABULARY_OF_GPT2)
    return settings.architecture(config, model) | {"vocab_size": (vocabulary + 63) // 64 * 64}


def corpus_bytes(text: Mapping) -> float:
    """Bytes that the corpus stage leaves: an index; the embedded stories; the hub's files, which are parquet."""
    whole = settings.text_bytes(text)
    beside = {"embedded": whole, "hub": whole / settings.EXPANSION[".parquet"]}
    return whole * INDEX_SHARE + beside.get(text["source"], 0.0)


def engine_bytes(config: Mapping, size: Mapping, architecture: str, tp: int) -> int:
    """Bytes of all ranks' engines of a shape: its weights."""
    parameters = parameter_count(timed_sizes(config, size, architecture, tp))
    return parameters * (4 if config["latency"]["dtype"] == "float32" else 2)


def timed_sizes(config: Mapping, size: Mapping, architecture: str, tp: int) -> dict:
    """Sizes of an architecture of a timed shape; another way to run one has the sizes of what it runs."""
    latency, name = config["latency"], architecture if architecture in ARCHITECTURES else "standard"
    shape = {"n_layer": size["n_layer"], "vocab_size": latency["vocab_size"], "block_size": max(latency["contexts"])}
    return shape | sizes_of(name, size["width"], size["n_head"], tp)


def total(costs: Sequence[Cost], devices: Devices) -> Cost:
    """The whole run: trainings side by side as far as there are devices, timings alone."""
    rest = [cost for cost in costs if not cost.alone]
    on_gpus = sum(cost.gpu_hours for cost in rest) / max(1, devices.gpus)
    on_cores = sum(cost.core_hours for cost in rest) / devices.cores
    wall_hours = max([on_gpus, on_cores, *(cost.wall_hours for cost in rest if cost.flops)])
    return Cost(
        "in all",
        gpu_hours=sum(cost.gpu_hours for cost in costs),
        core_hours=sum(cost.core_hours for cost in costs),
        wall_hours=wall_hours + sum(cost.wall_hours for cost in costs if cost.alone),
        disk_bytes=sum(cost.disk_bytes for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        flops=sum(cost.flops for cost in costs),
    )


HEADINGS = ("", "tokens", "FLOPs", "GPU-hours", "core-hours", "wall time", "disk, GB", "memory of each device, GB")


def describe(costs: Sequence[Cost], devices: Devices) -> str:
    """The estimate as a table, a line for each part that costs something worth a line and one in all."""
    worth = [cost for cost in costs if cost.gpu_hours >= 0.05 or cost.core_hours >= 0.005 or cost.disk_bytes >= 5e7]
    rows = [HEADINGS, *(cells(cost) for cost in [*worth, total(costs, devices)])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"estimated price on {devices.title}; {devices.source}"]
    for first, *others in rows:
        numbers = [cell.rjust(width) for cell, width in zip(others[:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *numbers, others[-1]]).rstrip())
    return "\n".join(lines)


def cells(cost: Cost) -> tuple[str, ...]:
    return (
        cost.what,
        f"{cost.tokens:,}" if cost.tokens else "",
        f"{cost.flops:.2e}" if cost.flops else "",
        f"{cost.gpu_hours:,.1f}" if cost.gpu_hours else "",
        f"{cost.core_hours:,.2f}" if cost.core_hours else "",
        wall(cost.wall_hours) if cost.wall_hours else "",
        f"{cost.disk_bytes / 1e9:,.2f}" if cost.disk_bytes else "",
        f"{gigabytes(cost.memory)} of {gigabytes(cost.room)}, {cost.fits}" if cost.memory else "",
    )


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e9 else f"{count / 1e9:.2f}"


def wall(hours: float) -> str:
    """`3.2 d`, `5.1 h`, `12 min` or `40 s`."""
    if hours >= 48:
        return f"{hours / 24:.1f} d"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
