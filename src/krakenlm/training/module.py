"""The Lightning module: loss, optimizer, schedule, clipping."""

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from krakenlm.models.blocks import decays
from krakenlm.training.recipe import Recipe
from krakenlm.training.windows import gather, validation_starts


def next_token_loss(network: Any, windows_BW: Tensor) -> Tensor:
    """Mean cross-entropy in nats over all positions of windows of T + 1 tokens; `network` maps (B, T) to (B, T, V)."""
    logits_BTV = network(windows_BW[:, :-1])
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), windows_BW[:, 1:].flatten())


def training_loss(recipe: Recipe) -> Callable[[Any, Tensor], Tensor]:
    """`next_token_loss`; where the recipe says so compiled, the network within, so that no float32 copy of the logits,
    which are most of a small model's activations, is ever written.
    """
    return torch.compile(next_token_loss) if recipe.compile else next_token_loss


def adamw(network: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves LayerNorm weights alone, as the architecture says."""
    decay, no_decay = [], []
    for name, parameter in network.named_parameters():
        (decay if decays(name) else no_decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": recipe.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=recipe.fused or None
    )


class LanguageModel(L.LightningModule):
    """A network under the recipe.

    `pending` holds (loss, gradient norm) of each update since it was last taken, as tensors on the device: reading
    numbers at every update would make a GPU wait.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.network, self.recipe, self.seed = network, recipe, seed
        self.loss = training_loss(recipe)
        self.pending: list[Tensor] = []
        self.micro_losses: list[Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.network, self.recipe)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        # Whatever may draw random numbers in a forward pass draws by its place alone, so resuming needs no state.
        place = batch_idx * self.recipe.devices + self.global_rank
        torch.manual_seed(np.random.Philox(key=np.array([self.seed, place], dtype=np.uint64)).random_raw())

    def training_step(self, windows_BW: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(self.network, windows_BW)
        self.micro_losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.global_step)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.pending.append(torch.stack([torch.stack(self.micro_losses).mean(), norm]))
        self.micro_losses.clear()

    def take_pending(self) -> list[list[float]]:
        """[loss, gradient norm] of each update since the last call, the loss a mean over all devices."""
        if not self.pending:
            return []
        values = self.trainer.strategy.reduce(torch.stack(self.pending), reduce_op="mean").tolist()
        self.pending.clear()
        return values

    @torch.no_grad()
    def validation_loss(self, tokens: np.ndarray, block_size: int) -> float:
        """Mean loss over the recipe's validation windows, shared out among the devices."""
        starts_B = validation_starts(len(tokens), block_size, self.recipe.validation_windows)
        starts_B = starts_B[self.global_rank :: self.trainer.world_size]
        total = torch.zeros(2, device=self.device, dtype=torch.float64)
        self.network.eval()
        for first in range(0, len(starts_B), self.recipe.micro_batch):
            windows_BW = gather(tokens, starts_B[first : first + self.recipe.micro_batch], block_size).to(self.device)
            with self.trainer.precision_plugin.val_step_context():
                # Not compiled: the last batch is smaller and would be compiled anew.
                loss = next_token_loss(self.network, windows_BW)
            total += torch.stack([loss.double() * len(windows_BW), loss.new_tensor(len(windows_BW)).double()])
        self.network.train()
        total = self.trainer.strategy.reduce(total, reduce_op="sum")
        return (total[0] / total[1]).item()
