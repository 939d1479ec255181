"""A file lock that allows one process per directory: a daemon in its state directory, a demo in its folder.

A sidecar beats in the file while its loop runs, so that one that stands by can tell a leader that is paused or hangs from one that works.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import structlog

from themis_triton.adapters.process_end import kill_process
from themis_triton.adapters.process_identity import find_process, identify
from themis_triton.adapters.processor_wait import ProcessorWait
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.fleet import ProcessId
from themis_triton.daemon.control import LOCK_FILE

BEAT_FILE = "themis.beat"
_POLL_S = 0.2
_BEAT_S = 0.5
_BEAT_BYTES = 64
_LATE_POLLS, _PAUSED_POLLS, _HUNG_POLLS = 3, 5, 15.0
"""Polls in a row without a beat until it is late, until a stopped leader is taken for paused (1 s), and until any is for hung (3 s).

A pause of the watcher itself adds none, nor does time in which either of them waited for a processor.
"""

log = structlog.get_logger()


@contextmanager
def locked(directory: Path, named: str = "state_directory") -> Iterator[None]:
    """Hold the directory's lock for the block. `named` is the settings key or flag of the directory, for errors.

    EnvironmentCheckError names the pid of the process that holds the lock, or the reason why the directory is not writable.
    """
    with _opened(directory, named) as handle:
        if not _acquired(handle):
            raise EnvironmentCheckError(
                f"{named}: {directory} is in use by the process with pid {_holder(handle)}. Fix: stop it, or use another directory"
            )
        yield


class Leadership:
    """The lock of a sidecar, which may wait for it while another one leads.

    The process that holds the lock leads; no other one acts. A leader that is stopped, or has not beaten for 3 s, is killed before its
    lock is taken: it cannot act any more when it wakes up. Servers, Envoy and the journal are as at any restart.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handle: IO[str] | None = None

    async def wait(self) -> None:
        """Wait until the lock is held. EnvironmentCheckError where the directory is not writable."""
        handle = _open(self._directory, "state_directory")
        try:
            await self._acquire(handle)
        except BaseException:
            handle.close()
            raise
        self._handle = handle

    async def _acquire(self, handle: IO[str]) -> None:
        former, watch = "", _LeaderWatch(self._directory / BEAT_FILE)
        while not _acquired(handle):
            pid = _holder(handle)
            if pid != former:
                log.info("standby_started", leader=pid, message="this sidecar takes over when the leader ends or hangs")
                former = pid
            fault = watch.poll()
            if fault is not None and watch.leader is not None and await asyncio.to_thread(kill_process, watch.leader):
                log.warning("leader_killed", pid=watch.leader.pid, message=fault)
            await asyncio.sleep(_POLL_S)
        if former:
            log.warning("leadership_taken_over", former_leader=former)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for the block, that of `wait` or a new one. EnvironmentCheckError as `locked`."""
        if self._handle is None:
            with locked(self._directory):
                yield
            return
        with self._handle:
            yield

    async def beat(self) -> None:
        """Beat, until cancelled. In place, so that a full disk does not make a leader look as if it hung."""
        identity, number = identify(os.getpid()), 0
        file = os.open(self._directory / BEAT_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                number += 1
                os.pwrite(file, f"{identity.pid} {identity.start_ticks} {number}".ljust(_BEAT_BYTES).encode(), 0)
                await asyncio.sleep(_BEAT_S)
        finally:
            os.close(file)


class _LeaderWatch:
    """What beats and the process of a leader show, poll by poll. `leader`: the very process that beat last."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last = ""
        self._silent = 0
        self._hung_polls = 0.0
        self._wait: ProcessorWait | None = None
        self.leader: ProcessId | None = None

    def poll(self) -> str | None:
        """Why the leader is to be killed, None while it works. To be called every `_POLL_S`."""
        beat = _read(self._file)
        if beat != self._last:
            self._last, self.leader, self._silent, self._hung_polls, self._wait = beat, _identity(beat), 0, 0.0, None
            return None
        self._silent += 1
        if self._silent < _LATE_POLLS or self.leader is None:
            return None
        if self._silent >= _PAUSED_POLLS and _is_stopped(self.leader):
            return "its process is stopped"
        if self._wait is None:
            self._wait, self._hung_polls = ProcessorWait(self.leader), float(self._silent)
        else:
            self._hung_polls += max(0.0, 1.0 - self._wait.since_last_s() / _POLL_S)
        return f"it has not beaten for {self._silent * _POLL_S:.0f} s: it is paused or hangs" if self._hung_polls >= _HUNG_POLLS else None


def _is_stopped(identity: ProcessId) -> bool:
    process = find_process(identity)
    return process is not None and bool(process.status() == psutil.STATUS_STOPPED)


@contextmanager
def _opened(directory: Path, named: str) -> Iterator[IO[str]]:
    with _open(directory, named) as handle:
        yield handle


def _open(directory: Path, named: str) -> IO[str]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return (directory / LOCK_FILE).open("a+")
    except OSError as error:
        raise EnvironmentCheckError(f"{named}: {directory} is not writable ({error.strerror}). Fix: choose a writable directory") from error


def _acquired(handle: IO[str]) -> bool:
    """Whether the lock is held now; then the file has this process's pid."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return True


def _holder(handle: IO[str]) -> str:
    handle.seek(0)
    return handle.read().strip()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""


def _identity(beat: str) -> ProcessId | None:
    parts = beat.split()
    return ProcessId(int(parts[0]), int(parts[1])) if len(parts) == 3 and all(part.isdigit() for part in parts) else None
