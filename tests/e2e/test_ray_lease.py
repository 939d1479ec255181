"""Two sidecars with a lease on a real Ray cluster: the contract, and a surge in which the leader is killed, then one is paused."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contracts.leases import LeaseContract, Stores
from tests.e2e.conftest import REPOSITORY, SEVERAL_MACHINES, Launch
from tests.e2e.daemon_setup import START_TIMEOUT_S, Sidecar, beside, launched, traffic
from tests.e2e.node_loss import POLICY, SURGE_RPS, nodes
from tests.e2e.ray_cluster import SmallCluster
from tests.e2e.test_xds_daemon import EDGE, edge
from tests.e2e.triton_process import free_ports
from tests.e2e.two_sidecars import follow, taken_over
from tests.e2e.xds_setup import until_listening
from themis_triton.adapters.envoy.xds.resources import Node
from themis_triton.adapters.ray.cluster import RayCluster
from themis_triton.adapters.ray.lease import RayLease
from themis_triton.core.address import Address
from themis_triton.core.config import RayLaunchConfig
from themis_triton.ports import LeaseStore

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.e2e, SEVERAL_MACHINES]
FOLLOWS_WITHIN_S = 20.0
_NAMESPACES = count(1)


class TestRay(LeaseContract):
    @pytest.fixture
    def stores(self, ray_cluster: SmallCluster, tmp_path: Path) -> Stores:
        @asynccontextmanager
        async def stores() -> AsyncIterator[Callable[[], LeaseStore]]:
            config = RayLaunchConfig((), tmp_path, address=ray_cluster.address, namespace=f"lease-{next(_NAMESPACES)}")
            connections: list[RayCluster] = []

            def connect() -> LeaseStore:
                connections.append(RayCluster(config, tmp_path / f"ray-{len(connections)}.log"))
                return RayLease(connections[-1])

            try:
                yield connect
            finally:
                for each in connections:
                    await each.close()

        return stores


@contextmanager
def second(first: Sidecar, discovery: str, folder: Path) -> Iterator[Sidecar]:
    """A sidecar of another machine: the same settings, but for its folder and its addresses."""
    folder.mkdir()
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    settings = yaml.safe_load(first.settings.read_text())
    settings |= {"state_directory": str(folder / "state"), "status": {"address": status}}
    settings["envoy"] |= {"grpc_listen": grpc, "http_listen": http, "xds": {"listen": discovery}}
    (folder / "themis.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    paths: dict[str, Any] = {"settings": folder / "themis.yaml", "state": folder / "state", "log": folder / "daemon.log"}
    sidecar = replace(first, **paths, status_address=status, processes=[])
    try:
        yield sidecar
    finally:
        sidecar.end()


def test_the_second_sidecar_takes_over_from_a_killed_and_from_a_paused_leader_and_nothing_is_done_twice(
    launch: Launch, ray_cluster: SmallCluster, tmp_path: Path
) -> None:
    ports = free_ports(4)
    discovery = [f"127.0.0.1:{port}" for port in ports[:2]]
    node = Node("edge-1", None, *(Address(EDGE, port) for port in free_ports(3)))
    envoy = {"grpc_listen": f"127.0.0.1:{ports[2]}", "http_listen": f"127.0.0.1:{ports[3]}", "xds": {"listen": discovery[0]}}
    section = {
        "kind": "ray",
        "model_repository": str(REPOSITORY),
        "stop_timeout_s": 3,
        "drain_timeout_s": 10,
        "ray": {"address": ray_cluster.address, "namespace": "two", "servers": 2, "resources": {"slot": 1}},
    }
    sections: dict[str, Any] = {"launch": section, "envoy": envoy, "policy": POLICY, "standby": {"kind": "ray"}}
    with (
        beside(launch, tmp_path, slots=(), **sections) as a,
        second(a, discovery[1], tmp_path / "b") as b,
        edge(a, node, tmp_path, *discovery),
    ):

        async def scenario() -> None:
            await a.start()
            await follow(b)
            await until_listening((node,), START_TIMEOUT_S)
            async with traffic(replace(a, grpc_address=str(node.grpc_listen)), SURGE_RPS) as load:
                begun = await a.until("a launch", lambda s: len(launched(s)) == 2)
                at_s = time.time()
                await a.kill()
                await taken_over(b, at_s)
                status = await b.until("two servers", lambda s: len(nodes(s)) == 2)
                assert {each["name"] for each in launched(status)} == {each["name"] for each in launched(begun)}
                serving = nodes(status)
                await load.more(60)
                await follow(a)
                at_s = time.time()
                b.processes[-1].send_signal(signal.SIGSTOP)
                stopped_s = time.time()
                adopted = await taken_over(a, at_s)
                assert nodes(adopted) == serving
                b.processes[-1].send_signal(signal.SIGCONT)
                await b.until("who leads", lambda s: not s["leader"]["here"] and bool(s["leader"]["name"]), FOLLOWS_WITHIN_S)
                await load.more(120)
                assert nodes(await a.until("two servers", lambda s: len(nodes(s)) == 2)) == serving
                begun_at = b.journal("SELECT ended_at_s - duration_s FROM outcomes")
                assert [at_s for (at_s,) in begun_at if at_s > stopped_s] == []
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            assert "leadership_lost" in b.words()
            assert await b.terminate() == 0
            stopped = await asyncio.to_thread(a.command, "stop", "--all")
            assert stopped.returncode == 0, stopped.stderr

        asyncio.run(scenario())
