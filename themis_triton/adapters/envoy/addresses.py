"""Host names to IP addresses, because Envoy's listeners and endpoint files resolve none."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import replace

from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.routes import Endpoint, RouteTable


async def resolved_config(config: EnvoyConfig) -> EnvoyConfig:
    """The same with IP addresses only. ServerError names a host that has none."""
    names = (config.grpc_listen, config.http_listen, config.admin_address)
    grpc, http, admin = await asyncio.gather(*map(resolve, names))
    return replace(config, grpc_listen=grpc, http_listen=http, admin_address=admin)


async def resolved_table(table: RouteTable) -> RouteTable:
    """The same with IP addresses only. ServerError names a host that has none."""
    endpoints = {*table.any, *(endpoint for members in table.models.values() for endpoint in members)}
    known = {endpoint: await _endpoint(endpoint) for endpoint in endpoints}

    def translated(members: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        return tuple(known[member] for member in members)

    return RouteTable({model: translated(members) for model, members in table.models.items()}, translated(table.any))


async def _endpoint(endpoint: Endpoint) -> Endpoint:
    grpc, http = await asyncio.gather(resolve(endpoint.grpc_address), resolve(endpoint.http_address))
    return replace(endpoint, grpc_address=grpc, http_address=http)


async def resolve(address: str) -> str:
    """`host:port` with the host as an IP address; IPv4 is preferred, as Triton listens there unless told otherwise."""
    host, _, port = address.rpartition(":")
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return f"{await _lookup(host, address)}:{port}"
    return address


async def _lookup(host: str, address: str) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServerError(f"the address {address!r} has a host name that cannot be resolved ({reason}); use its IP address") from error
    family, _, _, _, place = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(place[0]) if family == socket.AF_INET else f"[{place[0]}]"
