"""`launch.kind: ray` on a real cluster of this machine: the contract of a launcher, and a surge over its nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.contracts.ports import EngineContract, LauncherContract, Ports, Scenario, World
from tests.e2e.conftest import REPOSITORY, SEVERAL_MACHINES, Launch
from tests.e2e.daemon_setup import ADOPTED, beside
from tests.e2e.node_loss import POLICY, node_types, surge_with_a_lost_node
from tests.e2e.ray_cluster import SmallCluster
from tests.server_tls import check_closed, listening_elsewhere, mutual_tls, server_proxy, server_tls, until_ended
from themis_triton.adapters.ray.launcher import RayLauncher
from themis_triton.adapters.ray.orders import PLACED, actor_name
from themis_triton.adapters.tls_proxy import CONFIG_FILE
from themis_triton.core.config import DeviceSlot, RayLaunchConfig
from themis_triton.core.errors import LaunchFailedError
from themis_triton.core.fleet import ModelState, Phase, Server

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.e2e, SEVERAL_MACHINES]
MODELS = {"video-classifier": ModelState(1, 8)}
SLOTS = (DeviceSlot("ray-1", "ray:1"), DeviceSlot("ray-2", "ray:2"))
"""More than one server carries inside the SLO, with however many instances."""
PATIENCE_S, SHORT_S = 30.0, 0.5


@pytest.fixture(scope="module")
def launcher(ray_cluster: SmallCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayLauncher, asyncio.Runner]]:
    """One connection for all tests, in a loop of its own."""
    config = RayLaunchConfig(
        SLOTS,
        REPOSITORY,
        address=ray_cluster.address,
        namespace="contract",
        resources={"slot": 1},
        place_timeout_s=PATIENCE_S,
        drain_timeout_s=2.0,
        stop_timeout_s=0.1,
        warmup_requests=1,
    )
    launcher = RayLauncher(config, tmp_path_factory.mktemp("state"))
    with asyncio.Runner() as runner:
        yield launcher, runner
        runner.run(launcher.close())


class TestLauncher(LauncherContract, EngineContract):
    @pytest.fixture
    def world(self, ray_cluster: SmallCluster, launcher: tuple[RayLauncher, asyncio.Runner]) -> World:
        ray, runner = launcher
        config = ray._config

        def set_places(count: int) -> None:
            """None, or the one of the node that has a `single`."""
            resources = {0: {"slot": 1.0, "nowhere": 1.0}, 1: {"single": 1.0}}[count]
            ray._config = replace(config, resources=resources, place_timeout_s=PATIENCE_S if count else SHORT_S)

        async def lose_node(server: Server) -> None:
            assert server.node is not None
            ray_cluster.add_node(ray_cluster.kill_node(server.node))
            actor = actor_name(server.name, server.incarnation or "")
            await ray.cluster.wait_for(actor, lambda known: known is None or known.state != PLACED, PATIENCE_S)

        unused: dict[str, Any] = dict.fromkeys(("control", "observer", "routes", "refuse", "targets"))
        names = tuple(slot.name for slot in SLOTS)

        async def run(scenario: Scenario) -> None:
            try:
                await scenario(Ports(ray, slots=names, models=MODELS, set_places=set_places, lose_node=lose_node, **unused))
            finally:
                ray._config = config
                await ray.stop_all()

        return lambda scenario: runner.run(run(scenario))


def test_a_server_behind_its_proxy_answers_no_client_without_a_certificate_and_ends_with_its_proxy(
    launcher: tuple[RayLauncher, asyncio.Runner], tmp_path: Path
) -> None:
    ray, runner = launcher
    config, files = ray._config, mutual_tls(tmp_path / "tls")

    async def scenario() -> None:
        ray._config = replace(config, tls=server_tls(files), proxy=server_proxy(files))
        try:
            server = await ray.wait_ready(await ray.launch("one", SLOTS[0].name, MODELS))
            await ray.warm_up(server)
            assert await ray.discover() == (replace(server, phase=Phase.LAUNCHING),)
            await asyncio.to_thread(check_closed, server, files)
            running = left_of({server.incarnation or ""})
            for triton in [process for process in running if process.name() == "tritonserver"]:
                assert listening_elsewhere(triton) == []
            (proxy,) = [process for process in running if any(word.endswith(CONFIG_FILE) for word in process.cmdline())]
            proxy.kill()
            await until_ended(ray, server, PATIENCE_S)
            await ray.stop(server)
            psutil.wait_procs(running, timeout=PATIENCE_S)
            assert left_of({server.incarnation or ""}) == []
            ray._config = replace(ray._config, proxy=server_proxy({**files, "key": "/absent.key"}))
            with pytest.raises(LaunchFailedError, match=r"launch\.ray\.proxy\.key: /absent\.key is not on node .*\. Fix: put it there"):
                await ray.wait_ready(await ray.launch("two", SLOTS[0].name, MODELS))
        finally:
            ray._config = config
            await ray.stop_all()

    runner.run(scenario())


def left_of(incarnations: set[str]) -> list[psutil.Process]:
    """Processes of these servers: Triton, its models' and their guardians."""
    marks = [f"themis-{incarnation[:8]}-" for incarnation in incarnations]
    lines = {process: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
    return [process for process, line in lines.items() if any(mark in line for mark in marks)]


def test_a_surge_over_the_nodes_a_lost_node_and_a_killed_sidecar_fail_no_request(
    launch: Launch, ray_cluster: SmallCluster, tmp_path: Path
) -> None:
    section = {
        "kind": "ray",
        "model_repository": str(REPOSITORY),
        "stop_timeout_s": 3,
        "drain_timeout_s": 10,
        "ray": {"address": ray_cluster.address, "namespace": "surge", "resources": {"slot": 1}},
        "read_nodes_every_s": 1,
        "node_types": node_types("market"),
    }
    with beside(launch, tmp_path, slots=(), launch=section, policy=POLICY) as sidecar:

        async def lose(node: str) -> None:
            ray_cluster.add_node(ray_cluster.kill_node(node))

        before, after = asyncio.run(surge_with_a_lost_node(sidecar, lose))
        ((lost, node),) = ((server, node) for server, node in before.items() if server not in after)
        assert node not in after.values(), lost
        seen = {*before, *after}
        assert [process for process in left_of(seen) if process.is_running()]
        stopped = sidecar.command("stop", "--all")
        assert stopped.returncode == 0, stopped.stderr
        psutil.wait_procs(left_of(seen), timeout=PATIENCE_S)
        assert left_of(seen) == []
        assert ADOPTED not in stopped.stdout
