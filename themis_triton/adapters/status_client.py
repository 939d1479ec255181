"""One request to a status endpoint, with the standard library: the client commands must start in a fraction of a second."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError

MAX_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StatusResponse:
    """The HTTP status code and the body of an answer."""

    code: int
    body: bytes


def _connection(address: Address, timeout_s: float) -> http.client.HTTPConnection:
    """A connection. With TLS the server must have the first certificate of `ca`; with a `server_name` one of that name that `ca` signed."""
    if not address.tls:
        return http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    import ssl  # noqa: PLC0415 - takes a third of the commands' start

    if address.server_name is not None:
        context = ssl.create_default_context(cafile=address.ca)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=_first_certificate(address.ca or ""))
    return http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=context)


def _first_certificate(file: str) -> str:
    """ServerError where there is none."""
    end = "-----END CERTIFICATE-----"
    try:
        first, found, _ = Path(file).read_text(encoding="ascii", errors="replace").partition(end)
    except OSError as error:
        raise ServerError(f"status.tls.certificate: {file} cannot be read ({error.strerror})") from error
    if not found:
        raise ServerError(f"status.tls.certificate: {file} has no certificate in PEM form")
    return first + end


def get(address: Address, path: str, timeout_s: float = 5.0, token: str | None = None) -> StatusResponse:
    """The answer to a GET of the path. Proxies of the environment are not used. ServerError when nothing answers in time."""
    return _ask(address, "GET", path, timeout_s, token, None)


def post(address: Address, path: str, token: str, body: Mapping[str, object] | None = None, timeout_s: float = 5.0) -> StatusResponse:
    """The answer to a POST of a JSON object, with the token of the status API. ServerError as `get`."""
    return _ask(address, "POST", path, timeout_s, token, json.dumps(body or {}))


def _ask(address: Address, method: str, path: str, timeout_s: float, token: str | None, body: str | None) -> StatusResponse:
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token is not None else {})
    try:
        connection = _connection(address, timeout_s)
    except (OSError, ValueError) as error:
        raise ServerError(f"{address.ca} cannot be used for TLS: {error}") from error
    try:
        connection.request(method, path, body, headers | ({"Content-Type": "application/json"} if body is not None else {}))
        response = connection.getresponse()
        return StatusResponse(response.status, response.read(MAX_BODY_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"no response from {address}: {getattr(error, 'strerror', None) or error or type(error).__name__}") from error
    finally:
        connection.close()
