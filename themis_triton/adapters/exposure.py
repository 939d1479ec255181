"""What the settings let other machines and users reach, and the certificates for it, as findings of `themis validate`."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from themis_triton.adapters.envoy.client_auth import read_auth_filter
from themis_triton.adapters.findings import Finding, Severity, missing, warning
from themis_triton.adapters.pem_certificates import PemError, check_pair, validity
from themis_triton.adapters.sockets import LOOPBACK
from themis_triton.adapters.token_file import read_token
from themis_triton.core.address import Address
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError

EXPIRY_WARNING = timedelta(days=30)
_NEW = "put a new certificate in its place; it is taken up while Envoy and the sidecar run"


def exposure_findings(config: ThemisConfig, now_s: float, settings_file: Path) -> Iterator[Finding]:
    """Findings that need no connection. `now_s`: the time, for certificates that expire."""
    yield from readable_secrets(config, settings_file)
    if config.status.token_file is not None:
        try:
            read_token(config.status.token_file)
        except EnvironmentCheckError as error:
            yield Finding(Severity.ERROR, "status.token_file", str(error), "", EnvironmentCheckError.exit_code)
    if not config.status.address.is_loopback and config.status.tls is None:
        found = f"other machines reach {config.status.address}; its token, which they need, travels unencrypted"
        yield warning("status.address", found, "set `status.tls`, or use a loopback address and a tunnel")
    try:
        read_auth_filter(config.envoy)
    except EnvironmentCheckError as error:
        key, _, found = str(error).partition(": ")
        yield missing(key, found, "")
    now = datetime.fromtimestamp(now_s, UTC)
    for key, check, file in _pem_files(config):
        try:
            check()
            valid = validity(file)
        except PemError as error:
            yield missing(key, str(error), "write a certificate, and its key without a password, in PEM form")
            continue
        if now > valid.ends:
            yield missing(key, f"{file} expired on {valid.ends:%Y-%m-%d}", _NEW)
        elif now < valid.begins:
            yield missing(key, f"{file} is not valid before {valid.begins:%Y-%m-%d %H:%M} UTC", "check the clock of this machine")
        elif now > valid.ends - EXPIRY_WARNING:
            yield warning(key, f"{file} expires on {valid.ends:%Y-%m-%d}, in {(valid.ends - now).days} days", _NEW)


def readable_secrets(config: ThemisConfig, settings_file: Path) -> Iterator[Finding]:
    """A warning for each secret that every user of this machine can read: keys of TLS, and of model control in the settings themselves."""
    servers = [(f"servers.{server.name}", server) for server in config.servers]
    files = [(f"{section}.key", Path(address.key)) for section, address in _secure_addresses(config) if address.key is not None]
    files += [(f"{name}.tls.key", tls.key) for name, tls in (("envoy", config.envoy.tls), ("status", config.status.tls)) if tls is not None]
    files += [(f"{name}.model_control_key", settings_file) for name, server in servers if server.model_control_key is not None]
    for key, file in files:
        if _others_read(file):
            yield warning(key, f"any user of this machine can read it in {file}", f"chmod 600 {file}")


def _others_read(file: Path) -> bool:
    """Whether the modes of the file and of all folders above it let everybody read it."""
    try:
        path = file.resolve(strict=True)
        return bool(path.stat().st_mode & stat.S_IROTH) and all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
    except OSError:
        return False  # What cannot be read here is found elsewhere.


def _pem_files(config: ThemisConfig) -> Iterator[tuple[str, Callable[[], None], Path]]:
    """Each file with certificates: its key in the settings, a check of what belongs to it, and the file."""
    for section, tls in (("envoy", config.envoy.tls), ("status", config.status.tls)):
        if tls is not None:
            yield f"{section}.tls.certificate", _pair(tls.certificate, tls.key), tls.certificate
            if tls.client_ca is not None:
                yield f"{section}.tls.client_ca", _nothing, tls.client_ca
    for name, address in _secure_addresses(config):
        if address.ca is not None:
            yield f"{name}.ca", _nothing, Path(address.ca)
        if address.certificate is not None and address.key is not None:
            own = Path(address.certificate)
            yield f"{name}.certificate", _pair(own, Path(address.key)), own


def _secure_addresses(config: ThemisConfig) -> Iterator[tuple[str, Address]]:
    """One address for each `tls` section of servers, with the section's key."""
    if config.launch is not None and config.launch.tls is not None:
        yield "launch.tls", config.launch.tls.at(Address(LOOPBACK, 1))
    for server in config.servers:
        known = []
        addresses = {"tls": server.grpc_address, "proxy_tls": server.http_address if server.http_address.tls else server.metrics_address}
        for section, address in addresses.items():
            files = (address.ca, address.certificate, address.key)
            if address.tls and files not in known:
                known.append(files)
                yield f"servers.{server.name}.{section}", address


def _pair(certificate: Path, key: Path) -> Callable[[], None]:
    return lambda: check_pair(certificate, key)


def _nothing() -> None:
    """An authority has no key here."""
