"""Tensors that know what they depend on, and the operations on them."""

import contextlib
import threading
from enum import IntEnum, IntFlag

import torch
from torch.nn import functional as F

from krakenlm.models.collectives import ALONE


class Rank:
    """One rank's collectives, and its attentions and AllReduces in the order of their definition."""

    def __init__(self, comm):
        self.comm, self.log = comm, []

    def note(self, kind, *inputs):
        """The operations that a new one of this kind makes its results depend on."""
        before = frozenset().union(*(tensor.after for tensor in inputs))
        name = (kind, sum(known == kind for (known, _), _ in self.log))
        self.log.append((name, before))
        return before | {name}


_thread = threading.local()


def current_rank():
    if not hasattr(_thread, "rank"):
        _thread.rank = Rank(ALONE)
    return _thread.rank


@contextlib.contextmanager
def on_rank(comm):
    """Have this thread be the rank of `comm`; yields its record of operations."""
    _thread.rank = Rank(comm)
    try:
        yield _thread.rank
    finally:
        del _thread.rank


class Tensor:
    """A value, and the attentions and AllReduces that it comes after.

    `known`: TensorRT knows its last dimension when it builds. Of what a slice gives it may not.
    """

    def __init__(self, value, after=frozenset(), known=True):
        self.value, self.after, self.known = value, frozenset(after), known

    def __add__(self, other):
        assert self.value.shape == other.value.shape, "an addition that would broadcast"
        return Tensor(self.value + other.value, self.after | other.after, self.known and other.known)

    def ndim(self):
        return self.value.dim()

    def size(self, dim=None):
        assert dim is not None
        assert not self.is_dynamic(dim)
        return self.value.shape[dim]

    def is_dynamic(self, dim=None):
        return dim % self.ndim() == 0 or not self.known

    def mark_output(self, name=None, dtype=None):
        outputs()[name] = self


def outputs():
    """What this thread's model has marked as outputs."""
    if not hasattr(_thread, "outputs"):
        _thread.outputs = {}
    return _thread.outputs


class PositionEmbeddingType(IntEnum):
    learned_absolute = 0

    @staticmethod
    def from_string(s):
        return PositionEmbeddingType[s]

    def __str__(self):
        return self.name

    def is_rope(self):
        return False


class AttentionMaskType(IntEnum):
    padding = 0
    causal = 1


class LayerNormType(IntEnum):
    LayerNorm = 0


class AllReduceStrategy(IntEnum):
    NCCL = 0
    ONESHOT = 1
    TWOSHOT = 2
    AUTO = 3


class AllReduceConfig(IntFlag):
    USE_MEMCPY = 1
    PUSH_MODE = 2


def allreduce(tensor, group, strategy=AllReduceStrategy.AUTO, config=AllReduceConfig(0), reduce_fusion_params=None):  # noqa: B008
    rank = current_rank()
    assert reduce_fusion_params is None
    assert list(group) == list(range(rank.comm.world)), "a sum over ranks that are not there"
    kind = "custom allreduce" if strategy != AllReduceStrategy.NCCL else "nccl allreduce"
    after = rank.note(kind, tensor)
    return Tensor(rank.comm.all_reduce(tensor.value).wait(), after, tensor.known)


def allgather(tensor, group, gather_dim=0):
    rank = current_rank()
    assert list(group) == list(range(rank.comm.world))
    return Tensor(rank.comm.all_gather(tensor.value, gather_dim).wait(), tensor.after)


def concat(inputs, dim=0):
    after = frozenset().union(*(each.after for each in inputs))
    return Tensor(torch.cat([each.value for each in inputs], dim), after, all(each.known for each in inputs))


def split(tensor, split_size_or_sections, dim=0):
    assert not tensor.is_dynamic(dim), "a split along a dimension that is not known when the graph is built"
    sections = split_size_or_sections
    total = tensor.value.shape[dim]
    assert total % sections == 0 if isinstance(sections, int) else total == sum(sections)
    return [Tensor(part, tensor.after, known=False) for part in tensor.value.split(sections, dim)]


def gelu(x):
    return Tensor(F.gelu(x.value, approximate="tanh"), x.after, x.known)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-05, use_diff_of_squares=True):
    assert input.known, "a LayerNorm over a dimension that is not known when the graph is built"
    value = F.layer_norm(input.value, normalized_shape, weight.value, bias.value, eps)
    return Tensor(value, input.after)


def matmul(input, mat2, transa=False, transb=False, use_fp32_acc=True):
    assert not transa
    assert transb
    return Tensor(F.linear(input.value, mat2.value), input.after)


def embedding(input, weight):
    return Tensor(F.embedding(input.value.long(), weight.value), input.after)


def gather_last_token_logits(hidden_states, last_token_ids, remove_input_padding):
    assert remove_input_padding
    return Tensor(hidden_states.value[last_token_ids.value.long() - 1], hidden_states.after, hidden_states.known)


ACT2FN = {"gelu": gelu}
