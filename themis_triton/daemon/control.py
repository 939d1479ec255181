"""How a running sidecar is told from outside to stop, or to change nothing: its lock names the process, and a file pauses it."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

import psutil

from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.daemon.lock import LOCK_FILE

PAUSE_FILE = "paused"
STOP_WITHIN_S = 30.0
POLL_S = 0.05


def running_pid(state_directory: Path) -> int | None:
    """The process that holds the state directory; None where none does."""
    try:
        with (state_directory / LOCK_FILE).open("r+") as handle:
            said = handle.read().strip()
            # The lock is tried only where the process may be alive: a sidecar that starts in that moment would find it held.
            if not said.isdigit() or not psutil.pid_exists(int(said)):
                return None
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(said)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EnvironmentCheckError(f"state_directory: {state_directory / LOCK_FILE} cannot be read ({error.strerror})") from error
    return None


def stop_running(state_directory: Path) -> int | None:
    """Ask the sidecar to end (SIGTERM) and wait until it has; its pid, or None where none ran.

    EnvironmentCheckError when it may not be asked, or still runs after 30 s.
    """
    pid = running_pid(state_directory)
    if pid is None:
        return None
    try:
        psutil.Process(pid).terminate()
    except psutil.NoSuchProcess:
        return pid
    except psutil.AccessDenied as error:
        raise EnvironmentCheckError(f"the sidecar with pid {pid} belongs to somebody else; stop it as its user") from error
    # The lock and not the process: that may stay as a zombie where nobody asks how it ended.
    deadline_s = time.monotonic() + STOP_WITHIN_S
    while running_pid(state_directory) == pid:
        if time.monotonic() > deadline_s:
            raise EnvironmentCheckError(f"the sidecar with pid {pid} still runs {STOP_WITHIN_S:g} s after SIGTERM; look at its log")
        time.sleep(POLL_S)
    return pid


def is_paused(state_directory: Path) -> bool:
    """Whether the sidecar shall only say what it would do."""
    return (state_directory / PAUSE_FILE).exists()


def set_paused(state_directory: Path, paused: bool) -> None:
    """Pause or go on, now and over restarts. EnvironmentCheckError when the directory cannot be written."""
    path = state_directory / PAUSE_FILE
    try:
        if paused:
            state_directory.mkdir(parents=True, exist_ok=True)
            path.write_text("`themis pause` made this file, `themis resume` removes it: while it is there nothing is changed.\n")
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentCheckError(f"state_directory: {path} cannot be changed ({error.strerror})") from error
