"""A SLURM cluster of two nodes on this machine: Debian's packages, real daemons, loopback."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Where every SLURM program looks; the jobs of its plugin lose SLURM_CONF on the way.
CONF = Path("/etc/slurm/slurm.conf")
PREFIX = "krakenlm-slurm-"
PACKAGES = {"slurmctld": "slurm-wlm", "munged": "munge"}
SETTINGS = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def install() -> None:
    """Debian's packages, where their programs are not there yet."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if missing:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        # Their own services stay off: this cluster brings its daemons itself.
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, env=environment)


def free_ports() -> list[int]:
    """Three ports in a row that nobody listens on."""
    first = 17001
    while True:
        try:
            listeners = [socket.create_server(("127.0.0.1", first + offset)) for offset in range(3)]
        except OSError:
            first += 3
            continue
        for listener in listeners:
            listener.close()
        return list(range(first, first + 3))


def start_daemons(folder: Path) -> list[subprocess.Popen]:
    """munged under its own user, slurmctld and two slurmd, each in the foreground with its log under `folder`."""
    munge = folder / "munge"
    for name in ("state", "spool-n1", "spool-n2", "munge"):
        (folder / name).mkdir()
    host, (controller, first, second) = socket.gethostname().split(".")[0], free_ports()
    settings = SETTINGS.format(host=host, folder=folder, port=controller, first=first, second=second)
    (folder / "slurm.conf").write_text(settings)
    (munge / "key").write_bytes(os.urandom(128))
    (munge / "key").chmod(0o400)
    for path in (munge, munge / "key"):
        shutil.chown(path, "munge", "munge")
    places = [f"--{what}-file={munge / what}" for what in ("key", "log", "pid", "seed")]
    commands = {
        "munged": ["runuser", "-u", "munge", "--", "munged", "--foreground", f"--socket={munge / 'socket'}", *places],
        "slurmctld": ["slurmctld", "-D"],
        "n1": ["slurmd", "-D", "-N", "n1"],
        "n2": ["slurmd", "-D", "-N", "n2"],
    }
    daemons = []
    for name, command in commands.items():
        with open(folder / f"{name}.log", "w") as log:
            daemons.append(subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT))
        time.sleep(1)  # munge's socket, then the controller, before what asks for them
    return daemons


def wait_until_idle(folder: Path) -> None:
    for _ in range(60):
        sinfo = ["sinfo", "--noheader", "--format=%D %t"]
        if subprocess.run(sinfo, capture_output=True, text=True).stdout.split() == ["2", "idle"]:
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
    pytest.fail(f"expected two idle nodes, found none; the daemons' logs:\n{logs}")


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which trainings on the cluster's two nodes find each other."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to install and start SLURM")
    if CONF.exists() and PREFIX not in str(CONF.resolve()):
        pytest.skip(f"needs a machine without a SLURM of its own, found {CONF}")
    install()
    CONF.unlink(missing_ok=True)  # left by a run that was killed
    # Under /run: munge accepts no folder that others may write to.
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/run"))
    folder.chmod(0o755)
    CONF.symlink_to(folder / "slurm.conf")
    daemons = start_daemons(folder)
    try:
        wait_until_idle(folder)
        # The nodes' names lead nowhere outside SLURM.
        yield os.environ | {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        CONF.unlink()
        shutil.rmtree(folder)
