"""`themis envoy-bootstrap`: the file with which an Envoy of another machine is started."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from themis_triton.adapters.envoy.addresses import resolve
from themis_triton.adapters.envoy.xds.bootstrap import Bootstrap, default_admin, xds_bootstrap
from themis_triton.adapters.envoy.xds.resources import Node
from themis_triton.commands.tls_flags import TlsFlags
from themis_triton.core.address import Address
from themis_triton.core.errors import SettingsError
from themis_triton.settings import load_settings


@dataclass(frozen=True, slots=True)
class EnvoyFlags:
    """Who the Envoy is and where it listens, as written. `servers`: where it reaches Themis; by default `envoy.xds.listen`."""

    name: str
    zone: str | None = None
    servers: tuple[str, ...] = ()
    grpc_listen: str | None = None
    http_listen: str | None = None
    stats: str | None = None
    admin: str | None = None


def envoy_bootstrap_command(path: Path, flags: EnvoyFlags, tls: TlsFlags) -> int:
    """Print the file; returns 0. SettingsError where the settings have no `envoy.xds`, or a flag is not what it should be."""
    envoy = load_settings(path).envoy
    if envoy.xds is None:
        raise SettingsError(
            f"{path}: envoy.xds: missing, so no Envoy can get routes over xDS. Fix: add `xds: {{listen: IP:PORT}}` to `envoy`"
        )
    server, *further = [each for each in (_address("--server", text) for text in flags.servers) if each is not None] or [envoy.xds.listen]
    if further and tls.ca is not None and tls.server_name is None:
        raise SettingsError("--server-name: missing with several --server and TLS. Fix: give the name that all their certificates have")
    if server.is_wildcard:
        raise SettingsError(f"--server: missing, and {server} is no address of one machine. Fix: give --server HOST:{server.port}")
    if envoy.xds.tls is not None and tls.ca is None:
        raise SettingsError(
            "--ca: missing, and `envoy.xds` has TLS. Fix: give --ca FILE, and --certificate and --key where it asks for them"
        )
    node = Node(
        flags.name,
        flags.zone,
        asyncio.run(resolve(_address("--grpc-listen", flags.grpc_listen) or envoy.grpc_listen)),
        asyncio.run(resolve(_address("--http-listen", flags.http_listen) or envoy.http_listen)),
        _address("--stats", flags.stats),
    )
    admin = _address("--admin", flags.admin) or default_admin(Path.cwd())
    sys.stdout.write(json.dumps(xds_bootstrap(envoy, Bootstrap(node, tls.applied(server), admin, tuple(further))), indent=1) + "\n")
    return 0


def _address(flag: str, text: str | None) -> Address | None:
    if text is None or text.startswith("/"):
        return Address(text, 0) if text is not None else None
    try:
        return replace(Address.parse(text), tls=False)
    except ValueError as error:
        raise SettingsError(f"{flag}: {error}") from error
