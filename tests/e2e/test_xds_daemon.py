"""An Envoy elsewhere that a running sidecar routes: what is launched and retired reaches its clients without a failed request."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.conftest import SEVERAL_MACHINES, Launch
from tests.e2e.daemon_setup import Sidecar, answered, beside, launched, traffic
from tests.e2e.triton_process import free_ports
from tests.e2e.xds_setup import until_listening
from themis_triton.adapters.envoy.xds.resources import Node
from themis_triton.core.address import Address

pytestmark = [pytest.mark.e2e, SEVERAL_MACHINES]
EDGE = "127.0.0.2"


@contextmanager
def edge(sidecar: Sidecar, node: Node, folder: Path, *servers: str) -> Iterator[None]:
    """An Envoy with the bootstrap that the command prints. `servers`: where sidecars answer, where these are several."""
    where = ("--grpc-listen", str(node.grpc_listen), "--http-listen", str(node.http_listen), "--stats", str(node.stats))
    several = [word for server in servers for word in ("--server", server)]
    printed = sidecar.command("envoy-bootstrap", node.name, *where, *several, "--admin", str(folder / "edge.sock"))
    assert printed.returncode == 0, printed.stderr
    file = folder / "edge.json"
    file.write_text(printed.stdout)
    command = [str(Path(sys.executable).parent / "envoy"), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
    with (folder / "edge.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def test_clients_of_an_envoy_elsewhere_notice_neither_launch_nor_retirement_nor_a_killed_sidecar(launch: Launch, tmp_path: Path) -> None:
    grpc, http, discovery = (f"127.0.0.1:{port}" for port in free_ports(3))
    node = Node("edge-1", None, *(Address(EDGE, port) for port in free_ports(3)))
    envoy = {"grpc_listen": grpc, "http_listen": http, "xds": {"listen": discovery}}
    with beside(launch, tmp_path, envoy=envoy) as own, edge(own, node, tmp_path):
        sidecar = replace(own, grpc_address=str(node.grpc_listen))

        async def scenario() -> None:
            await sidecar.start()
            await until_listening((node,))
            async with traffic(sidecar, 60.0) as load:
                status = await sidecar.until("second server", lambda s: bool(launched(s, "serving")))
                (server,) = launched(status, "serving")
                before = await answered(server)
                await load.more(60)
                assert await answered(server) > before
                await sidecar.kill()
                await load.more(60)
                again = await sidecar.start()
                assert [each["name"] for each in launched(again)] == [server["name"]]
                await load.more(60)
                surge = await load.end()
            async with traffic(sidecar, 5.0) as load:
                await sidecar.until("retirement", lambda s: not launched(s), 60.0)
                await load.more(10)
                calm = await load.end()
            for summary in (surge, calm):
                assert (summary.failed, summary.errors) == (0, {})
            status = await sidecar.until(
                "the Envoy in step", lambda s: all(proxy["in_step"] for proxy in s["proxies"]) and bool(s["proxies"])
            )
            assert [(proxy["name"], proxy["in_step"], proxy["refused"]) for proxy in status["proxies"]] == [("edge-1", True, None)]

        asyncio.run(scenario())
