"""An asyncio event loop with virtual time: instead of waiting, it jumps to its next timer."""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


class _JumpingSelector(selectors.SelectSelector):
    """No event outside the loop can wake it, so that waiting only advances the time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Advance the time by `timeout`. RuntimeError when there is no timer, because all tasks would wait for ever."""
        if timeout is None:
            raise RuntimeError("every task waits and no timer is set: the simulated program is stuck")
        self.now_s += max(0.0, timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time that starts at 0 s. Threads, sockets and subprocesses do not work in it."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was created."""
        return self._jumping.now_s


class VirtualClock:
    """The Clock port over the running loop's time; the loop's start is the epoch."""

    def now_s(self) -> float:
        """Virtual seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(seconds)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Run the garbage collector a hundred times less often: immutable values form few cycles, and collections take a sixth of a run."""
    before = gc.get_threshold()
    gc.set_threshold(100 * before[0], *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def run_virtual(main: Coroutine[object, object, Result]) -> Result:
    """Run a coroutine to its end in virtual time, without waiting in real time."""
    with rare_collections(), asyncio.Runner(debug=False, loop_factory=VirtualTimeLoop) as runner:
        return runner.get_loop().run_until_complete(main)  # Runner.run's signal handler makes a text of the whole result at the end
