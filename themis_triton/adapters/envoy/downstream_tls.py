"""TLS from clients to Envoy: its certificates come from files of their own, so that a new one closes no connection."""

from __future__ import annotations

import re
from pathlib import Path

from themis_triton.adapters.envoy.clusters import Json, file_source, typed
from themis_triton.adapters.envoy.names import Protocol
from themis_triton.adapters.pem_certificates import check_pair, validity
from themis_triton.core.config import EnvoyConfig

CERTIFICATE, CLIENT_CA = "certificate", "client_ca"
SECRETS = {name: f"sds/{name}.json" for name in (CERTIFICATE, CLIENT_CA)}
"""Files of the secrets, relative to Envoy's directory. Envoy takes one secret a file."""
LINKS = "tls"
"""Folder of links to the PEM files, relative to Envoy's directory."""
_TLS = "envoy.extensions.transport_sockets.tls.v3."
_ALPN = {Protocol.GRPC: "h2", Protocol.HTTP: "http/1.1"}


def transport_socket(config: EnvoyConfig, protocol: Protocol) -> Json:
    """What a listener's filter chain gets for TLS; nothing without."""
    tls = config.tls
    if tls is None:
        return {}
    common: Json = {
        "alpn_protocols": [_ALPN[protocol]],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [_source(config, CERTIFICATE)],
    }
    if tls.client_ca is not None:
        common["validation_context_sds_secret_config"] = _source(config, CLIENT_CA)
    required = tls.client_ca is not None and tls.require_client_certificate
    context = typed(f"{_TLS}DownstreamTlsContext", common_tls_context=common, require_client_certificate=required)
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def _source(config: EnvoyConfig, secret: str) -> Json:
    return {"name": secret, "sds_config": file_source(config.directory / SECRETS[secret])}


def secrets(config: EnvoyConfig, version: str) -> dict[str, list[Json]]:
    """The files of the secrets. They name links that `link_files` makes for the version.

    Envoy reads PEM files again when something is moved into their folder, without the sidecar too. Files that were written in place, and
    folders that it does not see a move in, are found by the sidecar: another version has other links.
    """
    tls = config.tls
    if tls is None:
        return {}
    certificate = {"certificate_chain": _link(config, version, tls.certificate), "private_key": _link(config, version, tls.key)}
    found = {CERTIFICATE: {"tls_certificate": {**certificate, "watched_directory": {"path": str(tls.certificate.parent)}}}}
    if tls.client_ca is not None:
        watched = {"watched_directory": {"path": str(tls.client_ca.parent)}}
        found[CLIENT_CA] = {"validation_context": {"trusted_ca": _link(config, version, tls.client_ca), **watched}}
    return {SECRETS[name]: [typed(f"{_TLS}Secret", name=name, **secret)] for name, secret in found.items()}


def _link(config: EnvoyConfig, version: str, file: Path) -> Json:
    return {"filename": str(_links(config, version)[file])}


def _links(config: EnvoyConfig, version: str) -> dict[Path, Path]:
    """The link of each PEM file."""
    tls = config.tls
    number = re.sub(r"[^0-9a-z]", "-", version)
    names = {tls.certificate: "certificate", tls.key: "key"} if tls is not None else {}
    if tls is not None and tls.client_ca is not None:
        names.setdefault(tls.client_ca, "client-ca")
    return {file: config.directory / LINKS / f"{name}.{number}.pem" for file, name in names.items()}


def check_files(config: EnvoyConfig) -> None:
    """Raise PemError where the listeners' PEM files cannot be used as they are now. Blocking."""
    if config.tls is not None:
        check_pair(config.tls.certificate, config.tls.key)
        if config.tls.client_ca is not None:
            validity(config.tls.client_ca)


def link_files(config: EnvoyConfig, version: str) -> None:
    """Make the links of a version. Those of others stay until `remove_other_links`. Blocking."""
    for file, link in _links(config, version).items():
        if not link.is_symlink() or link.readlink() != file:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(file)


def remove_other_links(config: EnvoyConfig, version: str) -> None:
    """Remove the links of other versions. Blocking."""
    kept = set(_links(config, version).values())
    for link in set((config.directory / LINKS).glob("*.pem")) - kept:
        link.unlink(missing_ok=True)
