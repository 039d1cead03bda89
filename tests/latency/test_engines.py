"""What the table of trained engines says of their models."""

import pytest

from krakenlm import models
from krakenlm.files import write_json
from krakenlm.latency import engines

SIZES = {"architecture": "standard", "n_layer": 1, "width": 16, "n_head": 2, "vocab_size": 64, "block_size": 8}


@pytest.mark.parametrize(("folder", "seed"), [("seed0-0123abcd", 0), ("elsewhere", 7)])
def test_the_seed_is_that_of_the_folder_as_in_every_table_and_elsewhere_the_trainings(tmp_path, folder, seed):
    models.save_model(models.build(SIZES), tmp_path / folder)
    write_json(tmp_path / folder / "metrics.json", {"seed": 7})
    assert engines.describe(tmp_path / folder)["seed"] == seed
