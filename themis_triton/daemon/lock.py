"""One daemon a state directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from themis_triton.core.errors import MissingPartError


@contextmanager
def locked(state_directory: Path) -> Iterator[None]:
    """Hold the directory's lock. MissingPartError names the pid that holds it already, or why the directory cannot be written."""
    path = state_directory / "themis.lock"
    try:
        state_directory.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    except OSError as error:
        raise MissingPartError(f"state_directory: {state_directory} cannot be written ({error.strerror})") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            raise MissingPartError(
                f"state_directory: {state_directory} is in use by the daemon with pid {handle.read().strip()}; "
                "stop it, or give this one a directory of its own"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
