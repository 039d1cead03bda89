from pathlib import Path

import gpu_cases
import pytest
import torch


def pytest_collection_modifyitems(items):
    """Every test of this folder is marked `gpu`, and skipped where there is none."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """(tokens folder, tokenizer.json) of a few hundred short documents."""
    return gpu_cases.by_path("tests/training/small_run.py").write_text(tmp_path_factory.mktemp("text"))
