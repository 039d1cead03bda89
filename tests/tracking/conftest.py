import signal

import pytest
from tracked_runs import tear_down
from wandb_server import Server

KEY = "0123456789abcdef0123456789abcdef01234567"


LIMIT_SECONDS = 300  # several times what the longest test takes


@pytest.fixture(autouse=True)
def limit():
    """Whatever a test waits for, pipes and processes that never end included, it fails in the end."""

    def fail(*_):
        raise TimeoutError(f"the test has not ended within {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    # Again and again: the first one may come where an exception is not passed on.
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def no_login(limit, monkeypatch, tmp_path):
    for name in ("API_KEY", "MODE", "DIR", "PROJECT", "BASE_URL", "RUN_GROUP"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    # What set_up sets is forgotten after the test.
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    # W&B reads its environment once per process.
    tear_down()


@pytest.fixture
def server(monkeypatch):
    """A W&B server on this machine, and a key for it."""
    with Server() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        tear_down()
    assert server.unknown == []
