import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOW = ("Snakefile", "config", "workflow", "profiles", "envs")
MINIATURE = ROOT / "tests" / "pipeline" / "miniature.yaml"


class Checkout:
    """The workflow's files in a folder of their own, and the real `snakemake` run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in WORKFLOW:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).parent / "snakemake"), *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("KRAKENLM", "WANDB"))}
        return inherited | variables

    def snakemake(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        """Run to the end; stdout and stderr together in `.stdout`."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )

    def miniature(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return self.snakemake(*arguments, "--configfile", str(MINIATURE), **variables)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen:
        """Start in a session of its own, output into snakemake.log."""
        with open(self.folder / "snakemake.log", "a") as log:
            return subprocess.Popen(
                self.command(*arguments, "--configfile", str(MINIATURE)),
                cwd=self.folder,
                env=self.environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def claim_gpus(self, count: int) -> str:
        """A PATH on which `nvidia-smi` reports `count` GPUs."""
        folder = self.folder / "claimed"
        folder.mkdir()
        script = """#!/bin/sh
            for index in $(seq 0 %d); do
                case "$1" in
                    *,memory.total) found="81559 MiB" ;;
                    *,uuid,uuid) found="GPU-$index" ;;
                    *) found="Some GPU" ;;
                esac
                echo "$index, GPU-$index, $found"
            done"""
        (folder / "nvidia-smi").write_text(script % (count - 1))
        (folder / "nvidia-smi").chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"


@pytest.fixture(scope="session")
def checkouts(tmp_path_factory) -> Callable[[str], Checkout]:
    """A function that makes a checkout in a folder of its own, whose name begins with what it is given."""
    return lambda name: Checkout(tmp_path_factory.mktemp(name))


@pytest.fixture
def checkout(checkouts) -> Checkout:
    return checkouts("checkout")


@pytest.fixture
def importable(monkeypatch, request):
    """The test's module by the name under which a rank's process finds it."""
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent), prepend=os.pathsep)
    return request.path.stem
