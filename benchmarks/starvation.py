"""A machine that is too busy: processes that want all of the processor, and how long others waited for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

PRESSURE = Path("/proc/pressure/cpu")


@contextmanager
def starving(loops: int) -> Iterator[None]:
    """So many busy loops. Each has a session of its own, because Linux shares the processor among sessions first."""
    # Each ends with this process, should it be killed.
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    command = [sys.executable, "-c", loop]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class CpuPressure:
    """The share of the time in which some task waited for a processor, over a `with` block."""

    def __init__(self) -> None:
        self._began_us, self._began_s = 0, 0.0
        self.percent: float | None = None
        """None where the kernel does not count it."""

    def __enter__(self) -> Self:
        """Begin."""
        self._began_us, self._began_s = _waited_us() or 0, time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        """End, and set `percent`."""
        waited_us = _waited_us()
        if waited_us is not None:
            self.percent = round((waited_us - self._began_us) / (1e4 * (time.monotonic() - self._began_s)), 1)


def _waited_us() -> int | None:
    try:
        return int(PRESSURE.read_text(encoding="utf-8").split()[4].removeprefix("total="))
    except (OSError, IndexError, ValueError):
        return None
