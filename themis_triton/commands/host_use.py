"""How busy this machine was during a measurement."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

BUSY_FRACTION = 0.85
"""Above this fraction of the cores, requests wait for the processor, and latencies say more about the machine than about a policy."""


@dataclass(frozen=True, slots=True)
class HostUse:
    """The machine's cores, and how many of them were busy on average, with all processes; None: unknown."""

    cores: int = 0
    busy_cores: float | None = None

    @property
    def too_busy(self) -> bool:
        """Whether measured latencies are pessimistic."""
        return self.busy_cores is not None and self.busy_cores > BUSY_FRACTION * self.cores


class HostWatch:
    """Counts the processor time of the machine from its creation on."""

    def __init__(self) -> None:
        self._start_s, self._busy_s = time.monotonic(), _busy_s()

    def use(self) -> HostUse:
        """The use so far."""
        passed_s = time.monotonic() - self._start_s
        return HostUse(os.cpu_count() or 1, (_busy_s() - self._busy_s) / passed_s if passed_s > 0 else 0.0)


def _busy_s() -> float:
    """Processor time of all cores since the machine's start, without idle time."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
