"""The system's clock: the one place that reads the time of day."""

from __future__ import annotations

import time


class SystemClock:
    """Implements `Clock`: seconds since the epoch as they were when it was made, advanced by the monotonic clock.

    It never jumps or runs backwards when the machine's time is set; after such a change it differs from the time of day.
    """

    def __init__(self) -> None:
        self._epoch_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """Seconds since the epoch, monotone within a process."""
        return self._epoch_s + time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        import asyncio  # noqa: PLC0415 - the client commands only need the time, and asyncio takes 50 ms

        await asyncio.sleep(seconds)


def time_of_day_s() -> float:
    """Seconds since the epoch by the machine's own clock, which other programs' logs have; it may be set while we run."""
    return time.time()


def uptime_s() -> float:
    """Seconds since the machine started, those in which it was suspended too: by it a lease ends while its holder sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
