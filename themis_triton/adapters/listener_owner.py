"""Whose process listens at an address of this machine: any user can listen where a sidecar does not run at the moment."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from themis_triton.core.address import Address

_LISTENING = "0A"
_LOCAL_ADDRESS, _STATE, _UID = 1, 3, 7


def listener_users(address: Address, proc: Path = Path("/proc")) -> set[int]:
    """The users whose processes listen at a loopback address, by their ids; empty where the kernel does not tell, or nothing listens."""
    if not address.is_loopback:
        return set()
    users = set()
    for local, uid in _listeners(proc):
        host, _, port = local.rpartition(":")
        if int(port, 16) == address.port and _takes(host, address):
            users.add(uid)
    return users


def _listeners(proc: Path) -> Iterator[tuple[str, int]]:
    """The local address, in hexadecimal digits, and the user of each listening socket."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "self" / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[_STATE] == _LISTENING:
                yield fields[_LOCAL_ADDRESS], int(fields[_UID])


def _takes(digits: str, address: Address) -> bool:
    """Whether a socket at that address gets connections to this one: it is the same, or the wildcard."""
    words = [bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    host = socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
    own = "127.0.0.1" if address.host == "localhost" else address.host
    return Address(host, address.port).is_wildcard or host in {own, f"::ffff:{own}"}
