"""The sidecar as a process of its own beside a Triton that it did not start, and load through its Envoy."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.conftest import REPOSITORY, Launch
from themis_triton.adapters.http import HttpClient
from themis_triton.adapters.process_end import stop_everything, wait_until
from themis_triton.adapters.server_files import ServerFiles
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.triton.metrics import fetch_metrics
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import Address
from themis_triton.core.fleet import ModelState, Server
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.results import LoadSummary
from themis_triton.load.traces import TraceOptions
from themis_triton.settings.shipped import shipped

DETECTOR, CLASSIFIER = "video-detector", "video-classifier"
ADOPTED = "adopted"
ONE_EACH = {DETECTOR: ModelState(1, 8), CLASSIFIER: ModelState(1, 8)}
QUICK = {
    "tick_s": 0.25,
    "retry_backoff_s": 1,
    "demand": {"stable_window_s": 5},
    "scale_down": {"shrink_stabilization_s": 3, "scale_in_stabilization_s": 4},
}
# Kernels are compiled at the first start after they changed.
START_TIMEOUT_S = 200.0
TIMEOUT_S = 40.0
POLL_S = 0.05
LONGEST_LOAD_S = 200

Status = dict[str, Any]


@dataclass
class Sidecar:
    """One settings file, and the daemon that runs on it, if any."""

    settings: Path
    state: Path
    running: Server | None
    grpc_address: str
    status_address: str
    log: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def adopted(self) -> Server:
        """The running server that the settings name."""
        assert self.running is not None
        return self.running

    @property
    def pid(self) -> int:
        return self.processes[-1].pid

    async def start(self) -> Status:
        """Start the daemon; returns the status after its first tick."""
        self.spawn()
        return await self.until("its first tick", lambda status: bool(status["tick"]), START_TIMEOUT_S)

    def spawn(self, *flags: str) -> None:
        """Start the daemon's process."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "themis_triton.cli", "run", "-c", str(self.settings), *flags]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    async def stand_by(self) -> None:
        """Start a second daemon, which waits while the first one leads."""
        self.spawn("--standby")
        assert await wait_until(lambda: "standby_started" in self.log.read_text(encoding="utf-8"), START_TIMEOUT_S), self.words()

    async def until(self, what: str, holds: Callable[[Status], bool], timeout_s: float = TIMEOUT_S) -> Status:
        """Poll the status until the condition holds; fails with the last status and the log's end."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        status: Status = {}
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
            while loop.time() < deadline_s:
                assert self.processes[-1].poll() is None, f"the daemon ended with {self.processes[-1].returncode}:\n{self.words()}"
                try:
                    status = (await client.get(f"http://{self.status_address}/v1/status")).json()
                except httpx.TransportError:
                    status = {}
                if status and holds(status):
                    return status
                await asyncio.sleep(POLL_S)
        raise AssertionError(f"no {what} within {timeout_s:g} s; last: {status.get('sentence')}\n{status.get('servers')}\n{self.words()}")

    async def kill(self) -> None:
        """SIGKILL."""
        self.processes[-1].kill()
        await asyncio.to_thread(self.processes[-1].wait, 10.0)

    async def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.processes[-1].terminate()
        return await asyncio.to_thread(self.processes[-1].wait, 20.0)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another `themis` command on the same settings."""
        command = [sys.executable, "-m", "themis_triton.cli", *words, "-c", str(self.settings)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def replayed(self) -> dict[str, Any]:
        """What `themis replay` says of the whole recording."""
        command = [sys.executable, "-m", "themis_triton.cli", "replay", "--journal", str(journal_path(self.state)), "--json"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.stdout, result.stderr
        replayed: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return replayed

    def metrics(self) -> str:
        """What Prometheus would read."""
        answer = httpx.get(f"http://{self.status_address}/metrics", trust_env=False, timeout=5.0)
        return answer.raise_for_status().text

    async def adopted_models(self) -> dict[str, ModelState]:
        """What the adopted server itself says that it runs."""
        control = TritonModelControl(60.0)
        try:
            return await control.read_models(self.adopted, (DETECTOR, CLASSIFIER))
        finally:
            await control.close()

    def journal(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the journal, read beside the daemon."""
        db = sqlite3.connect(f"file:{journal_path(self.state)}?mode=ro", uri=True)
        try:
            return db.execute(query).fetchall()
        finally:
            db.close()

    def words(self) -> str:
        """The end of the daemon's log."""
        return self.log.read_text(errors="replace")[-4000:]

    def end(self) -> None:
        """Whatever was started for these settings is gone, the adopted server excepted."""
        for process in self.processes:
            process.kill()
            process.wait(10.0)
        stop_everything(self.state, timeout_s=1.0)


@contextmanager
def beside(
    launch: Launch, directory: Path, /, *, slots: tuple[str, ...] = ("cpu:1",), reach: tuple[str, ...] = (), **sections: Any
) -> Iterator[Sidecar]:
    """A Triton with one instance of each model of the video pipeline, and settings that adopt it; the daemon is not started yet.

    `slots` empty: no server can be launched. `reach`: further devices of the adopted server. `sections` replace sections of the
    settings; those of `policy` are added.
    """
    state = directory / "state"
    with launch(f"{ADOPTED}-{directory.name}", ONE_EACH) as adopted:
        grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
        settings = _settings(adopted, state, slots) | {
            "envoy": {"grpc_listen": grpc, "http_listen": http},
            "status": {"address": status},
        }
        if reach:
            settings["servers"][ADOPTED] |= {"devices": [settings["servers"][ADOPTED].pop("device"), *reach]}
        settings["policy"] = QUICK | sections.pop("policy", {})
        path = directory / "themis.yaml"
        path.write_text(yaml.safe_dump(settings | sections, sort_keys=False))
        sidecar = Sidecar(path, state, replace(adopted, reach=reach), grpc, status, directory / "daemon.log")
        try:
            yield sidecar
        finally:
            sidecar.end()


def _settings(adopted: Server, state: Path, slots: tuple[str, ...]) -> dict[str, Any]:
    sample = yaml.safe_load((shipped("config") / "themis.yaml").read_text())
    assert adopted.log_file is not None
    files = ServerFiles(Path(adopted.log_file).parents[1], adopted.name)
    settings = {
        "state_directory": str(state),
        "servers": {
            ADOPTED: {
                "grpc": str(adopted.grpc_address),
                "http": str(adopted.http_address),
                "metrics": str(adopted.metrics_address),
                "device": "cpu:0",
                "model_control_key": adopted.model_control_key,
                "model_repository": str(files.models),
            }
        },
        "models": {name: sample["models"][name] for name in ONE_EACH},
        "pipelines": {"video": sample["pipelines"]["video"]},
    }
    if slots:
        settings["launch"] = {"slots": list(slots), "model_repository": str(REPOSITORY), "stop_timeout_s": 3, "drain_timeout_s": 10}
    return settings


class Traffic:
    """Load on the video pipeline that goes on until it is ended."""

    def __init__(self, process: LoadProcess) -> None:
        self._process = process
        self._sent = 0
        self._seconds = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for second in self._process.seconds():
            async with self._seconds:
                self._sent += second.sent
                self._seconds.notify_all()

    async def more(self, requests: int) -> None:
        """Wait until so many more requests have been sent."""
        desired = self._sent + requests
        async with asyncio.timeout(TIMEOUT_S):
            async with self._seconds:
                await self._seconds.wait_for(lambda: self._sent >= desired)

    async def end(self) -> LoadSummary:
        """Stop sending; what came of every request that was sent."""
        self._process.request_stop()
        await self._reader
        return self._process.report.summaries[0]

    async def abandon(self) -> None:
        """End the reader."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


@asynccontextmanager
async def traffic(sidecar: Sidecar, rate_rps: float, stages: tuple[str, ...] = (DETECTOR, CLASSIFIER)) -> AsyncIterator[Traffic]:
    """Poisson load of a constant rate through the sidecar's Envoy."""
    trace = TraceOptions(rate_rps=rate_rps, duration_s=LONGEST_LOAD_S)
    options = LoadOptions(sidecar.grpc_address, (PipelineLoad("video", stages, 300.0, trace),))
    async with LoadProcess(options) as process:
        running = Traffic(process)
        try:
            yield running
        finally:
            await running.abandon()


def launched(status: Status, *phases: str) -> list[Mapping[str, Any]]:
    """Servers of the status that Themis launched, in one of the phases or in any."""
    return [s for s in status.get("servers", []) if s["launched"] and (not phases or s["phase"] in phases)]


def instances(status: Status, model: str, server: str = ADOPTED) -> int:
    """Instances of a model on a server, as the status has them."""
    return next((int(s["models"][model]["instances"]) for s in status.get("servers", []) if s["name"] == server), 0)


async def answered(server: Mapping[str, Any], model: str = DETECTOR) -> float:
    """Requests for a model that the server has answered, by its own metrics."""
    async with HttpClient(5.0) as client:
        return (await fetch_metrics(client, Address.parse(server["metrics_address"])))[model].success


async def until_answered(server: Mapping[str, Any], model: str, count: float) -> None:
    """Wait until a server has answered as many requests for a model and no more: a client may have its answer before that is counted."""
    now, deadline_s = -1.0, asyncio.get_running_loop().time() + TIMEOUT_S
    while now < count and asyncio.get_running_loop().time() < deadline_s:
        now = await answered(server, model)
        await asyncio.sleep(POLL_S)
    assert now == count
