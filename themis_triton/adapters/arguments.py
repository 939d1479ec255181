"""Secrets in the command lines of processes, which every user of a machine can read."""

from __future__ import annotations

from pathlib import Path

from themis_triton.adapters.process_identity import find_process
from themis_triton.core.fleet import ProcessId

# Of /proc/PID/stat, counted after the name of the program: where the arguments begin and end in the process's memory.
_ARG_START, _ARG_END = 45, 46


def hide_argument(identity: ProcessId, secret: str) -> bool:
    """Overwrite a secret in the command line of a process that has read it already; returns whether it is hidden now. Blocking.

    The program must have copied its arguments. False where the system does not let this process do so, or the process is gone.
    """
    folder, hidden = Path(f"/proc/{identity.pid}"), secret.encode()
    if find_process(identity) is None:
        return False
    try:
        fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        with (folder / "mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            memory.seek(start)
            memory.write(arguments.replace(hidden, b"*" * len(hidden)))
        return hidden not in (folder / "cmdline").read_bytes()
    except (OSError, ValueError, IndexError, OverflowError):
        return False
