"""API keys or JSON Web Tokens of clients: Envoy's own filters, ahead of everything that counts a request."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

from themis_triton.adapters.envoy.clusters import Json, file_source, typed
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import EnvironmentCheckError

API_KEYS, JWT = "envoy.filters.http.api_key_auth", "envoy.filters.http.jwt_authn"
API_KEY_HEADER = "x-api-key"
FILTER_FILES = {API_KEYS: "ecds/api_keys.json", JWT: "ecds/jwt.json"}
"""The file of each filter, relative to Envoy's directory: outside the listeners, as a changed listener would keep its old connections."""
_KINDS = {API_KEYS: "api_key_auth.v3.ApiKeyAuth", JWT: "jwt_authn.v3.JwtAuthentication"}
_HTTP = "envoy.extensions.filters.http."
_DISABLED = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
_LINE = re.compile(r"(?P<client>[A-Za-z0-9_.-]{1,64})\s+(?P<key>[A-Za-z0-9\-._~+/=]{16,512})")
LINE_WORDS = "one client a line: a name, a space, and a key of 16 to 512 letters, digits and -._~+/="
_MAX_BYTES = 2**20


def auth_name(config: EnvoyConfig) -> str | None:
    """The name of the filter that checks clients; None where none is asked for."""
    return API_KEYS if config.api_keys is not None else JWT if config.jwt is not None else None


def open_to_all(config: EnvoyConfig) -> Json:
    """What a route gets that needs no key: health and metadata, which Triton answers to every client."""
    name = auth_name(config)
    return {"typed_per_filter_config": {name: _DISABLED}} if name is not None else {}


def refused_words(config: EnvoyConfig) -> str:
    """What a client without a valid key or token is told."""
    if config.api_keys is not None:
        return f"Themis: a valid API key is needed, in the header {API_KEY_HEADER} or as Authorization: Bearer KEY"
    return "Themis: a valid JSON Web Token is needed, as Authorization: Bearer TOKEN"


def discovered_filter(config: EnvoyConfig) -> list[Json]:
    """The listeners' filter that checks clients, which Envoy reads from a file of its own; empty where none is asked for.

    A new file is in force for the next request of every connection. A listener waits for the file; without one that can be used it
    refuses all requests that need a key.
    """
    name = auth_name(config)
    if name is None:
        return []
    refuse_all = typed(f"{_HTTP}rbac.v3.RBAC", rules={"action": "ALLOW", "policies": {}})
    source = {
        "config_source": file_source(config.directory / FILTER_FILES[name]),
        "default_config": refuse_all,
        "apply_default_config_without_warming": False,
        "type_urls": [typed(f"{_HTTP}{_KINDS[name]}")["@type"], refuse_all["@type"]],
    }
    return [{"name": name, "config_discovery": source}]


def filter_resource(auth: Json) -> Json:
    """The filter as its file holds it."""
    return typed("envoy.config.core.v3.TypedExtensionConfig", **auth)


def read_auth_filter(config: EnvoyConfig) -> Json | None:
    """The filter with what its files hold now; None where none is asked for. Blocking.

    EnvironmentCheckError, which never has a key in it, when a file cannot be used.
    """
    if config.api_keys is not None:
        keys = read_api_keys(config.api_keys)
        sources = [{"header": API_KEY_HEADER}, {"header": "authorization"}]
        credentials = [{"key": key, "client": client} for client, key in keys.items()]
        return _filter(API_KEYS, credentials=credentials, key_sources=sources, forwarding={"hide_credentials": True})
    if config.jwt is None:
        return None
    provider = {"issuer": config.jwt.issuer, "local_jwks": {"inline_string": read_jwks(config.jwt.jwks)}}
    if config.jwt.audiences:
        provider["audiences"] = list(config.jwt.audiences)
    return _filter(JWT, providers={"themis": provider}, rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "themis"}}])


def _filter(name: str, **fields: object) -> Json:
    return {"name": name, "typed_config": typed(f"{_HTTP}{_KINDS[name]}", **fields)}


def read_api_keys(file: Path) -> dict[str, str]:
    """Keys by client. EnvironmentCheckError names the line, never the key."""
    _refuse_if_shared(file)
    keys: dict[str, str] = {}
    known: set[str] = set()
    for number, line in enumerate(_text(file, "envoy.api_keys").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise EnvironmentCheckError(f"envoy.api_keys: {file}:{number}: there is no client and key: expected {LINE_WORDS}")
        if match["client"] in keys or match["key"] in known:
            raise EnvironmentCheckError(f"envoy.api_keys: {file}:{number}: the client or its key is there twice. Fix: remove one")
        keys[match["client"]] = match["key"]
        known.add(match["key"])
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
            data = handle.read(_MAX_BYTES + 1)
    except OSError as error:
        raise EnvironmentCheckError(f"{key}: {file} cannot be read ({error.strerror})") from error
    if len(data) > _MAX_BYTES:
        raise EnvironmentCheckError(f"{key}: {file} is too large: expected at most {_MAX_BYTES} bytes (1 MiB). Fix: remove keys not in use")
    return data.decode("utf-8", errors="replace")


def _refuse_if_shared(file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise EnvironmentCheckError(f"envoy.api_keys: {file} cannot be read ({error.strerror})") from error
    if mode & stat.S_IRWXO:
        words = f"any user of this machine can use it (mode {stat.S_IMODE(mode):04o}): expected 0600. Fix: chmod 600 {file}"
        raise EnvironmentCheckError(f"envoy.api_keys: {file}: {words}")
