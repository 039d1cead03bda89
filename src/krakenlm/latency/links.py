"""Links of a known rate between the ranks of one machine.

Every rank gets a network namespace of its own, joined to a bridge by a veth pair; a token bucket (tbf) limits what it
sends. Made in a user namespace, so that no root is needed where the kernel allows that, else as root. Needs Linux,
util-linux (unshare, nsenter) and iproute2 (ip, tc).
"""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator

from krakenlm.errors import InputError
from krakenlm.inference.launch import Network

LOOPBACK = "loopback"
RATE = re.compile(r"(\d+(?:\.\d+)?)(g|m)bit")
TOOLS = ("unshare", "nsenter", "ip", "tc")
# A bucket that is large against a message lets all of it pass at once: with 256 kB a 512 KiB AllReduce went faster than
# the rate that was set.
SHAPE = "tbf rate {megabit:.0f}mbit burst 32kb latency 100ms"
# The kernel hands packets of up to 64 kB on. Those that do not fit the bucket are cut into frames of 1,500 bytes, each
# with a timer of its own: at 1 Gbit/s the bucket took the time of the cores that compute, which no real link does, and
# an AllReduce of 2 MB took 37 ms instead of 19.
PACKET_BYTES = 24576
INTERFACE = "eth0"
# A link that gives so much more or less than its name says has no rows.
TOLERANCE = 0.15


class LinkError(Exception):
    """Why ranks cannot be joined by a link of a set rate here."""


def gbit(link: str) -> float | None:
    """The rate in a link's name (`2.5gbit`, `500mbit`), in Gbit/s; None for `loopback`.

    Raises:
        InputError: it is neither.
    """
    if link == LOOPBACK:
        return None
    match = RATE.fullmatch(link)
    if not match or not float(match[1]):
        raise InputError(f"link: expected loopback or a rate such as 2.5gbit or 500mbit, found {link!r}; correct it")
    return float(match[1]) / (1 if match[2] == "g" else 1000)


@contextlib.contextmanager
def network(link: str, world: int) -> Iterator[Network | None]:
    """Namespaces for `world` ranks, joined at the rate of `link`; None for `loopback`. They end with this block.

    Raises:
        LinkError: this machine allows no such thing.
    """
    if gbit(link) is None:
        yield None
        return
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise LinkError(f"{', '.join(missing)} not found; install util-linux and iproute2")
    with contextlib.ExitStack() as stack:
        user = ["--user", "--map-root-user"] if allows(["--user", "--map-root-user"]) else []
        if not user and not allows([]):
            raise LinkError("the kernel allows no network namespaces here, neither to users nor to root")
        hub = hold(stack, ["unshare", *user, "--net"])
        join = ["nsenter", *(["--user", "--preserve-credentials"] if user else []), "--target"]
        ranks = [hold(stack, [*join[:-1], "--target", str(hub), "unshare", "--net"]) for _ in range(world)]
        run([*join, str(hub), "--net"], "ip link add hub type bridge && ip link set hub up")
        shape = SHAPE.format(megabit=1000 * gbit(link))
        for number, rank in enumerate(ranks):
            port = f"port{number}"
            run(
                [*join, str(hub), "--net"],
                f"ip link add {port} type veth peer name {INTERFACE} netns {rank}; ip link set {port} master hub up",
            )
            run(
                [*join, str(rank), "--net"],
                f"ip address add 10.0.{number // 250}.{number % 250 + 1}/16 dev {INTERFACE}; ip link set lo up; "
                f"ip link set {INTERFACE} up gso_max_size {PACKET_BYTES}; tc qdisc add dev {INTERFACE} root {shape}",
            )
        yield Network(INTERFACE, tuple([*join, str(rank), "--net"] for rank in ranks))


def allows(options: list[str]) -> bool:
    """Whether `unshare` may make a network namespace, with these options."""
    return subprocess.run(["unshare", *options, "--net", "true"], capture_output=True).returncode == 0


def hold(stack: contextlib.ExitStack, command: list[str]) -> int:
    """Process id of a shell in the namespaces that `command` makes, which keeps them until `stack` is left.

    The shell waits for its standard input to end, so that it ends with this process, however that does.
    """
    holder = subprocess.Popen(
        [*command, "sh", "-c", "echo here; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.callback(holder.wait)
    stack.callback(holder.stdin.close)
    stack.callback(holder.stdout.close)
    if holder.stdout.readline() != "here\n":
        raise LinkError(f"`{' '.join(command)}` failed")
    return holder.pid


def run(enter: list[str], script: str) -> None:
    """Run a shell script in a namespace."""
    done = subprocess.run([*enter, "sh", "-ec", script], capture_output=True, text=True)
    if done.returncode:
        raise LinkError(f"`{script}` failed: {done.stderr.strip()}")


def set_rate(gigabit: float) -> None:
    """Set the rate of the bucket in the namespace of this process, which is one of the ranks'."""
    run([], f"tc qdisc change dev {INTERFACE} root {SHAPE.format(megabit=1000 * gigabit)}")


def off_its_label(link: str, measured: float | None) -> bool:
    """Whether a link of a set rate gives more than TOLERANCE more or less, both in Gbit/s."""
    rate = gbit(link)
    return rate is not None and abs(measured / rate - 1) > TOLERANCE
