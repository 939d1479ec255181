"""How long processes have waited for a processor: it tells one that hangs from one on a machine that is too busy."""

from __future__ import annotations

import os
from pathlib import Path

from themis_triton.adapters.process_identity import find_process
from themis_triton.core.fleet import ProcessId


class ProcessorWait:
    """The time in which a process of this machine, or this one, could not have answered, because it waited for a processor.

    A process that hangs or is stopped waits for none. One whose share of the machine, or of its cgroup's quota, is too small does nearly
    all the time. Where Linux does not count it the time is 0, as it is for a process that is unknown (None).
    """

    def __init__(self, identity: ProcessId | None) -> None:
        known = identity is not None and find_process(identity) is not None
        self._pids = (identity.pid, os.getpid()) if identity is not None and known else (os.getpid(),)
        self._waited_ns = {pid: _waited_ns(pid) for pid in self._pids}

    def since_last_s(self) -> float:
        """Of the thread that has waited longest since the last call, or since this was made."""
        longest_ns = 0
        for pid in self._pids:
            before, now = self._waited_ns[pid], _waited_ns(pid)
            self._waited_ns[pid] = now
            longest_ns = max(longest_ns, *(now[thread] - before[thread] for thread in now.keys() & before.keys()), 0)
        return longest_ns / 1e9


def _waited_ns(pid: int) -> dict[str, int]:
    """By thread; empty for a process that has ended. A file has the times run and waited, and how often it ran."""
    waited = dict[str, int]()
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            waited[path.parent.name] = int(path.read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            continue  # The thread has ended, or its times are not counted.
    return waited
