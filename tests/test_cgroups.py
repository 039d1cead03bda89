"""A container's limits, read from trees of control groups as Linux shows them."""

from pathlib import Path

import pytest
from snakemake.cli import parse_args

from krakenlm import cgroups, machine

ROOT, GB = Path(__file__).parents[1], 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Sets what /proc/self/cgroup says, and files below /sys/fs/cgroup."""
    trees = tmp_path / "trees"
    trees.mkdir()
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "TREES", trees)

    def write(group, files):
        (tmp_path / "cgroup").write_text(group)
        for name, text in files.items():
            path = trees / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_no_control_groups_and_no_limit_leave_the_machine_as_it_is(groups):
    assert (cgroups.memory_limit(), cgroups.core_limit()) == (None, None)
    groups("0::/\n", {"memory.max": "max\n", "cpu.max": "max 100000\n"})
    assert (cgroups.memory_limit(), cgroups.core_limit()) == (None, None)


def test_of_version_2_the_least_of_the_group_and_those_above_it_counts(groups):
    groups(
        "0::/kubepods/pod/container\n",
        {
            "kubepods/pod/container/memory.max": "max\n",
            "kubepods/pod/memory.max": f"{2 * GB}\n",
            "kubepods/memory.max": f"{3 * GB}\n",
            "kubepods/pod/container/cpu.max": "150000 100000\n",
        },
    )
    assert (cgroups.memory_limit(), cgroups.core_limit()) == (2 * GB, 1.5)


def test_of_version_1_memory_and_cores_have_trees_of_their_own(groups):
    groups(
        "5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/\n0::/\n",
        {
            "memory/job/memory.limit_in_bytes": f"{GB}\n",
            "cpu/job/cpu.cfs_quota_us": "200000\n",
            "cpu/job/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert (cgroups.memory_limit(), cgroups.core_limit()) == (GB, 2.0)


def test_a_container_sees_its_own_group_as_the_root_whatever_its_name_outside(groups):
    groups("4:memory:/docker/0123\n", {"memory/memory.limit_in_bytes": f"{GB}\n"})
    assert cgroups.memory_limit() == GB


def test_a_containers_memory_is_what_its_ranks_share(groups, monkeypatch):
    physical = machine.host_memory()
    groups("0::/\n", {"memory.max": f"{100 * physical}\n"})
    assert machine.host_memory() == physical
    groups("0::/\n", {"memory.max": f"{GB}\n"})
    monkeypatch.setattr(machine, "query_gpus", lambda field: [])
    assert machine.host_memory() == GB
    assert machine.memory_of_a_rank(2) == GB / 2


def test_a_quota_of_time_limits_the_cores_and_the_fewest_are_one(groups, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3})
    for quota, expected in {"max": 4, "250000": 2, "50000": 1, "900000": 4}.items():
        groups("0::/\n", {"cpu.max": f"{quota} 100000\n"})
        assert machine.cores() == expected, quota


def test_a_plain_snakemake_takes_as_many_cores_as_the_quota_leaves(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cgroups, "core_limit", lambda: 1.5)
    _, given = parse_args(["--dry-run"])
    assert given.cores == 1
    _, given = parse_args(["--dry-run", "--cores", "7"])
    assert given.cores == 7
