from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.samples import server
from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.decoding import decode
from themis_triton.core.encoding import plain
from themis_triton.core.fleet import Server


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8001", Address("127.0.0.1", 8001)),
        ("triton-0.pool.example:8001", Address("triton-0.pool.example", 8001)),
        ("[::1]:8001", Address("::1", 8001)),
        ("tls://triton:443", Address("triton", 443, tls=True)),
        ("tls://[fe80::1]:443?server_name=triton.example", Address("fe80::1", 443, tls=True, server_name="triton.example")),
        (
            "tls://triton:443?ca=/my%20files/ca%26.pem&certificate=/c.pem&key=/k.pem",
            Address("triton", 443, tls=True, ca="/my files/ca&.pem", certificate="/c.pem", key="/k.pem"),
        ),
    ],
)
def test_an_address_is_parsed_and_formatted_back(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8001",
        "host",
        "host:",
        "host:0",
        "host:65536",
        ":8001",
        "::1:8001",
        "1.2.3:8001",
        "[1.2]:8001",
        "http://a:1",
        "a:1/",
        "a:1?server_name=b",
        "tls://a:1?server_name=b/c",
        "tls://a:1?name=b",
        "tls://a:1?ca",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Address.parse(text)


def test_urls_follow_tls_and_bracket_ipv6() -> None:
    assert Address("::1", 8000).url("/v2") == "http://[::1]:8000/v2"
    assert Address("triton", 8000, tls=True, server_name="other").url() == "https://triton:8000"
    assert Address("triton", 8000, tls=True).url(scheme="ws") == "wss://triton:8000"
    assert Address("triton", 443, tls=True, server_name="other").authority == "triton:443"


def test_clashes_are_by_port_and_interface() -> None:
    loopback, name, wildcard, other = Address("127.0.0.1", 1), Address("localhost", 1), Address("::", 1), Address("10.0.0.1", 1)
    assert loopback.clashes(name)
    assert loopback.clashes(wildcard)
    assert wildcard.clashes(loopback)
    assert not loopback.clashes(other)
    assert not loopback.clashes(Address("127.0.0.1", 2))


def test_a_server_survives_its_encoding() -> None:
    for one in (server("a"), server("b", launched=False)):
        assert decode(Server, json.loads(json.dumps(plain(one)))) == one
    assert plain(server("a"))["grpc_address"] == "a:8001"


def test_unknown_and_tls_addresses_survive_the_encoding_of_a_server() -> None:

    one = replace(server("a"), metrics_address=UNKNOWN_ADDRESS, grpc_address=Address("a", 443, tls=True, server_name="b"))
    assert decode(Server, json.loads(json.dumps(plain(one)))) == one
