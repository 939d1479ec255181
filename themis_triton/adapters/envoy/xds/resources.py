"""What an Envoy is sent over xDS: the content of Envoy's files as resources by type and name, each with a version and its bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from themis_triton.adapters.envoy.clusters import EDS
from themis_triton.adapters.envoy.grpc_listener import grpc_listener
from themis_triton.adapters.envoy.http_listener import http_listener
from themis_triton.adapters.envoy.render import LISTENERS, RenderInput, resources_by_file, route_configurations
from themis_triton.adapters.envoy.xds.messages import packed, type_name
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig

Json = dict[str, Any]
URL = "type.googleapis.com/"
CLUSTER = "envoy.config.cluster.v3.Cluster"
ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = "envoy.config.listener.v3.Listener"
ROUTES = "envoy.config.route.v3.RouteConfiguration"
SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - the name of a message
FILTER = "envoy.config.core.v3.TypedExtensionConfig"
ORDER = (CLUSTER, ENDPOINTS, SECRET, FILTER, LISTENER, ROUTES)
"""The order in which types are sent: a listener finds its secrets and filters, and a route its clusters."""
ENVOYS = "themis_envoys"
"""The cluster of the Envoys themselves: with it each knows its zone's part of the requests."""
ADS: Json = {"ads": {}, "resource_api_version": "V3"}
_VERSION_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: the version that follows from its content, and its message's bytes."""

    version: str
    body: bytes


Resources = Mapping[str, Mapping[str, Resource]]
"""By the message's full name, and by the resource's name."""


class Node(NamedTuple):
    """One Envoy as its bootstrap names it. `stats`: where its statistics can be read; None: nowhere."""

    name: str
    zone: str | None
    grpc_listen: Address
    http_listen: Address
    stats: Address | None


class Packer:
    """Makes resources of rendered ones, and keeps those of the last call, so that only what changed is packed again."""

    def __init__(self) -> None:
        self._kept: dict[str, Resource] = {}

    def pack(self, rendered: RenderInput) -> dict[str, dict[str, Resource]]:
        """All resources but the listeners, which each Envoy has of its own. Blocking: PEM files are read.

        Raises:
            OSError: a PEM file cannot be read.
            ServerError: something is rendered that the API's messages here lack.
        """
        files = resources_by_file(rendered.config, rendered.table, rendered.pem_versions, rendered.auth)
        each_resource = [each for name, resources in files.items() if name != LISTENERS for each in resources]
        before, self._kept = self._kept, {}
        packed_by_type: dict[str, dict[str, Resource]] = {}
        for resource in (part for each in each_resource for part in _parts(each)):
            name = str(resource.get("name") or resource["cluster_name"])
            packed_by_type.setdefault(type_name(resource), {})[name] = self._pack(resource, before)
        return packed_by_type

    def pack_routes(self, rendered: RenderInput) -> dict[str, Resource]:
        """The routes alone, for an Envoy that has others than the rest."""
        return {str(each["name"]): pack(portable(each)) for each in route_configurations(rendered.config, rendered.table)}

    def _pack(self, resource: Json, before: Mapping[str, Resource]) -> Resource:
        made = pack(resource, before)
        self._kept[made.version] = made
        return made


def pack(resource: Json, known: Mapping[str, Resource] | None = None) -> Resource:
    """One resource; one of `known`, by version, where it is there."""
    version = hashlib.sha256(json.dumps(resource).encode()).hexdigest()[:_VERSION_DIGITS]
    found = known.get(version) if known is not None else None
    return found or Resource(version, packed(resource))


def listeners(config: EnvoyConfig, node: Node) -> dict[str, Resource]:
    """The listeners of one Envoy, at the addresses that its bootstrap names."""
    own = replace(config, grpc_listen=node.grpc_listen, http_listen=node.http_listen)
    return {str(each["name"]): pack(portable(each)) for each in (grpc_listener(own), http_listener(own))}


def envoys(members: Iterable[tuple[str | None, str, int]]) -> Resource:
    """The endpoints of the Envoys themselves: zone, host and port of each. Only their number in each zone counts."""
    by_zone: dict[str, list[Json]] = {}
    for zone, host, port in sorted((zone, host, port) for zone, host, port in members if zone is not None):
        address = {"socket_address": {"address": host, "port_value": port}}
        by_zone.setdefault(zone, []).append({"endpoint": {"address": address}})
    groups = [{"locality": {"zone": zone}, "lb_endpoints": hosts} for zone, hosts in by_zone.items()]
    return pack({"@type": URL + ENDPOINTS, "cluster_name": ENVOYS, "endpoints": groups})


def _parts(resource: Json) -> Iterable[Json]:
    """A resource in its portable form; a cluster with endpoints inside as two, so that a change of these sends no cluster."""
    whole: Json = portable(resource)
    if type_name(whole) != CLUSTER:
        return [whole]
    whole["load_balancing_policy"] = _within_zones(whole["load_balancing_policy"])
    if "load_assignment" not in whole:
        return [whole]
    assignment = {"@type": URL + ENDPOINTS, **whole.pop("load_assignment")}
    return [{**whole, "type": EDS, "eds_cluster_config": {"eds_config": ADS}}, assignment]


def _within_zones(policy: Json) -> Json:
    """The same policy, where Envoys and servers of several zones are known: inside the zone, as far as its share of the servers goes."""
    [only] = policy["policies"]
    extension = only["typed_extension_config"]
    config = {**extension["typed_config"], "locality_lb_config": {"zone_aware_lb_config": {"min_cluster_size": 1}}}
    return {"policies": [{"typed_extension_config": {**extension, "typed_config": config}}]}


def portable(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A rendered value for an Envoy of another machine: other resources come over the same stream, PEM files are inside."""
    if isinstance(value, list):
        return [portable(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "path_config_source" in value:
        return ADS
    if value.keys() == {"filename"}:
        return {"inline_bytes": base64.b64encode(Path(value["filename"]).read_bytes()).decode()}
    return {key: portable(each) for key, each in value.items() if key != "watched_directory"}
