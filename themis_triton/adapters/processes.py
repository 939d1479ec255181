"""Starts processes that outlive the daemon: in sessions of their own, with their owner's mark."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from themis_triton.adapters.process_identity import identify
from themis_triton.core.fleet import ProcessId

EMULATED_HOST_VARIABLE = "THEMIS_EMULATED_HOST"
"""Servers of several state directories that share emulated devices have the same value; by default a state directory is a host."""
OWNER_VARIABLE = "THEMIS_OWNER"
"""Environment variable of every process that Themis starts: the state directory of the daemon that it belongs to."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Triton's Python backend puts its regions there
_UMASK = threading.Lock()


def owner_mark(state_directory: Path) -> str:
    """The value of `THEMIS_OWNER` for a state directory."""
    return str(state_directory.resolve())


def short_hash(path: Path) -> str:
    """Eight characters that identify a path."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]


def shared_memory_prefix(state_directory: Path) -> str:
    """How the names of the shared-memory regions begin that belong to a state directory's servers, unique on this machine."""
    return f"themis-{short_hash(state_directory)}-"


def remove_shared_memory(prefix: str) -> None:
    """Remove regions that a killed server left behind."""
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def spawn(command: Sequence[str], environment: Mapping[str, str], log_file: Path) -> ProcessId:
    """Start a process in a session of its own, its output appended to the log file; it lives on when this process ends.

    Raises:
        OSError: the program cannot be started or the log file cannot be written.
    """
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    closed = [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inherited()]
    actions = [*closed, (os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    try:
        with _private():
            pid = os.posix_spawn(
                command[0],
                list(command),
                dict(environment),
                file_actions=actions,
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
                setsigmask=[],
            )
    finally:
        os.close(log)
        os.close(null)
    return identify(pid)


@contextmanager
def _private() -> Iterator[None]:
    """What a process that is started here creates, shared memory too, is its user's alone. Files of other threads may be so meanwhile."""
    with _UMASK:
        before = os.umask(0o077)
        try:
            yield
        finally:
            os.umask(before)


def _inherited() -> list[int]:
    """Descriptors from this process's own parent, the standard ones excepted: a lock among them would be held while servers run."""
    descriptors = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return [number for number in descriptors if number > 2 and _is_inheritable(number)]


def _is_inheritable(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False  # It was the listing's own.
