"""Listening sockets of this machine."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack

from themis_triton.core.address import Address

LOOPBACK = "127.0.0.1"
_SOCKET_DIAGNOSIS, _BY_FAMILY = 4, 20
_REQUEST, _ANY_COOKIE, _LISTEN = 1, 2**32 - 1, 10
_HEADER, _QUESTION = struct.Struct("=IHHII"), struct.Struct("=BBxxI 2s2x 16s 16x 4xII")
"""Linux' sock_diag(7): `nlmsghdr` and `inet_diag_req_v2` with the local port and address alone."""


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


def is_listened_on(host: str, port: int) -> bool:
    """Whether a TCP socket of this machine listens at an IP address, or at all of them, asked of the kernel without a connection.

    False too where the kernel does not tell, as in some containers.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = socket.inet_pton(family, host)
    question = _QUESTION.pack(family, socket.IPPROTO_TCP, 1 << _LISTEN, port.to_bytes(2, "big"), packed, _ANY_COOKIE, _ANY_COOKIE)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCKET_DIAGNOSIS) as kernel:
            kernel.setblocking(False)  # it has answered before the call returns
            kernel.send(_HEADER.pack(_HEADER.size + _QUESTION.size, _BY_FAMILY, _REQUEST, 0, 0) + question)
            answer = kernel.recv(4096)
    except OSError:
        return False
    return _HEADER.unpack_from(answer)[1] == _BY_FAMILY and answer[_HEADER.size + 1] == _LISTEN


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
