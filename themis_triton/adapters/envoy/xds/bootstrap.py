"""The bootstrap of an Envoy that gets its routes over xDS: who it is, where it listens, and where Themis answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from themis_triton.adapters.envoy.clusters import Json, socket_address, typed
from themis_triton.adapters.envoy.render import bootstrap
from themis_triton.adapters.envoy.xds.resources import ADS, ENVOYS, Node
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig

_RECONNECT: Json = {"base_interval": "0.5s", "max_interval": "3s"}
"""Envoy's own longest pause is 30 s: a sidecar that starts, or another one that leads, would be found late."""
_SERVER, _ADMIN, _STATS = "themis_xds", "themis_admin", "themis_stats"
_SOURCE: Json = {**ADS, "initial_fetch_timeout": "0s"}
"""Waits as long as it takes: an Envoy that started without routes would refuse all requests."""
_TLS = "envoy.extensions.transport_sockets.tls.v3."


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What distinguishes one Envoy from others. `server`: Themis' address, with TLS where it has it, and with this Envoy's certificate.

    `admin`: a socket's path or a loopback address. `further`: addresses of other sidecars, of which one at a time leads and answers.
    """

    node: Node
    server: Address
    admin: Address
    further: tuple[Address, ...] = ()


def xds_bootstrap(config: EnvoyConfig, own: Bootstrap) -> Json:
    """The file with which that Envoy is started. All else, it is told."""
    at_its_place = replace(config, admin_address=own.admin)
    common = {key: value for key, value in bootstrap(at_its_place).items() if key != "dynamic_resources"}
    node = own.node
    addresses = {"grpc_listen": str(node.grpc_listen), "http_listen": str(node.http_listen)}
    if node.stats is not None:
        addresses["stats"] = str(replace(node.stats, tls=own.server.tls))
    service = {"envoy_grpc": {"cluster_name": _SERVER, "retry_policy": {"retry_back_off": _RECONNECT}}}
    return {
        **common,
        "node": {
            "id": node.name,
            "cluster": "themis",
            "metadata": addresses,
            **({"locality": {"zone": node.zone}} if node.zone is not None else {}),
        },
        "cluster_manager": {"local_cluster_name": ENVOYS},
        "dynamic_resources": {
            "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [service]},
            "lds_config": _SOURCE,
            "cds_config": _SOURCE,
        },
        "static_resources": {
            "clusters": [_server(own.server, own.further), _own_cluster(), *([_admin(own.admin)] if node.stats is not None else [])],
            "listeners": [_stats(node.stats, own.server)] if node.stats is not None else [],
        },
    }


def _own_cluster() -> Json:
    return {"name": ENVOYS, "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": {"eds_config": _SOURCE}}


def _server(server: Address, further: tuple[Address, ...]) -> Json:
    """Themis: by name where it has one. A sidecar that is gone is noticed, and its successor found, within seconds."""
    addresses = [{"socket_address": {"address": each.host, "port_value": each.port}} for each in (server, *further)]
    protocol = {"http2_protocol_options": {"connection_keepalive": {"interval": "5s", "timeout": "5s"}}}
    options = typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config=protocol)
    kind = "STATIC" if all(each.ip is not None for each in (server, *further)) else "STRICT_DNS"
    return {
        "name": _SERVER,
        "type": kind,
        "connect_timeout": "1s",
        "load_assignment": _assignment(_SERVER, *addresses),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        **({"transport_socket": _to_server(server)} if server.tls else {}),
    }


def _assignment(name: str, *addresses: Json) -> Json:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}]}


def _to_server(server: Address) -> Json:
    name = server.server_name or server.host
    kind = "IP_ADDRESS" if server.server_name is None and server.ip is not None else "DNS"
    names = [{"san_type": kind, "matcher": {"exact": name}}]
    validation = {"trusted_ca": {"filename": server.ca}, "match_typed_subject_alt_names": names}
    common = {**_certificate(server), "validation_context": validation}
    sni = {"sni": name} if kind == "DNS" else {}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed(f"{_TLS}UpstreamTlsContext", **sni, common_tls_context=common)}


def _certificate(server: Address) -> Json:
    if server.certificate is None:
        return {}
    return {"tls_certificates": [{"certificate_chain": {"filename": server.certificate}, "private_key": {"filename": server.key}}]}


def _admin(admin: Address) -> Json:
    address = socket_address(admin)
    address.get("pipe", {}).pop("mode", None)  # for listeners only
    return {"name": _ADMIN, "type": "STATIC", "connect_timeout": "1s", "load_assignment": _assignment(_ADMIN, address)}


def _stats(stats: Address, server: Address) -> Json:
    """The statistics, and nothing else of the admin address: from there anyone could stop Envoy."""
    match = {"path": "/stats", "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]}
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=_STATS,
        http_filters=[{"name": "envoy.filters.http.router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router")}],
        route_config={"virtual_hosts": [{"name": _STATS, "domains": ["*"], "routes": [{"match": match, "route": {"cluster": _ADMIN}}]}]},
    )
    chain: Json = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    if server.tls:
        common = {**_certificate(server), "validation_context": {"trusted_ca": {"filename": server.ca}}}
        context = typed(f"{_TLS}DownstreamTlsContext", common_tls_context=common, require_client_certificate=True)
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return {"name": _STATS, "address": socket_address(stats), "filter_chains": [chain]}


def default_admin(directory: Path) -> Address:
    """A socket that only this user can open."""
    return Address(str(directory / "envoy-admin.sock"), 0)
