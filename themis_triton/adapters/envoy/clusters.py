"""Clusters and their endpoints: one per model and protocol, and per protocol those of requests without a listed model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from themis_triton.adapters.envoy.names import Protocol, any_cluster, endpoints_file, index_cluster, model_cluster, unlisted_cluster
from themis_triton.adapters.envoy.upstream_tls import PLAIN_HEALTH_CHECKS, address_of, endpoint_metadata
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

Json = dict[str, Any]

# Envoy's defaults of 1,024 (3 for retries) would turn a surge into failures; queueing is left to Triton.
_UNBOUNDED = 1_000_000
MAX_CHECKS_PER_S = 20.0
WATCHED_MODELS = 32
"""Models whose clusters have endpoint files of their own. Each such file takes an inotify instance, and Linux gives a user 128."""
EDS = "EDS"
"""The type of a cluster whose endpoints have a file of their own."""
_TYPE = "type.googleapis.com/"
# Characters that a REST path carries as they are; Triton compares paths without decoding them.
_PATH_SAFE = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")


def typed(kind: str, **fields: object) -> Json:
    """A `typed_config` value."""
    return {"@type": _TYPE + kind, **fields}


def socket_address(address: Address) -> Json:
    """Envoy's form of an address; a host must be an IP address, because EDS and listeners resolve no names."""
    if address.socket_path is not None:
        # Only this user can connect to it.
        return {"pipe": {"path": address.socket_path, "mode": 0o600}}
    if address.ip is None or not 0 <= address.port <= 65535:
        raise SettingsError(f"Envoy address: '{address}' is invalid: expected IP:PORT, such as 127.0.0.1:8001 or [::1]:8001")
    return {"socket_address": {"address": address.host, "port_value": address.port}}


class ClusterSpec(NamedTuple):
    """One cluster. `model`: whose it is, None for requests without a listed model. `watched`: its endpoints have a file of their own.

    `weights`: how many requests its members take, relative to each other; empty: as many.
    """

    name: str
    protocol: Protocol
    model: str | None
    members: tuple[Endpoint, ...]
    watched: bool
    weights: tuple[int, ...] = ()


def each_cluster(table: RouteTable) -> Iterator[ClusterSpec]:
    """Every cluster that the table needs, in a fixed order.

    The endpoints of the table's first `WATCHED_MODELS` models change without their clusters. A cluster of another model has them inside
    and is replaced with them: requests that run are finished, but the new cluster starts without connections and counts none of them.
    """
    watched = frozenset(islice(table.models, WATCHED_MODELS))
    for protocol in Protocol:
        yield ClusterSpec(any_cluster(protocol), protocol, None, table.any, watched=True)
        yield ClusterSpec(unlisted_cluster(protocol), protocol, None, table.for_unlisted, watched=True)
        yield ClusterSpec(index_cluster(protocol), protocol, None, table.index, watched=True)
        for model in sorted(table.models):
            route = table.models[model]
            name = model_cluster(protocol, model)
            yield ClusterSpec(name, protocol, model, route.targets, model in watched, _weights(route))


def _weights(route: ModelRoute) -> tuple[int, ...]:
    weights = tuple(map(route.weight, route.targets))
    return weights if len(set(weights)) > 1 else ()


def endpoints(spec: ClusterSpec) -> Json:
    """The cluster's ClusterLoadAssignment. Health is asked on the server's HTTP address for both protocols."""
    return {
        "@type": f"{_TYPE}envoy.config.endpoint.v3.ClusterLoadAssignment",
        **_assignment(spec),
    }


def _assignment(spec: ClusterSpec) -> Json:
    members = [_endpoint(spec.protocol, member) for member in spec.members]
    # Envoy divides a weight by the requests that the server has: squares make the requests inside proportional to the weights.
    weights = [{"load_balancing_weight": weight**2} for weight in spec.weights] or [{}] * len(members)
    weighted = [member | weight for member, weight in zip(members, weights, strict=True)]
    zones = dict.fromkeys((None, *sorted({member.zone for member in spec.members if member.zone is not None})))
    by_zone = {zone: [each for each, member in zip(weighted, spec.members, strict=True) if member.zone == zone] for zone in zones}
    groups = [_locality(zone) | {"lb_endpoints": hosts} for zone, hosts in by_zone.items() if hosts]
    return {"cluster_name": spec.name, "endpoints": groups or [{"lb_endpoints": []}]}


def _locality(zone: str | None) -> Json:
    return {"locality": {"zone": zone}} if zone is not None else {}


def _endpoint(protocol: Protocol, member: Endpoint) -> Json:
    address, secure = socket_address(address_of(member, protocol)), endpoint_metadata(member, protocol)
    if protocol is Protocol.HTTP:
        return {"endpoint": {"address": address}, **secure}
    # All health checks of a cluster have the same TLS or none, and other servers of this one may have none.
    unchecked = {"disable_active_health_check": True} if member.http_address.tls else {}
    health = {"health_check_config": {"address": socket_address(member.http_address), **unchecked}}
    return {"endpoint": {"address": address, **health}, **secure}


