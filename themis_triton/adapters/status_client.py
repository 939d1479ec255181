"""One request to a status endpoint, with the standard library: the client commands must start in a fraction of a second."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError

if TYPE_CHECKING:
    import ssl

MAX_BODY_BYTES = 64 * 2**20
_WITHOUT_CERTIFICATE = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
"""How TLS 1.3 and 1.2 refuse a client that has shown no certificate."""


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
    if address.certificate is not None:
        _show(context, address.certificate)
    return http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=context)


def _show(context: ssl.SSLContext, file: str) -> None:
    """Have clients of the context show the certificate of the file. ServerError where it is none with its key."""
    try:
        context.load_cert_chain(file, password=lambda: b"")  # Without a password it would be asked for on the terminal.
    except OSError as error:
        expected = "a PEM file with a client certificate and its key, not encrypted"
        raise ServerError(f"--client-certificate: {file} cannot be used ({error.strerror}): expected {expected}") from error


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
        raise ServerError(_no_response(address, error)) from error
    finally:
        connection.close()


def _no_response(address: Address, error: Exception) -> str:
    words = f"no response from {address}: {getattr(error, 'strerror', None) or error or type(error).__name__}"
    closed = isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError)
    needs_one = address.tls and address.certificate is None and (closed or getattr(error, "reason", "") in _WITHOUT_CERTIFICATE)
    return words + (". Fix: give --client-certificate FILE, if its status.tls.client_ca asks for one" if needs_one else "")
