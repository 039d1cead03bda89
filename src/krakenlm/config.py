"""What a run is, as data: a scale's file, the user's keys over it, the checks that a schema cannot say, the folders.

Everything here is plain Python on dictionaries (no torch), so the Snakefile parses fast. Files are read and the schema
is held against them by Snakemake's own functions, as its rules will see them.
"""

import copy
import glob
import hashlib
import json
import math
import os
import re
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from krakenlm.errors import InputError
from krakenlm.files import read_json, write_json
from krakenlm.machine import count_gpus
from krakenlm.models import ARCHITECTURES

SCALES = ("tiny", "single-gpu", "paper")
TEXT_KEYS = {"embedded": ("words",), "files": ("files",), "hub": ("name", "revision"), "bin": ("folder", "tokenizer")}
TEXT_DEFAULTS = {"files": {"column": "text", "document": "line"}, "hub": {"column": "text"}}
# Keys that may be left out; they count only where they are set.
TEXT_CHOICES = ("deduplicate", "subset")
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
HARDWARE = Path("config/hardware")
# Rows of the timings: every architecture, and another way to run one.
TIMED = (*ARCHITECTURES, "standard-chunked")
# Files below this many bytes are hashed anew each time; the hash of a larger one is remembered.
QUICKLY_HASHED = 100_000_000
# Of the embedded stories, whose words are 5.1 bytes with the blank, about, and of which none has more words than that.
BYTES_PER_WORD, LONGEST_STORY = 6.0, 40
# Tasks as everything here names them -> their folders in the official download.
SUPERGLUE_FOLDERS = {
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "multirc": "MultiRC",
    "record": "ReCoRD",
    "rte": "RTE",
    "wic": "WiC",
    "wsc": "WSC",
}
# Tokens of the longest answer of SuperGLUE's own texts under a small vocabulary, about.
SUPERGLUE_BLOCK = 512
SUPERGLUE_KEYS = {"embedded": ("seed", "examples"), "official": ("folder",), "hub": ()}
# On the hub, what is known without its owner's name.
HUB_NAMES_WITHOUT_OWNER = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
# Bytes of text in OpenWebText (its dataset card: 41.70 GB uncompressed); other hub data sets are looked up by hand.
HUB_TEXT_BYTES = {"Skylion007/openwebtext": 41_700_000_000}


def resolve_scale(scale: str, gpus: int) -> str:
    """The scale that `auto` stands for on a machine with `gpus` NVIDIA GPUs; any other scale is itself."""
    if scale != "auto":
        return scale
    return "paper" if gpus >= 4 else "single-gpu" if gpus >= 1 else "tiny"


def auto_scale(main_process: bool) -> str:
    """What `auto` stands for here: found out by the main process, inherited by the jobs that parse the config anew.

    Raises:
        InputError: a job does not find the main process's answer.
    """
    if main_process:
        os.environ["KRAKENLM_SCALE"] = resolve_scale("auto", count_gpus())
    if "KRAKENLM_SCALE" not in os.environ:
        raise InputError(
            "scale: expected the main process to have resolved auto, found no KRAKENLM_SCALE in this job's "
            "environment; name the scale (--config scale=tiny)"
        )
    return os.environ["KRAKENLM_SCALE"]


def find_engine(wanted: str, missing: list[str], main_process: bool) -> str:
    """The engine: `torch` or `tensorrt_llm`; `auto` is TensorRT-LLM where it lacks nothing.

    Found out by the main process, inherited by the jobs that parse the config anew.

    Raises:
        InputError: a job does not find the main process's answer.
    """
    if wanted != "auto":
        return wanted
    if main_process:
        os.environ["KRAKENLM_ENGINE"] = "torch" if missing else "tensorrt_llm"
    if "KRAKENLM_ENGINE" not in os.environ:
        raise InputError(
            "engine: expected the main process to have resolved auto, found no KRAKENLM_ENGINE in this job's "
            "environment; name the engine (--config engine=torch)"
        )
    return os.environ["KRAKENLM_ENGINE"]


def most_ranks(config: Mapping) -> int:
    """Ranks of the widest engine that is timed."""
    return max(config["engines"]["tp"], *config["latency"]["tp"])


