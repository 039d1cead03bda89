"""What the control groups of this process allow it: a container's limits, or those of a scheduler's job (Linux).

Version 2 has one tree, version 1 one per controller, and a machine may have both. A group is held to the limits of all
groups above it, too. Inside a container its own group is often the tree's root, whatever /proc calls it.
"""

from collections.abc import Iterator
from pathlib import Path

GROUPS, TREES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory_limit() -> int | None:
    """Bytes of memory that this process and its group may have; None without a limit."""
    found = [*texts("memory.max", ""), *texts("memory.limit_in_bytes", "memory")]
    return min((int(text) for text in found if text != "max"), default=None)


def core_limit() -> float | None:
    """Cores' worth of time that this process and its group get, such as 1.5; None without a quota."""
    quotas = [text.split() for text in texts("cpu.max", "")]
    quotas += zip(texts("cpu.cfs_quota_us", "cpu"), texts("cpu.cfs_period_us", "cpu"), strict=True)
    return min((int(quota) / int(period) for quota, period in quotas if quota not in ("max", "-1")), default=None)


def texts(name: str, controller: str) -> Iterator[str]:
    """What the files of a name say in this process's group and in all above it.

    Args:
        controller: of version 1; the empty text for version 2.
    """
    for path in folders(controller):
        if (path / name).is_file():
            yield (path / name).read_text().strip()


def folders(controller: str) -> Iterator[Path]:
    """This process's group in a controller's tree, those above it, and the root; those that can be seen from here."""
    if not GROUPS.is_file():
        return
    for line in GROUPS.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        for root in [TREES / controller] if controller else [TREES, TREES / "unified"]:
            path = root / group.lstrip("/")
            yield from (each for each in (path, *path.parents) if each == root or root in each.parents)
