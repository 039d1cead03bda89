"""Ranks as processes: what they return, how they end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from krakenlm import models
from krakenlm.errors import InputError, RankError
from krakenlm.inference.launch import run_ranks, stream_ranks
from krakenlm.inference.shards import load_rank, write_shards


def sums(comm, device):
    """Body of a rank: an AllReduce that compute runs beside, and an AllGather."""
    x = torch.arange(6.0).view(2, 3) + comm.rank
    pending = comm.all_reduce(x)
    doubled = x * 2
    total = pending.wait()
    assert torch.equal(doubled, x * 2)
    return [total.tolist(), comm.all_gather(x, dim=1).wait().tolist()]


def test_collectives_between_processes_sum_and_gather_and_leave_the_argument_alone(importable):
    total, gathered = run_ranks(f"{importable}:sums", {}, world=2, threads=1)
    assert total == [[1, 3, 5], [7, 9, 11]]
    assert gathered == [[0, 1, 2, 1, 2, 3], [3, 4, 5, 4, 5, 6]]


def test_ranks_need_no_port_that_another_program_could_have(importable, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        assert run_ranks(f"{importable}:sums", {}, world=2, threads=1)[0] == [[1, 3, 5], [7, 9, 11]]


def count_with(comm, device, folder, to):
    """Body of a rank: the next number, each time the one before has been answered."""
    Path(folder, f"process{os.getpid()}").touch()
    for number in range(to):
        yield number
        while not Path(folder, str(number)).exists():
            time.sleep(0.01)
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.all_reduce(torch.zeros(1)).wait()


def processes(folder):
    return [int(path.name.removeprefix("process")) for path in Path(folder).glob("process*")]


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_values_come_as_they_are_made_and_a_killed_rank_ends_the_others(importable, tmp_path):
    stream = stream_ranks(f"{importable}:count_with", {"folder": str(tmp_path), "to": 3}, world=2, threads=1)
    received = []

    def answer():
        for number in stream:
            received.append(number)
            (tmp_path / str(number)).touch()

    with pytest.raises(RankError, match="rank 1 of 2 ended by SIGKILL; the others were ended"):
        answer()
    assert received == [0, 1, 2]
    assert len(processes(tmp_path)) == 2
    assert not any(running(process) for process in processes(tmp_path))


def test_whoever_stops_early_ends_the_ranks(importable, tmp_path):
    stream = stream_ranks(f"{importable}:count_with", {"folder": str(tmp_path), "to": 3}, world=2, threads=1)
    assert next(stream) == 0
    stream.close()
    assert not any(running(process) for process in processes(tmp_path))


def load_and_meet(comm, device, shards, folder):
    """Body of a rank: its shard is loaded, then it waits for the others."""
    Path(folder, f"process{os.getpid()}").touch()
    load_rank(shards, comm.rank, comm.world)
    comm.all_reduce(torch.zeros(1)).wait()


def test_a_damaged_shard_ends_every_rank_with_one_line_that_names_it(importable, tmp_path):
    sizes = {"architecture": "kraken", "degree": 2, "n_layer": 1, "n_head": 2, "width": 8, "vocab_size": 16}
    models.save_model(models.build(sizes | {"block_size": 8}), tmp_path / "model")
    write_shards(tmp_path / "model", tmp_path / "shards", 2)
    damaged = tmp_path / "shards" / "rank1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    arguments = {"shards": str(tmp_path / "shards"), "folder": str(tmp_path)}
    with pytest.raises(InputError, match=r"^\S+rank1\.safetensors: expected safetensors, found a damaged file"):
        run_ranks(f"{importable}:load_and_meet", arguments, world=2, threads=1)
    assert len(processes(tmp_path)) == 2
    assert not any(running(process) for process in processes(tmp_path))


def fail_on_rank_1(comm, device):
    if comm.rank == 1:
        raise ValueError("this rank has had enough")
    comm.all_reduce(torch.zeros(1)).wait()


def test_a_rank_that_raises_ends_the_others_and_its_traceback_is_shown(importable):
    with pytest.raises(RankError, match="this rank has had enough"):
        run_ranks(f"{importable}:fail_on_rank_1", {}, world=2, threads=1)


def test_ranks_end_with_the_process_that_started_them(importable, tmp_path):
    call = f"list(stream_ranks('{importable}:count_with', {{'folder': '{tmp_path}', 'to': 1}}, world=2, threads=1))"
    parent = subprocess.Popen([sys.executable, "-c", f"from krakenlm.inference.launch import stream_ranks; {call}"])
    deadline = time.monotonic() + 60
    while len(processes(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(processes(tmp_path)) == 2
    parent.kill()
    parent.wait()
    while any(running(process) for process in processes(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(process) for process in processes(tmp_path))
