"""The bounds of the logs of servers and Envoy: the size of each, and how many of servers that are gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

_COPIED_AT_ONCE = 2**20


def earlier_log(log: Path) -> Path:
    """Where the older lines of a log go."""
    return log.with_name(f"{log.name}.1")


def bound_logs(directory: Path, in_use: Collection[Path], max_bytes: int, max_old: int) -> list[OSError]:
    """Bound the logs of a directory; returns what could not be done, which stops nothing else. Blocking.

    A log of more than `max_bytes` begins anew, its last `max_bytes` are kept beside it; its process goes on writing to it. Of the logs
    that are not in use, the newest `max_old` stay.
    """
    logs = [(log, status) for log in directory.glob("*.log") if (status := _status(log)) is not None]
    failures = list[OSError]()
    for log, status in logs:
        if status.st_size > max_bytes:
            _attempt(partial(_rotate, log, max_bytes), failures)
    old = sorted((status.st_mtime_ns, log) for log, status in logs if log not in in_use)
    for _, log in old[: max(0, len(old) - max_old)]:
        for each in (log, earlier_log(log)):
            _attempt(partial(each.unlink, missing_ok=True), failures)
    return failures


def _attempt(work: Callable[[], None], failures: list[OSError]) -> None:
    try:
        work()
    except OSError as error:
        failures.append(error)


def _status(log: Path) -> os.stat_result | None:
    try:
        return log.stat()
    except OSError:  # it is gone, or a link that leads nowhere
        return None


def _rotate(log: Path, max_bytes: int) -> None:
    """Copy and truncate, because the process keeps the file open and appends to it; what it writes between the two is lost."""
    with log.open("r+b") as source:
        source.seek(-max_bytes, os.SEEK_END)
        with os.fdopen(os.open(earlier_log(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target:
            while part := source.read(_COPIED_AT_ONCE):
                target.write(part)
        source.truncate(0)