def stage_environment(config: Mapping, reproduction: str, local: bool) -> dict[str, str]:
    """Environment variables for the stages. None of them changes a result."""
    scale = config["scale"]
    variables = {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
        "WANDB_PROJECT": config["wandb"]["project"],
        "WANDB_RUN_GROUP": f"{scale}-{reproduction}",
        "WANDB_DIR": os.path.abspath(f"results/{scale}"),
        # Not in a rule's parameters: how a training is watched is no reason to train again.
        "KRAKENLM_WATCH": json.dumps({key: config["training"][key] for key in WATCHING}),
    }
    if config["device"] == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if config["wandb"]["mode"] != "auto":
        variables["WANDB_MODE"] = config["wandb"]["mode"]
    if local:
        variables["KRAKENLM_SNAKEMAKE"] = process_identity(os.getpid())
    return variables


def process_identity(process: int) -> str:
    """`host:process:start`, which no later process with the same number has."""
    start = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return f"{socket.gethostname()}:{process}:{start}"


def scale_file(scale: str, directory: Path) -> Path:
    """Path of a scale's file.

    Raises:
        InputError: there is no scale of that name.
    """
    path = directory / f"{scale}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in directory.glob("*.yaml")))
        raise InputError(f"scale: expected one of auto, {names}; found {scale!r}; choose one with --config scale=tiny")
    return path


def merge(base: Mapping, over: Mapping) -> dict:
    """`base` with `over` on top, key by key."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def without_nulls(config: Mapping) -> dict:
    """The merged configuration without the models and sizes that a user has set to null."""
    kept = {}
    for key, value in config.items():
        if key in ("models", "sizes") and isinstance(value, Mapping):
            value = {name: item for name, item in value.items() if item is not None}
        kept[key] = without_nulls(value) if isinstance(value, Mapping) else value
    return kept


def check_nulls(scale: Mapping, given: Mapping) -> None:
    """Refuse a null for a model or size that the scale does not have: a slip of the pen would go unseen.

    Raises:
        InputError: naming the key.
    """
    for section, named in {"models": "models", "sizes": "latency.sizes"}.items():
        known, wanted = ((part if section == "models" else part.get("latency", {})) for part in (scale, given))
        for name, value in wanted.get(section, {}).items():
            if value is None and name not in known.get(section, {}):
                names = ", ".join(known.get(section, {}))
                raise InputError(f"{named}.{name}: expected one of {names} to leave out, found {name!r}; correct it")


def own_config() -> dict:
    """The keys of config/config.yaml.

    Raises:
        InputError: it is not here.
    """
    path = Path("config/config.yaml")
    if not path.is_file():
        raise InputError(f"{path}: expected in the working directory, found none; start in the folder of the Snakefile")
    return yaml.safe_load(path.read_text())


def load(given: Mapping, scale: str, folder: Path) -> tuple[dict, dict]:
    """The configuration: the file of `scale`, over it what was `given`; checked.

    Args:
        given: config.yaml, over it --configfile, over it --config.
        folder: where config/ and workflow/ are.

    Returns: the configuration, and the same with the models and sizes that were set to null, which as a --configfile
        makes this run again.

    Raises:
        InputError: naming the key.
    """
    from snakemake.common.configfile import load_configfile
    from snakemake.exceptions import WorkflowError
    from snakemake.utils import validate

    base = load_configfile(scale_file(scale, folder / "config" / "scales"))
    check_nulls(base, given)
    everything = merge(base, given) | {"scale": scale}
    merged = without_nulls(everything)
    try:
        validate(merged, str(folder.resolve() / "workflow" / "schemas" / "config.schema.yaml"))
    except WorkflowError as error:
        raise InputError(describe_schema_error(error.__context__)) from None
    check(merged)
    return merged, everything


def read_scalars(value: object) -> object:
    """The strings that Snakemake's `--config` brings, read as the YAML scalars that the user typed."""
    if isinstance(value, Mapping):
        return {key: read_scalars(item) for key, item in value.items()}
    if isinstance(value, list):
        return [read_scalars(item) for item in value]
    if not isinstance(value, str):
        return value
    for parse in (int, float):
        try:
            number = parse(value)
        except ValueError:
            continue
        return number if math.isfinite(number) else value
    try:
        scalar = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return scalar if scalar is None or isinstance(scalar, bool) else value


