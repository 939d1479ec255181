"""The sidecar's side of the driver: requests with deadlines, the last known supervisors, and connections made again with back-off."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from themis_triton.adapters.ray.orders import Json
from themis_triton.core.config import RayLaunchConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError

log = structlog.get_logger()
CALL_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 30.0
_SILENT_S = 10.0
_MAX_SILENCES = 3
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
_DRIVER = "themis_triton.adapters.ray.driver"
_LINE_BYTES = 1 << 24
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TQDM": "0",
}
"""No reports to Ray's makers; and Ray leaves the variables of devices alone."""


@dataclass(frozen=True, slots=True)
class Supervisor:
    """What is known of an actor: its state (of `orders`), its description once it has a node, and why it is gone."""

    state: str
    description: Json | None = None
    why: str = ""


class RayCluster:
    """A connection to the cluster, made at the first call and again after each loss. Use it from one event loop, and `close` it there.

    Args:
        config: the cluster's address and the namespace of the actors.
        log_file: gets what Ray prints.
        is_logged: whether the log tells when the cluster is lost and found; a command says so itself, and may print JSON.
    """

    def __init__(self, config: RayLaunchConfig, log_file: Path, *, is_logged: bool = True) -> None:
        self._config = config
        self._log_file = log_file
        self._is_logged = is_logged
        self._supervisors: dict[str, Supervisor] | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._tried = asyncio.Event()
        self._changed = asyncio.Condition()
        self.fault: str | None = None
        self.version = ""
        self.epoch: int | None = None
        """Of the lease by which this sidecar leads: the cluster refuses the commands of an earlier one. None: there is no lease."""

    @property
    def supervisors(self) -> Mapping[str, Supervisor] | None:
        """The actors of the namespace by name, as they were last seen; None before they were."""
        return self._supervisors

    async def connect(self) -> None:
        """Connect if that was not done yet.

        Raises:
            EnvironmentCheckError: the extra is not installed.
            ServerError: the cluster does not answer.
        """
        if importlib.util.find_spec("ray") is None:
            raise EnvironmentCheckError("launch.kind: ray needs Ray, which is not installed. Fix: pip install 'themis-triton[ray]'")
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        if not self._connected.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._tried.wait(), _CONNECT_TIMEOUT_S)
        if not self._connected.is_set():
            raise ServerError(self._unreachable(self.fault or f"no answer within {_CONNECT_TIMEOUT_S:g} s"))

    def _unreachable(self, fault: str) -> str:
        return f"launch.ray.address: the cluster at {self._config.address} does not answer ({fault}). Fix: see `ray status` on its head"

    async def call(self, call: str, timeout_s: float = CALL_TIMEOUT_S, **arguments: Any) -> Any:  # noqa: ANN401 - JSON
        """A request to the driver.

        Raises:
            ServerError: it failed, or was not answered in time.
        """
        await self.connect()
        return await self._request(call, timeout_s, arguments)

    async def _request(self, call: str, timeout_s: float, arguments: Json) -> Any:  # noqa: ANN401 - JSON
        process = self._process
        if process is None or process.stdin is None:
            raise ServerError(self._unreachable(self.fault or "the connection was lost"))
        self._number += 1
        number, answer = self._number, asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            process.stdin.write(json.dumps({"id": number, "call": call, "arguments": arguments}).encode() + b"\n")
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as error:
            raise ServerError(f"Ray: {call} was not answered within {timeout_s:g} s") from error
        except OSError as error:
            raise ServerError(self._unreachable(str(error))) from error
        finally:
            self._answers.pop(number, None)

    def note(self, name: str, supervisor: Supervisor) -> None:
        """Take in what a request told of an actor before the next list does."""
        self._supervisors = {**(self._supervisors or {}), name: supervisor}

    async def wait_for(self, name: str, holds: Callable[[Supervisor | None], bool], timeout_s: float) -> Supervisor | None:
        """Wait, bounded, until what is known of an actor fulfils the condition; returns what is known then."""

        def known() -> Supervisor | None:
            return (self._supervisors or {}).get(name)

        with contextlib.suppress(TimeoutError):
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(lambda: holds(known())), timeout_s)
        return known()

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self.version = ""
            try:
                await self._connection()
            except (ServerError, OSError, ValueError) as error:
                await self._lose(str(error))
            self._tried.set()
            pause_s = _FIRST_PAUSE_S if self.fault is None else min(_MAX_PAUSE_S, 2 * pause_s)
            await asyncio.sleep(pause_s)

    async def _connection(self) -> None:
        """One process of the driver, from its start to its end."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _DRIVER),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env={**os.environ, **_QUIET},
                limit=_LINE_BYTES,
                start_new_session=True,
            )
        process, reader = self._process, asyncio.create_task(self._read(self._process))
        try:
            arguments = {"address": self._config.address, "namespace": self._config.namespace}
            answer = asyncio.create_task(self._request("connect", _CONNECT_TIMEOUT_S, arguments))
            await asyncio.wait({answer, reader}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
                raise ServerError("the driver ended; see " + str(self._log_file))
            self.version = answer.result()["version"]
            self._find()
            await reader
            await self._lose("the connection was lost")
        finally:
            reader.cancel()
            self._process = None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        silences = 0
        while process.stdout is not None and silences < _MAX_SILENCES:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), _SILENT_S)
            except TimeoutError:
                silences += 1
                if self._connected.is_set():
                    await self._lose(f"nothing was heard of it for {silences * _SILENT_S:g} s")
                continue
            if not line:
                return
            silences = 0
            await self._take(json.loads(line))

    async def _take(self, line: Json) -> None:
        if "servers" in line:
            if self.version:
                self._find()
            self._supervisors = {name: Supervisor(**each) for name, each in line["servers"].items()}
            async with self._changed:
                self._changed.notify_all()
            return
        answer = self._answers.get(line["id"])
        if answer is not None and not answer.done():
            if "error" in line:
                answer.set_exception(ServerError(f"Ray: {line['error']}"))
            else:
                answer.set_result(line["result"])

    def _find(self) -> None:
        if not self._connected.is_set() and self._is_logged:
            log.info("ray_reachable", address=self._config.address, version=self.version)
        self.fault = None
        self._connected.set()
        self._tried.set()

    async def _lose(self, fault: str) -> None:
        if self.fault is None and self._is_logged:
            log.warning("ray_unreachable", address=self._config.address, error=fault, message="its servers serve on; launches wait")
        self.fault = fault
        self._connected.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ServerError(self._unreachable(fault)))

    async def close(self) -> None:
        """End the driver. The actors live on."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
