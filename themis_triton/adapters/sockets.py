"""Listening sockets of this machine."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from themis_triton.core.address import Address

LOOPBACK = "127.0.0.1"


def listen_failure(address: Address) -> str | None:
    """Why the address cannot be listened on; None when it can. A Unix socket that another process left is replaced by its listener."""
    if address.socket_path is not None:
        return None
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        socket.create_server((address.host, address.port), family=family).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def is_of_this_machine(host: str) -> bool:
    """Whether an address, or all of those of a name, are of this machine. Blocking."""
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, socket.SOCK_STREAM) as each:
                each.bind(address)
    except OSError:
        return False
    return True


def free_ports(count: int, host: str = LOOPBACK) -> tuple[int, ...]:
    """TCP ports that are free now at an IP address of this machine, all different.

    Another process may still take one before it is used.
    """
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sockets = [stack.enter_context(socket.socket(family)) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return tuple(int(each.getsockname()[1]) for each in sockets)