# What a schema's patterns mean.
PATTERNS = {
    "^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters, digits, points, dashes and underscores, the first a letter or digit",
    "^(loopback|[0-9]+([.][0-9]+)?[gm]bit)$": "loopback, or a rate such as 2.5gbit or 500mbit",
}


def describe_schema_error(error: object) -> str:
    """One line for a jsonschema ValidationError: the key, what was expected, what was found, what to do."""
    key = ".".join(str(part) for part in error.absolute_path)
    found, expected = error.instance, error.validator_value
    hint = "see docs/configuration.md for every key"
    if error.validator == "additionalProperties":
        unknown = sorted(set(found) - set(error.schema.get("properties", {})))
        names = ", ".join(f"{key}.{name}".lstrip(".") for name in unknown)
        return f"{names}: unknown key; expected one of {', '.join(sorted(error.schema['properties']))}; {hint}"
    if error.validator == "required":
        missing = next(name for name in expected if name not in found)
        return f"{key}.{missing}".lstrip(".") + f": expected a value, found none; set it ({hint})"
    wanted = {
        "type": f"a value of type {expected}",
        "enum": f"one of {', '.join(map(str, expected))}" if error.validator == "enum" else "",
        "minimum": f"a number of at least {expected}",
        "maximum": f"a number of at most {expected}",
        "exclusiveMinimum": f"a number above {expected}",
        "exclusiveMaximum": f"a number below {expected}",
        "minItems": f"a list of at least {expected}",
        "pattern": PATTERNS.get(str(expected), f"text like {expected}"),
        "minProperties": f"at least {expected} of them",
        "uniqueItems": "a list without repetitions",
    }.get(error.validator, error.message)
    if error.validator == "type" and expected in ("number", "integer") and isinstance(found, str):
        number = read_scalars(found)
        hint = f"write {as_yaml_number(found)}" if isinstance(number, int | float) else hint
    return f"{key}: expected {wanted}, found {found!r}; {hint}"


def as_yaml_number(text: str) -> str:
    """A number as YAML 1.1 knows it, which takes 2e-4 for text and 2.0e-4 for a number."""
    mantissa, found, exponent = text.strip().lower().partition("e")
    return f"{float(mantissa)}e{int(exponent):+d}" if found else f"{text.strip()}, without quotes"


