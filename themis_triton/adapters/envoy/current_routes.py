"""The servers to which Envoy routes now, by what it reports and by the files that it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.http_listener import routes_file
from themis_triton.adapters.envoy.limits import written_limits
from themis_triton.adapters.envoy.names import Protocol, any_cluster, model_cluster
from themis_triton.adapters.envoy.render import CLUSTERS, node_id
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import Server
from themis_triton.core.routes import RouteLimit

log = structlog.get_logger()
HostPort = tuple[str, int]


@dataclass(frozen=True, slots=True)
class CurrentRoutes:
    """The gRPC endpoints of each cluster, and the admission limit of each model that has one."""

    endpoints: Mapping[str, Collection[HostPort]] = field(default_factory=dict)
    limits: Mapping[str, RouteLimit] = field(default_factory=dict)

    def lead_to(self, server: Server) -> bool:
        """Whether requests may go to the server now."""
        return _host_port(server.grpc_address) in self.endpoints.get(any_cluster(Protocol.GRPC), ())

    def models_of(self, server: Server, models: Collection[str]) -> tuple[str, ...]:
        """Those of the models whose requests may go to the server now, in order."""
        own = _host_port(server.grpc_address)
        return tuple(sorted(model for model in models if own in self.endpoints.get(model_cluster(Protocol.GRPC, model), ())))


async def read_current_routes(config: EnvoyConfig) -> CurrentRoutes:
    """Where requests may go now. Envoy's own report counts beside its files, which may be newer, or gone."""
    endpoints: dict[str, set[HostPort]] = {}
    written = await asyncio.to_thread(_written, config.directory)
    for cluster, address in (*written, *await _reported(config)):
        endpoints.setdefault(cluster, set()).add(address)
    return CurrentRoutes(endpoints, await asyncio.to_thread(_written_limits, config.directory))


async def _reported(config: EnvoyConfig) -> list[tuple[str, HostPort]]:
    admin = EnvoyAdmin(config)
    try:
        return await admin.endpoints() if await admin.node_id() == node_id(config.directory) else []
    except ServerError as error:
        log.warning("envoy_routes_unread", error=str(error))
        return []
    finally:
        await admin.close()


def _written(directory: Path) -> list[tuple[str, HostPort]]:
    """What the files say; one that cannot be read says nothing."""
    read: list[tuple[str, HostPort]] = []
    for path in (*sorted(directory.glob("eds/*.json")), directory / CLUSTERS):
        try:
            resources = json.loads(path.read_bytes())["resources"]
            for resource in resources:
                read.extend(_endpoints(resource.get("load_assignment", resource)))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("envoy_file_unread", file=str(path), error=f"{type(error).__name__}: {error}")
    return read


def _written_limits(directory: Path) -> dict[str, RouteLimit]:
    """The limits in the file of the routes; none where it cannot be read."""
    path = directory / routes_file(Protocol.GRPC)
    try:
        return written_limits(json.loads(path.read_bytes())["resources"][0])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        log.warning("envoy_file_unread", file=str(path), error=f"{type(error).__name__}: {error}")
        return {}


def _endpoints(assignment: Mapping[str, Any]) -> Iterator[tuple[str, HostPort]]:
    for group in assignment.get("endpoints", ()):
        for each in group["lb_endpoints"]:
            address = each["endpoint"]["address"]["socket_address"]
            yield assignment["cluster_name"], (str(address["address"]), int(address["port_value"]))


def _host_port(address: Address) -> HostPort:
    return address.host, address.port
