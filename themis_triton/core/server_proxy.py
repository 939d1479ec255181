"""TLS to launched servers of other machines: a proxy before each of them, and what is needed to reach it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.fleet import Server


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How launched servers are reached over TLS; fields as of `Address`, with files of this machine."""

    ca: str
    server_name: str | None = None
    certificate: str | None = None
    key: str | None = None

    def secured(self, server: Server) -> Server:
        """The server with TLS at those of its addresses that are known."""
        return replace(
            server,
            grpc_address=self.at(server.grpc_address),
            http_address=self.at(server.http_address),
            metrics_address=self.at(server.metrics_address),
        )

    def at(self, address: Address) -> Address:
        """The address with TLS; one that is not known stays so."""
        if address == UNKNOWN_ADDRESS:
            return address
        return replace(address, tls=True, server_name=self.server_name, ca=self.ca, certificate=self.certificate, key=self.key)


@dataclass(frozen=True, slots=True)
class ServerProxy:
    """An Envoy that ends TLS before a server, which then listens on its node's loopback alone.

    The PEM files are those of the nodes; with `client_ca` a client must send a certificate. `binary`: Envoy as the nodes see it; None:
    that of the `local` extra.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    binary: Path | None = None


@dataclass(frozen=True, slots=True)
class PodProxy:
    """The proxy as a container of the pod: Envoy's image, and the Secret of type kubernetes.io/tls with its certificate.

    `client_certificates`: a client must send a certificate of the Secret's `ca.crt`.
    """

    image: str
    secret: str
    client_certificates: bool = False
