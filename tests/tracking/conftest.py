import pytest
import wandb
from wandb_server import Server

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("API_KEY", "MODE", "DIR", "PROJECT", "BASE_URL", "RUN_GROUP"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    # What set_up sets is forgotten after the test.
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    # W&B reads its environment once per process.
    wandb.teardown()


@pytest.fixture
def server(monkeypatch):
    """A W&B server on this machine, and a key for it."""
    with Server() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        wandb.teardown()
    assert server.unknown == []
