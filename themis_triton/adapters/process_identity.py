"""Processes known by their pid and start time: whether the very process still runs."""

from __future__ import annotations

import os

import psutil

from themis_triton.core.fleet import ProcessId

_START_FIELD = 19
_STAT_BYTES = 4096
_ZOMBIE = "Z"


def identify(pid: int) -> ProcessId:
    """The identity of a process, running or a zombie, unique since boot.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return ProcessId(pid, _read_stat(pid)[1])


def _read_stat(pid: int) -> tuple[str, int]:
    """A process's state, as one letter, and its start time. ProcessLookupError when there is none. By bare calls: it is asked often."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    try:
        text = os.read(descriptor, _STAT_BYTES)  # its own ProcessLookupError when the process has ended meanwhile
    finally:
        os.close(descriptor)
    # The command name stands in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split(None, _START_FIELD + 1)
    return chr(fields[0][0]), int(fields[_START_FIELD])


def find_process(identity: ProcessId) -> psutil.Process | None:
    """The very process, if any of its threads still runs; one that has ended and was our child is reaped."""
    try:
        return psutil.Process(identity.pid) if state_of(identity) is not None else None
    except psutil.NoSuchProcess:
        return None


def state_of(identity: ProcessId) -> str | None:
    """The state of the very process, as `ps` shows it (`T`: stopped); None as `find_process`, at a tenth of its cost."""
    try:
        state, start_ticks = _read_stat(identity.pid)
    except ProcessLookupError:
        return None
    if start_ticks != identity.start_ticks or (state == _ZOMBIE and _reaped(identity.pid)):
        return None
    return state


def _reaped(pid: int) -> bool:
    """Whether a zombie is gone, or is another process's child; one whose other threads are still ending holds its sockets until then."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def resident_bytes(process: psutil.Process) -> int:
    """Resident memory of a process; 0 when it has ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