def check(config: Mapping) -> None:
    """Check what the schema cannot: keys that have to fit one another.

    Raises:
        InputError: naming the key.
    """
    from krakenlm.training.recipe import Recipe

    check_text(config["text"])
    check_amount(config)
    superglue = config["evaluation"]["superglue"]
    require(superglue, SUPERGLUE_KEYS[superglue["source"]], "evaluation.superglue")
    check_superglue(config)
    stride = config["evaluation"].get("stride", 1)
    if stride > config["block_size"]:
        raise InputError(
            f"evaluation.stride: expected block_size ({config['block_size']}) at most, found {stride}; tokens between "
            "windows would be left out; lower it"
        )
    if all("from" in model for model in config["models"].values()):
        raise InputError("models: expected one at least that is trained here, found only models with `from`; add one")
    for name, model in config["models"].items():
        if "from" in model:
            check_import(f"models.{name}", model)
            continue
        check_model(f"models.{name}", model)
        Recipe.from_dict(recipe(config, name), f"models.{name}.training" if model.get("training") else "training")
        watching = sorted(set(model.get("training", {})) & set(WATCHING))
        if watching:
            raise InputError(
                f"models.{name}.training.{watching[0]}: expected under training, for every model at once; move it"
            )
    if config["latency"]["runs"] > config["latency"]["most_runs"]:
        raise InputError(
            f"latency.runs: expected latency.most_runs ({config['latency']['most_runs']}) at most, found "
            f"{config['latency']['runs']}; raise the one or lower the other"
        )
    if config["device"] == "cuda" and config["latency"]["links"] != ["loopback"]:
        raise InputError(
            f"latency.links: expected [loopback] on GPUs, which have links of their own, found "
            f"{config['latency']['links']}; correct it, or choose device cpu"
        )
    for tp in config["latency"]["tp"]:
        if config["latency"]["vocab_size"] % tp:
            raise InputError(
                f"latency.vocab_size: expected a multiple of every latency.tp, found {config['latency']['vocab_size']} "
                f"with tp {tp}; change one of the two"
            )
    for name, size in config["latency"]["sizes"].items():
        check_heads(f"latency.sizes.{name}", size["width"], size["n_head"], 1)
        for tp in config["latency"]["tp"]:
            if size["n_head"] % tp:
                raise InputError(
                    f"latency.sizes.{name}.n_head: expected a multiple of every latency.tp, found {size['n_head']} "
                    f"with tp {tp}; change one of the two"
                )
    for section in ("latency", "simulation"):
        for name in config[section]["architectures"]:
            if name not in TIMED:
                raise InputError(
                    f"{section}.architectures: expected some of {', '.join(TIMED)}, found {name!r}; correct it"
                )
    for place, hardware in enumerate(config["simulation"]["hardware"]):
        check_hardware(f"simulation.hardware[{place}]", hardware)
    if config["budget"]["hardware"] != "auto":
        check_hardware("budget.hardware", config["budget"]["hardware"])
    room = config["engines"]["prompt_tokens"] + config["engines"]["new_tokens"]
    if room > config["block_size"]:
        raise InputError(
            f"engines: expected prompt_tokens + new_tokens within block_size ({config['block_size']}), found {room}; "
            "lower one of them"
        )


def check_superglue(config: Mapping) -> None:
    superglue, text = config["evaluation"]["superglue"], config["text"]
    if superglue["source"] == "official" and not Path(superglue["folder"]).is_dir():
        raise InputError(
            f"evaluation.superglue.folder: expected the folder of SuperGLUE's download, found none at "
            f"{superglue['folder']}; correct the path"
        )
    for path in superglue_files(config):
        if not Path(path).is_file():
            raise InputError(
                f"evaluation.superglue.folder: expected the eight tasks of SuperGLUE's download, found no {path}; "
                "correct the path, or evaluation.superglue.split"
            )
    if superglue["source"] != "embedded" and not text.get("tokenizer") and config["block_size"] < SUPERGLUE_BLOCK:
        raise InputError(
            f"block_size: expected {SUPERGLUE_BLOCK} at least for evaluation.superglue.source "
            f"{superglue['source']} under a tokenizer that is trained here, since SuperGLUE's longest answers have to "
            f"fit, found {config['block_size']}; set block_size to {SUPERGLUE_BLOCK}"
        )


def check_hardware(key: str, name: str) -> None:
    if not hardware_file(name).is_file():
        known = ", ".join(sorted(path.stem for path in HARDWARE.glob("*.yaml")))
        raise InputError(
            f"{key}: expected one of {known} (config/hardware), or a .yaml file, found {name!r}; choose one"
        )


def hardware_file(name: str) -> Path:
    """The description of a machine: a file, or a name in config/hardware."""
    return Path(name) if name.endswith(".yaml") else HARDWARE / f"{name}.yaml"


def require(section: Mapping, keys: tuple[str, ...], name: str) -> None:
    for key in keys:
        if key not in section:
            raise InputError(
                f"{name}.{key}: expected a value for {name}.source {section['source']!r}, found none; set it"
            )


def superglue_files(config: Mapping) -> list[str]:
    """The files of an official SuperGLUE download that the tasks are made from; none for other sources."""
    superglue = config["evaluation"]["superglue"]
    if superglue["source"] != "official":
        return []
    return [
        f"{superglue['folder']}/{task}/{superglue.get('split', 'val')}.jsonl" for task in SUPERGLUE_FOLDERS.values()
    ]


def superglue_flags(config: Mapping) -> str:
    """Flags of `krakenlm tasks`."""
    superglue = config["evaluation"]["superglue"]
    if superglue["source"] == "official":
        return shlex.join(["--official", superglue["folder"], "--split", superglue.get("split", "val")])
    return f"--seed {superglue.get('seed', 0)} --examples {superglue.get('examples', 1)}"


