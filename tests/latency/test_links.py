"""Links of a set rate between ranks in namespaces of their own."""

import contextlib
import time

import psutil
import pytest
import torch

from krakenlm import plan
from krakenlm.errors import InputError
from krakenlm.inference.launch import run_ranks
from krakenlm.latency import links, ttft

MESSAGE_BYTES = 2**21


@pytest.fixture
def slow_network():
    """Two ranks' namespaces, joined at 200 Mbit/s."""
    try:
        with links.network("200mbit", 2) as network:
            yield network
    except links.LinkError as error:
        pytest.skip(str(error))


def time_a_sum(comm, device):
    """Body of a rank: the shortest time of three AllReduces in seconds, and their sum."""
    message, taken = torch.ones(MESSAGE_BYTES // 4), []
    for _ in range(3):
        comm.all_reduce(torch.zeros(1)).wait()
        start = time.perf_counter()
        total = comm.all_reduce(message).wait()
        taken.append(time.perf_counter() - start)
    return [min(taken), total.sum().item()]


def test_no_sum_between_ranks_is_faster_than_their_link(slow_network, importable):
    seconds, total = run_ranks(f"{importable}:time_a_sum", {}, 2, threads=1, network=slow_network)
    assert total == 2 * MESSAGE_BYTES / 4
    full_bucket_bytes = 32_000
    assert seconds > 8 * (MESSAGE_BYTES - full_bucket_bytes) / 200e6


def test_namespaces_end_with_their_block():
    before = psutil.Process().children()
    try:
        with links.network("1gbit", 3):
            assert len(psutil.Process().children()) == len(before) + 4  # the hub and three ranks
    except links.LinkError as error:
        pytest.skip(str(error))
    assert psutil.Process().children() == before


def test_a_links_name_says_its_rate():
    assert [links.gbit(name) for name in ("loopback", "2.5gbit", "500mbit")] == [None, 2.5, 0.5]
    for name in ("fast", "0gbit", "1gb"):
        with pytest.raises(InputError, match="link: expected loopback or a rate such as"):
            links.gbit(name)


def test_a_link_is_off_its_label_beyond_the_tolerance():
    assert links.off_its_label("1gbit", 0.84)
    assert links.off_its_label("1gbit", 1.16)
    assert not links.off_its_label("1gbit", 0.86)
    assert not links.off_its_label("loopback", 3.0)


def test_where_no_namespaces_are_to_be_had_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda tool: None)
    assert ttft.time_over("1gbit", {}, tp=2, threads=1) is None
    line = "unshare, nsenter, ip, tc not found; install util-linux and iproute2"
    assert capsys.readouterr().err == f"ttft: no rows for link 1gbit: {line}\n"
    latency = {"latency": {"links": ["loopback", "1gbit"]}}
    assert plan.missing_links(latency, [("ttft", {"tp": "2"})]) == [f"latency.links: 1gbit gets no rows: {line}"]
    assert plan.missing_links(latency, [("ttft", {"tp": "1"}), ("corpus", {})]) == []


def test_rows_of_a_link_that_does_not_give_what_its_name_says_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("krakenlm.latency.ttft.stream_ranks", lambda *arguments: iter([{"link_gbit": 0.6}]))
    monkeypatch.setattr("krakenlm.latency.ttft.network", lambda link, world: contextlib.nullcontext())
    assert ttft.time_over("1gbit", {"contexts": [64]}, tp=2, threads=1) is None
    assert "no rows for link 1gbit: it gave 0.60 Gbit/s, more than 15% off" in capsys.readouterr().err
