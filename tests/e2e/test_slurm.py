"""Servers as jobs of a real Slurm: the launcher's contracts with a stand-in for Triton, and a surge over two nodes with the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.ports import EngineContract, LauncherContract, Ports, Scenario, World
from tests.e2e.conftest import REPOSITORY, SEVERAL_MACHINES, Launch
from tests.e2e.daemon_setup import beside
from tests.e2e.node_loss import POLICY, node_types, surge_with_a_lost_node
from tests.e2e.slurm_cluster import SlurmCluster, missing_programs, slurm_cluster
from tests.server_tls import check_closed, listening_elsewhere, mutual_tls, server_proxy, server_tls, tls_sections, until_ended
from tests.unit.stand_in import write_program
from themis_triton.adapters.slurm.launcher import SlurmLauncher
from themis_triton.adapters.tls_proxy import CONFIG_FILE
from themis_triton.core.config import DeviceSlot, SlurmLaunchConfig
from themis_triton.core.errors import LaunchFailedError
from themis_triton.core.fleet import ModelState, Server

pytestmark = [pytest.mark.e2e, SEVERAL_MACHINES, pytest.mark.skipif(missing_programs() is not None, reason=missing_programs() or "")]
MODELS = {"video-detector": ModelState(1, 8), "video-classifier": ModelState(2, 8)}
SLOTS = (DeviceSlot("job-1", "job:1"), DeviceSlot("job-2", "job:2"))
"""More than one server carries inside the SLO, with however many instances."""
PATIENCE_S, SHORT_S = 30.0, 0.5


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster() as cluster, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, cluster.environment[name])
        yield cluster


@pytest.fixture
def config(tmp_path: Path) -> SlurmLaunchConfig:
    return SlurmLaunchConfig(
        SLOTS,
        REPOSITORY,
        directory=tmp_path / "shared",
        gres="gpu:1",
        cpus=2,
        place_timeout_s=PATIENCE_S,
        ready_timeout_s=PATIENCE_S,
        drain_timeout_s=2.0,
        stop_timeout_s=5.0,
        warmup_requests=1,
        poll_s=0.3,
        binary=write_program(tmp_path / "tritonserver"),
    )


class TestLauncher(LauncherContract, EngineContract):
    @pytest.fixture
    def world(self, cluster: SlurmCluster, config: SlurmLaunchConfig, tmp_path: Path) -> World:
        launcher = SlurmLauncher(config, tmp_path / "state")

        def set_places(count: int) -> None:
            cluster.set_places(count)
            launcher._config = replace(config, place_timeout_s=SHORT_S if count == 0 else PATIENCE_S)

        async def lose_node(server: Server) -> None:
            assert server.node is not None
            await asyncio.to_thread(cluster.lose_node, server.node)
            await launcher._jobs.refresh()
            assert "NODE_FAIL" in await launcher.read_log(server, 1)
            await asyncio.to_thread(cluster.start_node, server.node)

        unused: dict[str, Any] = dict.fromkeys(("control", "observer", "routes", "refuse", "targets"))
        names = tuple(slot.name for slot in SLOTS)

        async def run(scenario: Scenario) -> None:
            try:
                await scenario(Ports(launcher, slots=names, models=MODELS, set_places=set_places, lose_node=lose_node, **unused))
            finally:
                cluster.set_places(len(SLOTS))
                await launcher.stop_all()
                await launcher.close()

        return lambda scenario: asyncio.run(run(scenario))


class TestLauncherWithTls(TestLauncher):
    """The same contracts where each job has a proxy before its server."""

    @pytest.fixture
    def config(self, config: SlurmLaunchConfig, tmp_path: Path) -> SlurmLaunchConfig:
        files = mutual_tls(tmp_path / "tls")
        return replace(config, tls=server_tls(files), proxy=server_proxy(files))


def test_a_server_behind_its_proxy_answers_no_client_without_a_certificate_and_ends_with_its_proxy(
    cluster: SlurmCluster, config: SlurmLaunchConfig, tmp_path: Path
) -> None:
    files = mutual_tls(tmp_path / "tls")

    async def scenario() -> None:
        launcher = SlurmLauncher(replace(config, tls=server_tls(files), proxy=server_proxy(files)), tmp_path / "state")
        try:
            server = await launcher.wait_ready(await launcher.launch("one", SLOTS[0].name, MODELS))
            await launcher.warm_up(server)
            await asyncio.to_thread(check_closed, server, files)
            running = {process: " ".join(process.cmdline()) for process in cluster.processes()}
            (triton,) = [process for process, line in running.items() if "/tritonserver" in line and "sbatch" not in line]
            assert listening_elsewhere(triton) == []
            (proxy,) = [process for process, line in running.items() if CONFIG_FILE in line]
            proxy.kill()
            await until_ended(launcher, server, PATIENCE_S)
            assert not triton.is_running()
            absent = server_proxy({**files, "key": "/absent.key"})
            launcher._config = replace(launcher._config, proxy=absent)
            with pytest.raises(LaunchFailedError, match=r"launch\.slurm\.proxy: /absent\.key is not on node node\d\. Fix: put it there"):
                await launcher.wait_ready(await launcher.launch("two", SLOTS[0].name, MODELS))
        finally:
            await launcher.stop_all()
            await launcher.close()

    asyncio.run(scenario())
    assert cluster.processes() == []


def key_is_public(cluster: SlurmCluster, key: str) -> bool:
    """Whether the key of model control is shown by the controller or by the list of processes."""
    lines = [" ".join(process.cmdline()) for process in cluster.processes()]
    assert any("tritonserver" in line for line in lines)
    return any(key in text for text in (cluster.call("scontrol", "show", "job"), *lines))


def test_a_surge_over_the_nodes_a_lost_node_and_a_killed_sidecar_fail_no_request(
    launch: Launch, cluster: SlurmCluster, tmp_path: Path
) -> None:
    tls, proxy = tls_sections(mutual_tls(tmp_path / "tls"))
    section = {
        "kind": "slurm",
        "tls": tls,
        "model_repository": str(REPOSITORY),
        "stop_timeout_s": 3,
        "drain_timeout_s": 2,  # Triton waits so long for connections of Envoy that are still open
        "slurm": {"directory": str(tmp_path / "shared"), "gres": "gpu:1", "cpus": 2, "poll_s": 0.5, "proxy": proxy},
        "read_nodes_every_s": 1,
        "node_types": node_types("constraint"),
    }
    with beside(launch, tmp_path, slots=(), launch=section, policy=POLICY) as sidecar:

        async def lose(node: str) -> None:
            await asyncio.to_thread(cluster.lose_node, node)
            await asyncio.to_thread(cluster.start_node, node)

        before, _ = asyncio.run(surge_with_a_lost_node(sidecar, lose))
        assert set(before.values()) == {"node1", "node2"}
        (key, *_) = [key for (key,) in sidecar.journal("select json_extract(server, '$.model_control_key') from servers") if key]
        assert not key_is_public(cluster, key)
        stopped = sidecar.command("stop", "--all")
        assert stopped.returncode == 0, stopped.stderr
        assert cluster.processes() == []
        assert cluster.call("squeue", "--noheader", "--format=%i %j %T") == ""
        assert not any((tmp_path / "shared" / "servers").iterdir())