def perplexity_flags(config: Mapping) -> str:
    """Flags of `krakenlm perplexity` for the protocols beside the first."""
    evaluation = config["evaluation"]
    stride = [f"--stride {evaluation['stride']}"] if "stride" in evaluation else []
    return " ".join([*stride, f"--authors-windows {evaluation['authors_windows']}"])


def check_text(text: Mapping) -> None:
    require(text, TEXT_KEYS[text["source"]], "text")
    if not text.get("tokenizer") and "vocabulary" not in text:
        raise InputError("text.tokenizer: expected a published tokenizer, or text.vocabulary to train one; set one")
    tokenizer = text.get("tokenizer")
    if tokenizer and not Path(tokenizer).exists() and not is_hub_name(tokenizer):
        raise InputError(
            f"text.tokenizer: expected gpt2, a path that exists or a name on the hub (owner/name), found {tokenizer}; "
            "correct it"
        )
    if text["source"] == "bin":
        bin_files(text)
    if text["source"] != "files":
        return
    for path in expand(text["files"]):
        if path.stat().st_size == 0:
            raise InputError(f"text.files: expected text, found the empty file {path}; leave it out")


def check_amount(config: Mapping) -> None:
    """Refuse a text that cannot be enough, even if every byte of it were a token.

    Of files it is not known how much will be held out, so all of them are held against what is needed in all.
    """
    text, engines = config["text"], config["engines"]
    if text["source"] not in ("embedded", "files"):
        return
    prompts = engines["prompts"] * engines["prompt_tokens"]
    found, needed = text_bytes(text), prompts + config["block_size"]
    if text["source"] == "embedded":
        # At least one story is held out, and none is longer.
        held_out = BYTES_PER_WORD * max(text["words"] * text["validation_share"], LONGEST_STORY)
        found, needed = (held_out, prompts) if found >= needed else (found, needed)
    if found < needed:
        key = "words" if text["source"] == "embedded" else "files"
        raise InputError(
            f"text.{key}: expected enough for a window of block_size ({config['block_size']} tokens) and, held out, "
            f"engines.prompts x engines.prompt_tokens ({prompts}), found about {found:.0f} bytes for {needed} tokens; "
            "give more text"
        )


def text_files(text: Mapping) -> list[Path]:
    """The user's files that hold the text or its tokens."""
    return expand(text["files"]) if text["source"] == "files" else bin_files(text) if text["source"] == "bin" else []


def bin_files(text: Mapping) -> list[Path]:
    """train.bin and val.bin of text.folder.

    Raises:
        InputError: one is missing.
    """
    paths = [Path(text["folder"]) / f"{split}.bin" for split in ("train", "val")]
    for path in paths:
        if not path.is_file():
            raise InputError(f"text.folder: expected train.bin and val.bin in it, found no {path}; correct it")
    return paths


def expand(patterns: list[str]) -> list[Path]:
    """The files that `text.files` names: files, folders (all files of known kinds below them) and glob patterns.

    Files come in the order of `patterns`, those of one pattern sorted by name.

    Raises:
        InputError: a pattern leads to no file, to one of an unknown kind, or to a name that Snakemake cannot hold.
    """
    found = []
    for number, name in enumerate(patterns):
        path, key, kinds = Path(name), f"text.files[{number}]", ", ".join(TEXT_SUFFIXES)
        if path.is_dir():
            below = sorted(item for item in path.rglob("*") if item.name.endswith(TEXT_SUFFIXES) and item.is_file())
            paths = [item for item in below if not any(part.startswith(".") for part in item.relative_to(path).parts)]
        else:
            paths = [path] if path.is_file() else sorted(map(Path, glob.glob(name, recursive=True)))
        if not paths:
            raise InputError(f"{key}: expected a file, a folder with {kinds}, or a pattern, found no file at {name}")
        for item in paths:
            if not item.is_file() or not item.name.endswith(TEXT_SUFFIXES):
                raise InputError(f"{key}: expected one of {kinds}, found {item}; convert or rename the file")
            if set(str(item)) & set("{}"):
                raise InputError(f"{key}: expected a name without {{}}, found {item}; rename the file, or link to it")
        found += paths
    repeated = next((path for path, times in Counter(found).items() if times > 1), None)
    if repeated:
        raise InputError(f"text.files: expected each file once, found {repeated} more often; leave one out")
    return found


