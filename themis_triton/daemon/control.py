"""Control of a running sidecar from another process: its lock file contains the pid, SIGTERM stops it, a file pauses it."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

from themis_triton.core.errors import EnvironmentCheckError

LOCK_FILE = "themis.lock"
PAUSE_FILE = "paused"
STOP_WITHIN_S = 30.0
POLL_S = 0.05


def running_pid(state_directory: Path) -> int | None:
    """The pid of the process that holds the state directory's lock, or None."""
    try:
        with (state_directory / LOCK_FILE).open("r+") as handle:
            content = handle.read().strip()
            # Try the lock only if the process may be alive: a sidecar that starts at this moment would fail to get its lock.
            if not content.isdigit() or not _exists(int(content)):
                return None
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EnvironmentCheckError(f"state_directory: {state_directory / LOCK_FILE} cannot be read ({error.strerror})") from error
    return None


def stop_running(state_directory: Path) -> int | None:
    """Send SIGTERM to the sidecar and wait until it has exited. Returns its pid, or None if no sidecar ran.

    EnvironmentCheckError if it belongs to another user, or still runs after 30 s.
    """
    pid = running_pid(state_directory)
    if pid is None:
        return None
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return pid
    except PermissionError as error:
        raise EnvironmentCheckError(f"the sidecar with pid {pid} belongs to another user. Fix: stop it as that user") from error
    # Poll the lock, not the process: a process that its parent does not reap remains as a zombie.
    deadline_s = time.monotonic() + STOP_WITHIN_S
    while running_pid(state_directory) == pid:
        if time.monotonic() > deadline_s:
            raise EnvironmentCheckError(f"the sidecar with pid {pid} still runs {STOP_WITHIN_S:g} s after SIGTERM. Fix: see its log")
        time.sleep(POLL_S)
    return pid


def signal_reload(state_directory: Path) -> int | None:
    """Send SIGHUP to the sidecar, so that it reads its settings anew. Returns its pid, or None if no sidecar runs.

    EnvironmentCheckError if it belongs to another user.
    """
    pid = running_pid(state_directory)
    try:
        if pid is not None:
            os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        return None
    except PermissionError as error:
        raise EnvironmentCheckError(f"the sidecar with pid {pid} belongs to another user. Fix: reload it as that user") from error
    return pid


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def is_paused(state_directory: Path) -> bool:
    """Whether the sidecar is paused: it observes and records decisions, and changes no server and no route to one."""
    return (state_directory / PAUSE_FILE).exists()


def set_paused(state_directory: Path, paused: bool) -> None:
    """Pause or resume; persists over restarts. EnvironmentCheckError when the directory cannot be written."""
    path = state_directory / PAUSE_FILE
    try:
        if paused:
            state_directory.mkdir(parents=True, exist_ok=True)
            path.write_text("`themis pause` creates this file and `themis resume` removes it. While it exists, Themis changes no server.\n")
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentCheckError(f"state_directory: {path} cannot be changed ({error.strerror})") from error
