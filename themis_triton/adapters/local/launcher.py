"""The horizontal actuator on this machine: `tritonserver` processes on device slots."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.local.discovery import DEVICE_VARIABLE, REACH_VARIABLE, SERVER_VARIABLE, SLOT_VARIABLE, find_launched
from themis_triton.adapters.local.server_files import ServerFiles, build_view
from themis_triton.adapters.local.triton_install import TritonInstall, find_triton
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.processes import (
    EMULATED_HOST_VARIABLE,
    OWNER_VARIABLE,
    find_process,
    group_members,
    owner_mark,
    resident_bytes,
    short_hash,
    spawn,
    stop_everything,
    stop_process,
)
from themis_triton.adapters.sockets import LOOPBACK, free_ports
from themis_triton.adapters.triton.groups import numbered_devices
from themis_triton.adapters.triton.metrics import fetch_metrics
from themis_triton.adapters.triton.warmup import Warmup
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.errors import LaunchFailedError, ServerError, ThemisError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import ModelCounters

_EMULATED_VARIABLE = "THEMIS_EMULATED_DEVICE"
_RESTRICTED = "model-repository,shared-memory,trace,logging"
_PORT_TAKEN = "already in use"
_PORT_TAKEN_LINES = 5
_PORT_ATTEMPTS = 4
_POLL_S = 0.05
_POLL_TIMEOUT_S = 2.0
_LOAD_THREADS = 4  # Triton's own default
_QUIET_S = 0.3
_QUIET_SERVICES = 3.0
_DRIVER_TIMEOUT_S = 30.0


class LocalLauncher:
    """Implements `ServerLauncher`.

    It is stateless: everything about a server is in the `Server` and in the state directory, so that a restarted daemon
    handles the servers of its predecessor.

    Args:
        config: where and how to launch.
        state_directory: logs, model views and prepared backends lie here; its path marks the processes.
        deprioritize_after_s: by model, how long a request waits before all others are served first; see `model_config.for_launch`.
    """

    def __init__(self, config: LocalLaunchConfig, state_directory: Path, deprioritize_after_s: Mapping[str, float] | None = None) -> None:
        self._config = config
        self._state = state_directory
        self._deprioritize_after_s = deprioritize_after_s or {}
        self._slots = {slot.name: slot for slot in config.slots}
        self._install: TritonInstall | None = None
        self._install_lock = asyncio.Lock()

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        """Start a process on the slot and return at once, in phase LAUNCHING. The log begins anew.

        Raises:
            LaunchFailedError: the slot or a model does not exist, or the process cannot be started.
            EnvironmentCheckError: Triton is not installed, or its Python does not fit.
            SettingsError: a model's `config.pbtxt` cannot be parsed.
        """
        self._files(name).log.unlink(missing_ok=True)
        return await self._launch(name, slot, models)

    async def _launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        if slot not in self._slots:
            raise LaunchFailedError(
                f"server {name}: device slot {slot} does not exist: expected one of launch.slots: {', '.join(self._slots)}"
            )
        install = await self._triton()
        files = self._files(name)
        server = self._planned(files, self._slots[slot], models)
        try:
            own = (self._config.model_repository, models, self._deprioritize_after_s, numbered_devices(server))
            complete = await asyncio.to_thread(build_view, files, *own)
            return await asyncio.to_thread(self._start, files, server, install, complete=complete)
        except ThemisError:
            await asyncio.to_thread(files.remove)
            raise

    def _planned(self, files: ServerFiles, slot: DeviceSlot, models: Mapping[str, ModelState]) -> Server:
        """The server before its process: on free ports, with a key of its own."""
        grpc, http, metrics = (Address(LOOPBACK, port) for port in free_ports(3))
        return Server(
            files.name,
            slot.device,
            grpc,
            http,
            metrics,
            Phase.LAUNCHING,
            launched=True,
            slot=slot.name,
            model_control_key=secrets.token_urlsafe(24),
            log_file=str(files.log),
            model_repository=str(files.models),
            models=dict(models),
            reach=self._config.reach_from(slot.device),
        )

    async def _triton(self) -> TritonInstall:
        async with self._install_lock:
            if self._install is None:
                self._install = await asyncio.to_thread(find_triton, self._state, self._config.binary, self._config.backend_directory)
            return self._install

    def _files(self, name: str) -> ServerFiles:
        return ServerFiles(self._state, name)

    def _start(self, files: ServerFiles, server: Server, install: TritonInstall, *, complete: bool) -> Server:
        command = [str(install.binary), *_arguments(files, server), *self._own_arguments(install, complete=complete)]
        try:
            process = spawn(command, self._environment(server, install), files.log)
        except OSError as error:
            raise LaunchFailedError(f"server {files.name}: {install.binary} cannot be started: {error}; {files.log_tail()}") from error
        return replace(server, process=process)

    def _own_arguments(self, install: TritonInstall, *, complete: bool) -> list[str]:
        arguments = [f"--exit-timeout-secs={math.ceil(self._config.drain_timeout_s)}"]
        if install.backend_directory is not None:
            arguments.append(f"--backend-directory={install.backend_directory}")
        if complete:
            arguments.append("--disable-auto-complete-config")
        return [*arguments, *self._config.arguments]

    def _environment(self, server: Server, install: TritonInstall) -> dict[str, str]:
        """The daemon's own, with the variables that place the server and mark it."""
        gpus = [device.removeprefix("gpu:") for device in server.devices if device.startswith("gpu:")]
        environment = dict(os.environ)
        if install.path_prefix is not None:
            environment["PATH"] = os.pathsep.join([str(install.path_prefix), environment.get("PATH", os.defpath)])
        return environment | {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML numbers devices so, CUDA by itself does not.
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            OWNER_VARIABLE: owner_mark(self._state),
            SERVER_VARIABLE: server.name,
            SLOT_VARIABLE: server.slot or "",
            DEVICE_VARIABLE: server.device,
            REACH_VARIABLE: " ".join(server.reach),
            _EMULATED_VARIABLE: self._emulated_device(server),
        }

    def _emulated_device(self, server: Server) -> str:
        """A slot with a device of its own is named after it, as other servers name that device when they grow onto it."""
        alone = sum(slot.device == server.device for slot in self._slots.values()) == 1
        name = server.device.replace(":", "-") if alone else server.slot
        return f"{name}@{os.environ.get(EMULATED_HOST_VARIABLE) or short_hash(self._state)}"

    async def wait_ready(self, server: Server) -> Server:
        """Wait until it is ready and holds its models; when another process took one of its ports first, it is started again on others.

        Returns:
            The server in phase WARMING; its process and addresses may be others than before.

        Raises:
            LaunchFailedError: it ended, or was not ready in time (then it still runs, for the caller to stop); with the log's last lines.
                One that was started again is stopped already.
        """
        deadline_s = asyncio.get_running_loop().time() + self._config.ready_timeout_s
        return await self._wait_ready(server, deadline_s, _PORT_ATTEMPTS - 1)

    async def _wait_ready(self, server: Server, deadline_s: float, attempts_left: int) -> Server:
        if await self._is_ready_before(server, deadline_s):
            return replace(server, phase=Phase.WARMING)
        if not attempts_left or _PORT_TAKEN not in self._files(server.name).log_tail(_PORT_TAKEN_LINES):
            raise self._failed(server, "ended before it was ready")
        again = await self._launch(server.name, server.slot or "", server.models)
        try:
            return await self._wait_ready(again, deadline_s, attempts_left - 1)
        except LaunchFailedError:
            await self.stop(again)  # The caller knows only the first process.
            raise

    async def _is_ready_before(self, server: Server, deadline_s: float) -> bool:
        """True when ready, False when the process ended."""
        loop = asyncio.get_running_loop()
        async with HttpClient(_POLL_TIMEOUT_S) as client:
            while await self.is_alive(server):
                if await _answers(client, server) and await self.is_alive(server):
                    return True
                if loop.time() >= deadline_s:
                    raise self._failed(server, f"was not ready within launch.ready_timeout_s = {self._config.ready_timeout_s:g} s")
                await asyncio.sleep(_POLL_S)
        return False

    def _failed(self, server: Server, what: str) -> LaunchFailedError:
        return LaunchFailedError(f"server {server.name} on slot {server.slot} {what}; {self._files(server.name).log_tail()}")

    async def warm_up(self, server: Server) -> None:
        """Send real inference requests at every planned batch size, to every instance, and check that they are answered.

        Raises:
            LaunchFailedError: a request failed or its answer is empty.
            ServerError: the server does not answer.
        """
        async with Warmup(server, self._config.warmup_requests, self._config.ready_timeout_s, self._config.inputs) as warmup:
            await asyncio.gather(*(warmup.warm(model, state) for model, state in server.models.items()))

    async def is_alive(self, server: Server) -> bool:
        """Whether the very process that was launched still runs."""
        return server.process is not None and find_process(server.process) is not None

    async def wait_idle(self, server: Server) -> bool:
        """Wait, bounded by the drain time-out, until nothing is pending and no request ends any more; False after the time-out.

        Triton shows no requests that are being executed, so the counters must not move for three mean service times, at least 0.3 s.
        A server that does not answer, or whose process is gone, has nothing in flight.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._config.drain_timeout_s
        last: dict[str, ModelCounters] | None = None
        rests_since_s = loop.time()
        async with HttpClient(_POLL_TIMEOUT_S) as client:
            while loop.time() < deadline_s:
                try:
                    now = await fetch_metrics(client, server.metrics_address)
                except (HttpError, ValueError):
                    if not await self.is_alive(server):
                        return True
                    now = None
                if now is None or now != last or any(counters.pending for counters in now.values()):
                    rests_since_s, last = loop.time(), now
                elif loop.time() - rests_since_s >= _quiet_s(now):
                    return True
                await asyncio.sleep(_POLL_S)
        return False

    async def read_memory(self, server: Server) -> int:
        """Bytes that the server's processes hold on its devices; 0 where that is unknown."""
        if server.process is None:
            return 0
        members = await asyncio.to_thread(group_members, server.process)
        if not server.device.startswith("gpu:"):
            return sum(resident_bytes(member) for member in members)
        reader = DeviceReader(server.devices, SystemClock(), timeout_s=_DRIVER_TIMEOUT_S)
        try:
            readings = await reader.read_devices()
        finally:
            reader.close()
        own = sum(reading.process_memory_bytes.get(member.pid, 0) for reading in readings for member in members)
        used = [reading for reading in readings if server.runs_on(reading.device)]
        return own or sum((reading.memory_total_bytes or 0) - (reading.memory_free_bytes or 0) for reading in used)

    async def discover(self) -> tuple[Server, ...]:
        """Every launched server that runs now, by name, in phase LAUNCHING; known by the marks that its process carries."""
        return await asyncio.to_thread(find_launched, self._state)

    async def stop_all(self) -> tuple[str, ...]:
        """Stop every process that carries the state directory's mark: servers, and the Envoy that was started beside them.

        Returns:
            The pids of the stopped processes, as text.

        Raises:
            ServerError: a process survived SIGKILL.
        """
        try:
            pids = await asyncio.to_thread(stop_everything, self._state, self._config.stop_timeout_s)
        except TimeoutError as error:
            raise ServerError(str(error)) from error
        return tuple(map(str, pids))

    async def stop(self, server: Server) -> None:
        """SIGTERM, then after a bounded wait SIGKILL; returns when the process and its children are gone. The log stays.

        Raises:
            ServerError: the server was not launched here, and is never stopped.
        """
        if not server.launched or server.process is None:
            raise ServerError(
                f"server {server.name} was not launched by Themis and is never stopped by it. Fix: stop it where it was started"
            )
        await stop_process(server.process, self._config.stop_timeout_s)
        if left := await asyncio.to_thread(group_members, server.process):
            raise ServerError(f"server {server.name}: processes {[process.pid for process in left]} survived SIGKILL")
        await asyncio.to_thread(self._files(server.name).remove)


