import pytest
from small_run import write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """(tokens folder, tokenizer.json) of a few hundred short documents."""
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def paper():
    """The recipe of the paper's 125m models."""
    return {
        "steps": 300000,
        "batch_sequences": 480,
        "micro_batch": 4,
        "learning_rate": 2.5e-4,
        "warmup_steps": 2000,
        "final_learning_rate_share": 0.1,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "clip": 1.0,
        "precision": "bf16-mixed",
        "compile": True,
        "fused": False,
        "gpus": 8,
        "threads": 8,
        "log_every_steps": 10,
        "checkpoint_every_steps": 1000,
        "checkpoint_every_minutes": 15,
        "validate_every_steps": 2000,
        "validation_windows": 200,
    }
