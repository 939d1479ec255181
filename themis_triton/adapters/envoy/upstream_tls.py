"""TLS from Envoy to servers: one cluster can have endpoints with and without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from themis_triton.core.address import Address
from themis_triton.core.routes import Endpoint, RouteTable

Json = dict[str, Any]
_CONTEXT = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_MATCHED = "envoy.transport_socket_match"
PLAIN_HEALTH_CHECKS: Json = {"plain": True}
"""Health checks go to a server's HTTP port, which has no TLS; they match no transport socket below."""


def secure_servers(table: RouteTable) -> dict[str, Address]:
    """The gRPC address of each server with TLS, by name."""
    routed = (endpoint for route in table.models.values() for endpoint in route.endpoints)
    return {each.server: each.grpc_address for each in (*table.any, *table.unlisted, *table.index, *routed) if each.grpc_address.tls}


def transport_sockets(table: RouteTable, versions: Mapping[str, str]) -> list[Json]:
    """The transport socket of each server with TLS, chosen by the metadata of its endpoints.

    Envoy reads PEM files when it creates a cluster. With their version in the socket's name it creates it anew when they change.
    """
    secure = secure_servers(table)
    return [_socket(server, secure[server], versions.get(server, "")) for server in sorted(secure)]


def endpoint_metadata(endpoint: Endpoint) -> Json:
    """What chooses the transport socket of a server's gRPC endpoint; nothing without TLS."""
    if not endpoint.grpc_address.tls:
        return {}
    return {"metadata": {"filter_metadata": {_MATCHED: {"server": endpoint.server}}}}


def _socket(server: str, address: Address, version: str) -> Json:
    sni = {"sni": address.server_name} if address.server_name is not None else {}
    context = {"@type": _CONTEXT, **sni, "common_tls_context": _common(address)}
    return {
        "name": f"{server} {version}".strip(),
        "match": {"server": server},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
    }


def _common(address: Address) -> Json:
    kind, name = ("DNS", address.server_name) if address.server_name is not None else ("IP_ADDRESS", address.host)
    validation = {"trusted_ca": {"filename": address.ca}, "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": name}}]}
    own = [{"certificate_chain": {"filename": address.certificate}, "private_key": {"filename": address.key}}] if address.key else []
    return {"alpn_protocols": ["h2"], "tls_certificates": own, "validation_context": validation}
