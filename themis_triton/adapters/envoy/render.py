"""Envoy's files as pure text: a bootstrap that hardly ever changes, and filesystem xDS for everything that does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from themis_triton.adapters.envoy.client_auth import FILTER_FILES, filter_resource
from themis_triton.adapters.envoy.clusters import Json, check_interval_s, cluster, each_cluster, endpoints, file_source, socket_address
from themis_triton.adapters.envoy.downstream_tls import secrets
from themis_triton.adapters.envoy.grpc_listener import grpc_listener, grpc_routes
from themis_triton.adapters.envoy.http_listener import http_listener, http_routes, routes_file
from themis_triton.adapters.envoy.names import Protocol, endpoints_file
from themis_triton.adapters.envoy.upstream_tls import transport_sockets
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.routes import RouteTable

BOOTSTRAP = "envoy.json"
LISTENERS = "lds/listeners.json"
CLUSTERS = "cds/clusters.json"
TRACKED_LOG2 = 20
"""A request that holds less than two to that power of bytes is never reset for want of memory."""
OWN_FILES = ""
"""Stands for the listeners among the names of servers."""
NO_VERSIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RenderInput:
    """What was rendered last: the settings and the routes with IP addresses, the versions of PEM files, the filter that checks clients."""

    config: EnvoyConfig
    table: RouteTable
    pem_versions: Mapping[str, str]
    auth: Json | None


def render(
    config: EnvoyConfig, table: RouteTable, pem_versions: Mapping[str, str] = NO_VERSIONS, auth: Json | None = None
) -> dict[str, str]:
    """Every file that Envoy reads, by its name relative to `config.directory`.

    Each xDS file carries a version that follows from its content. `pem_versions`: those of the PEM files of servers with TLS, by name, and
    of the listeners under `OWN_FILES`. `auth`: the filter that checks clients.

    Raises:
        SettingsError: an address is not `IP:PORT`.
        ServerError: a route has an affinity, which is not rendered yet.
    """
    for model, route in table.models.items():
        if route.affinity_header is not None:
            raise ServerError(f"model {model}: its route has an affinity, which Envoy's files do not express: expected none")
    discovered = resources_by_file(config, table, pem_versions, auth)
    return {BOOTSTRAP: bootstrap_text(config)} | {name: discovery(resources) for name, resources in discovered.items()}


def resources_by_file(config: EnvoyConfig, table: RouteTable, pem_versions: Mapping[str, str], auth: Json | None) -> dict[str, list[Json]]:
    """The resources of each xDS file, as `render` writes them."""
    clusters = list(each_cluster(table))
    files = {endpoints_file(spec.name): [endpoints(spec)] for spec in clusters if spec.watched}
    interval_s = check_interval_s(len(clusters))
    secure = {protocol: transport_sockets(table, pem_versions, protocol) for protocol in Protocol}
    files[CLUSTERS] = [cluster(config, spec, interval_s, secure[spec.protocol]) for spec in clusters]
    files |= {routes_file(Protocol(each["name"])): [each] for each in route_configurations(config, table)}
    files |= secrets(config, pem_versions.get(OWN_FILES, ""))
    if auth is not None:
        files[FILTER_FILES[auth["name"]]] = [filter_resource(auth)]
    files[LISTENERS] = [grpc_listener(config), http_listener(config)]
    return files


def route_configurations(config: EnvoyConfig, table: RouteTable) -> tuple[Json, Json]:
    """The routes of gRPC and of HTTP."""
    http = _route_configuration(Protocol.HTTP, http_routes(config, table))
    return _route_configuration(Protocol.GRPC, grpc_routes(config, table)), http


def static_bootstrap(files: Mapping[str, str]) -> str:
    """The rendered files as one static bootstrap: what `envoy --mode validate` can check, as it opens no xDS file."""
    listeners, clusters = (json.loads(files[name])["resources"] for name in (LISTENERS, CLUSTERS))
    for each in listeners:
        manager = each["filter_chains"][0]["filters"][0]["typed_config"]
        name = Protocol(manager.pop("rds")["route_config_name"])
        manager["route_config"] = _untyped(json.loads(files[routes_file(name)])["resources"][0])
        manager["http_filters"] = [_with_its_file(each, files) for each in manager["http_filters"]]
    kept = {key: value for key, value in json.loads(files[BOOTSTRAP]).items() if key != "dynamic_resources"}
    static = {"listeners": [_untyped(each) for each in listeners], "clusters": [_untyped(each) for each in clusters]}
    return _text({**kept, "static_resources": static})


def _with_its_file(http_filter: Json, files: Mapping[str, str]) -> Json:
    """A filter with what its own file holds, where it has one."""
    file = files.get(FILTER_FILES.get(http_filter["name"], ""))
    return _untyped(json.loads(file)["resources"][0]) if file is not None else http_filter


def _untyped(message: Json) -> Json:
    return {key: value for key, value in message.items() if key != "@type"}


def _route_configuration(protocol: Protocol, routes: list[Json]) -> Json:
    # Clusters are added before the routes to them and removed after. A missing cluster answers 503; validation would reject the whole file.
    return {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": str(protocol),
        "validate_clusters": False,
        "virtual_hosts": [{"name": str(protocol), "domains": ["*"], "routes": routes}],
    }


def node_id(directory: Path) -> str:
    """The identity of the Envoy that reads this directory; a running Envoy reports it at its admin address."""
    return f"themis:{directory}"


def bootstrap_text(config: EnvoyConfig) -> str:
    """The file with which Envoy is started."""
    return _text(bootstrap(config))


def bootstrap(config: EnvoyConfig) -> Json:
    """The part that changes only with a restart: admin address, statistics, and where the other files are."""
    return {
        "node": _node(config),
        "admin": _admin(config),
        "dynamic_resources": {
            "lds_config": file_source(config.directory / LISTENERS),
            "cds_config": file_source(config.directory / CLUSTERS),
        },
        # A path's pattern grows with the model's name; by default Envoy refuses all routes for one name of more than some 50 characters.
        "layered_runtime": {"layers": [{"name": "themis", "static_layer": {"re2.max_program_size.error_level": 100_000}}]},
        "overload_manager": _overload_manager(config),
        # Histograms reach the admin address only when they are flushed.
        "stats_flush_interval": "0.25s",
    }


def _overload_manager(config: EnvoyConfig) -> Json:
    """Bounds of connections and of memory.

    Near that of memory first idle connections go, then new requests are refused. Those that run already still grow: of them, the largest
    are reset, which Envoy does for HTTP/2 only.
    """

    def monitor(name: str, kind: str, **fields: object) -> Json:
        config_type = f"type.googleapis.com/envoy.extensions.resource_monitors.{kind}"
        return {"name": f"envoy.resource_monitors.{name}", "typed_config": {"@type": config_type, **fields}}

    def action(name: str, **trigger: Json) -> Json:
        return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": "envoy.resource_monitors.fixed_heap", **trigger}]}

    connections = "downstream_connections.v3.DownstreamConnectionsConfig"
    heap = config.max_memory_bytes
    actions = [
        action("shrink_heap", threshold={"value": 0.85}),
        action("disable_http_keepalive", threshold={"value": 0.9}),
        action("stop_accepting_requests", threshold={"value": 0.95}),
        action("reset_high_memory_stream", scaled={"scaling_threshold": 0.95, "saturation_threshold": 1.0}),
    ]
    return {
        "refresh_interval": "0.05s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": TRACKED_LOG2},
        "resource_monitors": [
            *([monitor("fixed_heap", "fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=heap)] if heap is not None else []),
            monitor("global_downstream_max_connections", connections, max_active_downstream_connections=config.max_connections),
        ],
        "actions": actions if heap is not None else [],
    }


def _node(config: EnvoyConfig) -> Json:
    return {"id": node_id(config.directory), "cluster": "themis"}


def _admin(config: EnvoyConfig) -> Json:
    return {"address": socket_address(config.admin_address)}


def _text(value: Json) -> str:
    return json.dumps(value, indent=1) + "\n"


def version_of(text: str) -> str:
    """The version that a rendered xDS file carries."""
    return str(json.loads(text)["version_info"])


def discovery(resources: list[Json]) -> str:
    """An xDS file with these resources, a line each, its version their digest."""
    # Without indentation, which would take three times as long.
    lines = ",\n".join(map(json.dumps, resources))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    return f'{{"version_info": "{digest}", "resources": [\n{lines}\n]}}\n'
