"""Checks of the addresses of the settings: each once, and loopback ones unless more is allowed."""

from __future__ import annotations

from collections.abc import Iterator

from themis_triton.core.address import Address
from themis_triton.settings.kinds import parse_address
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.problem import Problem
from themis_triton.settings.schema import EnvoySettings, StatusSettings
from themis_triton.settings.source import KeyPath, dotted

_ENVOY, _STATUS = EnvoySettings(), StatusSettings()


def check_addresses(loaded: Loaded) -> Iterator[Problem]:
    """Addresses that conflict, and such that other machines reach without leave."""
    yield from _loopback(loaded)
    yield from _addresses(loaded)


def _loopback(loaded: Loaded) -> Iterator[Problem]:
    for section, key, default, risk in (
        ("envoy", "admin", _ENVOY.admin, "any client of this address can stop Envoy"),
        ("status", "address", _STATUS.address, "any client of this address can read what is served"),
    ):
        written = loaded.section(section)
        address_text = str(written.get(key, default) or "")
        address = parse_address(address_text)
        if address is not None and not address.is_loopback and written.get("allow_non_loopback") is not True:
            fix = f"write 127.0.0.1:{address.port}, or set `{section}.allow_non_loopback: true` ({risk})"
            yield loaded.source.problem((section, key), f"{address_text} is reachable from other machines", "a loopback address", fix)


def _addresses(loaded: Loaded) -> Iterator[Problem]:
    taken: list[tuple[KeyPath, Address]] = []
    for path, text in _written_addresses(loaded):
        address = parse_address(text)
        if address is None:
            continue
        other = next((where for where, there in taken if address.clashes(there)), None)
        if other is not None:
            place = loaded.source.place(other)
            line = f" (line {place.line})" if other in loaded.source.places else ""
            fault = f"{text} conflicts with {dotted(other)}{line}"
            yield loaded.source.problem(path, fault, "each address once", "choose another port")
        taken.append((path, address))


def _written_addresses(loaded: Loaded) -> Iterator[tuple[KeyPath, str]]:
    """All addresses, defaults first, so that a conflict is reported at a line of the file."""
    for name, server in loaded.section("servers").items():
        for key in ("grpc", "http", "metrics"):
            yield ("servers", name, key), str(mapping(server).get(key))
    yield ("envoy", "xds", "listen"), str(mapping(loaded.section("envoy").get("xds")).get("listen"))
    own = [("envoy", key, getattr(_ENVOY, key)) for key in ("grpc_listen", "http_listen", "admin")]
    own.append(("status", "address", _STATUS.address))
    for section, key, default in sorted(own, key=lambda entry: entry[1] in loaded.section(entry[0])):
        yield (section, key), str(loaded.section(section).get(key, default) or "")
