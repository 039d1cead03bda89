"""One model trained from tokens to weights, or a broken-off training gone on with."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from krakenlm import models
from krakenlm.config import WATCHING, fingerprint
from krakenlm.errors import InputError
from krakenlm.files import copy, write_json
from krakenlm.machine import hardware
from krakenlm.text.store import TokenStore
from krakenlm.training.checkpoints import newest_intact, refuse_stopped
from krakenlm.training.memory import explaining_memory
from krakenlm.training.module import LanguageModel
from krakenlm.training.recipe import Recipe
from krakenlm.training.record import Record
from krakenlm.training.saving import BestModel, Checkpoints
from krakenlm.training.trainer import check_devices, make_trainer, quiet, reproducible
from krakenlm.training.windows import TrainingWindows


def train(
    tokens_dir: str | Path,
    tokenizer: str | Path,
    model_config: dict,
    recipe: dict,
    seed: int,
    out_dir: str | Path,
    logger: Any = None,
    identity: str = "",
) -> None:
    """Train a model; go on from the newest intact checkpoint under `out_dir`, if there is one.

    Args:
        tokens_dir: folder of tokens (text.store.TokenStore).
        tokenizer: tokenizer.json, copied beside the weights.
        model_config: architecture and its sizes; `vocab_size` is the tokens' unless given.
        recipe: keys of `training` in a scale's file (recipe.Recipe).
        seed: of the initial weights and the windows.
        out_dir: gets tokenizer.json, config.json, model.safetensors, metrics.json (last) and checkpoints/.
        logger: a Lightning Logger that also sees the curve.
        identity: hash of what determines the weights; kept, with a hash of the rest, in every checkpoint.

    Raises:
        InputError: a key or file does not fit, a checkpoint is another run's, memory ran out, or the loss or the
            gradient is no longer finite.
        SystemExit: SIGTERM came; a checkpoint is saved, and a second call goes on from it.
    """
    out_dir, checkpoints = Path(out_dir), Path(out_dir) / "checkpoints"
    settings = Recipe.from_dict(recipe)
    check_devices(settings)
    store = TokenStore(tokens_dir)
    model_config = with_vocabulary(model_config, store)
    splits = {split: store.tokens(split) for split in ("train", "val")}
    for split, tokens in splits.items():
        check_length(tokens_dir, split, len(tokens), model_config["block_size"])
    identity = full_identity(identity, store, model_config, recipe, seed)
    refuse_stopped(checkpoints)
    checkpoint, first_step = newest_intact(checkpoints, identity)

    with reproducible(settings), quiet(), explaining_memory(model_config, settings):
        torch.manual_seed(seed)  # on the CPU and before any device is known, so devices do not change the weights
        network = models.build(model_config)
        module = LanguageModel(network, settings, seed)
        record = Record(settings, model_config, splits["val"], checkpoints)
        callbacks = [
            record,
            BestModel(checkpoints / "best", settings, Path(tokenizer), record),
            Checkpoints(checkpoints, settings, identity, record),
        ]
        trainer = make_trainer(settings, out_dir, callbacks, logger)
        windows = TrainingWindows(
            splits["train"],
            model_config["block_size"],
            settings,
            seed,
            first_step,
            rank=trainer.global_rank,
            pin=settings.gpus > 0,
        )
        trainer.fit(module, windows, ckpt_path=checkpoint, weights_only=True)
    if trainer.global_step != settings.updates:
        raise SystemExit(f"training: ended at step {trainer.global_step} of {settings.steps}; run again to go on")
    if trainer.is_global_zero:
        write_outputs(out_dir, Path(tokenizer), network, settings, seed, record, store.manifest)
    trainer.strategy.barrier("outputs written")


def with_vocabulary(model_config: dict, store: TokenStore) -> dict:
    vocab_size = store.manifest["vocab_size"]
    if model_config.get("vocab_size", vocab_size) != vocab_size:
        raise InputError(
            f"vocab_size: expected {vocab_size}, the vocabulary of the tokens, found {model_config['vocab_size']}; "
            "leave it out or train on the tokens of that vocabulary"
        )
    if "block_size" not in model_config:
        raise InputError("block_size: expected the model's longest input in tokens, found none; set it")
    return model_config | {"vocab_size": vocab_size}


def check_length(tokens_dir: str | Path, split: str, length: int, block_size: int) -> None:
    if length <= block_size:
        raise InputError(
            f"block_size: expected fewer tokens than {Path(tokens_dir) / split}.bin has ({length}), found "
            f"{block_size}; lower it, give more text or change text.validation_share"
        )


def full_identity(identity: str, store: TokenStore, model_config: dict, recipe: dict, seed: int) -> str:
    """`identity` and all that this stage itself knows to determine the weights."""
    weights = {key: value for key, value in recipe.items() if key not in WATCHING}
    # The ids themselves are in the manifest by their checksums; one of earlier versions names no tokenizer.
    tokens = {key: value for key, value in store.manifest.items() if key != "tokenizer"}
    return fingerprint([identity, tokens, model_config, weights, seed])


def write_outputs(
    out_dir: Path,
    tokenizer: Path,
    network: torch.nn.Module,
    recipe: Recipe,
    seed: int,
    record: Record,
    manifest: dict,
) -> None:
    """Everything a later stage reads; metrics.json comes last, so where it is the rest is too."""
    copy(tokenizer, out_dir / "tokenizer.json")
    models.save_model(network, out_dir)
    tokens, seconds = recipe.tokens(record.block_size), record.total_seconds()
    write_json(
        out_dir / "metrics.json",
        {
            "seed": seed,
            "steps": recipe.steps,
            "tokens_seen": tokens,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "recipe": {key: value for key, value in asdict(recipe).items() if key not in WATCHING},
            "tokens": manifest,
            "curve": record.curve,
            "validation": record.validation,
            "validation_tokens": record.validation_tokens_seen(),
            "hardware": hardware(),
            "timings": {
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "resumed_at_step": record.first_step,
            },
        },
    )
