"""The supervisor of one server, as an actor on a node. It launches `tritonserver` there as the local launcher does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import ray

import themis_triton
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import kill_process, wait_for_exit
from themis_triton.adapters.process_identity import identify
from themis_triton.adapters.ray.control_store import superseded
from themis_triton.adapters.ray.guardian import start_guardian
from themis_triton.adapters.ray.node_proxy import start_proxy
from themis_triton.adapters.ray.orders import ZONE, Json, describe, models_of, node_config, proxy_of
from themis_triton.adapters.tls_proxy import LOOPBACK
from themis_triton.core.errors import ModelFailedError, ThemisError
from themis_triton.core.fleet import ProcessId, Server

_CLAIMED_WITHIN_S = 60.0
"""An actor that got its place after the sidecar gave it up, or was ended, frees it again after this time."""
_KEPT_S = 60.0
"""How long the supervisor of a server that ended stays, for its log."""
_REPORT_S = 20.0


def _device(order: Json) -> str:
    """The GPU that Ray gave to this actor; without one the device of the slot."""
    gpus = ray.get_gpu_ids()
    return f"gpu:{gpus[0]}" if gpus else str(order["device"])


def _first(label: str | list[str] | None) -> str | None:
    return label[0] if isinstance(label, list) and label else None if isinstance(label, list) else label


class ServerSupervisor:
    """Launches a server when it is told to, tells its state, and stops it. All results are plain JSON values.

    Args:
        order: of `orders.launch_order`.
    """

    def __init__(self, order: Json) -> None:
        os.environ.update(order["environment"])
        self._order = order
        self._host = str(ray.util.get_node_ip_address())
        self._node = f"{self._host}/{ray.get_runtime_context().get_node_id()[:8]}"
        self._zone = _first(ray.get_runtime_context().get_node_labels().get(ZONE))
        self._folder = Path(tempfile.mkdtemp(prefix=f"themis-{order['launch'][:8]}-"))
        actor, raylet = os.getpid(), os.getppid()
        start_guardian(self._folder, order["stop_timeout_s"], [identify(actor), identify(raylet)], dict(os.environ))
        self._asked_proxy = proxy_of(order)
        config = node_config(order, _device(order), self._host if self._asked_proxy is None else LOOPBACK)
        self._launcher = LocalLauncher(config, self._folder, order["deprioritize_after_s"])
        self._launched: asyncio.Task[Server] | None = None
        self._server: Server | None = None
        self._proxy: ProcessId | None = None
        self._proxied: dict[str, int] | None = None if self._asked_proxy is None else {}
        self._begun = asyncio.Event()
        self._ends: asyncio.Task[None] | None = None

    async def describe(self) -> Json:
        """The server as it is now."""
        if self._ends is None:
            self._ends = asyncio.create_task(self._end_when_useless())
        return {**describe(self._order, self._server, self._node, self._host, self._proxied), "zone": self._zone}

    async def start(self, epoch: int | None = None) -> Json:
        """Launch the server, once, and wait until it is ready; its description, or `error` with what it is made of.

        `epoch` here and below: of the lease by which the sidecar leads that asks; nothing is changed for an earlier one.
        """
        if refusal := await self._refusal(epoch):
            return {"error": refusal}
        if self._order["version"] != themis_triton.__version__:
            return {"error": f"the node has Themis {themis_triton.__version__}, and the sidecar is {self._order['version']}"}
        if self._launched is None:
            self._launched = asyncio.create_task(self._launch())
            self._begun.set()
        try:
            await asyncio.shield(self._launched)
        except ModelFailedError as error:
            return {"error": str(error), "model": error.model, "cause": error.cause, "remedy": error.remedy}
        except (ThemisError, OSError) as error:
            return {"error": str(error)}
        return await self.describe()

    async def _refusal(self, epoch: int | None) -> str | None:
        try:
            return await asyncio.to_thread(superseded, ray.get_runtime_context().namespace, epoch)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises: who leads is not known
            return f"refused: who leads cannot be read from Ray's control store ({error})"

    async def _launch(self) -> Server:
        order = self._order
        self._server = await self._launcher.launch(order["name"], order["slot"], models_of(order["models"]))
        self._server = await self._launcher.wait_ready(self._server)
        if self._asked_proxy is not None:
            own = (self._host, self._folder, Path(self._server.log_file or os.devnull), self._asked_proxy)
            self._proxied, self._proxy = await start_proxy(self._server, *own)
        return self._server

    async def wait_end(self) -> bool:
        """Whether the server has ended after it was ready; answers at once when it does, else after some seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end(), _REPORT_S)
            return True
        return False

    async def _end(self) -> None:
        await self._begun.wait()
        if self._launched is not None:
            await asyncio.wait({self._launched})
        parts = [self._server.process if self._server is not None else None, self._proxy]
        ends = [asyncio.create_task(wait_for_exit(part)) for part in parts if part is not None]
        try:
            if ends:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ends:
                each.cancel()
        await self._end_proxied()

    async def _end_proxied(self) -> None:
        """A server without its proxy cannot be reached, nor a proxy without its server: the one that is left ends too."""
        if self._proxy is None or self._server is None:
            return
        with contextlib.suppress(ThemisError):
            await self._launcher.kill(self._server)
        kill_process(self._proxy)

    async def _end_when_useless(self) -> None:
        """End this actor where no launch was asked for in time, and some time after the server's end."""
        await asyncio.sleep(_CLAIMED_WITHIN_S)
        if self._launched is not None:
            await self._end()
            await asyncio.sleep(_KEPT_S)
        os._exit(0)

    async def add_model(self, model: str, state: list[int], epoch: int | None = None) -> Json:
        """Make a model loadable; `error` where that failed."""
        states = models_of({model: state})
        return await self._change(lambda server: self._launcher.add_model(server, model, states[model]), epoch)

    async def add_ensembles(self, models: dict[str, list[int]], epoch: int | None = None) -> Json:
        """Make the ensembles that these models suffice for loadable; `error` where that failed."""
        states = models_of(models)
        return await self._change(lambda server: self._launcher.add_ensembles(replace(server, models=states)), epoch)

    async def _change(self, change: Callable[[Server], Awaitable[None]], epoch: int | None) -> Json:
        if refusal := await self._refusal(epoch):
            return {"error": refusal}
        if self._server is None:
            return {"error": f"server {self._order['name']} has not been launched"}
        try:
            await change(self._server)
        except ThemisError as error:
            return {"error": str(error)}
        return {}

    async def read_log(self, lines: int) -> str:
        """The last lines of the server's output."""
        return await self._launcher.read_log(self._server, lines) if self._server is not None else ""

    async def read_memory(self) -> int:
        """Bytes that the server holds on its device."""
        return await self._launcher.read_memory(self._server) if self._server is not None else 0

    async def stop(self, at_once: bool, lines: int, epoch: int | None = None) -> Json:
        """Stop the server; returns the last lines of its output (`log`) when nothing of it is left, or `error`."""
        if refusal := await self._refusal(epoch):
            return {"error": refusal}
        if self._launched is not None:
            self._launched.cancel()
            await asyncio.gather(self._launched, return_exceptions=True)
        if self._server is None:
            return {"log": ""}
        try:
            await (self._launcher.kill if at_once else self._launcher.stop)(self._server)
        except ThemisError as error:
            return {"error": str(error)}
        if self._proxy is not None:
            kill_process(self._proxy)
        last = await self._launcher.read_log(self._server, lines)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        return {"log": last}
