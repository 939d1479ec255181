"""Who may call the status API: changes need its token, and so do reads from other machines."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from themis_triton.adapters.token_file import make_token, read_token
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.daemon.page import PAGE_PATHS

READS = frozenset({"GET", "HEAD"})
OPEN_PATHS = frozenset({"/healthz", "/"})
"""Probes of an orchestrator send no token, and the answer tells nothing but liveness; the web page asks for the token itself."""
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Access:
    """The rule for each request.

    Every method but GET and HEAD needs `Authorization: Bearer TOKEN` and a JSON body, whatever the route, so that neither another user nor
    a page in a browser can change anything. There are no cookies.

    Args:
        token_file: the token, read at each use so that it can be replaced; None: nothing can be changed.
        open_reads: whether GET and HEAD need no token, provided that they name this machine by an IP address or as localhost: a web page
            whose name its owner points at 127.0.0.1 reads nothing through its visitor's browser.
    """

    token_file: Path | None = None
    open_reads: bool = True

    def middleware(self) -> Middleware:
        """The rule as a middleware of the whole application: a new route is covered without further code."""

        @web.middleware
        async def guard(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
            refused = self.refusal(request)
            return refused if refused is not None else await handler(request)

        return guard

    def refusal(self, request: web.Request) -> web.Response | None:
        """The answer to a request that is not allowed; None for one that is."""
        changes = request.method not in READS
        foreign = self.open_reads and not _is_local(request.headers.get("Host", ""))
        if not changes and (request.path in OPEN_PATHS or request.path.startswith(PAGE_PATHS) or (self.open_reads and not foreign)):
            return None
        authorization = request.headers.get("Authorization", "")
        if foreign and not changes and not authorization:
            words = "this name may be that of another site: expected an IP address or localhost as the Host, or the token"
            return answer_error(HTTPStatus.MISDIRECTED_REQUEST, words)
        refused = self._wrong_token(authorization)
        if refused is None and changes and request.content_type != "application/json":
            return answer_error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json")
        return refused

    def _wrong_token(self, header: str) -> web.Response | None:
        if self.token_file is None:
            return answer_error(HTTPStatus.FORBIDDEN, "this status API changes nothing")
        if not header.lower().startswith(_SCHEME):
            words = "a token is needed: expected Authorization: Bearer with the content of the sidecar's status.token_file"
            return answer_error(HTTPStatus.UNAUTHORIZED, words)
        try:
            token = read_token(self.token_file)
        except EnvironmentCheckError as error:
            return answer_error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        if not hmac.compare_digest(header[len(_SCHEME) :].strip().encode(errors="surrogateescape"), token.encode()):
            return answer_error(HTTPStatus.FORBIDDEN, "the token is not that of the sidecar's status.token_file")
        return None


def _is_local(host: str) -> bool:
    """Whether a Host header is an IP address or localhost, with or without a port, or empty, which no browser sends."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() in {"", "localhost"}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def prepare_access(config: ThemisConfig) -> Access:
    """The access of a sidecar's status API; makes the token unless the settings name its file.

    EnvironmentCheckError when there is no token that other users cannot read.
    """
    if config.status.token_file is None:
        make_token(config.token_file)
    try:
        read_token(config.token_file)
    except EnvironmentCheckError as error:
        raise EnvironmentCheckError(f"status.token_file: {error}") from error
    return Access(config.token_file, open_reads=config.status.address.is_loopback)


def answer_error(status: HTTPStatus, reason: str) -> web.Response:
    """An answer with the reason as JSON: `{"error": REASON}`."""
    headers = {"WWW-Authenticate": 'Bearer realm="themis"'} if status is HTTPStatus.UNAUTHORIZED else None
    return web.json_response({"error": reason}, status=status, headers=headers)
