"""What one rank of an engine executes: the real forward on meta tensors, with collectives that record.

Nothing here knows an architecture. A torch function mode sees every function that the forward calls, whole (attention
too, which a dispatch mode would see in pieces), and the collectives note where each starts and where the forward waits
for it. All ranks call the same functions on the same shapes (rank 0's part of the head is the largest), so one rank
stands for all.
"""

import dataclasses
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import likeliest
from krakenlm.models.blocks import LAST, Config
from krakenlm.models.collectives import WORLD, Done, Group
from krakenlm.models.products import Linear, pack

LINEAR = ("linear", "_linear_pointwise")  # the second of packed weights
PRODUCTS = (*LINEAR, "matmul", "mm", "bmm")
ATTENTION = "scaled_dot_product_attention"
NORMS = ("layer_norm", "rms_norm")
# Elementwise functions, whose result has the shape of their arguments broadcast. Meta kernels would find it too, but
# take milliseconds for some of them.
ELEMENTWISE = ("add", "sub", "mul", "gelu", "silu")
# Of what a row is looked up in, only the rows found are read.
LOOKUPS = ("embedding", "__getitem__", "index_select", "gather")
COPIES = ("__setitem__", "reshape", "contiguous", "clone", "copy_", "stack")
ASSIGNING = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__")
# Layers that are traced, and one more; a deeper model repeats the one more (`extend`). The first and the last two are
# unlike the others in some architectures.
FEW_LAYERS = 4


@dataclass(frozen=True)
class Operation:
    """One kernel on the compute stream, or one collective on the communication stream.

    shape: of a product (batch, m, n, k), m rows of k times a weight (n, k); of attention (rows, heads, queries, keys,
    head size); of all others the result's.
    bytes: what is read and written, once each; of a collective, what one rank contributes.
    """

    name: str  # torch's, or all_reduce, all_gather
    kind: str  # product, attention, norm, pointwise, copy, all_reduce, all_gather
    shape: tuple[int, ...]
    dtype: str
    flops: int
    bytes: int
    module: str = ""  # whose weight it reads, without the layer's number
    causal: bool = False  # attention: the last query to all keys, each before to one less
    ranks: range | None = None  # whom a collective joins


class Wait(NamedTuple):
    """The compute stream waits for a collective: the latest started (0), the one before (1), and so on."""

    behind: int


@dataclass(frozen=True)
class Trace:
    """What a rank executes, in order, and its memory in bytes; `activations` is the most that live at one time."""

    steps: tuple[Operation | Wait, ...]
    world: int
    element_bytes: int  # of weights and cache
    weights: int
    kv_cache: int
    activations: int

    @property
    def operations(self) -> list[Operation]:
        return [step for step in self.steps if isinstance(step, Operation)]

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)


class Step(NamedTuple):
    """An operation or a wait, and which data it reads and writes: {number of a storage: bytes}."""

    action: Operation | Wait
    reads: dict[int, int]
    writes: dict[int, int]


def trace(
    config: Config,
    world: int = 1,
    *,
    batch: int,
    new_tokens: int,
    cached: int = 0,
    dtype: str = "float16",
    engine: str = "torch",
    prepare: Callable[[nn.Module], object] | None = None,
) -> Trace:
    """The forward of `new_tokens` tokens in each of `batch` rows that follow `cached` ones, to the next token.

    Args:
        config: of the model, whose block_size is at least cached + new_tokens.
        world: ranks.
        engine: whose kernels: of `torch` every function is one; `torch-cpu` packs weights (krakenlm.models.products);
            `tensorrt-llm` runs what is neither product, attention nor collective, where several stand in a row, as one.
        prepare: called with the rank's module before its forward.

    Raises:
        InputError: the model cannot be divided over `world` ranks, or does not take as many tokens.
    """

    def traced(n_layer: int) -> Trace:
        return trace_whole(
            dataclasses.replace(config, n_layer=n_layer), world, batch, new_tokens, cached, dtype, engine, prepare
        )

    if config.n_layer > FEW_LAYERS + 1:
        deeper = extend(traced(FEW_LAYERS), traced(FEW_LAYERS + 1), config.n_layer - FEW_LAYERS)
        if deeper is not None:
            return deeper
    return traced(config.n_layer)


