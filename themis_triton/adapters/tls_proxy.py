"""The Envoy before a launched server: it ends TLS at the node's address and passes the bytes on to Triton on the loopback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from themis_triton.core.server_proxy import ServerProxy

Json = dict[str, Any]
CONFIG_FILE = "proxy.json"
LOOPBACK = "127.0.0.1"
_TYPE = "type.googleapis.com/envoy."
_TLS = f"{_TYPE}extensions.transport_sockets.tls.v3."
_CERTIFICATE, _CLIENT_CA = "certificate", "client_ca"
_ALPN = {"grpc": "h2", "http": "http/1.1", "metrics": "http/1.1"}
_THREADS = 2


def proxy_command(binary: str, folder: Path) -> list[str]:
    """How the proxy is started on the folder with its files."""
    return [binary, "-c", str(folder / CONFIG_FILE), *PROXY_OPTIONS]


PROXY_OPTIONS = ("--disable-hot-restart", "--concurrency", str(_THREADS), "--log-level", "warning")


def proxy_files(
    folder: Path, host: str, ports: Mapping[str, int | str], targets: Mapping[str, int | str], proxy: ServerProxy
) -> dict[str, str]:
    """The proxy's files by name, for this folder of the node.

    Args:
        folder: where the files will lie.
        host: the IP address at which the proxy listens.
        ports: those of the proxy by protocol (`grpc`, `http`, `metrics`). A string stands for a port that is only known on the node.
        targets: Triton's ports on the loopback.
        proxy: the certificate, which is read again when another file is moved in its place.
    """
    listeners = [_listener(name, host, ports[name], folder, proxy) for name in ports]
    config = {"static_resources": {"listeners": listeners, "clusters": [_cluster(name, targets[name]) for name in ports]}}
    # Secrets that come from a file of their own need a node's name.
    node = {"node": {"id": "themis-proxy", "cluster": "themis-proxy"}}
    return {CONFIG_FILE: json.dumps(node | config)} | {_file(each["name"]): json.dumps({"resources": [each]}) for each in _secrets(proxy)}


def _listener(name: str, host: str, port: int | str, folder: Path, proxy: ServerProxy) -> Json:
    common: Json = {"alpn_protocols": [_ALPN[name]], "tls_certificate_sds_secret_configs": [_source(_CERTIFICATE, folder)]}
    if proxy.client_ca is not None:
        common["validation_context_sds_secret_config"] = _source(_CLIENT_CA, folder)
    context = {
        "@type": f"{_TLS}DownstreamTlsContext",
        "common_tls_context": common,
        "require_client_certificate": proxy.client_ca is not None,
    }
    # Idle connections of a proxy before this one are kept, as Triton itself would keep them.
    passed_on = {
        "@type": f"{_TYPE}extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": name,
        "idle_timeout": "0s",
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "enable_reuse_port": False,  # else the proxies of two servers could share a port that both took for free
        "filter_chains": [
            {
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
                "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": passed_on}],
            }
        ],
    }


def _source(secret: str, folder: Path) -> Json:
    """Where a secret comes from: Envoy takes one secret a file."""
    return {"name": secret, "sds_config": {"path_config_source": {"path": str(folder / _file(secret))}, "resource_api_version": "V3"}}


def _file(secret: str) -> str:
    return f"proxy-{secret}.json"


def _cluster(name: str, port: int | str) -> Json:
    address = {"socket_address": {"address": LOOPBACK, "port_value": port}}
    members = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": members}


def _secrets(proxy: ServerProxy) -> list[Json]:
    """Read again when a file is moved into the folder of the certificate."""
    pair = {"certificate_chain": {"filename": str(proxy.certificate)}, "private_key": {"filename": str(proxy.key)}}
    secrets: list[Json] = [
        {"name": _CERTIFICATE, "tls_certificate": {**pair, "watched_directory": {"path": str(proxy.certificate.parent)}}}
    ]
    if proxy.client_ca is not None:
        trusted = {"trusted_ca": {"filename": str(proxy.client_ca)}, "watched_directory": {"path": str(proxy.client_ca.parent)}}
        secrets.append({"name": _CLIENT_CA, "validation_context": trusted})
    return [{"@type": f"{_TLS}Secret", **secret} for secret in secrets]