def check_import(key: str, model: Mapping) -> None:
    """Check a model that is trained already: `from` stands alone, and a path leads somewhere."""
    for name in sorted(model):
        if name != "from":
            raise InputError(f"{key}.{name}: expected none beside from, found {model[name]!r}; remove one of the two")
    path = Path(model["from"])
    if path.exists() and import_kind(model["from"]) == "gpt2" and not (path / "config.json").is_file():
        raise InputError(
            f"{key}.from: expected a model folder, a GPT-2's folder or a checkpoint (.pt) of the authors' release, "
            f"found {path} without a config.json; correct the path"
        )
    if not path.exists() and not is_hub_name(model["from"]):
        raise InputError(
            f"{key}.from: expected a path that exists or a name on the hub (owner/name), found {path}; correct it"
        )


def is_hub_name(name: str) -> bool:
    """Whether this may be a name on the hub: `owner/name`, or one of the few that have no owner.

    A path whose folder is here is none.
    """
    owner, found, rest = name.partition("/")
    if not found:
        return name.partition("@")[0] in HUB_NAMES_WITHOUT_OWNER
    return bool(owner) and not owner.startswith((".", "~")) and "/" not in rest and not Path(owner).is_dir()


def import_kind(source: str) -> str:
    """Which `krakenlm import` reads `source`: a checkpoint of the authors, one of our folders, or a GPT-2."""
    path = Path(source)
    if path.suffix == ".pt":
        return "authors"
    if (path / "config.json").is_file() and "architecture" in read_json(path / "config.json"):
        return "model"
    return "gpt2"


def check_model(key: str, model: Mapping) -> None:
    """Check that heads divide over splits and widths over heads."""
    for name in ("architecture", "n_layer", "n_head", "width"):
        if name not in model:
            raise InputError(f"{key}.{name}: expected a value, found none; set it (every key: docs/configuration.md)")
    if model["architecture"] not in ARCHITECTURES:
        raise InputError(
            f"{key}.architecture: expected one of {', '.join(ARCHITECTURES)}, found {model['architecture']!r}; choose "
            "one, or add yours to the registry (docs/architecture.md)"
        )
    degree = model.get("degree", 1)
    if model["architecture"] == "kraken" and "degree" not in model:
        raise InputError(f"{key}.degree: expected the number of splits of a kraken, found none; set it")
    for name in ("degree", "ffn_expansion"):
        if model["architecture"] != "kraken" and name in model:
            raise InputError(
                f"{key}.{name}: expected none for architecture {model['architecture']}, found {model[name]}; remove it"
            )
    check_heads(key, model["width"], model["n_head"], degree)


def check_heads(key: str, width: int, n_head: int, degree: int) -> None:
    if n_head % degree:
        raise InputError(
            f"{key}.n_head: expected a multiple of the degree ({degree}), since every split has the same number of "
            f"heads; found {n_head}; use {max(degree, n_head // degree * degree)} heads or another degree"
        )
    heads = n_head // degree
    if width % heads:
        raise InputError(
            f"{key}.width: expected a multiple of the {heads} heads of a split, found {width}; "
            f"the nearest is {max(1, round(width / heads)) * heads}"
        )


def recipe(config: Mapping, model: str) -> dict:
    """The training recipe of a model: `training` with the model's own keys over it."""
    return merge(config["training"], config["models"][model].get("training", {}))


def weights_recipe(config: Mapping, model: str) -> dict:
    """The part of a model's recipe that determines its weights."""
    return {key: value for key, value in recipe(config, model).items() if key not in WATCHING}


def devices(config: Mapping, model: str) -> int:
    """How many processes train a model: one per GPU, or as many as its recipe says."""
    values = recipe(config, model)
    return values.get("devices") or max(1, values["gpus"])


