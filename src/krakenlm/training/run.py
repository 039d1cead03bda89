"""One model trained from tokens to weights, or a broken-off training gone on with."""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from krakenlm import models
from krakenlm.config import WATCHING, fingerprint
from krakenlm.errors import InputError
from krakenlm.files import write_json, writing
from krakenlm.machine import hardware
from krakenlm.text.store import TokenStore
from krakenlm.training.checkpoints import Checkpoints, WholeFiles, newest_intact
from krakenlm.training.module import LanguageModel
from krakenlm.training.recipe import Recipe
from krakenlm.training.record import Record
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
        InputError: a key or file does not fit, a checkpoint is another run's, or the loss is no longer finite.
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
    checkpoint, first_step = newest_intact(checkpoints, identity)

    with reproducible(settings), quiet():
        torch.manual_seed(seed)  # on the CPU and before any device is known, so devices do not change the weights
        network = models.build(model_config)
        if settings.compile:
            network.compile()
        module = LanguageModel(network, settings, seed)
        record = Record(settings, splits["val"], model_config["block_size"], checkpoints)
        callbacks = [record, Checkpoints(checkpoints, settings, identity)]
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
    if trainer.global_step != settings.steps + 1:
        raise SystemExit(f"training: ended at step {trainer.global_step} of {settings.steps}; run again to go on")
    if trainer.is_global_zero:
        write_outputs(out_dir, Path(tokenizer), network, settings, seed, record)
    trainer.strategy.barrier("outputs written")


def check_devices(recipe: Recipe) -> None:
    if recipe.gpus > torch.cuda.device_count():
        raise InputError(
            f"training.gpus: expected at most the {torch.cuda.device_count()} GPUs of this machine, found "
            f"{recipe.gpus}; lower it (0: CPU)"
        )


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
    return fingerprint([identity, store.manifest, model_config, weights, seed])


def make_trainer(recipe: Recipe, out_dir: Path, callbacks: list, logger: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="gpu" if recipe.gpus else "cpu",
        devices=recipe.devices,
        strategy="ddp" if recipe.devices > 1 else "auto",
        precision=recipe.precision,
        max_steps=recipe.steps + 1,
        max_epochs=-1,
        accumulate_grad_batches=recipe.accumulation,
        gradient_clip_val=recipe.clip,
        callbacks=callbacks,
        plugins=[WholeFiles()],
        logger=logger or False,
        default_root_dir=out_dir,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextlib.contextmanager
def reproducible(recipe: Recipe) -> Iterator[None]:
    """The recipe's threads and, on CPU, deterministic algorithms; what was set before comes back afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(recipe.threads)
    if not recipe.gpus:
        torch.use_deterministic_algorithms(True)
        # Clearing every new tensor only serves code that reads memory it never wrote, and costs a pass each time.
        torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out Lightning's banner, tips and advice; its errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [item.level for item in loggers]
    for item in loggers:
        item.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            for item, level in zip(loggers, levels, strict=True):
                item.setLevel(level)


def write_outputs(
    out_dir: Path, tokenizer: Path, network: torch.nn.Module, recipe: Recipe, seed: int, record: Record
) -> None:
    """Everything a later stage reads; metrics.json comes last, so where it is the rest is too."""
    with writing(out_dir / "tokenizer.json") as temporary:
        shutil.copyfile(tokenizer, temporary)
    models.save_model(network, out_dir)
    tokens_per_step = recipe.batch_sequences * record.block_size
    seconds = record.total_seconds()
    write_json(
        out_dir / "metrics.json",
        {
            "seed": seed,
            "steps": recipe.steps,
            "tokens_seen": (recipe.steps + 1) * tokens_per_step,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "curve": record.curve,
            "validation": record.validation,
            "validation_tokens": record.validation_tokens_seen(),
            "hardware": hardware(),
            "timings": {
                "seconds": seconds,
                "tokens_per_second": (recipe.steps + 1) * tokens_per_step / seconds,
                "resumed_at_step": record.first_step,
            },
        },
    )
