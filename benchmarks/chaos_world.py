"""What chaos acts on: a sidecar, an adopted and launched Tritons, Envoy, and the files between them."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from chaos_sidecar import CLOCK_VARIABLE

from themis_triton.adapters.launchers import build_launcher
from themis_triton.adapters.process_end import owned_processes, stop_everything
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.reader import reading
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Server
from themis_triton.emulation.controls import SCALE_VARIABLE
from themis_triton.settings.shipped import shipped

STAGES = ("video-detector", "video-classifier")
SLO_MS = 500.0
SLOTS = 4
POLL_S = 0.05
ANSWER_TIMEOUT_S = 0.5
START_S = 200.0
Status = dict[str, Any]


class MetricsDoor:
    """A TCP proxy before a server's metrics port that can be closed, as when the port is dead."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = free_ports(1)[0]

    async def open(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Refuse connections, and break those that are open."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        own = {writer, back}
        self._writers |= own
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._writers -= own


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass(slots=True)
class World:
    """The parts, and how to find them."""

    folder: Path
    random: random.Random
    adopted: Server
    door: MetricsDoor
    settings: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    envoy_deaths: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The sidecar's state directory."""
        return self.folder / "state"

    @property
    def settings_file(self) -> Path:
        """The sidecar's settings."""
        return self.folder / "themis.yaml"

    @property
    def scale_file(self) -> Path:
        """How much slower the models are than their profile."""
        return self.folder / "scale.json"

    @property
    def clock_file(self) -> Path:
        """By how much the clock of the next sidecar is wrong."""
        return self.folder / "clock"

    @property
    def repository(self) -> Path:
        """The model repository of launched servers."""
        return self.folder / "models"

    def write_settings(self) -> None:
        """The right settings."""
        self.settings_file.write_text(yaml.safe_dump(self.settings), encoding="utf-8")

    def start_sidecar(self) -> None:
        """Start the sidecar's process."""
        command = [sys.executable, str(Path(__file__).with_name("chaos_sidecar.py")), "run", "-c", str(self.settings_file)]
        environment = {**os.environ, CLOCK_VARIABLE: str(self.clock_file)}
        with (self.folder / "sidecar.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    def kill_sidecar(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10.0)

    def signal_sidecar(self, number: signal.Signals) -> None:
        """Send the running sidecar a signal."""
        if self.process is not None:
            self.process.send_signal(number)

    async def status(self) -> Status:
        """The sidecar's status; empty while it does not answer."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
                answer: Status = (await client.get(f"http://{self.settings['status']['address']}/v1/status")).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    async def until(self, holds: Callable[[Status], bool], timeout_s: float) -> bool:
        """Wait until the status is so; False when it is not in time."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline_s:
            status = await self.status()
            if status and holds(status):
                return True
            await asyncio.sleep(POLL_S)
        return False

    def launched(self) -> list[Server]:
        """Launched servers whose process runs."""
        with reading(journal_path(self.state)) as journal:
            servers = journal.servers()
        return [server for server in servers if server.process is not None and find_process(server.process) is not None]

    async def victim(self) -> Server | None:
        """A launched server that serves now."""
        serving = {server["name"] for server in (await self.status()).get("servers", ()) if server["phase"] == "serving"}
        candidates = [server for server in await asyncio.to_thread(self.launched) if server.name in serving]
        return self.random.choice(candidates) if candidates else None

    def envoy(self) -> psutil.Process | None:
        """Envoy's process."""
        for process in owned_processes(self.state):
            with suppress(psutil.NoSuchProcess):
                if Path(process.name()).name.startswith("envoy"):
                    return process
        return None

    async def envoy_answers(self) -> bool:
        """Whether Envoy answers a client. By a bare connection: making an HTTP client takes longer than a restart of Envoy may."""
        host, port = self.settings["envoy"]["http_listen"].rsplit(":", 1)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(host, int(port))
                try:
                    writer.write(b"GET /none HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\n\r\n")
                    return b" 404 " in await reader.readline()
                finally:
                    writer.transport.abort()
        except OSError:  # a time-out too
            return False

    def orphans(self, status: Status) -> list[int]:
        """Servers of this sidecar that run and that it does not know, by pid."""
        known = {server["process"]["pid"] for server in status.get("servers", ()) if server.get("process")}
        return [process.pid for process in owned_processes(self.state) if _is_server(process) and process.pid not in known]


def _is_server(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("tritonserver") and os.getpgid(process.pid) == process.pid
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


def _settings(folder: Path, adopted: Server, door: MetricsDoor) -> dict[str, Any]:
    """Counts and batches are so small that the load needs several servers, as the loss of one must not be that of all."""
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    sample = yaml.safe_load((shipped("config") / "themis.yaml").read_text(encoding="utf-8"))["models"]
    return {
        "state_directory": str(folder / "state"),
        "servers": {
            adopted.name: {
                "grpc": str(adopted.grpc_address),
                "http": str(adopted.http_address),
                "metrics": f"127.0.0.1:{door.port}",
                "device": "cpu:0",
                "model_control_key": adopted.model_control_key,
                "model_repository": str(folder / "adopted" / "servers" / adopted.name / "models"),
            }
        },
        "launch": {
            "slots": [f"cpu:{number}" for number in range(1, SLOTS + 1)],
            "model_repository": str(folder / "models"),
            "stop_timeout_s": 3,
            "drain_timeout_s": 10,
        },
        "models": {name: sample[name] | {"instances": [1, 1], "max_batch": 1} for name in STAGES},
        "pipelines": {"video": {"stages": list(STAGES), "slo_ms": SLO_MS}},
        "policy": {"tick_s": 0.25, "retry_backoff_s": 1, "retry_backoff_max_s": 4},
        "envoy": {"grpc_listen": grpc, "http_listen": http},
        "status": {"address": status},
    }


@asynccontextmanager
async def started_triton(folder: Path, instances: int) -> AsyncIterator[Server]:
    """A Triton with all models that Themis has not launched; it has ended at the end."""
    os.environ[SCALE_VARIABLE] = str(folder / "scale.json")
    shutil.copytree(shipped("model_repository"), folder / "models")
    slots = (DeviceSlot("cpu-0", "cpu:0"),)
    launcher = build_launcher(LocalLaunchConfig(slots, folder / "models", ready_timeout_s=60.0), folder / "adopted")
    models = {name: ModelState(instances, 1) for name in STAGES}
    try:
        yield await launcher.wait_ready(await launcher.launch("adopted", "cpu-0", models))
    finally:
        await asyncio.to_thread(stop_everything, folder / "adopted", 2.0)


@asynccontextmanager
async def running(folder: Path, seed: int, **sections: object) -> AsyncIterator[World]:
    """The parts, started; all of them have ended at the end. `sections` of the settings go before those of chaos."""
    async with started_triton(folder, 1) as adopted:
        door = MetricsDoor(adopted.metrics_address)
        await door.open()
        world = World(folder, random.Random(seed), adopted, door, _settings(folder, adopted, door) | sections)
        try:
            world.write_settings()
            world.start_sidecar()
            if not await world.until(lambda status: any(server["phase"] == "serving" for server in status["servers"]), START_S):
                raise RuntimeError(f"the sidecar did not start; see {folder / 'sidecar.log'}")
            yield world
        finally:
            world.kill_sidecar()
            await asyncio.to_thread(stop_everything, world.state, 2.0)
            await door.close()


def models_of(server: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that a server of the status holds."""
    return tuple(server["models"])