def training_threads(config: Mapping, model: str) -> int:
    """Cores that a model's training takes, on all its machines together."""
    return devices(config, model) * recipe(config, model)["threads"]


def launcher(resources: Mapping) -> str:
    """What starts a training's processes on a cluster: `srun` with a task per device, or nothing.

    Raises:
        InputError: the devices do not divide over the nodes.
    """
    tasks, nodes = resources["tasks"], resources["nodes"]
    if "mpi" not in resources.keys():  # noqa: SIM118 - Snakemake's resources are a list with names
        return ""
    if tasks % nodes:
        raise InputError(
            f"nodes of rule train: expected a number that divides its {tasks} devices, found {nodes}; change "
            "set-resources in the profile, or training.gpus"
        )
    # --kill-on-bad-exit: without one process the others would wait for it until the time limit.
    return (
        f"{resources['mpi']} --nodes={nodes} --ntasks={tasks} --ntasks-per-node={tasks // nodes} "
        f"--cpus-per-task={resources['cpus_per_task']} --kill-on-bad-exit=1"
    )


def architecture(config: Mapping, model: str) -> dict:
    """The model's configuration less `vocab_size`, which the tokenizer decides."""
    fields = {key: value for key, value in config["models"][model].items() if key != "training"}
    return fields | {"block_size": config["block_size"]}


# Bytes of text in a byte of file, about: assumptions, for prices and shares of work.
EXPANSION = {".gz": 3.0, ".zst": 3.5, ".parquet": 2.0}
# Bytes of text that one job tokenizes, and the most jobs: each keeps two files open while all are put together.
SHARD_BYTES, MOST_SHARDS = 256_000_000, 256


def text_bytes(text: Mapping) -> float:
    """Bytes of the corpus, about; a hub data set of unknown size counts as OpenWebText."""
    if text["source"] == "bin":
        return 0.0
    if text["source"] == "embedded":
        return BYTES_PER_WORD * text["words"]
    if text["source"] == "files":
        return sum(path.stat().st_size * EXPANSION.get(path.suffix, 1.0) for path in expand(text["files"]))
    return float(HUB_TEXT_BYTES.get(text["name"], HUB_TEXT_BYTES["Skylion007/openwebtext"]))


def shards(text: Mapping) -> int:
    """How many jobs tokenize the corpus. The tokens do not depend on it."""
    return text.get("shards") or min(MOST_SHARDS, max(1, math.ceil(text_bytes(text) / SHARD_BYTES)))


def text_settings(config: Mapping) -> dict:
    """The keys of `text` that determine the tokens, defaults filled in, and a hash of the content of all files."""
    source = config["text"]["source"]
    text = TEXT_DEFAULTS.get(source, {}) | config["text"]
    keys = ["source", "seed", "validation_share", *TEXT_KEYS[source], *TEXT_DEFAULTS.get(source, {})]
    keys.append("tokenizer" if text.get("tokenizer") else "vocabulary")
    settings = {key: text[key] for key in keys} | {key: text[key] for key in TEXT_CHOICES if text.get(key)}
    files = text_files(text)
    if text.get("tokenizer"):
        files += tokenizer_files(text["tokenizer"])
    if files:
        settings["sha256"] = fingerprint(content_hashes(files), 64)
    return settings


def tokenizer_files(tokenizer: str) -> list[Path]:
    """The files behind text.tokenizer where it is a path, none where it is a name."""
    path = Path(tokenizer)
    if path.is_dir():
        return sorted(item for item in path.iterdir() if item.name in ("tokenizer.json", "vocab.bpe", "encoder.json"))
    return [path] if path.is_file() else []


def content_hash(path: Path) -> str:
    """SHA-256 of a file, as `content_hashes` has it."""
    return content_hashes([path])[0]


# Hashes known to this process, by path, size and time of change.
KNOWN_HASHES: dict[str, str] = {}


