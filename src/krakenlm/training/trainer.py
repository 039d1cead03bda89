"""Lightning's Trainer as a recipe wants it: on a CPU, one GPU, the GPUs of a machine, or those of several machines."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from krakenlm.errors import InputError
from krakenlm.training.checkpoints import WholeFiles
from krakenlm.training.recipe import Recipe


def machines(recipe: Recipe) -> int:
    """How many machines train: as many as srun has started tasks on, else this one.

    Raises:
        InputError: srun started another number of tasks than the recipe has devices.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1:
        return 1
    if tasks != recipe.devices:
        raise InputError(
            f"training.devices: expected one per task of srun ({tasks}), found {recipe.devices}; start as many tasks "
            "as devices, or one"
        )
    return int(os.environ["SLURM_STEP_NUM_NODES"])


def check_devices(recipe: Recipe) -> None:
    """Refuse a run that needs more GPUs on this machine than it has."""
    wanted, found = recipe.gpus // machines(recipe), torch.cuda.device_count()
    if wanted > found:
        raise InputError(
            f"training.gpus: expected at most the {found} GPUs of this machine, found {wanted}; lower it (0: CPU)"
        )


def make_trainer(recipe: Recipe, out_dir: Path, callbacks: list, logger: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="gpu" if recipe.gpus else "cpu",
        devices=recipe.devices // machines(recipe),
        num_nodes=machines(recipe),
        strategy=strategy(recipe),
        precision=recipe.precision,
        max_steps=recipe.updates,
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
    # Lightning asks the first rank before every micro-batch whether SIGTERM has come, and waits for the answer on the
    # GPU. saving.Checkpoints asks all ranks, once per update and on the CPU.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def strategy(recipe: Recipe) -> Strategy | str:
    """DDP where devices share a batch. Gradients are averaged once per update, after its last micro-batch."""
    if recipe.devices == 1:
        return "auto"
    # Without the view each device would hold the gradients twice.
    return DDPStrategy(cluster_environment=cluster_environment(), gradient_as_bucket_view=True)


def cluster_environment() -> ClusterEnvironment:
    """Who starts the processes: srun where it started several, otherwise Lightning, as children of this one."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        # Requeueing is left to Snakemake's retries.
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


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
