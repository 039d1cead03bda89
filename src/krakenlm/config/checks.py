"""The checks that a schema cannot say: keys that have to fit one another."""

from collections.abc import Mapping
from pathlib import Path

from krakenlm.config.evaluation import check_superglue
from krakenlm.config.models import WATCHING, check_heads, check_import, check_model, recipe
from krakenlm.config.text import check_amount, check_text
from krakenlm.errors import InputError
from krakenlm.models import ARCHITECTURES

HARDWARE = Path("config/hardware")
# Rows of the timings: every architecture, and another way to run one.
TIMED = (*ARCHITECTURES, "standard-chunked")


def check(config: Mapping) -> None:
    """Check what the schema cannot: keys that have to fit one another.

    Raises:
        InputError: naming the key.
    """
    from krakenlm.training.recipe import Recipe

    check_text(config["text"])
    check_amount(config)
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


def check_hardware(key: str, name: str) -> None:
    if not hardware_file(name).is_file():
        known = ", ".join(sorted(path.stem for path in HARDWARE.glob("*.yaml")))
        raise InputError(
            f"{key}: expected one of {known} (config/hardware), or a .yaml file, found {name!r}; choose one"
        )


def hardware_file(name: str) -> Path:
    """The description of a machine: a file, or a name in config/hardware."""
    return Path(name) if name.endswith(".yaml") else HARDWARE / f"{name}.yaml"
