"""A whole SLURM of one node on this machine: munged, slurmctld and slurmd, with places and ports of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CONFIGURATION = """\
ClusterName=tiny
SlurmctldHost=localhost
SlurmUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AuthInfo=socket={munge}/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=localhost CPUs=2 RealMemory={memory}
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        environment: in which its clients find it.
    """

    environment: dict[str, str]

    def ask(self, *words: str) -> str:
        """What a client command prints, which must succeed."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def states(self, job: str) -> dict[str, str]:
        """The state of each task of an array job, by its number."""
        found = {}
        for line in self.ask("scontrol", "--oneliner", "show", "job", job).splitlines():
            facts = dict(word.partition("=")[::2] for word in line.split())
            found[facts.get("ArrayTaskId", "")] = facts["JobState"]
        return found

    def until(self, job: str, done: Callable[[dict[str, str]], bool], seconds: float = 600) -> None:
        """Wait until the states of a job's tasks are as wanted."""
        wait_for(lambda: done(self.states(job)), seconds, lambda: f"job {job} is {self.states(job)}")


def wait_for(done: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Ask every twentieth of a second, and fail when it takes too long."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"after {seconds:g} s {what()}"
        time.sleep(0.05)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster, and end all of it afterwards; needs root and Debian's slurm-wlm and munge."""
    for program in ("sbatch", "slurmctld", "slurmd", "munged"):
        assert shutil.which(program, path=_path()), f"{program} is missing: make test-slurm installs it"
    assert os.geteuid() == 0, "SLURM's daemons are started by root"
    with tempfile.TemporaryDirectory(prefix="cftools-slurm-") as place:
        folder, munge = Path(place), Path(place) / "munge"
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder, munge=munge, controller_port=_free_port(), node_port=_free_port(), memory=_memory()
            )
        )
        environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
        cluster = Cluster(environment)
        try:
            _start_munged(munge)
            subprocess.run(["slurmctld"], env=environment, check=True, timeout=60)
            subprocess.run(["slurmd", "-N", "localhost"], env=environment, check=True, timeout=60)
            wait_for(lambda: _node_state(environment) == "idle", 60, lambda: _logs(folder))
            yield cluster
        finally:
            for name in ("slurmd.pid", "slurmctld.pid", "munge/munged.pid"):
                _end(folder / name)


def _start_munged(folder: Path) -> None:
    """Its files are its user's own, or it refuses to run."""
    subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "755", str(folder)], check=True)
    key = folder / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    shutil.chown(key, "munge", "munge")
    places = {"key-file": "key", "socket": "socket", "pid-file": "munged.pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder / name}" for option, name in places.items()]
    subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged", *options], check=True, timeout=60)


def _end(pid_file: Path) -> None:
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), 20, lambda: f"{pid_file} still runs")


def _node_state(environment: dict[str, str]) -> str:
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def _logs(folder: Path) -> str:
    return "the node is not idle:\n" + "\n".join(path.read_text() for path in folder.glob("*.log"))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
    return port


def _memory() -> int:
    """MiB that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
