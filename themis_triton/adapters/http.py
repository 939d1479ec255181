"""GET requests over kept connections."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Mapping
from typing import Any, NoReturn, Self

import aiohttp

from themis_triton.adapters.address_tls import context_of
from themis_triton.core.address import Address

MAX_BYTES = 4 * 2**20
"""A larger answer is no metrics page and no statistics."""
MAX_AMOUNT = 2**63
"""Counters of 64 bits are no larger; a longer integer has no float."""


class HttpError(Exception):
    """No usable answer. `status` is that of an answer with an error; `refused`: nothing listens there."""

    def __init__(self, reason: str, *, status: int | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.refused = refused


class HttpClient:
    """A client for GET requests that ignores proxies of the environment. Use it from one event loop, and `close` it there.

    Args:
        timeout_s: bound on each request as a whole.
        max_bytes: bound on the body of an answer. Compressed answers are refused: their size is unknown.
        socket_path: a Unix socket to which all requests go, whatever the host of their URL.
        tls: authorities and own certificate of `https` URLs.
    """

    def __init__(
        self, timeout_s: float, max_bytes: int = MAX_BYTES, socket_path: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._socket_path = socket_path
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Nothing is opened before the first request."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def get_at(self, address: Address, path: str, *, keep: bool = True) -> bytes:
        """The body of the answer at a path of an address, with its TLS. Raises as `get` does, also for PEM files that cannot be used."""
        try:
            context = context_of(address)
        except OSError as error:
            raise HttpError(f"its PEM files cannot be used ({error.strerror or error})") from error
        tls: dict[str, Any] = {"ssl": context, "server_hostname": address.server_name} if context is not None else {}
        return await self._get(address.url(path), None, keep, tls)

    async def get(self, url: str, parameters: Mapping[str, str] | None = None, *, keep: bool = True) -> bytes:
        """The body of the answer.

        Args:
            url: without a query.
            parameters: the query.
            keep: whether the connection is kept for the next request.

        Raises:
            HttpError: no answer in time, one with a status of 400 or above, or one that is too large or compressed.
        """
        return await self._get(url, parameters, keep, {})

    async def _get(self, url: str, parameters: Mapping[str, str] | None, keep: bool, tls: Mapping[str, Any]) -> bytes:
        if self._session is None:
            connector = self._connector()
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            jar, uncompressed = aiohttp.DummyCookieJar(), {"Accept-Encoding": "identity"}
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=jar, headers=uncompressed
            )
        headers = None if keep else {"Connection": "close"}
        try:
            async with self._session.get(url, params=parameters, headers=headers, **tls) as response:
                if response.status >= 400:
                    raise HttpError(f"HTTP {response.status} {response.reason}", status=response.status)
                return await self._body(response)
        except TimeoutError as error:
            raise HttpError(f"no answer within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            refused = isinstance(error.os_error, (ConnectionRefusedError, FileNotFoundError))
            raise HttpError(str(error.os_error.strerror or error), refused=refused) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HttpError(str(error) or type(error).__name__) from error

    def _connector(self) -> aiohttp.BaseConnector | None:
        if self._socket_path is not None:
            return aiohttp.UnixConnector(self._socket_path)
        return aiohttp.TCPConnector(ssl=self._tls) if self._tls is not None else None

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise HttpError(f"the answer is compressed ({encoding[:20]}), which was not asked for")
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > self._max_bytes:
                raise HttpError(f"the answer has more than {self._max_bytes} bytes")
        return b"".join(parts)

    async def get_json(self, url: str, parameters: Mapping[str, str] | None = None, *, keep: bool = True) -> Any:  # noqa: ANN401 - JSON
        """The answer as JSON. HttpError when there is none, ValueError when it is not JSON, or has NaN or infinite numbers in it."""
        return parsed(await self.get(url, parameters, keep=keep))

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def parsed(body: bytes) -> Any:  # noqa: ANN401 - JSON
    """An answer's JSON. ValueError when it is none, or has NaN or infinite numbers in it."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the answer has the number {name}, which is not JSON")


def amount(value: object) -> float:
    """A number of an answer that counts something. ValueError when it is none, not finite, or negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < math.inf:
        raise ValueError(f"{str(value)[:40]!r} is not a finite number of at least 0")
    return float(min(value, MAX_AMOUNT))
