"""The files of what clients have to show at Envoy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.samples import config
from themis_triton.adapters.envoy.client_auth import API_KEYS, FILTER_FILES, read_api_keys, read_auth_filter, read_jwks
from themis_triton.adapters.envoy.render import render, static_bootstrap
from themis_triton.adapters.exposure import exposure_findings
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.routes import RouteTable
from themis_triton.settings import load_settings
from themis_triton.settings.starter import starter

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there are no keys"),
        ("# none\n\n", "there are no keys"),
        (f"a {KEY}\nb short\n", ":2: there is no client and key"),
        (f"a {KEY} more\n", ":1: there is no client and key"),
        (f"a {KEY}\na x{KEY}\n", ":2: the client or its key is there twice"),
        (f"a {KEY}\nb {KEY}\n", ":2: the client or its key is there twice"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_named_without_its_keys(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(EnvironmentCheckError, match=words) as refused:
        read_api_keys(file)
    assert KEY not in str(refused.value)


def test_a_file_of_keys_that_is_too_large_is_refused_whole(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for size, refused in ((2**20, False), (2**20 + 1, True)):
        file.write_bytes(f"a {KEY}\n#".encode().ljust(size, b"-"))
        file.chmod(0o600)
        if refused:
            with pytest.raises(EnvironmentCheckError, match=r"keys is too large: expected at most 1048576 bytes"):
                read_api_keys(file)
        else:
            assert read_api_keys(file) == {"a": KEY}


def test_a_change_of_keys_changes_their_own_file_alone_and_what_envoy_checks_before_its_start_has_them(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    guarded = replace(config().envoy, api_keys=file)
    rendered = []
    for key in (KEY, f"x{KEY}"):
        file.write_text(f"a {key}\n")
        file.chmod(0o600)
        rendered.append(render(guarded, RouteTable({}, ()), auth=read_auth_filter(guarded)))
    before, after = rendered
    assert [name for name in after if after[name] != before[name]] == [FILTER_FILES[API_KEYS]]
    assert KEY in static_bootstrap(after)
    assert "config_discovery" not in static_bootstrap(after)


def test_a_file_of_keys_that_others_can_read_is_a_finding_of_validate(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"a {KEY}\n")
    file.chmod(0o644)
    settings = replace(config(), envoy=replace(config().envoy, api_keys=file))
    (found,) = exposure_findings(settings, 0.0, Path("absent"))
    assert (found.what, found.exit_code) == ("envoy.api_keys", 3)
    assert "mode 0644" in found.found
    file.chmod(0o600)
    assert list(exposure_findings(settings, 0.0, Path("absent"))) == []


@pytest.mark.parametrize("text", ["", "[]", '{"keys": []}', '{"keys": [{}]}', '{"keys": {"kty": "RSA"}}', "[" * 100_000])
def test_what_is_no_set_of_keys_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(text)
    with pytest.raises(EnvironmentCheckError, match="expected a JSON Web Key Set"):
        read_jwks(file)


def test_keys_and_tokens_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    for name in ("keys", "jwks.json"):
        (tmp_path / name).touch()
    path.write_text(f"{starter()}envoy: {{api_keys: keys, jwt: {{issuer: me, jwks: jwks.json}}}}\n")
    with pytest.raises(SettingsError, match="both `api_keys` and `jwt` are set"):
        load_settings(path)
