"""One request to a status endpoint, with the standard library: the client commands must start in a fraction of a second."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass

from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError

MAX_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StatusResponse:
    """The HTTP status code and the body of an answer."""

    code: int
    body: bytes


def get(address: Address, path: str, timeout_s: float = 5.0, token: str | None = None) -> StatusResponse:
    """The answer to a GET of the path. Proxies of the environment are not used. ServerError when nothing answers in time."""
    return _ask(address, "GET", path, timeout_s, token, None)


def post(address: Address, path: str, token: str, body: Mapping[str, object] | None = None, timeout_s: float = 5.0) -> StatusResponse:
    """The answer to a POST of a JSON object, with the token of the status API. ServerError as `get`."""
    return _ask(address, "POST", path, timeout_s, token, json.dumps(body or {}))


def _ask(address: Address, method: str, path: str, timeout_s: float, token: str | None, body: str | None) -> StatusResponse:
    kind = http.client.HTTPSConnection if address.tls else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=timeout_s)
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token is not None else {})
    try:
        connection.request(method, path, body, headers | ({"Content-Type": "application/json"} if body is not None else {}))
        response = connection.getresponse()
        return StatusResponse(response.status, response.read(MAX_BODY_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"no response from {address}: {getattr(error, 'strerror', None) or error or type(error).__name__}") from error
    finally:
        connection.close()
