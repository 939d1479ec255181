"""What Envoy's files need of this machine: IP addresses of hosts, because Envoy resolves none there, and the memory that it may use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import replace

from themis_triton.adapters.machine_memory import memory_limit_bytes
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.routes import Endpoint, RouteTable

MEMORY_DIVISOR = 4
MIN_MEMORY_BYTES, MAX_MEMORY_BYTES = 256 * 2**20, 16 * 2**30


async def resolved_config(config: EnvoyConfig) -> EnvoyConfig:
    """The same with IP addresses only, and with a bound of its memory. ServerError names a host that has no address."""
    listeners, admin = await asyncio.gather(resolved_listeners(config), resolve(config.admin_address))
    memory = config.max_memory_bytes if config.max_memory_bytes is not None else default_memory_bytes(memory_limit_bytes())
    return replace(listeners, admin_address=admin, max_memory_bytes=memory)


async def resolved_listeners(config: EnvoyConfig) -> EnvoyConfig:
    """The same with IP addresses of the listeners. ServerError names a host that has no address."""
    grpc, http = await asyncio.gather(resolve(config.grpc_listen), resolve(config.http_listen))
    return replace(config, grpc_listen=grpc, http_listen=http)


def default_memory_bytes(limit_bytes: int) -> int:
    """The bound of Envoy's memory, of what it shares with the servers and the sidecar."""
    return min(MAX_MEMORY_BYTES, max(MIN_MEMORY_BYTES, limit_bytes // MEMORY_DIVISOR))


async def resolved_table(table: RouteTable) -> RouteTable:
    """The same with IP addresses only. ServerError names a host that has none."""
    endpoints = {*table.any, *table.unlisted, *table.index, *(endpoint for route in table.models.values() for endpoint in route.endpoints)}
    known = {endpoint: await _endpoint(endpoint) for endpoint in endpoints}

    def translated(members: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        return tuple(known[member] for member in members)

    return RouteTable(
        {model: replace(route, endpoints=translated(route.endpoints)) for model, route in table.models.items()},
        translated(table.any),
        translated(table.unlisted),
        translated(table.index),
    )


async def _endpoint(endpoint: Endpoint) -> Endpoint:
    grpc, http = await asyncio.gather(resolve(endpoint.grpc_address), resolve(endpoint.http_address))
    return replace(endpoint, grpc_address=grpc, http_address=http)


async def resolve(address: Address) -> Address:
    """The same with the host as an IP address; IPv4 is preferred, because Triton listens there by default.

    With TLS the certificate must still be for the host's name.
    """
    if address.ip is not None or address.socket_path is not None:
        return address
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(address.host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServerError(f"address '{address}': the host name cannot be resolved ({reason}). Fix: use its IP address") from error
    _, _, _, _, endpoint = min(entries, key=lambda entry: entry[0] != socket.AF_INET)
    named = replace(address, server_name=address.server_name or address.host) if address.tls else address
    return replace(named, host=str(endpoint[0]))