def cluster(config: EnvoyConfig, spec: ClusterSpec, check_interval_s: float, secure: Sequence[Json] = ()) -> Json:
    """One cluster: exact least-request, health of the model itself, ejection of hosts that cannot be reached.

    `secure`: the transport sockets of servers with TLS for its protocol.
    """
    tls = {"transport_socket_matches": list(secure)} if secure else {}
    health_check = _health_check(spec.model, check_interval_s)
    if secure and spec.protocol is Protocol.HTTP:  # They have the TLS of their endpoint.
        del health_check["transport_socket_match_criteria"]
    return {
        "@type": f"{_TYPE}envoy.config.cluster.v3.Cluster",
        "name": spec.name,
        **_members(config, spec),
        **tls,
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": config.max_message_bytes,
        # A server that leaves the routes stops getting requests at once; those that it has are finished.
        "ignore_health_on_host_removal": True,
        "common_lb_config": {
            # Below one healthy host in a hundred (so: none) all are tried, because health checks too can fail on a busy machine.
            "healthy_panic_threshold": {"value": 1.0},
            # By default a second ejection within a second reaches the workers only after it.
            "update_merge_window": "0s",
        },
        "load_balancing_policy": _least_request(),
        "health_checks": [health_check],
        "outlier_detection": _outlier_detection(),
        "circuit_breakers": {"thresholds": [_thresholds()]},
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 30, "keepalive_interval": 10}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _protocol_options(config, spec.protocol)
        },
    }


def _members(config: EnvoyConfig, spec: ClusterSpec) -> Json:
    if spec.watched:
        return {"type": EDS, "eds_cluster_config": {"eds_config": file_source(config.directory / endpoints_file(spec.name))}}
    return {"type": "STATIC", "load_assignment": _assignment(spec)}


def file_source(path: Path) -> Json:
    """A filesystem xDS source that is read again whenever a file is moved into its directory."""
    return {
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
        "resource_api_version": "V3",
        "initial_fetch_timeout": "5s",
    }


def _least_request() -> Json:
    """The least loaded of ALL hosts: there are few, and the default choice between two random ones lengthens the tail.

    Hosts of unequal weights get requests in proportion to their weight / (requests that they have + 1).
    """
    kind = "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest"
    policy = typed(kind, selection_method="FULL_SCAN")
    return {"policies": [{"typed_extension_config": {"name": "envoy.load_balancing_policies.least_request", "typed_config": policy}}]}


def check_interval_s(clusters: int) -> float:
    """The time between two health checks of a server by one cluster, such that all clusters together make at most `MAX_CHECKS_PER_S`.

    A power of two, so that clusters seldom change with their number.
    """
    return float(2 ** max(0, math.ceil(math.log2(max(1, clusters) / MAX_CHECKS_PER_S))))


def _health_check(model: str | None, interval_s: float) -> Json:
    """Readiness of the cluster's own model.

    The server-wide readiness, which `grpc.health.v1` repeats, turns false for good when the load of ANY model fails, while all
    others serve on.
    """
    path = f"/v2/models/{model}/ready" if model is not None and _PATH_SAFE.fullmatch(model) else "/v2/health/live"
    return {
        # An Envoy that starts listens once every server has answered its first check, or not in this time.
        "timeout": "1s",
        "interval": f"{interval_s:g}s",
        "no_traffic_interval": f"{interval_s:g}s",
        "unhealthy_interval": f"{interval_s / 2:g}s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": path},
        "transport_socket_match_criteria": PLAIN_HEALTH_CHECKS,
    }


def _outlier_detection() -> Json:
    """Only what the proxy itself sees counts (refused, reset, timed out); an error that Triton answers is an answer."""
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "interval": "0.5s",
        "base_ejection_time": "2s",
        "max_ejection_time": "10s",
        "max_ejection_percent": 100,
    }


def _thresholds() -> Json:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNBOUNDED)
    return {"priority": "DEFAULT", **limits}


def _protocol_options(config: EnvoyConfig, protocol: Protocol) -> Json:
    # No HTTP/2 pings to Triton: its gRPC server closes connections that ping more often than every 5 minutes.
    if protocol is Protocol.GRPC:
        explicit: Json = {"http2_protocol_options": http2_options(config)}
    else:
        explicit = {"http_protocol_options": {}}
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return typed(kind, explicit_http_config=explicit)


def http2_options(config: EnvoyConfig) -> Json:
    """Windows as large as the largest message, so that one message never waits for window updates from a filter that buffers it."""
    return {
        "initial_stream_window_size": config.max_message_bytes,
        "initial_connection_window_size": config.max_message_bytes,
        "max_concurrent_streams": 2**31 - 1,
    }