async def _answers(client: HttpClient, server: Server) -> bool:
    """Whether the server holds its models and shows metrics; its own readiness is lost with any failed change."""
    paths = ["/v2/health/live", *(f"/v2/models/{model}/ready" for model in server.models)]
    try:
        for url in [*(server.http_address.url(path) for path in paths), server.metrics_address.url("/metrics")]:
            await client.get(url)
    except HttpError:
        return False
    return True


def _quiet_s(counters: Mapping[str, ModelCounters]) -> float:
    means_us = [each.request_us / each.success for each in counters.values() if each.success > 0]
    return max(_QUIET_S, _QUIET_SERVICES * max(means_us, default=0.0) / 1e6)


def _arguments(files: ServerFiles, server: Server) -> list[str]:
    key = server.model_control_key
    return [
        f"--model-repository={files.models}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in server.models),
        # A growth under a backlog holds a thread until the model's queue has been empty; the other models' changes must not wait for it.
        f"--model-load-thread-count={max(_LOAD_THREADS, len(server.models) + 1)}",
        f"--grpc-address={LOOPBACK}",
        f"--grpc-port={server.grpc_address.port}",
        f"--http-address={LOOPBACK}",
        f"--http-port={server.http_address.port}",
        f"--metrics-address={LOOPBACK}",
        f"--metrics-port={server.metrics_address.port}",
        f"--grpc-restricted-protocol={_RESTRICTED}:key={key}",
        f"--http-restricted-api={_RESTRICTED}:key={key}",
        f"--backend-config=python,shm-region-prefix-name={files.shared_memory_prefix}",
    ]
