"""Real Envoys that get their routes over xDS, each on a loopback address of its own, as on hosts of their own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.certificates import authority, issued_certificate
from tests.e2e.triton_process import free_ports
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.adapters.envoy.xds.bootstrap import Bootstrap, default_admin, xds_bootstrap
from themis_triton.adapters.envoy.xds.resources import Node
from themis_triton.adapters.grpc_tls import client_context
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig, XdsConfig
from themis_triton.core.listener_tls import ListenerTls

ZONES = {"edge-west": "west", "edge-east": "east"}


@dataclass(frozen=True)
class Edges:
    """Where Themis is to listen, and the Envoys that call there: their nodes, and what they read at their admin sockets."""

    config: XdsConfig
    nodes: tuple[Node, ...]
    envoy: EnvoyConfig
    folder: Path

    def stats(self, address: Address, models: tuple[str, ...]) -> EnvoyStats:
        """Their statistics, as Themis reads them: with its certificate."""
        tls = self.config.tls
        assert tls is not None
        remote = replace(self.envoy, admin_address=replace(address, tls=True), directory=self.folder / "none")
        return EnvoyStats(remote, models, SystemClock(), tls=client_context(tls))

    def admin(self, node: Node) -> EnvoyConfig:
        """With which an Envoy's admin socket is found."""
        return replace(self.envoy, admin_address=default_admin(self.folder / node.name), directory=self.folder / "none")


@contextmanager
def running_edges(folder: Path, envoy: EnvoyConfig) -> Iterator[Edges]:
    """Two Envoys with certificates, which wait for a discovery service at the address that they were given."""
    ca = authority(folder / "ca")
    own = issued_certificate(folder / "themis", ca, 1)
    config = XdsConfig(Address("127.0.0.1", free_ports(1)[0]), ListenerTls(Path(own["certificate"]), Path(own["key"]), Path(ca["ca"])))
    with ExitStack() as stack:
        nodes = []
        for number, (name, zone) in enumerate(ZONES.items(), 2):
            (folder / name).mkdir()
            certificate = issued_certificate(folder / name / "tls", ca, number)
            addresses = (Address(f"127.0.0.{number}", port) for port in free_ports(3))
            node = Node(name, zone, *addresses)
            nodes.append(node)
            stack.enter_context(_running_edge(folder / name, node, config, envoy, certificate))
        yield Edges(config, tuple(nodes), envoy, folder)


@contextmanager
def _running_edge(folder: Path, node: Node, config: XdsConfig, envoy: EnvoyConfig, tls: Mapping[str, str]) -> Iterator[None]:
    server = replace(config.listen, tls=True, server_name="localhost", ca=tls["ca"], certificate=tls["certificate"], key=tls["key"])
    file = folder / "envoy.json"
    file.write_text(json.dumps(xds_bootstrap(envoy, Bootstrap(node, server, default_admin(folder)))))
    command = [str(Path(sys.executable).parent / "envoy"), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
    with (folder / "envoy.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


async def until_listening(nodes: tuple[Node, ...], timeout_s: float = 15.0) -> None:
    """Wait until clients can connect to all of them."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    for node in nodes:
        while True:
            try:
                _, writer = await asyncio.open_connection(node.grpc_listen.host, node.grpc_listen.port)
            except OSError:
                if asyncio.get_running_loop().time() > deadline_s:
                    pytest.fail(f"{node.name} does not listen on {node.grpc_listen}")
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break
