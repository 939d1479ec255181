"""Calls that go on beyond the time for which a tick waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


class BoundedCalls(Generic[Key, Answer]):
    """At most one call under way for each key. Use it from one event loop, and `close` it there.

    Args:
        wait_s: for how long one `read` waits; None: until every call has ended.
    """

    def __init__(self, wait_s: float | None) -> None:
        self._wait_s = wait_s
        self._calls: dict[Key, asyncio.Task[Answer]] = {}

    @property
    def under_way(self) -> Collection[Key]:
        """The keys of calls that have not ended yet."""
        return self._calls.keys()

    async def read(self, calls: dict[Key, Callable[[], Coroutine[Any, Any, Answer]]]) -> dict[Key, Answer]:
        """Start the calls whose key has none under way; returns the answers of those that have ended in time, by key.

        A call that has not goes on, and a later `read` returns its answer. Calls of keys that are not asked for any more are cancelled.
        """
        self._cancel(self._calls.keys() - calls.keys())
        for key, call in calls.items():
            if key not in self._calls:
                self._calls[key] = asyncio.create_task(call())
        if self._calls:
            await asyncio.wait(self._calls.values(), timeout=self._wait_s)
        ended = {key: call for key, call in self._calls.items() if call.done()}
        for key in ended:
            del self._calls[key]
        return {key: call.result() for key, call in ended.items()}

    def _cancel(self, keys: Collection[Key]) -> list[asyncio.Task[Answer]]:
        calls = [self._calls.pop(key) for key in keys]
        for call in calls:
            call.cancel()
        return calls

    async def close(self) -> None:
        """Cancel the calls under way."""
        await asyncio.gather(*self._cancel(list(self._calls)), return_exceptions=True)
