"""What the demo runs on: an adopted Triton, settings, the sidecar as a process of its own; all of it gone afterwards."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from themis_triton.adapters.local_servers import LocalServers, free_ports
from themis_triton.adapters.processes import OWNER_VARIABLE, find_process, owner_mark, spawn, stop_everything, stop_process
from themis_triton.adapters.server_files import ServerFiles
from themis_triton.core.config import DeviceSlot, LaunchConfig, PipelineConfig, PolicyName, ThemisConfig
from themis_triton.core.errors import LaunchFailedError, ServerError, SettingsError
from themis_triton.core.fleet import ModelState, ProcessId, Server
from themis_triton.demo.folder import STATES, STOP_TIMEOUT_S
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

FIRST_SLOT = "cpu:0"
SPARE_SLOTS = ("cpu:1", "cpu:2", "cpu:3")
STATUS_TIMEOUT_S = 240.0  # the first start on a machine compiles the solver
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class DemoStage:
    """A running demo: where clients send, where the sidecar tells its status."""

    grpc_address: str
    status_url: str
    pipeline: PipelineConfig
    config: ThemisConfig


@asynccontextmanager
async def staged(directory: Path, pipeline: str, policy: PolicyName) -> AsyncIterator[DemoStage]:
    """Start Triton, sidecar and Envoy in a folder; on exit, however it comes, no process of theirs is left."""
    first_state, state = (directory / name for name in STATES)
    try:
        first = await _first_server(first_state, pipeline)
        settings, addresses = _settings(directory, first, first_state, policy, pipeline)
        path = directory / "themis.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        config = load_settings(path)
        daemon = _start_daemon(path, directory / "daemon.log", first_state)
        await _answering(f"http://{addresses['status']}/status", daemon, directory / "daemon.log")
        chosen = next(p for p in config.pipelines if p.name == pipeline)
        yield DemoStage(addresses["grpc"], f"http://{addresses['status']}/status", chosen, config)
        await stop_process(daemon, STOP_TIMEOUT_S)
    finally:
        # The adopted server's mark is the daemon's too: it goes first, so that nothing is launched any more.
        for owner in (first_state, state):
            await asyncio.shield(asyncio.to_thread(stop_everything, owner, STOP_TIMEOUT_S))


def check_pipeline(name: str) -> None:
    """SettingsError names the sample's pipelines when `name` is none of them."""
    known = _sample_sections()["pipelines"]
    if name not in known:
        raise SettingsError(f"--pipeline {name}: no such pipeline; allowed are {', '.join(known)}")


def _sample_sections() -> dict[str, Any]:
    sample: dict[str, Any] = yaml.safe_load((shipped("config") / "themis.yaml").read_text())
    return sample


async def _first_server(state: Path, pipeline: str) -> Server:
    """The Triton that stands there before Themis comes: one instance of each model of the pipeline."""
    sample = _sample_sections()
    stages = sample["pipelines"][pipeline]["stages"]
    launch = LaunchConfig((DeviceSlot("first", FIRST_SLOT),), shipped("model_repository"))
    servers = LocalServers(launch, state)
    states = {stage: ModelState(1, int(sample["models"][stage]["max_batch"])) for stage in stages}
    server = await servers.wait_ready(await servers.launch("first", "first", states))
    await servers.warm_up(server)
    return server


def _settings(
    directory: Path, first: Server, first_state: Path, policy: PolicyName, pipeline: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """The sample's models and pipeline, with the adopted server and free addresses of this machine."""
    sample = _sample_sections()
    ports = free_ports(4)
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(("grpc", "http", "admin", "status"), ports, strict=True)}
    chosen = sample["pipelines"][pipeline]
    settings = {
        "mode": "active",
        "state_directory": str((directory / "state").resolve()),
        "servers": {
            "first": {
                "grpc": first.grpc_address,
                "http": first.http_address,
                "metrics": first.metrics_address,
                "device": FIRST_SLOT,
                "model_control_key": first.model_control_key,
                "model_repository": str(ServerFiles(first_state, first.name).models.resolve()),
            }
        },
        "launch": {"slots": list(SPARE_SLOTS), "model_repository": str(shipped("model_repository"))},
        "envoy": {"grpc_listen": addresses["grpc"], "http_listen": addresses["http"], "admin": addresses["admin"]},
        "models": {stage: sample["models"][stage] for stage in chosen["stages"]},
        "pipelines": {pipeline: chosen},
        "prices": sample["prices"],
        "policy": {"name": policy.value},
        "status": {"address": addresses["status"]},
    }
    return settings, addresses


def _start_daemon(path: Path, log_file: Path, owner: Path) -> ProcessId:
    command = [sys.executable, "-m", "themis_triton.cli", "run", "-c", str(path)]
    return spawn(command, {**os.environ, OWNER_VARIABLE: owner_mark(owner)}, log_file)


async def _answering(url: str, daemon: ProcessId, log_file: Path) -> None:
    """Wait, bounded, until the sidecar tells its first tick."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + STATUS_TIMEOUT_S
    async with httpx.AsyncClient(trust_env=False) as client:
        while loop.time() < deadline_s:
            if find_process(daemon) is None:
                said = await asyncio.to_thread(log_file.read_text)
                raise LaunchFailedError(f"the sidecar ended at once; see {log_file}:\n{said[-2000:]}")
            try:
                status = (await client.get(url, timeout=2.0)).json()
            except httpx.HTTPError:
                status = {}
            if status.get("tick"):
                return
            await asyncio.sleep(POLL_S)
    raise ServerError(f"the sidecar did not answer at {url} within {STATUS_TIMEOUT_S:g} s; see {log_file}")