def content_hashes(paths: list[Path]) -> list[str]:
    """SHA-256 of each file. Where they are large together, they are remembered under results/ for the next process."""
    status = [path.stat() for path in paths]
    keys = [f"{path.resolve()} {s.st_size} {s.st_mtime_ns}" for path, s in zip(paths, status, strict=True)]
    large, known_path = sum(s.st_size for s in status) >= QUICKLY_HASHED, Path("results/.sha256.json")
    if large and known_path.exists() and not set(keys) <= set(KNOWN_HASHES):
        KNOWN_HASHES.update(read_json(known_path))
    missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in KNOWN_HASHES}
    if missing:
        # hashlib lets other threads run.
        with ThreadPoolExecutor() as pool:
            KNOWN_HASHES.update(zip(missing, pool.map(hash_file, missing.values()), strict=True))
        if large:
            write_json(known_path, KNOWN_HASHES)
    return [KNOWN_HASHES[key] for key in keys]


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: object, length: int = 8) -> str:
    """Short hash of a JSON value, for folder names."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def corpus_label(text: Mapping) -> str:
    """What a person calls the corpus, in characters that a folder and a Snakemake pattern may have."""
    if text["source"] == "embedded":
        return "embedded"
    if text["source"] == "hub":
        label = text["name"].rsplit("/", 1)[-1]
    elif text["source"] == "bin":
        label = Path(text["folder"]).resolve().name
    else:
        label = Path(text["files"][0]).name if len(text["files"]) == 1 else f"{len(text['files'])}-files"
        label = re.sub(rf"({'|'.join(map(re.escape, sorted(TEXT_SUFFIXES, key=len, reverse=True)))})$", "", label)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "text"


def corpus_folder(config: Mapping) -> str:
    """`<scale>/<corpus>`: where everything made from this text lives under results/."""
    settings = text_settings(config)
    return f"{config['scale']}/{corpus_label(settings)}-{fingerprint(settings)}"


# Keys of a recipe that change how a run is watched or how fast it is, never what its weights become.
WATCHING = (
    "log_every_steps", "checkpoint_every_steps", "checkpoint_every_minutes", "validate_every_steps",
    "validation_windows",
)  # fmt: skip


def model_fingerprint(config: Mapping, model: str) -> str:
    """Covers what determines the weights besides the seed: text, tokenizer, model, recipe; or where they come from."""
    if "from" in config["models"][model]:
        return fingerprint([text_settings(config), imported_files(config["models"][model]["from"])])
    return fingerprint([text_settings(config), architecture(config, model), weights_recipe(config, model)])


def trained(config: Mapping) -> list[str]:
    """Names of the models that are trained here."""
    return [name for name, model in config["models"].items() if "from" not in model]


def imported(config: Mapping) -> list[str]:
    """Names of the models that come from elsewhere."""
    return [name for name, model in config["models"].items() if "from" in model]


def imported_files(source: str) -> list:
    """A hub's name, or the hashes of the files that a path leads to."""
    path = Path(source)
    files = [path] if path.is_file() else [path / name for name in ("config.json", "model.safetensors")]
    return [source, *(content_hash(file) for file in files if file.is_file())]


def model_seeds(config: Mapping) -> list[tuple[str, int]]:
    """(model, seed) of every training; a model that comes from elsewhere has one row, under the first seed."""
    return [
        (model, seed)
        for model, fields in config["models"].items()
        for seed in (config["seeds"][:1] if "from" in fields else config["seeds"])
    ]


def engine_tp(config: Mapping, model: str) -> int:
    """Ranks of a trained model's engine: the most, up to `engines.tp`, over which its splits or heads divide.

    The head is divided by vocabulary, whose size is a multiple of 64, so the number is a power of two. A model of the
    hub, whose sizes are not known before it is here, stays whole.
    """
    fields = config["models"][model]
    if "from" in fields:
        path = Path(fields["from"]) / "config.json"
        fields = read_json(path) if path.is_file() else {"n_head": 1}
    divisible = fields.get("degree") or fields["n_head"]
    return max(tp for tp in range(1, config["engines"]["tp"] + 1) if divisible % tp == 0 and 64 % tp == 0)


def data_label(text: Mapping) -> str:
    """What the `data` column of every table says; the embedded corpus says that it is synthetic."""
    label = corpus_label(text)
    return f"{label} (synthetic)" if text["source"] == "embedded" else label
