"""Network addresses as values: parsed once, formatted where a URL or a message needs them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_TLS = "tls://"
_SERVER_NAME = "?server_name="
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_ADDRESS = re.compile(
    rf"(?P<tls>tls://)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>{_HOST})):(?P<port>\d{{1,5}})(?:\?server_name=(?P<name>{_HOST}))?"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP endpoint. `host` is a name or an IP address without brackets; `server_name` is what a TLS certificate must be for."""

    host: str
    port: int
    tls: bool = False
    server_name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address of `host:port`, `[IPv6]:port`, or what `str` gave for another one. ValueError when it is none of these."""
        match = _ADDRESS.fullmatch(text)
        if match is None or not 1 <= int(match["port"]) <= 65535 or (match["name"] and not match["tls"]):
            raise ValueError(f"{text!r} is not an address: expected host:port with a port of 1 to 65535")
        address = cls(match["v6"] or match["host"], int(match["port"]), match["tls"] is not None, match["name"])
        if (match["v6"] or re.fullmatch(r"[\d.]+", address.host)) and address.ip is None:
            raise ValueError(f"{text!r} is not an address: {address.host} is not an IP address")
        return address

    def __str__(self) -> str:
        """`host:port`; with TLS `tls://host:port`, and `?server_name=…` where one is set. `parse` reads it back."""
        name = f"{_SERVER_NAME}{self.server_name}" if self.server_name is not None else ""
        return f"{_TLS if self.tls else ''}{self.authority}{name}"

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 host in brackets: what URLs and gRPC targets take."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, path: str = "", scheme: str = "http") -> str:
        """The URL of a path below the address; the scheme gets an `s` with TLS."""
        return f"{scheme}{'s' if self.tls else ''}://{self.authority}{path}"

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
        return self.host == "localhost" or (self.ip is not None and self.ip.is_loopback)

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


UNKNOWN_ADDRESS = Address("", 0)
"""Placeholder for an address that is not configured."""
