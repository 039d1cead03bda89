"""The training recipe as checked data, and what follows by arithmetic alone: schedule, batches, events, memory."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

from krakenlm.errors import InputError
from krakenlm.models.sizing import TrainingMemory, training_memory

# Precision -> bytes of an element of its products.
PRECISIONS = {"32-true": 4, "bf16-mixed": 2}
# Of a device's memory; the rest is for the driver, the kernels' workspaces and what is lost between allocations: an
# assumption.
USABLE_SHARE = 0.9
SAMPLINGS = ("random", "permuted")
WHOLE_NUMBERS = (
    "steps", "batch_sequences", "micro_batch", "threads", "log_every_steps", "checkpoint_every_steps",
    "validate_every_steps", "validation_windows",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained; the keys of `training` in a scale's file.

    A step is one update of the weights. As in the authors' loop there are steps + 1 of them, numbered 0 to `steps`;
    step 0 has learning rate 0.
    """

    steps: int
    batch_sequences: int  # windows per update, over all devices
    micro_batch: int  # windows per device and forward pass
    learning_rate: float  # peak
    warmup_steps: int
    final_learning_rate_share: float  # of the peak, at step `steps`
    weight_decay: float
    beta1: float
    beta2: float
    clip: float  # largest norm of all gradients together
    precision: str
    compile: bool
    fused: bool  # PyTorch's fused AdamW
    gpus: int  # 0: CPU
    threads: int  # of torch, per process
    log_every_steps: int = 10
    checkpoint_every_steps: int = 100
    checkpoint_every_minutes: float = 15.0  # since the last checkpoint, whichever comes first
    validate_every_steps: int = 100
    validation_windows: int = 32
    sampling: str = "random"  # where windows lie: anywhere, or each once per pass
    devices: int = 0  # processes that share a batch; 0: one per GPU, one on CPU

    @classmethod
    def from_dict(cls, values: Mapping, section: str = "training") -> "Recipe":
        """Check `values` key by key, then against one another.

        Raises:
            InputError: naming the key as `<section>.<key>`.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise InputError(
                    f"{section}.{key}: unknown key; expected one of {', '.join(sorted(fields))}; remove or correct it"
                )
        for key, field in fields.items():
            if key in values:
                check_type(f"{section}.{key}", values[key], field.type)
            elif field.default is dataclasses.MISSING:
                raise InputError(f"{section}.{key}: expected a value, found none; set it")
        values = dict(values)
        values["devices"] = values.get("devices") or max(1, values["gpus"])
        recipe = cls(**values)
        recipe.check(section)
        return recipe

    def check(self, section: str) -> None:
        def require(key: str, holds: bool, expected: str) -> None:
            if not holds:
                raise InputError(f"{section}.{key}: expected {expected}, found {getattr(self, key)!r}; correct it")

        for key in WHOLE_NUMBERS:
            require(key, getattr(self, key) >= 1, "at least 1")
        for key in ("learning_rate", "clip", "checkpoint_every_minutes"):
            require(key, getattr(self, key) > 0, "a number above 0")
        for key in ("beta1", "beta2"):
            require(key, 0 <= getattr(self, key) < 1, "a number from 0 to below 1")
        require("weight_decay", self.weight_decay >= 0, "at least 0")
        require("final_learning_rate_share", 0 <= self.final_learning_rate_share <= 1, "a number from 0 to 1")
        require("sampling", self.sampling in SAMPLINGS, f"one of {', '.join(SAMPLINGS)}")
        require("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        require("gpus", self.gpus >= 0, "at least 0")
        require("devices", self.devices >= 1, "at least 1")
        if self.gpus:
            require("devices", self.devices == self.gpus, f"as many as gpus ({self.gpus})")
        require("warmup_steps", 0 <= self.warmup_steps < self.steps, f"0 to below steps ({self.steps})")
        self.check_batch(section)

    def check_batch(self, section: str) -> None:
        """Refuse a batch that micro-batches do not divide, and a number of devices that these do not divide over."""
        micro_batches, rest = divmod(self.batch_sequences, self.micro_batch)
        if rest:
            low = max(1, micro_batches) * self.micro_batch
            raise InputError(
                f"{section}.batch_sequences: expected a multiple of micro_batch ({self.micro_batch}), found "
                f"{self.batch_sequences}; the nearest are {low} and {low + self.micro_batch}"
            )
        if micro_batches % self.devices:
            key = "gpus" if self.gpus else "devices"
            raise InputError(
                f"{section}.{key}: expected a number that divides the {micro_batches} micro-batches of an update "
                f"({self.batch_sequences} sequences, {self.micro_batch} at once), found {self.devices}; the nearest: "
                f"{' and '.join(map(str, nearest_divisors(micro_batches, self.devices)))}"
            )

    @property
    def accumulation(self) -> int:
        """Forward passes per device and update."""
        return self.batch_sequences // (self.micro_batch * self.devices)

    @property
    def updates(self) -> int:
        """Number of updates of a whole run: that of step 0 and those of steps 1 to `steps`."""
        return self.steps + 1

    def tokens(self, block_size: int) -> int:
        """Tokens that a whole run sees, a token once for each window that it is in."""
        return self.updates * self.batch_sequences * block_size

    def memory(self, sizes: Mapping, micro_batch: int | None = None) -> TrainingMemory:
        """What one device needs for a model of these sizes, with another micro-batch where one is given."""
        return training_memory(sizes, micro_batch or self.micro_batch, PRECISIONS[self.precision])

    def fits(self, sizes: Mapping, micro_batch: int, memory: float) -> bool:
        """Whether this micro-batch is estimated to fit in `memory` bytes."""
        return self.memory(sizes, micro_batch).total <= USABLE_SHARE * memory

    def fitting_micro_batch(self, sizes: Mapping, memory: float) -> int | None:
        """The largest micro-batch below this one that divides a device's share of a batch and fits in `memory` bytes.

        None: not even one sequence fits, or one already was too many.
        """
        share = self.batch_sequences // self.devices
        for micro_batch in range(self.micro_batch - 1, 0, -1):
            if share % micro_batch == 0 and self.fits(sizes, micro_batch, memory):
                return micro_batch
        return None

    def rate(self, step: int) -> float:
        """Learning rate of update `step`: linear warm-up from 0, then a cosine down to the final share at `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        final = self.learning_rate * self.final_learning_rate_share
        progress = min(1.0, (step - self.warmup_steps) / (self.steps - self.warmup_steps))
        return final + 0.5 * (1.0 + math.cos(math.pi * progress)) * (self.learning_rate - final)

    def logs(self, step: int) -> bool:
        return step % self.log_every_steps == 0 or step == self.steps

    def validates(self, step: int) -> bool:
        return step % self.validate_every_steps == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        return (step + 1) % self.checkpoint_every_steps == 0 or step == self.steps


def check_type(key: str, value: object, wanted: type) -> None:
    # An int may stand for a float; a bool, which Python counts as an int, may not.
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if not fits or (wanted is float and not math.isfinite(value)):
        raise InputError(f"{key}: expected a value of type {wanted.__name__}, found {value!r}; correct it")


def nearest_divisors(number: int, wanted: int) -> list[int]:
    """The largest divisor of `number` below `wanted` and, where there is one, the smallest above."""
    below = max(divisor for divisor in range(1, min(wanted, number) + 1) if number % divisor == 0)
    above = (divisor for divisor in range(wanted, number + 1) if number % divisor == 0)
    return [below, *itertools.islice(above, 1)]
