"""The proxy with TLS before a server of this node, as a process that goes with the server's other processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from themis_triton.adapters.envoy.binary import find_envoy
from themis_triton.adapters.process_end import wait_until
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, spawn
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.tls_proxy import proxy_command, proxy_files
from themis_triton.core.errors import LaunchFailedError
from themis_triton.core.fleet import ProcessId, Server
from themis_triton.core.server_proxy import ServerProxy

_ATTEMPTS = 4
_LISTENS_WITHIN_S = 10.0
_CONNECT_S = 1.0


async def start_proxy(server: Server, host: str, folder: Path, log_file: Path, proxy: ServerProxy) -> tuple[dict[str, int], ProcessId]:
    """Start it at free ports of the node's address, before a server on the loopback; its ports by protocol, and its process.

    Args:
        server: its addresses are on the loopback.
        host: the node's address.
        folder: for the proxy's files; the process carries its mark, as the server's own does.
        log_file: gets the proxy's output.
        proxy: its files on this node.

    Raises:
        LaunchFailedError: a file is not here, or the proxy did not listen in time.
    """
    parts = {"grpc": server.grpc_address, "http": server.http_address, "metrics": server.metrics_address}
    targets = {name: address.port for name, address in parts.items()}
    named = {"certificate": proxy.certificate, "key": proxy.key, "client_ca": proxy.client_ca}
    absent = next((name for name, path in named.items() if path is not None and not path.is_file()), None)
    if absent is not None:
        fix = "put it there, or correct the path, which is that of the nodes"
        raise LaunchFailedError(f"launch.ray.proxy.{absent}: {named[absent]} is not on node {host}. Fix: {fix}")
    for _ in range(_ATTEMPTS):
        ports = dict(zip(parts, free_ports(len(parts), host), strict=True))
        process = await asyncio.to_thread(_spawn, ports, targets, host, folder, log_file, proxy)
        if not await wait_until(partial(_listens_or_ended, host, ports, process), _LISTENS_WITHIN_S):
            break
        if find_process(process) is not None:
            return ports, process
    raise LaunchFailedError(f"server {server.name}: its proxy did not listen within {_LISTENS_WITHIN_S:g} s; log {log_file}")


def _spawn(ports: Mapping[str, int], targets: Mapping[str, int], host: str, folder: Path, log_file: Path, proxy: ServerProxy) -> ProcessId:
    for name, text in proxy_files(folder, host, ports, targets, proxy).items():
        (folder / name).write_text(text, encoding="utf-8")
    command = proxy_command(str(find_envoy(proxy.binary)), folder)
    return spawn(command, {**os.environ, OWNER_VARIABLE: owner_mark(folder)}, log_file)


def _listens_or_ended(host: str, ports: Mapping[str, int], process: ProcessId) -> bool:
    """Whether it listens at all of them, or has ended, as where another process took a port first."""
    return find_process(process) is None or all(_is_open(host, port) for port in ports.values())


def _is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError:
        return False
    return True
