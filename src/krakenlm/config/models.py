"""The `models` and `training` keys: recipes, what determines weights, processes and ranks of a model."""

from collections.abc import Mapping
from pathlib import Path

from krakenlm.config.hashes import content_hash, fingerprint
from krakenlm.config.merging import merge
from krakenlm.config.text import is_hub_name, text_settings
from krakenlm.errors import InputError
from krakenlm.files import read_json
from krakenlm.models import ARCHITECTURES

# Keys of a recipe that change how a run is watched or how fast it is, never what its weights become.
WATCHING = (
    "log_every_steps", "checkpoint_every_steps", "checkpoint_every_minutes", "validate_every_steps",
    "validation_windows",
)  # fmt: skip


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
