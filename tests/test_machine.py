"""GPUs are held one by one; the machine here has those that a stand-in for nvidia-smi lists."""

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from krakenlm import machine
from krakenlm.errors import InputError

SMI = """#!/bin/sh
field=${1##*,}
for i in 0 1 2; do [ "$field" = uuid ] && echo "$i, GPU-test-$i, GPU-test-$i" || echo "$i, GPU-test-$i, Some GPU"; done
"""


@pytest.fixture(autouse=True)
def three_gpus(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_only_visible_gpus_count(monkeypatch):
    assert machine.count_gpus() == 3
    for visible, count in {"0,2": 2, "GPU-test-1": 1, "": 0, "-1": 0, "7": 0}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.count_gpus() == count, visible


def test_a_gpu_without_memory_of_its_own_is_given_the_machines(monkeypatch):
    for found, expected in {"81559 MiB": 81559 * 2**20, "[N/A]": machine.host_memory()}.items():
        monkeypatch.setattr(machine, "query_gpus", lambda field, found=found: [found])
        assert machine.memory_of_a_rank(1) == expected


def test_two_stages_never_hold_the_same_gpu():
    with machine.leased_gpus(2, "first"):
        first = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        with machine.leased_gpus(1, "second"):
            second = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    assert sorted(first + second) == ["GPU-test-0", "GPU-test-1", "GPU-test-2"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def hold_two(events):
    with machine.leased_gpus(2, "holder"):
        events.put("held")
        time.sleep(60)


def test_a_lease_ends_with_its_process(capfd):
    fork = multiprocessing.get_context("fork")
    events = fork.Queue()
    holder = fork.Process(target=hold_two, args=(events,))
    holder.start()
    events.get()
    holder.kill()
    holder.join()
    with machine.leased_gpus(3, "next"):
        assert len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) == 3


def test_more_gpus_than_there_are_is_one_clear_line():
    with pytest.raises(InputError, match="train: expected 4 GPUs, found 3"), machine.leased_gpus(4, "train"):
        pass


def test_what_slurm_gave_is_left_to_it(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with machine.leased_gpus(1, "train"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(("keep", "few"), [(True, True), (False, False)])
def test_memory_that_was_freed_is_not_fetched_from_the_kernel_again(keep, few):
    code = (
        "import resource, torch\n"
        "from krakenlm.machine import keep_freed_memory\n"
        f"if {keep}: keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "step = lambda: [torch.ones(2**20) for _ in range(40)] and None\n"
        "for _ in range(3): step()\n"
        "before = faults()\n"
        "for _ in range(5): step()\n"
        "print(faults() - before)\n"
    )
    # By itself the C library moves its threshold with what is freed, and may then keep it or not.
    fixed = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}
    ended = subprocess.run([sys.executable, "-c", code], env=fixed, check=True, capture_output=True, text=True)
    faults = int(ended.stdout)
    assert (faults < 1000) is few
