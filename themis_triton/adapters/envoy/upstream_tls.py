"""TLS from Envoy to servers: one cluster can have endpoints with and without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from themis_triton.adapters.envoy.names import Protocol
from themis_triton.core.address import Address
from themis_triton.core.routes import Endpoint, RouteTable

Json = dict[str, Any]
_CONTEXT = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_MATCHED = "envoy.transport_socket_match"
PLAIN_HEALTH_CHECKS: Json = {"plain": True}
"""The health checks of gRPC's clusters go to a server's HTTP port; they match no transport socket below, and so use no TLS."""
_ALPN = {Protocol.GRPC: "h2", Protocol.HTTP: "http/1.1"}


def address_of(endpoint: Endpoint, protocol: Protocol) -> Address:
    """Where requests of a protocol go."""
    return endpoint.grpc_address if protocol is Protocol.GRPC else endpoint.http_address


def secure_servers(table: RouteTable, protocol: Protocol) -> dict[str, Address]:
    """The address of each server that has TLS for the protocol, by name."""
    routed = (endpoint for route in table.models.values() for endpoint in route.endpoints)
    each_endpoint = (*table.any, *table.unlisted, *table.index, *routed)
    return {each.server: address for each in each_endpoint if (address := address_of(each, protocol)).tls}


def version_key(server: str, protocol: Protocol) -> str:
    """Under which the version of a server's PEM files is."""
    return server if protocol is Protocol.GRPC else f"{server} {protocol}"


def transport_sockets(table: RouteTable, versions: Mapping[str, str], protocol: Protocol) -> list[Json]:
    """The transport socket of each server with TLS, chosen by the metadata of its endpoints.

    Envoy reads PEM files when it creates a cluster. With their version in the socket's name it creates it anew when they change.
    """
    secure = secure_servers(table, protocol)
    return [_socket(server, secure[server], versions.get(version_key(server, protocol), ""), protocol) for server in sorted(secure)]


def endpoint_metadata(endpoint: Endpoint, protocol: Protocol) -> Json:
    """What chooses the transport socket of a server's endpoint; nothing without TLS."""
    if not address_of(endpoint, protocol).tls:
        return {}
    return {"metadata": {"filter_metadata": {_MATCHED: {"server": endpoint.server}}}}


def _socket(server: str, address: Address, version: str, protocol: Protocol) -> Json:
    sni = {"sni": address.server_name} if address.server_name is not None else {}
    context = {"@type": _CONTEXT, **sni, "common_tls_context": _common(address, protocol)}
    return {
        "name": f"{server} {version}".strip(),
        "match": {"server": server},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
    }


def _common(address: Address, protocol: Protocol) -> Json:
    kind, name = ("DNS", address.server_name) if address.server_name is not None else ("IP_ADDRESS", address.host)
    validation = {"trusted_ca": {"filename": address.ca}, "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": name}}]}
    own = [{"certificate_chain": {"filename": address.certificate}, "private_key": {"filename": address.key}}] if address.key else []
    return {"alpn_protocols": [_ALPN[protocol]], "tls_certificates": own, "validation_context": validation}
