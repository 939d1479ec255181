"""GET requests over kept connections."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

import aiohttp


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
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Nothing is opened before the first request."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def get(self, url: str, parameters: Mapping[str, str] | None = None, *, keep: bool = True) -> bytes:
        """The body of the answer.

        Args:
            url: without a query.
            parameters: the query.
            keep: whether the connection is kept for the next request.

        Raises:
            HttpError: no answer in time, or one with a status of 400 or above.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        headers = {} if keep else {"Connection": "close"}
        try:
            async with self._session.get(url, params=parameters, headers=headers) as response:
                if response.status >= 400:
                    raise HttpError(f"HTTP {response.status} {response.reason}", status=response.status)
                return await response.read()
        except TimeoutError as error:
            raise HttpError(f"no answer within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise HttpError(str(error.os_error.strerror or error), refused=isinstance(error.os_error, ConnectionRefusedError)) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HttpError(str(error) or type(error).__name__) from error

    async def get_json(self, url: str, parameters: Mapping[str, str] | None = None, *, keep: bool = True) -> Any:  # noqa: ANN401 - JSON
        """The answer as JSON. HttpError when there is none, ValueError when it is not JSON."""
        return json.loads(await self.get(url, parameters, keep=keep))

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
