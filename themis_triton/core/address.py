"""Network addresses as values: parsed once, formatted where a URL or a message needs them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

_TLS = "tls://"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?P<tls>tls://)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>{_HOST})):(?P<port>\d{{1,5}})(?:\?(?P<query>.+))?")
_QUERY = ("server_name", "ca", "certificate", "key")


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP endpoint. `host` is a name or an IP address without brackets; a host that is an absolute path is a Unix socket, with port 0.

    With `tls`, `server_name` is what the server's certificate must be for (None: the host); `ca`, `certificate` and `key` are PEM files:
    the authority that signed the server's certificate, and what the server asks of its clients.
    """

    host: str
    port: int
    tls: bool = False
    server_name: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address of `host:port`, `[IPv6]:port`, or what `str` gave for another one. ValueError when it is none of these."""
        match = _ADDRESS.fullmatch(text)
        query = _parse_query(match["query"]) if match is not None else None
        if match is None or query is None or not 1 <= int(match["port"]) <= 65535 or (query and not match["tls"]):
            raise ValueError(f"{text!r} is not an address: expected host:port with a port of 1 to 65535")
        address = cls(match["v6"] or match["host"], int(match["port"]), match["tls"] is not None, **query)
        if (match["v6"] or re.fullmatch(r"[\d.]+", address.host)) and address.ip is None:
            raise ValueError(f"{text!r} is not an address: {address.host} is not an IP address")
        return address

    def __str__(self) -> str:
        """`host:port`; with TLS `tls://host:port`, with what else is set as a query: `?server_name=…&ca=…`. `parse` reads it back.

        A Unix socket is `unix:PATH`, which `parse` does not read.
        """
        values = [(name, value) for name in _QUERY if (value := getattr(self, name)) is not None]
        query = "?" + "&".join(f"{name}={quote(value)}" for name, value in values) if values else ""
        return f"{_TLS if self.tls else ''}{self.authority}{query}"

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 host in brackets: what URLs and gRPC targets take."""
        if self.socket_path is not None:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, path: str = "", scheme: str = "http") -> str:
        """The URL of a path below the address; the scheme gets an `s` with TLS. That of a Unix socket does not name the socket."""
        if self.socket_path is not None:
            return f"{scheme}://localhost{path}"
        return f"{scheme}{'s' if self.tls else ''}://{self.authority}{path}"

    @property
    def socket_path(self) -> str | None:
        """The path of a Unix socket; None for a TCP endpoint."""
        return self.host if self.host.startswith("/") else None

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an IP address; None when it is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or self.socket_path is not None or (self.ip is not None and self.ip.is_loopback)

    @property
    def is_wildcard(self) -> bool:
        """Whether it is the wildcard address: every interface of this machine."""
        return self.ip is not None and self.ip.is_unspecified

    def clashes(self, other: Address) -> bool:
        """Whether the two addresses cannot be listened on at the same time."""
        if self.port != other.port:
            return False
        if self.host == other.host or (self.is_loopback and other.is_loopback):
            return True
        mine, theirs = self.is_wildcard, other.is_wildcard
        return (mine and (theirs or other.is_loopback)) or (theirs and self.is_loopback)


def _parse_query(text: str | None) -> dict[str, str] | None:
    """The query's values by name; None where it is malformed."""
    if text is None:
        return {}
    try:
        query = dict(parse_qsl(text, strict_parsing=True))
    except ValueError:
        return None
    valid = query.keys() <= set(_QUERY) and re.fullmatch(_HOST, query.get("server_name", "a")) is not None
    return query if valid else None


UNKNOWN_ADDRESS = Address("", 0)
"""Placeholder for an address that is not configured."""
