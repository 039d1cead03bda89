"""Which micro-batch fits, against bytes added up by hand."""

from krakenlm import cgroups
from krakenlm.training.memory import memory_of_device
from krakenlm.training.recipe import Recipe

STANDARD = {"architecture": "standard", "n_layer": 1, "n_head": 1, "width": 8, "block_size": 4, "vocab_size": 64}
# Embeddings (64 + 4) x 8, layer 12 x 64 + 2 x 8, last norm 8: 1,336 parameters, each with its gradient and two moments.
PARAMETERS = 16 * 1336
# A token keeps 14 widths of the layer and 2 of its norms, 2 of the last norm, and three float32 per word of the
# vocabulary: 4 x (16 x 8 + 2 x 8 + 3 x 64).
TOKEN = 4 * (16 * 8 + 2 * 8 + 3 * 64)


def fitting(paper, memory, **changes):
    values = {"batch_sequences": 480, "micro_batch": 8, "gpus": 0, "precision": "32-true"} | changes
    return Recipe.from_dict(paper | values).fitting_micro_batch(STANDARD, memory)


def test_the_largest_divisor_that_fits_is_found(paper):
    bytes_of_five = PARAMETERS + 5 * 4 * TOKEN
    assert fitting(paper, bytes_of_five / 0.9 + 1) == 5
    assert fitting(paper, bytes_of_five / 0.9 - 1) == 4
    assert fitting(paper, 10**12) == 6  # 7 does not divide 480
    assert fitting(paper, 10**12, devices=16, micro_batch=6) == 5  # 30 sequences for each device


def test_where_not_even_one_sequence_fits_there_is_none(paper):
    assert fitting(paper, PARAMETERS) is None
    assert fitting(paper, 10**12, micro_batch=1) is None


def test_processes_on_cpus_share_the_memory_that_their_container_is_allowed(paper, monkeypatch):
    monkeypatch.setattr(cgroups, "memory_limit", lambda: 2**30)
    for devices in (1, 2):
        recipe = Recipe.from_dict(paper | {"gpus": 0, "precision": "32-true", "devices": devices})
        assert memory_of_device(recipe) == 2**30 // devices
