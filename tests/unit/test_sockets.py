"""Listening sockets of this machine."""

from __future__ import annotations

import socket

import pytest

from themis_triton.adapters import sockets
from themis_triton.adapters.envoy.probe import refuses
from themis_triton.adapters.sockets import is_listened_on
from themis_triton.core.address import Address

ADDRESSES = (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1"))  # noqa: S104 - all addresses are meant


@pytest.mark.parametrize(("bound", "asked"), ADDRESSES)
def test_a_listener_is_seen_without_a_connection_until_it_closes(bound: str, asked: str) -> None:
    with socket.create_server((bound, 0), family=socket.AF_INET6 if ":" in bound else socket.AF_INET) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((asked, port)), listener.accept()[0]:
            assert is_listened_on(asked, port)
            assert not refuses(Address(bound, port))
            listener.close()
            assert not is_listened_on(asked, port)
            assert refuses(Address(bound, port))


def test_where_the_kernel_does_not_tell_a_connection_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_SOCKET_DIAGNOSIS", 250)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not is_listened_on("127.0.0.1", port)
        assert not refuses(Address("127.0.0.1", port))
    assert refuses(Address("127.0.0.1", port))
