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
from tests.unit.stand_in import write_program
from themis_triton.adapters.slurm.launcher import SlurmLauncher
from themis_triton.core.config import DeviceSlot, SlurmLaunchConfig
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


def key_is_public(cluster: SlurmCluster, key: str) -> bool:
    """Whether the key of model control is shown by the controller or by the list of processes."""
    lines = [" ".join(process.cmdline()) for process in cluster.processes()]
    assert any("tritonserver" in line for line in lines)
    return any(key in text for text in (cluster.call("scontrol", "show", "job"), *lines))


def test_a_surge_over_the_nodes_a_lost_node_and_a_killed_sidecar_fail_no_request(
    launch: Launch, cluster: SlurmCluster, tmp_path: Path
) -> None:
    section = {
        "kind": "slurm",
        "model_repository": str(REPOSITORY),
        "stop_timeout_s": 3,
        "drain_timeout_s": 2,  # Triton waits so long for connections of Envoy that are still open
        "slurm": {"directory": str(tmp_path / "shared"), "gres": "gpu:1", "cpus": 2, "poll_s": 0.5},
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
