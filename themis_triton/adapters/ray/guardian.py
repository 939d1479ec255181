"""Ends a server whose supervisor or node has gone: `python -m themis_triton.adapters.ray.guardian FOLDER STOP_TIMEOUT_S PID:TICKS…`.

Ray leaves both behind: a killed actor's children, and, for as long as nothing ends it, the actor of a node whose raylet was killed.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from themis_triton.adapters.process_end import kill_process, stop_everything
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import spawn
from themis_triton.core.fleet import ProcessId

_POLL_S = 0.2
_DETACH = '"$@" &'


def start_guardian(folder: Path, stop_timeout_s: float, watched: Sequence[ProcessId], environment: dict[str, str]) -> None:
    """Start a guardian of the servers that have the folder as state directory. Once any of the watched has ended, it ends the servers.

    It is no child of this process, because Ray kills an actor's children when it ends the actor.
    """
    own = [sys.executable, "-m", __name__, str(folder), str(stop_timeout_s), *(f"{each.pid}:{each.start_ticks}" for each in watched)]
    spawn(["/bin/sh", "-c", _DETACH, "sh", *own], environment, folder / "guardian.log")


def guard(folder: Path, stop_timeout_s: float, watched: Sequence[ProcessId]) -> None:
    """Wait until one of the watched has ended; then end the servers and the first of the watched, and remove the folder. Blocking."""
    while all(find_process(each) is not None for each in watched):
        time.sleep(_POLL_S)
    with contextlib.suppress(TimeoutError):
        stop_everything(folder, stop_timeout_s)
    kill_process(watched[0])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    pairs = (each.split(":") for each in sys.argv[3:])
    guard(Path(sys.argv[1]), float(sys.argv[2]), [ProcessId(int(pid), int(ticks)) for pid, ticks in pairs])
