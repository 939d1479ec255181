"""TLS with certificates of clients to launched servers: its settings, and what a server shows to those who have none."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.certificates import authority, issued_certificate
from themis_triton.adapters.tls_proxy import LOOPBACK
from themis_triton.core.address import Address
from themis_triton.core.fleet import Server
from themis_triton.core.server_proxy import ServerProxy, ServerTls
from themis_triton.ports import ServerLauncher

NAME = "localhost"


def mutual_tls(folder: Path) -> dict[str, str]:
    """A certificate of an authority, for servers and their clients."""
    folder.mkdir()
    return issued_certificate(folder / "own", authority(folder / "authority"))


def server_tls(files: Mapping[str, str]) -> ServerTls:
    return ServerTls(files["ca"], NAME, files["certificate"], files["key"])


def server_proxy(files: Mapping[str, str]) -> ServerProxy:
    return ServerProxy(Path(files["certificate"]), Path(files["key"]), Path(files["ca"]))


def tls_sections(files: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The sections `launch.tls` and `proxy`."""
    return {**files, "server_name": NAME}, {"certificate": files["certificate"], "key": files["key"], "client_ca": files["ca"]}


def check_closed(server: Server, files: Mapping[str, str]) -> None:
    """None of the server's ports answers without TLS, or without a client's certificate; all do with both."""
    for address in (server.grpc_address, server.http_address, server.metrics_address):
        assert address == server_tls(files).at(Address(address.host, address.port))
        assert is_refused(address, files, with_certificate=False)
        assert not is_refused(address, files, with_certificate=True)


def is_refused(address: Address, files: Mapping[str, str], *, with_certificate: bool) -> bool:
    """Whether the server ends a connection before it answers."""
    context = ssl.create_default_context(cafile=files["ca"])
    context.set_alpn_protocols(["h2", "http/1.1"])
    if with_certificate:
        context.load_cert_chain(files["certificate"], files["key"])
    try:
        with (
            socket.create_connection((address.host, address.port), 5.0) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as secure,
        ):
            if secure.selected_alpn_protocol() == "http/1.1":
                secure.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            else:
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            return not secure.recv(1)
    except (ssl.SSLError, ConnectionError):
        return True


async def until_ended(launcher: ServerLauncher, server: Server, within_s: float) -> None:
    """Wait until a server is not alive any more."""
    async with asyncio.timeout(within_s):
        while await launcher.is_alive(server):  # noqa: ASYNC110 - a launcher tells no events
            await asyncio.sleep(0.1)


def listening_elsewhere(process: psutil.Process) -> list[str]:
    """The addresses other than the loopback at which a process listens."""
    hosts = [each.laddr.ip.removeprefix("::ffff:") for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return [host for host in hosts if host != LOOPBACK]
