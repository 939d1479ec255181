"""A real Slurm on this machine: munged, slurmctld and one slurmd for each node, on free ports, in a temporary folder, as this user."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from themis_triton.adapters.sockets import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "scontrol")
NODES = ("node1", "node2")
_SYSTEM_FOLDERS = "/usr/sbin:/sbin"
_TIMEOUT_S = 30.0
_POLL_S = 0.05
_UP = ("idle", "mixed", "allocated")
"""Up to a second after a job's end a node is still mixed."""
_NODE = "THEMIS_TEST_NODE"
_CONF = """\
ClusterName=themis
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
SlurmdParameters=config_overrides
GresTypes=gpu
"""


def missing_programs() -> str | None:
    """The reason to skip; None where Slurm is installed."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"{', '.join(absent)} not installed (Debian: slurmctld, slurmd, munge; scripts/install-slurm)" if absent else None


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_FOLDERS}"


class SlurmCluster:
    """The cluster, with one device (`gpu:1`) a node; the first node has the feature `reserved`, the second one `spot`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.conf)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._drained: set[str] = set()

    def start(self) -> None:
        """Start the daemons; returns once all nodes answer."""
        controller, *nodes = free_ports(1 + len(NODES))
        user, host = psutil.Process().username(), socket.gethostname()
        lines = [_CONF.format(host=host, port=controller, user=user, folder=self.folder)]
        lines += [
            f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=4 RealMemory=4000 Gres=gpu:1 Feature={kind} "
            "State=UNKNOWN\n"
            for name, port, kind in zip(NODES, nodes, ("reserved", "spot"), strict=True)
        ]
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=120 State=UP\n")
        lines.append("PartitionName=short Nodes=ALL MaxTime=1 State=UP\n")
        self.conf.write_text("".join(lines), encoding="utf-8")
        (self.folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={self.folder}/gpu0\n", encoding="utf-8")
        (self.folder / "gpu0").touch()
        for name in ("munge", "state"):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        munge = [
            f"--{name}={self.folder}/munge/{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")
        ]
        self._daemon("munged", ["munged", "--force", "--foreground", *munge])
        _wait("munged", (self.folder / "munge" / "socket").exists)
        self._daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd; returns once the node answers."""
        self._daemon(node, ["slurmd", "-D", "-N", node, "-f", str(self.conf)], {_NODE: node})
        _wait(f"answer of {node}", lambda: self._state(node) in _UP)

    def _state(self, node: str) -> str:
        return self._try("sinfo", "--noheader", "--Node", f"--nodes={node}", "--partition=main", "--format=%T").strip()

    def _daemon(self, name: str, command: list[str], variables: Mapping[str, str] | None = None) -> None:
        program, null = shutil.which(command[0], path=_path()), subprocess.DEVNULL
        assert program is not None
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program, *command[1:]],
                env={**self.environment, **(variables or {})},
                stdin=null,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def call(self, *command: str) -> str:
        """The output of a program of Slurm."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True).stdout

    def _try(self, *command: str) -> str:
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        return result.stdout

    def set_places(self, count: int) -> None:
        """Let so many jobs find a place, at most one a node."""
        for number, node in enumerate(NODES, 1):
            if number > count and node not in self._drained:
                self._drained.add(node)
                self.call("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
            elif number <= count and node in self._drained:
                self._drained.remove(node)
                self.call("scontrol", "update", f"nodename={node}", "state=resume")

    def lose_node(self, node: str) -> None:
        """End everything on a node at once, as a loss of power does, and tell the controller, which would see it after SlurmdTimeout."""
        slurmd = self._daemons.pop(node)
        slurmd.kill()
        slurmd.wait(5.0)
        self._kill(lambda variables: node in (variables.get(_NODE), variables.get("SLURMD_NODENAME")))
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def processes(self) -> list[psutil.Process]:
        """What runs on the nodes besides their slurmd."""
        return [process for process in self._owned(lambda _: True) if process.pid not in {each.pid for each in self._daemons.values()}]

    def _owned(self, holds: Callable[[Mapping[str, str]], bool]) -> list[psutil.Process]:
        """Processes of nodes by their variables; slurmstepd has its title where these were, and is known as a job's parent."""
        owned = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                on_node = _NODE in variables or "SLURMD_NODENAME" in variables
                if variables.get("SLURM_CONF") == str(self.conf) and on_node and holds(variables):
                    owned[process.pid] = process
                    parent = process.parent()
                    if parent is not None and parent.name() == "slurmstepd":
                        owned[parent.pid] = parent
        return list(owned.values())

    def _kill(self, holds: Callable[[Mapping[str, str]], bool]) -> None:
        while owned := self._owned(holds):
            for end in (psutil.Process.suspend, psutil.Process.kill):  # else one tells the controller of the others' end
                for process in owned:
                    with suppress(psutil.Error):
                        end(process)
            psutil.wait_procs(owned, timeout=1.0)
            for daemon in self._daemons.values():
                daemon.poll()

    def cancel_all(self) -> None:
        """End all jobs; returns when the nodes have confirmed it."""
        jobs = self._try("squeue", "-h", "-o", "%i").split()
        if jobs:
            self._try("scancel", "--signal=KILL", "--full", *jobs)
            self._try("scancel", *jobs)
        _wait("an end of all jobs", lambda: not self._try("squeue", "-h", "-o", "%i").split())

    def stop(self) -> None:
        """End everything, by process id."""
        for daemon in self._daemons.values():
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)  # each leads a session; the folder goes, so that nothing is left to be saved
            daemon.wait(5.0)
        self._daemons.clear()
        self._kill(lambda _: True)

    def words(self) -> str:
        """The ends of all logs."""
        logs: list[Path] = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"{file.name}:\n{_end_of(file)}" for file in logs)


def _end_of(file: Path) -> str:
    with file.open("rb") as log:
        return _tail(log)


def _tail(log: IO[bytes]) -> str:
    return log.read()[-2000:].decode(errors="replace")


def _wait(what: str, holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"no {what} within {_TIMEOUT_S:g} s"
        time.sleep(_POLL_S)


@contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A running cluster; what was started for it is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="themis-slurm-") as folder:
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        except BaseException:
            print(cluster.words())  # noqa: T201 - pytest shows it with the failure
            raise
        finally:
            cluster.stop()
