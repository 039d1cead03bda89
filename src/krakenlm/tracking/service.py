"""W&B's own process, which does its work beside ours, and the keys of its server."""

import contextlib
import netrc
import os
import subprocess
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path

# W&B's own process ends no sooner than what it waits for on a server that hangs; it is waited for so long.
TEAR_DOWN_SECONDS = 15.0
# A process that has closed its socket is not yet one that has ended.
END_SECONDS = 1.0


def set_up(directory: Path) -> None:
    """Import W&B and start its process; quiet from here on, the reading of keys included."""
    # What is set to nothing is not set, for W&B neither, which would refuse it.
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]
    # What artifacts hold waits for its upload in here, not in the user's home.
    os.environ.setdefault("WANDB_DATA_DIR", str(directory.resolve() / "wandb" / "staging"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(directory.resolve() / "wandb" / "cache"))
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))


def start_anew() -> None:
    """Start another process of W&B's in the place of the one there is."""
    import wandb

    with contextlib.suppress(Exception):  # it has ended, or will later by itself; whichever, another takes its place
        within(TEAR_DOWN_SECONDS, wandb.teardown)
    wandb.setup(settings=wandb.Settings(silent=True))


def has_ended() -> bool:
    """Whether W&B's own process is no longer there; what it had not yet written to its run folder is lost then."""
    import wandb

    connection = getattr(wandb.setup(), "_connection", None)  # there is no public way to it
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    try:
        return process is not None and process.wait(END_SECONDS) is not None
    except subprocess.TimeoutExpired:
        return False


def keys() -> list[str]:
    """The keys by which W&B's server would know us: WANDB_API_KEY, and logins in netrc."""
    import wandb

    key = os.environ.get("WANDB_API_KEY")
    hosts = [urllib.parse.urlparse(wandb.setup().settings.base_url).hostname]
    if not os.environ.get("WANDB_BASE_URL"):
        hosts.append("api.wandb.ai")  # where logins were kept before the default server moved
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return [key] if key else []
    found = [logins.authenticators(host or "") for host in hosts]
    return [*([key] if key else []), *(login[2] for login in found if login)]


def hide_keys(text: str) -> str:
    for key in keys():
        text = text.replace(key, "<key>")
    return text


def within(seconds: float, action: Callable[[], object]) -> None:
    """Do `action` in a thread of its own; what takes longer is left to itself.

    Raises:
        TimeoutError: it took longer.
        Exception: what `action` raised.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if raised:
        raise raised[0]
