"""Jobs as values: the names by which a sidecar knows its own, and what `squeue` says of each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MARK = "themis"
FORMAT = "%i|%T|%N|%L|%j|%r"
"""Of `squeue`: id, state, node, time left, name, reason; the reason may hold anything, so it is last."""

_FIELDS = 6
_NAME = re.compile(rf"{MARK}:([^:|]+):([^:|]+):([0-9a-f]+)")
_WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
)
_ENDING = "COMPLETING"
_NO_REASON = ("None", "")
_TIME_LEFT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")

_REMEDIES = {
    "PartitionTimeLimit": "lower launch.slurm.time_limit_min below the partition's limit (`sinfo -o '%P %l'`), or choose another partition",
    "PartitionNodeLimit": "choose a partition that allows a job of one node",
    "PartitionDown": "choose a partition that is up (`sinfo`)",
    "PartitionInactive": "choose a partition that is up (`sinfo`)",
    "BadConstraints": "ask for a node that exists: compare gres, constraint, cpus and host_memory with `sinfo -N -o '%N %c %m %G %f'`",
    "InvalidAccount": "correct launch.slurm.account",
    "InvalidQOS": "correct launch.slurm.qos",
    "JobHeldAdmin": "ask the cluster's administrators to release the job",
    "JobHeldUser": "release the job: `scontrol release JOB`",
    "Resources": "wait for a free node, lower what a job asks for, or raise launch.slurm.place_timeout_s",
    "Priority": "other jobs come first: raise launch.slurm.place_timeout_s, or choose another partition or qos",
}
"""What to do about a reason for which a job waits, by Slurm's own word."""
_NEVER = frozenset({"PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "InvalidAccount", "InvalidQOS"})
"""Reasons that no wait removes."""
_LIMITS = ("QOS", "Assoc", "Max")


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a sidecar, as `squeue` has it. `left_s`: seconds until its time limit; None without one, or while it waits."""

    number: str
    state: str
    node: str
    left_s: float | None
    name: str
    reason: str

    @property
    def server(self) -> str:
        """The name of its server."""
        return _parts(self.name)[1]

    @property
    def launch(self) -> str:
        """What identifies the launch that submitted it."""
        return _parts(self.name)[2]

    @property
    def incarnation(self) -> str:
        """What tells this run of a server from others: job numbers start anew where a controller lost its state."""
        return f"{self.number}/{self.launch}"

    @property
    def is_waiting(self) -> bool:
        """Whether it has no node yet."""
        return self.state in _WAITING

    @property
    def is_over(self) -> bool:
        """Whether it serves no more; some of its processes may still be ending."""
        return self.state in _ENDED or self.state == _ENDING

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it is left on its node."""
        return self.state in _ENDED

    @property
    def waits_forever(self) -> bool:
        """Whether it waits for what no wait brings."""
        return self.is_waiting and self.reason in _NEVER

    @property
    def waits_for(self) -> str:
        """Why it has no node, in Slurm's word, with the remedy."""
        if self.reason in _NO_REASON:
            return f"job {self.number} has not been scheduled yet ({self.state})"
        limits = "a limit of the account or qos is reached: see `sacctmgr show assoc`, or lower launch.slurm.jobs"
        remedy = _REMEDIES.get(self.reason) or (limits if self.reason.startswith(_LIMITS) else "see `scontrol show job`")
        return f"job {self.number} waits for {self.reason}. Fix: {remedy}"

    @property
    def end(self) -> str:
        """How it ended, in Slurm's words."""
        words = [self.state, self.reason if self.reason not in _NO_REASON else "", f"on {self.node}" if self.node else ""]
        return f"job {self.number}: {' '.join(word for word in words if word)}"


def job_name(sidecar: str, server: str, launch: str) -> str:
    """The name of a server's job; `launch` identifies this very launch."""
    return f"{MARK}:{sidecar}:{server}:{launch}"


def parse_jobs(text: str, sidecar: str) -> dict[str, Job]:
    """The jobs of a sidecar in the output of `squeue`, by incarnation; lines of other jobs are left out."""
    lines = (line.split("|", _FIELDS - 1) for line in text.splitlines())
    jobs = (
        Job(number, state, node, _left_s(left), name, reason.strip())
        for number, state, node, left, name, reason in _whole(lines)
        if _parts(name)[0] == sidecar
    )
    return {job.incarnation: job for job in jobs}


def _whole(lines: Iterable[list[str]]) -> Iterable[list[str]]:
    return (fields for fields in lines if len(fields) == _FIELDS)


def _parts(name: str) -> tuple[str, str, str]:
    match = _NAME.fullmatch(name)
    return (match[1], match[2], match[3]) if match is not None else ("", name, "")


def _left_s(text: str) -> float | None:
    """Seconds of `days-hours:minutes:seconds`; None for UNLIMITED and the like."""
    match = _TIME_LEFT.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