@torch.inference_mode()
def trace_whole(
    config: Config,
    world: int,
    batch: int,
    new_tokens: int,
    cached: int,
    dtype: str,
    engine: str,
    prepare: Callable[[nn.Module], object] | None,
) -> Trace:
    """The trace of a model all of whose layers are run."""
    with torch.device("meta"):
        module = models.build_rank(config, 0, world).to(getattr(torch, dtype)).eval()
        tokens_BT = torch.zeros(batch, new_tokens, dtype=torch.int64)
        cache = Cache(module, batch, cached + new_tokens)
    if prepare is not None:
        prepare(module)
    if engine == "torch-cpu":
        pack(module)
    cache.advance(cached)
    recorder = Recorder(module)
    with recorder:
        likeliest(module(tokens_BT, Recording(recorder, world), cache, at=LAST)[:, -1])
    steps = fused(recorder.steps) if engine == "tensorrt-llm" else recorder.steps
    return Trace(
        steps=tuple(step.action for step in steps),
        world=world,
        element_bytes=cache.keys.itemsize,
        weights=sum(each.numel() * each.itemsize for each in module.parameters()),
        kv_cache=2 * cache.keys.numel() * cache.keys.itemsize,
        activations=recorder.most_activations,
    )


def extend(few: Trace, one_more: Trace, times: int) -> Trace | None:
    """`few` with what `one_more` has more than it `times` times over; None where that is not one piece repeated."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(few.steps, one_more.steps, strict=False))
    start, length = len(list(same)), len(one_more.steps) - len(few.steps)
    layer, rest = one_more.steps[start : start + length], few.steps[start:]
    if one_more.steps[start + length :] != rest or few.steps[start - length : start] != layer:
        return None
    numbers = {
        field: getattr(few, field) + times * (getattr(one_more, field) - getattr(few, field))
        for field in ("weights", "kv_cache", "activations")
    }
    return dataclasses.replace(few, steps=few.steps[:start] + times * layer + rest, **numbers)


class Recorder(TorchFunctionMode):
    """Records what is called on tensors of the meta device while it is active."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.started = 0
        self.modules = {storage_of(each): owner(name) for name, each in weights_of(module)}
        self.numbers: dict[int, int] = {}  # of storages that live
        self.next_number = itertools.count()
        self.sharing: dict[int, int] = {}  # storage of a result -> how many tensors share it
        self.activations = self.most_activations = 0
        self.off = False

    def __torch_function__(self, function: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if self.off:
            return function(*args, **kwargs)
        name = function.__name__
        result = shape_alone(name, args, kwargs)
        if result is None:
            result = function(*args, **kwargs)
        # Most of what comes through here asks for a shape or a type.
        if result is not None and (isinstance(result, torch.Size) or not isinstance(result, (Tensor, list, tuple))):
            return result
        inputs = list(tensors_in([*args, *kwargs.values()]))
        outputs = list(tensors_in([result]))
        if name in ASSIGNING or (name.endswith("_") and not name.startswith("_")):
            self.record(name, args, kwargs, inputs[1:] if name in COPIES else inputs, inputs[:1])
            return result
        known = {storage_of(each) for each in inputs}
        fresh = [each for each in outputs if storage_of(each) not in known]
        for each in fresh:
            self.add(each)
        for each in outputs:
            self.hold(each)
        if fresh:
            self.record(name, args, kwargs, inputs, fresh)
        return result

    def record(self, name: str, args: tuple, kwargs: dict, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Note an operation, its data and what it costs."""
        reads = {self.number(each): bytes_of(each) for each in inputs}
        writes = {self.number(each): bytes_of(each) for each in outputs}
        if name in LOOKUPS:
            found = sum(writes.values())
            reads = {number: min(size, found) for number, size in reads.items()}
        if name == "__setitem__" and inputs:
            writes = dict.fromkeys(writes, sum(reads.values()))
        kind, shape, flops = cost(name, args, kwargs, outputs[0])
        operation = Operation(
            name=name.strip("_"),
            kind=kind,
            shape=shape,
            dtype=str(outputs[0].dtype).removeprefix("torch."),
            flops=flops,
            bytes=sum(reads.values()) + sum(writes.values()),
            module=next((self.modules[s] for each in inputs if (s := storage_of(each)) in self.modules), ""),
            causal=kind == "attention" and bool(kwargs.get("is_causal")),
        )
        self.steps.append(Step(operation, reads, writes))

    def start(self, name: str, x: Tensor, shape: Sequence[int], ranks: range) -> "RecordedWork":
        """Note that a collective starts; its result takes memory from now on."""
        self.off = True
        result = x.new_empty(shape)
        self.off = False
        self.add(result)
        self.hold(result)
        dtype = str(x.dtype).removeprefix("torch.")
        operation = Operation(name, name, tuple(shape), dtype, 0, x.numel() * x.itemsize, ranks=ranks)
        self.steps.append(Step(operation, {self.number(x): bytes_of(x)}, {self.number(result): bytes_of(result)}))
        self.started += 1
        return RecordedWork(self, self.started, result)

    def wait(self, place: int) -> None:
        self.steps.append(Step(Wait(self.started - place), {}, {}))

    def number(self, x: Tensor) -> int:
        return self.numbers.setdefault(storage_of(x), next(self.next_number))

    def add(self, result: Tensor) -> None:
        """Give a result's storage, which may lie where an earlier one lay, a number of its own."""
        key = storage_of(result)
        self.numbers[key], self.sharing[key] = next(self.next_number), 0
        self.activations += result.untyped_storage().nbytes()
        self.most_activations = max(self.most_activations, self.activations)

    def hold(self, x: Tensor) -> None:
        """Count a result's memory until the last tensor that shares it is gone. Weights and cache are no results."""
        key = storage_of(x)
        if key in self.sharing:
            self.sharing[key] += 1
            weakref.finalize(x, self.release, key, x.untyped_storage().nbytes())

    def release(self, key: int, size: int) -> None:
        self.sharing[key] -= 1
        if not self.sharing[key]:
            del self.sharing[key], self.numbers[key]
            self.activations -= size


class Recording:
    """Collectives of rank 0 of `world` that note what is asked of them."""

    rank = 0

    def __init__(self, recorder: Recorder, world: int) -> None:
        self.recorder, self.world = recorder, world

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> "Done | RecordedWork":
        ranks = group.ranks(self.rank, self.world)
        return Done(x) if len(ranks) == 1 else self.recorder.start("all_reduce", x, x.shape, ranks)

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> "Done | RecordedWork":
        ranks, shape = group.ranks(self.rank, self.world), list(x.shape)
        shape[dim] *= len(ranks)
        return Done(x) if len(ranks) == 1 else self.recorder.start("all_gather", x, shape, ranks)


class RecordedWork:
    """A collective under way."""

    def __init__(self, recorder: Recorder, place: int, result: Tensor) -> None:
        self.recorder, self.place, self.result = recorder, place, result

    def wait(self) -> Tensor:
        self.recorder.wait(self.place)
        return self.result


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all weights, packed ones too."""
    yield from module.named_parameters()
    for name, linear in module.named_modules():
        for parts in linear.packed.values() if isinstance(linear, Linear) else ():
            yield from ((f"{name}.weight", each) for each in parts)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among the values and in their lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def storage_of(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def bytes_of(x: Tensor) -> int:
    """Bytes of the elements of `x`; one that a stride of 0 repeats counts once."""
    return x.itemsize * math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


def owner(name: str) -> str:
    """`layers.3.attention.qkv.weight` to `attention.qkv`: whose parameter it is, in any layer."""
    words = [word for word in name.split(".")[:-1] if not word.isdigit()]
    return ".".join(words[1:] if words[:1] == ["layers"] else words) or name


def shape_alone(name: str, args: tuple, kwargs: dict) -> Tensor | None:
    """The result of functions whose shape is known here: an empty tensor. None for others."""
    if name in LINEAR:
        return args[0].new_empty((*args[0].shape[:-1], args[1].shape[-2]))
    if name == ATTENTION or name in NORMS:
        return args[0].new_empty(args[0].shape)
    if name == "cat":  # the meta kernel imports PyTorch's compiler first, a second or more
        parts, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
        shape = list(parts[0].shape)
        shape[dim] = sum(each.shape[dim] for each in parts)
        return parts[0].new_empty(shape)
    if name == "stack":
        return args[0][0].new_empty((len(args[0]), *args[0][0].shape))
    if name in ELEMENTWISE:
        shapes = [each.shape for each in args if isinstance(each, Tensor)]
        first = next(each for each in args if isinstance(each, Tensor))
        return first.new_empty(torch.broadcast_shapes(*shapes))
    return None


def cost(name: str, args: tuple, kwargs: dict, result: Tensor) -> tuple[str, tuple[int, ...], int]:
    """(kind, shape, FLOPs) of an operation; a multiply-add is two, what a causal mask discards is none."""
    if name in PRODUCTS:
        (k, n), batch = (args[0].shape[-1], result.shape[-1]), 1 if name in LINEAR else math.prod(result.shape[:-2])
        m = result.numel() // (batch * n)
        return "product", (batch, m, n, k), 2 * result.numel() * k
    if name == ATTENTION:
        (rows, heads, queries, size), keys = args[0].shape, args[1].shape[-2]
        pairs = queries * keys - (queries * (queries - 1) // 2 if kwargs.get("is_causal") else 0)
        return "attention", (rows, heads, queries, keys, size), 4 * rows * heads * size * pairs
    kind = "norm" if name in NORMS else "copy" if name in COPIES else "pointwise"
    return kind, tuple(result.shape), 0


def fused(steps: Sequence[Step]) -> list[Step]:
    """The steps with each run of norms, pointwise operations and copies as one kernel.

    It reads what it has not made itself, and writes what is read later. Copies beside attention are none of it:
    kernels of attention keep keys and values themselves, and write heads side by side.
    """
    last_read = {number: place for place, step in enumerate(steps) for number in step.reads}
    kinds = [getattr(step.action, "kind", "wait") for step in steps]
    together, place = [], 0
    for light, run in itertools.groupby(kinds, lambda kind: kind in ("norm", "pointwise", "copy")):
        end = place + len(list(run))
        group = list(steps[place:end])
        if light:
            if "attention" in (kinds[max(place - 1, 0)], kinds[min(end, len(kinds) - 1)]):
                group = [step for step in group if step.action.kind != "copy"]
            group = [one_kernel(group, end, last_read)] if group else []
        together += group
        place = end
    return together


def one_kernel(group: list[Step], end: int, last_read: dict[int, int]) -> Step:
    """A run of steps, which ends before step `end`, as one."""
    reads: dict[int, int] = {}
    made: dict[int, int] = {}
    for step in group:
        for number, size in step.reads.items():
            if number not in made:
                reads[number] = max(size, reads.get(number, 0))
        made |= step.writes
    writes = {number: size for number, size in made.items() if last_read.get(number, end) >= end}
    actions = [step.action for step in group]
    kinds = {action.kind for action in actions}
    operation = dataclasses.replace(
        actions[-1],
        name="+".join(dict.fromkeys(action.name for action in actions)),
        kind="norm" if "norm" in kinds else "pointwise" if "pointwise" in kinds else "copy",
        bytes=sum(reads.values()) + sum(writes.values()),
        module=next((action.module for action in actions if action.module), ""),
    )
    return Step(operation, reads, writes)
