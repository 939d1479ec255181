"""A file lock that allows one process per directory: a daemon in its state directory, a demo in its folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from themis_triton.core.errors import EnvironmentCheckError

LOCK_FILE = "themis.lock"


@contextmanager
def locked(directory: Path, named: str = "state_directory") -> Iterator[None]:
    """Hold the directory's lock for the block. `named` is the settings key or flag of the directory, for errors.

    EnvironmentCheckError names the pid of the process that holds the lock, or the reason why the directory is not writable.
    """
    path = directory / LOCK_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    except OSError as error:
        raise EnvironmentCheckError(f"{named}: {directory} is not writable ({error.strerror}). Fix: choose a writable directory") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            raise EnvironmentCheckError(
                f"{named}: {directory} is in use by the process with pid {handle.read().strip()}. Fix: stop it, or use another directory"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
