"""A recorded prefill: what is around the recording, with a recorder that, like a CUDA graph, replays tensors alone."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from krakenlm.inference.cache import Cache
from krakenlm.inference.collectives import run_threads
from krakenlm.inference.generate import generate
from krakenlm.inference.recorded import RecordedPrefill
from krakenlm.inference.shards import random_rank
from krakenlm.models import config_from_dict
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import ALONE

SIZES = {"n_layer": 3, "n_head": 4, "width": 32, "vocab_size": 97, "block_size": 160}


class Tape(TorchDispatchMode):
    """Remembers every operation with its operands, and does all of them again in the same memory."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def on_tape(forward):
    forward()
    tape = Tape()
    with tape:
        forward()
    return tape.replay


def module_of(architecture, rank=0, world=1):
    sizes = {"architecture": architecture, **SIZES} | ({"degree": 2} if architecture == "kraken" else {})
    return random_rank(config_from_dict(sizes), rank, world, 0, "cpu", torch.float32)


@pytest.mark.parametrize("architecture", ["standard", "parallel", "ladder", "kraken"])
@torch.inference_mode()
def test_replays_give_each_prompts_own_token_and_decoding_goes_on_from_their_cache(architecture):
    module = module_of(architecture)
    cache = Cache(module, 2, 16)
    recorded = RecordedPrefill(module, 2, 8, ALONE, cache, on_tape)
    memory = recorded.next_B.data_ptr()
    for seed in range(3):
        prompts_BT = torch.randint(97, (2, 8), generator=torch.Generator().manual_seed(seed))
        expected = list(generate(module, prompts_BT, 4))
        token_B = recorded(prompts_BT)
        assert token_B.tolist() == expected[0].tolist()
        assert token_B.data_ptr() == memory
        for wanted_B in expected[1:]:
            token_B = module(token_B[:, None], ALONE, cache, at=LAST)[:, -1].argmax(-1)
            assert token_B.tolist() == wanted_B.tolist()


@torch.inference_mode()
def test_chunks_of_a_prompt_are_recorded_too():
    module = module_of("standard")
    prompt_1T = torch.arange(130)[None] % 97
    expected = next(generate(module, prompt_1T, 1))
    module.chunks = 2
    recorded = RecordedPrefill(module, 1, 130, ALONE, Cache(module, 1, 130), on_tape)
    assert recorded(prompt_1T).tolist() == expected.tolist()


def test_every_rank_records_what_its_collectives_do_between():
    # Threads exchange tensors outside the operations that a tape sees, so here a replay runs the forward itself.
    def first(comm):
        module = module_of("kraken", comm.rank, comm.world)
        recorded = RecordedPrefill(module, 1, 8, comm, Cache(module, 1, 8), lambda forward: forward)
        return [recorded(torch.arange(start, start + 8)[None]).tolist() for start in (0, 8)]

    def expected(comm):
        module = module_of("kraken", comm.rank, comm.world)
        return [next(generate(module, torch.arange(start, start + 8)[None], 1, comm)).tolist() for start in (0, 8)]

    assert run_threads(2, first) == run_threads(2, expected)
