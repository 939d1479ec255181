"""An emulated device: a table in shared memory with the number of busy instances on a device slot.

Each instance is a separate process (the Python backend's stub). It takes a seat in a small file that all instances of the slot map,
and marks the seat while it is busy. A seat contains its process's pid and start time, so that a process that died while busy
is not counted, even if its pid was reused.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

SLOT_VARIABLE = "THEMIS_EMULATED_DEVICE"
DIRECTORY_VARIABLE = "THEMIS_EMULATED_DIRECTORY"
SEATS = 512
_PID, _START, _BUSY = range(3)
_TABLE_BYTES = 3 * SEATS * 8
_REAP_INTERVAL_S = 1.0
_STATE_FIELD, _START_FIELD = 0, 19


def slot_name(environment: dict[str, str] | os._Environ[str] = os.environ) -> str:
    """The device slot of this server, from the variable `THEMIS_EMULATED_DEVICE`.

    Without it each server is a device of its own, named after the server's pid: two servers without a placement do not contend.
    """
    return environment.get(SLOT_VARIABLE) or f"cpu:0@{os.getppid()}"


def instance_device(instance: str, model: str, environment: dict[str, str] | os._Environ[str] = os.environ) -> str:
    """The device of an instance, from its name: Themis names the group on another device of a server `MODEL_cpu:1`.

    Every other instance is on the server's own slot. Servers whose slots end in the same `@…` agree on the names of further devices.
    """
    home = slot_name(environment)
    match = re.fullmatch(rf"{re.escape(model)}_((?:cpu|gpu):[\w-]+)_\d+", instance)
    return f"{match[1].replace(':', '-')}@{home.partition('@')[2]}" if match is not None else home


def table_directory(environment: dict[str, str] | os._Environ[str] = os.environ) -> Path:
    """The folder of the tables: `THEMIS_EMULATED_DIRECTORY`, by default /dev/shm. Devices in different folders are independent."""
    return Path(environment.get(DIRECTORY_VARIABLE) or "/dev/shm")  # noqa: S108 - shared memory is the purpose, the name carries the uid


def table_path(slot: str, directory: Path) -> Path:
    """The table file of a slot; its name contains the user's id, because tables are private to a user."""
    return directory / f"{_prefix()}{quote(slot, safe=':@')}"


def _prefix() -> str:
    return f"themis-device-{os.getuid()}-"


def process_start_ticks(pid: int) -> int:
    """The start time of a running process in clock ticks since boot; 0 for a zombie or without a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The command name is in parentheses and may contain spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[_STATE_FIELD] in "ZX" else int(fields[_START_FIELD])


class DeviceSeat:
    """One instance's seat at its device; not thread-safe.

    Args:
        slot: the device slot's name; instances that give the same name in the same directory contend.
        directory: the folder of the table, on a file system in memory.

    Raises:
        RuntimeError: every seat is taken by a live process.
    """

    def __init__(self, slot: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = table_path(slot, directory)
        _remove_orphans(directory, self.path)
        self._pid = os.getpid()
        self._file = _open_locked(self.path)
        try:
            self._memory = mmap.mmap(self._file, _TABLE_BYTES)
            self._table: NDArray[np.int64] = np.frombuffer(self._memory, dtype=np.int64).reshape(3, SEATS)
            self._seat = self._take()
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._reaped_at_s = float("-inf")

    def _take(self) -> int:
        _clear_dead(self._table)
        free = np.flatnonzero(self._table[_PID] == 0)
        if free.size == 0:
            raise RuntimeError(
                f"{self.path}: the emulated device is full: expected at most {SEATS} instances. Fix: use another {SLOT_VARIABLE}"
            )
        seat = int(free[0])
        self._table[:, seat] = (self._pid, process_start_ticks(self._pid), 0)
        return seat

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A context in which this instance counts as busy."""
        self._table[_BUSY, self._seat] = 1
        try:
            yield
        finally:
            self._table[_BUSY, self._seat] = 0

    def busy_count(self) -> int:
        """The number of busy instances on the device, including this one; takes microseconds, mostly without a system call."""
        now_s = time.monotonic()
        if now_s - self._reaped_at_s >= _REAP_INTERVAL_S:
            self._reaped_at_s = now_s
            self._reap()
        return int(np.count_nonzero(self._table[_BUSY]))

    def _reap(self) -> None:
        if not _dead_seats(self._table, busy_only=True).size:
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            _clear_dead(self._table)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the seat; the last release removes the table. Idempotent."""
        if self._file < 0:
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._table[:, self._seat] = 0
        _clear_dead(self._table)
        if not self._table[_PID].any():
            _unlink_if_same(self.path, self._file)
        del self._table
        self._memory.close()
        os.close(self._file)
        self._file = -1


def _open_locked(path: Path) -> int:
    """The open, locked table file, created if missing; never a file that was removed meanwhile."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if _is_same(path, file):
            if os.fstat(file).st_size < _TABLE_BYTES:
                os.ftruncate(file, _TABLE_BYTES)
            return file
        os.close(file)


def _is_same(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _unlink_if_same(path: Path, file: int) -> None:
    if _is_same(path, file):
        path.unlink()


def _dead_seats(table: NDArray[np.int64], *, busy_only: bool) -> NDArray[np.intp]:
    """Indices of seats whose process ended."""
    # A copy: numpy does not search an array that other processes change.
    now = table.copy()
    taken = np.flatnonzero(now[_BUSY] if busy_only else now[_PID])
    dead = [seat for seat in taken if process_start_ticks(int(now[_PID, seat])) != now[_START, seat]]
    return np.array(dead, dtype=np.intp)


def _clear_dead(table: NDArray[np.int64]) -> None:
    """Free the seats of processes that ended; the caller holds the file's lock."""
    table[:, _dead_seats(table, busy_only=False)] = 0


def _remove_orphans(directory: Path, own: Path) -> None:
    """Remove tables without a live process, left by killed servers."""
    for path in directory.glob(f"{_prefix()}*"):
        if path != own:
            _remove_if_orphan(path)


def _remove_if_orphan(path: Path) -> None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = os.pread(file, _TABLE_BYTES, 0).ljust(_TABLE_BYTES, b"\0")
        table = np.frombuffer(content, dtype=np.int64).reshape(3, SEATS)
        if _dead_seats(table, busy_only=False).size == np.count_nonzero(table[_PID]):
            _unlink_if_same(path, file)
    except BlockingIOError:
        return  # Another process holds the lock, so the table is in use.
    finally:
        os.close(file)
