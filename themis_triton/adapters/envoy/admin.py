"""Envoy's admin address: the few queries that the other Envoy adapters make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError

_TIMEOUT_S = 5.0


class EnvoyAdmin:
    """Queries one Envoy at its admin address. Close it when done."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._http = HttpClient(_TIMEOUT_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def node_id(self) -> str | None:
        """The node id of the Envoy that answers; None when nothing listens. ServerError when it hangs or is not Envoy."""
        try:
            answer = await self._http.get_json(self.address.url("/server_info"))
            return str(answer["node"].get("id", ""))
        except HttpError as error:
            if error.refused:
                return None
            if error.status is None:
                raise self._silent("/server_info", error) from error
            raise self._not_envoy() from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._not_envoy() from error

    async def is_ready(self) -> bool:
        """Whether Envoy has its listeners and clusters and accepts requests."""
        try:
            await self._http.get(self.address.url("/ready"))
        except HttpError:
            return False
        return True

    async def stats(self, pattern: str, **options: str) -> list[dict[str, Any]]:
        """The statistics whose names match the regular expression, as Envoy's JSON has them. ServerError if it does not answer."""
        answer = await self._get("/stats", {"format": "json", "filter": pattern, **options})
        statistics: list[dict[str, Any]] = answer["stats"]
        return statistics

    async def config_errors(self) -> list[str]:
        """Why Envoy refused listeners, as it reports it. ServerError if it does not answer."""
        answer = await self._get("/config_dump", {"resource": "dynamic_listeners"})
        states = [config["error_state"] for config in answer.get("configs", ()) if "error_state" in config]
        return [str(state.get("details", "")) for state in states]

    async def _get(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await self._http.get_json(self.address.url(path), parameters)
        except (HttpError, ValueError) as error:
            raise self._silent(path, error) from error
        return answer

    def _silent(self, path: str, error: Exception) -> ServerError:
        return ServerError(f"Envoy's admin address {self.address} did not answer {path}: {error}")

    def _not_envoy(self) -> ServerError:
        return ServerError(f"envoy.admin: {self.address} is not an Envoy admin address. Fix: choose another address")
