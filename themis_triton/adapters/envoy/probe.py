"""Whether Envoy's listeners answer, asked as a client would ask: what its admin address says is not what clients meet."""

from __future__ import annotations

import asyncio
import errno
import socket
from enum import StrEnum

from themis_triton.adapters.envoy.names import Protocol
from themis_triton.adapters.sockets import is_listened_on
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig

_HELLO = {
    # The preface and empty settings; a server answers with its own settings.
    Protocol.GRPC: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)),
    # Envoy itself answers a path that no server has.
    Protocol.HTTP: b"GET / HTTP/1.1\r\nhost: themis\r\nconnection: close\r\n\r\n",
}


class Answer(StrEnum):
    """What a listener does with a client."""

    ANSWERED = "answered"
    SILENT = "silent"
    REFUSED = "refused"


async def probe_listeners(config: EnvoyConfig, timeout_s: float) -> Answer:
    """REFUSED when a listener refuses connections, else SILENT when one accepts them and says nothing in time, else ANSWERED."""
    listeners = ((Protocol.GRPC, config.grpc_listen), (Protocol.HTTP, config.http_listen))
    answers = await asyncio.gather(*(_probe(protocol, address, timeout_s) for protocol, address in listeners))
    return next((answer for answer in (Answer.REFUSED, Answer.SILENT) if answer in answers), Answer.ANSWERED)


async def _probe(protocol: Protocol, address: Address, timeout_s: float) -> Answer:
    """Any byte is an answer, and so is a connection that Envoy closes or resets: it may have as many as it takes."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(_reachable(address), address.port)
            try:
                writer.write(_HELLO[protocol])
                await reader.read(1)
            finally:
                writer.transport.abort()
    except TimeoutError:
        return Answer.SILENT
    except ConnectionRefusedError:
        return Answer.REFUSED
    except OSError:  # It was reset, or this process has no descriptor left, which says nothing about Envoy.
        return Answer.ANSWERED
    return Answer.ANSWERED


def refuses(listener: Address) -> bool:
    """Whether connections to a listener of this machine are refused, without waiting: its kernel answers at once."""
    host = _reachable(listener)
    if is_listened_on(host, listener.port):  # asked first: a connection costs this process more, and Envoy too
        return False
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        client.setblocking(False)
        code = client.connect_ex((host, listener.port))
        return errno.ECONNREFUSED in (code, client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def _reachable(address: Address) -> str:
    if not address.is_wildcard:
        return address.host
    return "::1" if ":" in address.host else "127.0.0.1"
