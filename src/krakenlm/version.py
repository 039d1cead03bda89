"""Which code is running: its version, and the commit where it runs from a checkout."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path


@functools.cache
def code_version() -> dict:
    """{version, commit, modified}: `modified` where tracked files differ from the commit. Without git, version only."""
    version = {"version": importlib.metadata.version("krakenlm")}
    commit = git("rev-parse", "HEAD")
    # Installed into another project's checkout, that one's commit would say nothing.
    if commit is None or not git("ls-files", "--", Path(__file__).name):
        return version
    return version | {"commit": commit, "modified": bool(git("status", "--porcelain", "--untracked-files=no"))}


def git(*arguments: str) -> str | None:
    """What git says in this file's folder; None where it has nothing to say."""
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
