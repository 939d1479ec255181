"""The demo's processes: an adopted Triton, the sidecar and Envoy. All are stopped at the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import yaml

from themis_triton.adapters.launchers import build_launcher, stop_all
from themis_triton.adapters.process_end import stop_process
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import EMULATED_HOST_VARIABLE, OWNER_VARIABLE, owner_mark, short_hash, spawn
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.errors import LaunchFailedError, ServerError
from themis_triton.core.fleet import ModelState, ProcessId, Server
from themis_triton.core.policy import PolicyName
from themis_triton.core.status import STATUS_PATH
from themis_triton.demo.base import DemoBase
from themis_triton.demo.folder import STATES, STOP_TIMEOUT_S
from themis_triton.emulation.process_start import PROCESS_START_VARIABLE
from themis_triton.settings import load_settings

STATUS_TIMEOUT_S = 240.0  # without progress; the first start on a machine compiles the solver
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class DemoStage:
    """A running demo: the address for clients, and the URL of the sidecar's status."""

    grpc_address: str
    status_url: str
    pipeline: PipelineConfig
    config: ThemisConfig

    @property
    def page_url(self) -> str:
        """The sidecar's web page."""
        return self.status_url.removesuffix(STATUS_PATH) + "/"


@asynccontextmanager
async def staged(
    directory: Path,
    base: DemoBase,
    policy: PolicyName,
    report: Callable[[str], None] | None = None,
    prepare: Callable[[Path], None] | None = None,
) -> AsyncIterator[DemoStage]:
    """Start Triton, sidecar and Envoy with files in a folder. On every exit all their processes are stopped.

    `report` gets a sentence about each compilation step, and `prepare` the sidecar's state directory before the sidecar starts.
    The adopted Triton has no cold start: it stands for one that serves already.
    """
    first_state, state = (directory / name for name in STATES)
    # The devices of the adopted server are those of the servers that the sidecar launches.
    os.environ[EMULATED_HOST_VARIABLE] = short_hash(directory)
    try:
        first = await _first_server(first_state, base)
        written, addresses = _settings(directory, first, base, policy)
        path = directory / "themis.yaml"
        path.touch(mode=0o600)  # it holds the first server's key of model control
        path.write_text(yaml.safe_dump(written, sort_keys=False))
        config = load_settings(path)
        if prepare is not None:
            await asyncio.to_thread(prepare, state)
        daemon = _start_daemon(path, directory / "daemon.log", first_state, base.cold_start_s)
        await _answering(f"http://{addresses['status']}{STATUS_PATH}", daemon, directory / "daemon.log", report)
        yield DemoStage(addresses["grpc"], f"http://{addresses['status']}{STATUS_PATH}", config.pipelines[0], config)
        await stop_process(daemon, STOP_TIMEOUT_S)
    finally:
        del os.environ[EMULATED_HOST_VARIABLE]
        # Processes of the adopted server's state directory include the daemon: stop them first, so that nothing is launched any more.
        for owner in (first_state, state):
            await asyncio.shield(stop_all(owner, STOP_TIMEOUT_S))


async def _first_server(state: Path, base: DemoBase) -> Server:
    """Start the Triton to adopt, with the minimum instances of each model of the pipeline."""
    slot = base.launch.slots[0]
    servers = build_launcher(replace(base.launch, slots=(replace(slot, name="first"),), reach=base.reach), state)
    models = [base.config.models[stage] for stage in base.pipeline.stages]
    states = {model.name: ModelState(model.min_instances, model.max_batch, model.max_queue_delay_us) for model in models}
    server = await servers.wait_ready(await servers.launch("first", "first", states))
    await servers.warm_up(server)
    return server


def _settings(directory: Path, first: Server, base: DemoBase, policy: PolicyName) -> tuple[dict[str, Any], dict[str, str]]:
    """The base's settings, with the adopted server and free addresses of this machine."""
    ports = free_ports(3)
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(("grpc", "http", "status"), ports, strict=True)}
    adopted = {
        "grpc": str(first.grpc_address),
        "http": str(first.http_address),
        "metrics": str(first.metrics_address),
        **({"devices": list(first.devices)} if first.reach else {"device": first.device}),
        "model_control_key": first.model_control_key,
        "model_repository": str(Path(first.model_repository or "").resolve()),
    }
    return base.settings(policy, adopted, addresses, directory / "state"), addresses


def _start_daemon(path: Path, log_file: Path, owner: Path, cold_start_s: float | None) -> ProcessId:
    """Start the sidecar; the servers that it launches inherit its environment, and with it their process start."""
    command = [sys.executable, "-m", "themis_triton.cli", "run", "-c", str(path)]
    own = {OWNER_VARIABLE: owner_mark(owner)} | ({} if cold_start_s is None else {PROCESS_START_VARIABLE: str(cold_start_s)})
    return spawn(command, os.environ | own, log_file)


async def _answering(url: str, daemon: ProcessId, log_file: Path, report: Callable[[str], None] | None) -> None:
    """Wait until the status shows a tick and no kernels compile, which takes the processor from the models.

    ServerError after STATUS_TIMEOUT_S without progress.
    """
    loop = asyncio.get_running_loop()
    deadline_s, progress = loop.time() + STATUS_TIMEOUT_S, ""
    async with httpx.AsyncClient(trust_env=False) as client:
        while loop.time() < deadline_s:
            if find_process(daemon) is None:
                output = await asyncio.to_thread(log_file.read_text)
                raise LaunchFailedError(f"the sidecar ended during its start; see {log_file}:\n{output[-2000:]}")
            try:
                status = (await client.get(url, timeout=2.0)).json()
            except httpx.HTTPError:
                status = {}
            progress, before = compile_progress(await asyncio.to_thread(log_file.read_text)), progress
            if status.get("tick") and not progress:
                return
            if progress != before:
                deadline_s = loop.time() + STATUS_TIMEOUT_S
                if report is not None:
                    report(progress)
            await asyncio.sleep(POLL_S)
    raise ServerError(f"the sidecar did not answer at {url} within {STATUS_TIMEOUT_S:g} s. Fix: read {log_file}")


def compile_progress(log: str) -> str:
    """The compilation progress in the sidecar's log; empty if it does not compile."""
    line = next((line for line in reversed(log.splitlines()) if '"kernels_compil' in line), None)
    if line is None or '"kernels_compiling"' not in line:
        return ""
    event = json.loads(line)
    return f"Compiling the solvers (once): {event['done']} of {event['total']}"
