"""The contract suites on the real adapters: Triton as processes of this machine, Envoy in front."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.contracts.ports import LauncherContract, ModelControlContract, ObserverContract, Ports, RouteWriterContract, Scenario, World
from tests.e2e.envoy_setup import free_config
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.names import Protocol, model_cluster
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.adapters.launchers import build_launcher
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.observer import LiveObserver
from themis_triton.adapters.triton.metrics import TritonMetrics
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.config import EnvoyConfig, LocalLaunchConfig
from themis_triton.core.fleet import ModelState
from themis_triton.core.routes import ModelRoute, RouteTable

pytestmark = pytest.mark.e2e
MODELS = {"video-detector": ModelState(1, 8), "video-classifier": ModelState(2, 8)}


async def listed_targets(config: EnvoyConfig, model: str, names: dict[int, str]) -> set[str]:
    """Servers by the endpoints that Envoy lists in the model's gRPC cluster."""
    admin = EnvoyAdmin(config)
    try:
        return {names[port] for cluster, (_, port) in await admin.endpoints() if cluster == model_cluster(Protocol.GRPC, model)}
    finally:
        await admin.close()


@pytest.fixture
def world(launch_config: LocalLaunchConfig, fail_init_file: Path, tmp_path: Path) -> World:
    async def run(scenario: Scenario) -> None:
        envoy = free_config(tmp_path)
        process, clock = EnvoyProcess(envoy, tmp_path), SystemClock()
        files, control, launcher = (
            EnvoyFiles(envoy, log_file=process.log_file),
            TritonModelControl(),
            build_launcher(launch_config, tmp_path),
        )
        observer = LiveObserver(TritonMetrics(clock), EnvoyStats(envoy, tuple(MODELS), clock), DeviceReader(["cpu:0"], clock))

        async def targets(model: str) -> set[str]:
            ports = {server.grpc_address.port: server.name for server in await launcher.discover()}
            return await listed_targets(envoy, model, ports)

        def refuse(model: str) -> None:
            fail_init_file.write_text(model)

        def allow() -> None:
            fail_init_file.unlink(missing_ok=True)

        try:
            await files.write(RouteTable(dict.fromkeys(MODELS, ModelRoute()), ()))
            await process.ensure()
            slots = tuple(slot.name for slot in launch_config.slots)
            await scenario(Ports(launcher, control, observer, files, slots, MODELS, refuse, targets))
        finally:
            allow()
            for port in (observer, control, files, process):
                await port.close()
            await launcher.stop_all()

    return lambda scenario: asyncio.run(run(scenario))


class TestLauncher(LauncherContract): ...


class TestModelControl(ModelControlContract): ...


class TestObserver(ObserverContract): ...


class TestRouteWriter(RouteWriterContract): ...
