"""The sidecar's pods as the API server has them: listed once, then watched, so that asking for one costs no call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog

from themis_triton.adapters.kubernetes.api import ApiError, PodApi
from themis_triton.adapters.kubernetes.template import Json

log = structlog.get_logger()
_GONE = 410
_PAUSE_S = 0.1
_MAX_PAUSE_S = 5.0


class PodWatch:
    """Keeps the pods with a label selector, by name. Use it from one event loop, and `close` it there.

    A watch that ends, or whose connection is lost, is resumed from its last event or bookmark; one that is too old (410) begins with a
    new list. While the API does not answer, the last known pods stay.
    """

    def __init__(self, api: PodApi, selector: str) -> None:
        self._api = api
        self._selector = selector
        self._pods: dict[str, Json] = {}
        self._version: str | None = None
        self._listed = False
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._listing = asyncio.Lock()
        self.lists = 0

    async def pods(self) -> Mapping[str, Json]:
        """All pods by name, without a call once they were listed. ServerError where they could not be listed yet."""
        if not self._listed:
            async with self._listing:
                if not self._listed:
                    await self._list()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return self._pods

    async def relist(self) -> Mapping[str, Json]:
        """All pods as they are now. ServerError where the API does not answer."""
        await self.close()  # its events may be older than the list
        async with self._listing:
            await self._list()
        return await self.pods()

    async def create(self, pod: Json) -> Json:
        """Create a pod, which is known from then on; a list that began before cannot hide it."""
        async with self._listing:
            created = await self._api.create_pod(pod)
            known = self._pods.get(created["metadata"]["name"])
            if known is None or known["metadata"]["uid"] != created["metadata"]["uid"]:  # else an event came before the answer
                self._pods[created["metadata"]["name"]] = created
        return created

    async def wait_for(self, name: str, holds: Callable[[Json | None], bool], timeout_s: float) -> Json | None:
        """The pod (None: it is gone) as soon as the condition holds for it, or as it is at the time-out."""
        return (await self.wait_until(lambda pods: holds(pods.get(name)), timeout_s)).get(name)

    async def wait_until(self, holds: Callable[[Mapping[str, Json]], bool], timeout_s: float) -> Mapping[str, Json]:
        """All pods as soon as the condition holds for them, or as they are at the time-out."""
        await self.pods()

        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: holds(self._pods))

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wait(), timeout_s)
        return self._pods

    async def put(self, pod: Json) -> None:
        """Take in a pod as a call has just returned it."""
        self._pods[pod["metadata"]["name"]] = pod
        async with self._changed:
            self._changed.notify_all()

    @property
    def known(self) -> Mapping[str, Json] | None:
        """All pods as last seen; None before the first list."""
        return self._pods if self._listed else None

    async def close(self) -> None:
        """End the watch."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _list(self) -> None:
        pods, self._version = await self._api.list_pods(self._selector)
        self._listed = True
        self.lists += 1
        self._pods = {pod["metadata"]["name"]: pod for pod in pods}
        async with self._changed:
            self._changed.notify_all()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                if self._version is None:
                    async with self._listing:
                        await self._list()
                await self._follow(self._version or "")
                failures = 0
            except ApiError as error:
                self._version = None if error.status == _GONE else self._version
                failures = 0 if error.status == _GONE else failures + 1
                if failures == 1:
                    log.warning("pod_watch_lost", error=str(error), message="the last known pods are kept; the watch is resumed")
            await asyncio.sleep(min(_MAX_PAUSE_S, _PAUSE_S * 2 ** min(failures, 5)))

    async def _follow(self, version: str) -> None:
        async for kind, pod in self._api.watch_pods(self._selector, version):
            self._version = pod["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            name = pod["metadata"]["name"]
            if kind == "DELETED":
                self._pods.pop(name, None)
            else:
                self._pods[name] = pod
            async with self._changed:
                self._changed.notify_all()
