"""The process that is connected to the cluster: `python -m themis_triton.adapters.ray.driver`, started by `cluster.RayCluster`.

Ray ends a process that has lost its cluster for a minute, and its calls block; so the sidecar has none of it in itself. Requests come
as lines of JSON on standard input, their answers and the state of all supervisors go to standard output. It ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import sys
import threading
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError

from themis_triton.adapters.ray.control_store import read_lease, superseded, write_lease
from themis_triton.adapters.ray.node import ServerSupervisor
from themis_triton.adapters.ray.orders import ENDED, GONE, PLACED, WAITING, Json

_LIST_S = 0.5
_LIST_TIMEOUT_S = 10.0
_DESCRIBE_S = 5.0
_KEPT_GONE = 200
_AGAIN_S = 0.3
_RESERVED = {"GPU": "num_gpus", "CPU": "num_cpus", "memory": "memory"}
"""Resources that have options of their own."""


@dataclass
class Entry:
    """A supervisor, and what is known of it."""

    handle: Any
    state: str = WAITING
    description: Json | None = None
    why: str = ""
    watch: asyncio.Task[None] | None = None

    def to_json(self) -> Json:
        """As it goes to the sidecar."""
        return {"state": self.state, "description": self.description, "why": self.why}


class Driver:
    """Answers requests; each method without an underscore is one."""

    def __init__(self, write: Any) -> None:  # noqa: ANN401 - a binary file
        self._write = write
        self._entries: dict[str, Entry] = {}
        self._lister: asyncio.Task[None] | None = None
        self._listing = asyncio.Lock()
        self._namespace = ""

    async def connect(self, address: str, namespace: str) -> Json:
        """Connect; the cluster's version and nodes."""
        options: Json = {"namespace": namespace, "log_to_driver": False, "configure_logging": False}
        ray.init(address=address, **options)  # Blocks; there is nothing else to do yet.
        self._namespace = namespace
        await self._list()
        self._lister = asyncio.create_task(self._list_on())
        return {"version": ray.__version__, **await self.nodes()}

    async def nodes(self) -> Json:
        """The nodes that live with their resources, their labels, and what of the resources is free, in all and by node."""
        nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
        free = await asyncio.to_thread(ray.available_resources)
        free_of = {name[:8]: _plain(each) for name, each in (await asyncio.to_thread(available_resources_per_node)).items()}
        named = {node["NodeID"][:8]: _plain(node["Resources"]) | {"address": node["NodeManagerAddress"]} for node in nodes}
        labels = {node["NodeID"][:8]: dict(node.get("Labels") or {}) for node in nodes}
        return {"nodes": named, "labels": labels, "free": _plain(free), "free_of": free_of}

    async def read_lease(self) -> tuple[int, str] | None:
        """The newest version of the lease, and its text."""
        return await asyncio.to_thread(read_lease, self._namespace)

    async def write_lease(self, after: int, text: str) -> int | None:
        """Put the text as the next version of the lease; None where another sidecar was first."""
        return await asyncio.to_thread(write_lease, self._namespace, after, text)

    async def _check(self, epoch: int | None) -> None:
        refusal = await asyncio.to_thread(superseded, self._namespace, epoch)
        if refusal is not None:
            raise PermissionError(refusal)

    async def create(self, name: str, order: Json, resources: dict[str, float], labels: dict[str, str], epoch: int | None = None) -> Json:
        """Ask for a place for a new supervisor, on a node with these labels; returns at once.

        PermissionError for a sidecar that does not lead any more.
        """
        await self._check(epoch)
        options: Json = {_RESERVED[each]: amount for each, amount in resources.items() if each in _RESERVED}
        options["resources"] = {each: amount for each, amount in resources.items() if each not in _RESERVED}
        if labels:
            options["label_selector"] = labels
        options = {"num_cpus": 0, **options, "name": name, "lifetime": "detached", "max_restarts": 0, "max_task_retries": 0}
        handle = await asyncio.to_thread(lambda: ray.remote(ServerSupervisor).options(**options).remote(order))
        self._know(name, handle)
        return self._entries[name].to_json()

    async def relist(self) -> Json:
        """All supervisors, with the descriptions of those that answer in time."""
        await self._list()
        watches = [self._described(entry) for entry in self._entries.values() if entry.state == WAITING]
        await asyncio.gather(*watches)
        return {name: entry.to_json() for name, entry in self._entries.items()}

    async def invoke(self, name: str, method: str, arguments: list[Any], within_s: float) -> Any:  # noqa: ANN401 - the method's
        """Call a supervisor."""
        entry = self._entries.get(name)
        if entry is None:
            raise ActorDiedError
        result = await asyncio.wait_for(getattr(entry.handle, method).remote(*arguments), within_s)
        if isinstance(result, dict) and result.get("launch"):
            entry.description = result
            self._tell()
        return result

    async def remove(self, name: str, within_s: float, epoch: int | None = None) -> bool:
        """End a supervisor by force; whether the cluster has none of this name within the time. PermissionError as `create`."""
        await self._check(epoch)
        entry = self._entries.get(name)
        if entry is None or entry.state == GONE:
            return True
        with contextlib.suppress(ValueError, RayError):
            await asyncio.to_thread(ray.kill, entry.handle, no_restart=True)
        deadline_s = asyncio.get_running_loop().time() + within_s
        while asyncio.get_running_loop().time() < deadline_s:
            await self._list()
            if entry.state == GONE:
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    def _know(self, name: str, handle: Any) -> None:  # noqa: ANN401 - a handle of Ray
        entry = self._entries[name] = Entry(handle)
        entry.watch = asyncio.create_task(self._watch(name, entry))
        self._tell()

    async def _list_on(self) -> None:
        """Look for supervisors again and again. The sidecar misses the lines where the cluster does not answer."""
        while True:
            with contextlib.suppress(RayError, TimeoutError, OSError):
                await asyncio.wait_for(self._list(), _LIST_TIMEOUT_S)
                self._tell()
            await asyncio.sleep(_LIST_S)

    async def _list(self) -> None:
        async with self._listing:
            known = [name for name, entry in self._entries.items() if entry.state != GONE]
            names = await asyncio.to_thread(ray.util.list_named_actors)
            for name in known:
                if name not in names:
                    self._lost(name, self._entries[name].why or "its actor is gone")
            for name in names:
                if name not in self._entries:
                    with contextlib.suppress(ValueError):  # It has gone meanwhile.
                        self._know(name, await asyncio.to_thread(ray.get_actor, name))

    def _lost(self, name: str, why: str) -> None:
        entry = self._entries[name]
        entry.state, entry.why = GONE, why
        if entry.watch is not None and entry.watch is not asyncio.current_task():
            entry.watch.cancel()
        gone = [each for each, other in self._entries.items() if other.state == GONE]
        for each in gone[:-_KEPT_GONE]:
            del self._entries[each]
        self._tell()

    async def _described(self, entry: Entry) -> None:
        with contextlib.suppress(RayError, TimeoutError):
            entry.description = await asyncio.wait_for(entry.handle.describe.remote(), _DESCRIBE_S)
            entry.state = PLACED

    async def _watch(self, name: str, entry: Entry) -> None:
        """Follow a supervisor to its end, or to that of its server."""
        while True:
            try:
                entry.description = await entry.handle.describe.remote()
                if entry.state == WAITING:
                    entry.state = PLACED
                    self._tell()
                while not await entry.handle.wait_end.remote():
                    pass
            except (ActorUnavailableError, GetTimeoutError):
                await asyncio.sleep(_AGAIN_S)
            except RayError as error:
                self._lost(name, _cause(error))
                return
            else:
                entry.state, entry.why = ENDED, "its process has ended"
                self._tell()
                return

    def _tell(self) -> None:
        self._send({"servers": {name: entry.to_json() for name, entry in self._entries.items()}})

    def _send(self, line: Json) -> None:
        self._write.write(json.dumps(line).encode() + b"\n")

    async def answer(self, request: Json) -> None:
        """Carry out a request."""
        answer: Json = {"id": request["id"]}
        try:
            answer["result"] = await getattr(self, request["call"])(**request["arguments"])
        except TimeoutError:
            answer["error"] = "no answer in time"
        except Exception as error:  # noqa: BLE001 - whatever Ray raises is the sidecar's to tell
            answer["error"] = _cause(error)
        self._send(answer)


def _plain(resources: Json) -> Json:
    """Resources without those that Ray makes for each node."""
    return {name: amount for name, amount in resources.items() if not name.startswith(("node:", "object_store_memory", "accelerator_type"))}


def _cause(error: BaseException) -> str:
    """An error of Ray in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wanted = [line for line in lines if line.startswith(("The actor died", "the actor's node", "The actor is dead")) or "Error: " in line]
    return "; ".join(dict.fromkeys(wanted[-2:] or lines[:2])) or type(error).__name__


def _end_with_input() -> None:
    """End once standard input has been closed: the loop itself is blocked for minutes where Ray waits for a head that is gone."""
    ended = select.poll()
    ended.register(sys.stdin.fileno(), 0)  # what it tells in any case is POLLHUP and POLLERR
    ended.poll()
    os._exit(0)


async def run() -> None:
    """Serve until standard input ends."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # Ray prints.
    driver, reader = Driver(output), asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = set[asyncio.Task[None]]()
    while line := await reader.readline():
        task = asyncio.create_task(driver.answer(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    os._exit(0)  # Ray's own end may wait for the cluster.


if __name__ == "__main__":
    asyncio.run(run())
