"""API keys or JSON Web Tokens of clients: Envoy's own filters, ahead of everything that counts a request."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import EnvironmentCheckError

Json = dict[str, Any]
API_KEYS, JWT = "envoy.filters.http.api_key_auth", "envoy.filters.http.jwt_authn"
API_KEY_HEADER = "x-api-key"
_TYPE = "type.googleapis.com/envoy.extensions.filters.http."
_DISABLED = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
_LINE = re.compile(r"(?P<client>[A-Za-z0-9_.-]{1,64})\s+(?P<key>[A-Za-z0-9\-._~+/=]{16,512})")
LINE_WORDS = "one client a line: a name, a space, and a key of 16 to 512 letters, digits and -._~+/="
_MAX_BYTES = 2**20


def auth_name(config: EnvoyConfig) -> str | None:
    """The name of the filter that checks clients; None where none is asked for."""
    return API_KEYS if config.api_keys is not None else JWT if config.jwt is not None else None


def open_to_all(config: EnvoyConfig) -> Json:
    """What a route gets that needs no key: health and metadata, which Triton answers to anybody."""
    name = auth_name(config)
    return {"typed_per_filter_config": {name: _DISABLED}} if name is not None else {}


def refused_words(config: EnvoyConfig) -> str:
    """What a client without a valid key or token is told."""
    if config.api_keys is not None:
        return f"Themis: a valid API key is needed, in the header {API_KEY_HEADER} or as Authorization: Bearer KEY"
    return "Themis: a valid JSON Web Token is needed, as Authorization: Bearer TOKEN"


def read_auth_filter(config: EnvoyConfig) -> Json | None:
    """The filter with what its files hold now; None where none is asked for. Blocking.

    EnvironmentCheckError, which never has a key in it, when a file cannot be used.
    """
    if config.api_keys is not None:
        keys = read_api_keys(config.api_keys)
        sources = [{"header": API_KEY_HEADER}, {"header": "authorization"}]
        credentials = [{"key": key, "client": client} for client, key in keys.items()]
        fields = {"credentials": credentials, "key_sources": sources, "forwarding": {"hide_credentials": True}}
        return {"name": API_KEYS, "typed_config": {"@type": f"{_TYPE}api_key_auth.v3.ApiKeyAuth", **fields}}
    if config.jwt is None:
        return None
    provider = {"issuer": config.jwt.issuer, "local_jwks": {"inline_string": read_jwks(config.jwt.jwks)}}
    if config.jwt.audiences:
        provider["audiences"] = list(config.jwt.audiences)
    rules = [{"match": {"prefix": "/"}, "requires": {"provider_name": "themis"}}]
    fields = {"providers": {"themis": provider}, "rules": rules}
    return {"name": JWT, "typed_config": {"@type": f"{_TYPE}jwt_authn.v3.JwtAuthentication", **fields}}


def read_api_keys(file: Path) -> dict[str, str]:
    """Keys by client. EnvironmentCheckError names the line, never the key."""
    _refuse_if_shared(file)
    keys: dict[str, str] = {}
    for number, line in enumerate(_text(file, "envoy.api_keys").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise EnvironmentCheckError(f"envoy.api_keys: {file}:{number}: there is no client and key: expected {LINE_WORDS}")
        if match["client"] in keys or match["key"] in keys.values():
            raise EnvironmentCheckError(f"envoy.api_keys: {file}:{number}: the client or its key is there twice. Fix: remove one")
        keys[match["client"]] = match["key"]
    if not keys:
        raise EnvironmentCheckError(f"envoy.api_keys: {file}: there are no keys, so no client would get in: expected {LINE_WORDS}")
    return keys


def read_jwks(file: Path) -> str:
    """The text of a JWKS file. EnvironmentCheckError when it is none."""
    text = _text(file, "envoy.jwt.jwks")
    try:
        keys = json.loads(text)["keys"]
        valid = isinstance(keys, list) and keys and all(isinstance(key, dict) and "kty" in key for key in keys)
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise EnvironmentCheckError(f'envoy.jwt.jwks: {file}: expected a JSON Web Key Set, {{"keys": [{{"kty": …}}, …]}}')
    return text


def _text(file: Path, key: str) -> str:
    try:
        with file.open("rb") as handle:
            return handle.read(_MAX_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise EnvironmentCheckError(f"{key}: {file} cannot be read ({error.strerror})") from error


def _refuse_if_shared(file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise EnvironmentCheckError(f"envoy.api_keys: {file} cannot be read ({error.strerror})") from error
    if mode & stat.S_IRWXO:
        words = f"any user of this machine can use it (mode {stat.S_IMODE(mode):04o}): expected 0600. Fix: chmod 600 {file}"
        raise EnvironmentCheckError(f"envoy.api_keys: {file}: {words}")
