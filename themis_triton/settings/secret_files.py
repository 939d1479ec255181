"""The files of secrets that the settings name must exist: those of the servers' `tls` sections, and the status API's token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.problem import Problem
from themis_triton.settings.source import KeyPath


def check_secret_files(loaded: Loaded) -> Iterator[Problem]:
    """An error for each file that is not there."""
    for path, file, expected in _named_files(loaded):
        if isinstance(file, str) and not loaded.resolve(Path(file)).is_file():
            fix = f"correct the path, which starts at {loaded.path.parent.resolve()}"
            yield loaded.source.problem(path, f"{file} does not exist", expected, fix)


def _named_files(loaded: Loaded) -> Iterator[tuple[KeyPath, object, str]]:
    """Each key of such a file, with what is written there and what is expected."""
    for name, server in loaded.section("servers").items():
        for section in ("tls", "proxy_tls"):
            tls = mapping(mapping(server).get(section))
            for key in ("ca", "certificate", "key"):
                yield ("servers", name, section, key), tls.get(key), "the path of a PEM file"
    launch = mapping(loaded.section("launch").get("tls"))
    for key in ("ca", "certificate", "key"):
        yield ("launch", "tls", key), launch.get(key), "the path of a PEM file"
    for section in ("envoy", "status"):
        tls = mapping(loaded.section(section).get("tls"))
        for key in ("certificate", "key", "client_ca"):
            yield (section, "tls", key), tls.get(key), "the path of a PEM file"
    envoy = loaded.section("envoy")
    for key in ("certificate", "key", "client_ca"):
        yield ("envoy", "xds", "tls", key), mapping(mapping(envoy.get("xds")).get("tls")).get(key), "the path of a PEM file"
    keda = mapping(mapping(loaded.section("launch").get("kubernetes")).get("keda"))
    for key in ("certificate", "key", "client_ca"):
        yield ("launch", "kubernetes", "keda", "tls", key), mapping(keda.get("tls")).get(key), "the path of a PEM file"
    yield ("envoy", "api_keys"), envoy.get("api_keys"), "the path of a file with a client and its key a line"
    yield ("envoy", "jwt", "jwks"), mapping(envoy.get("jwt")).get("jwks"), "the path of a JSON Web Key Set"
    expected = "the path of a file with a token, such as `openssl rand -hex 32` prints"
    yield ("status", "token_file"), loaded.section("status").get("token_file"), expected
