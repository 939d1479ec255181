"""Envoy's admin address: the few questions that the other Envoy adapters ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError

_TIMEOUT_S = 5.0


class EnvoyAdmin:
    """Asks one Envoy at its admin address. Close it when done."""

    def __init__(self, address: Address) -> None:
        self.address = address
        # The admin address is local; an environment's HTTP proxy must not come between.
        self._http = httpx.AsyncClient(base_url=address.url(), timeout=_TIMEOUT_S, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def node_id(self) -> str | None:
        """The node id of the Envoy that answers; None when nothing listens. ServerError when it hangs or something else answers."""
        try:
            response = await self._http.get("/server_info")
        except httpx.ConnectError:
            return None
        except httpx.TransportError as error:
            raise self._silent("/server_info", error) from error
        try:
            return str(response.json()["node"].get("id", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"envoy.admin: what answers at {self.address} is not Envoy's admin; choose another address") from error

    async def is_ready(self) -> bool:
        """Whether Envoy has its listeners and clusters and accepts requests."""
        try:
            return (await self._http.get("/ready")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    async def stats(self, pattern: str, **options: str) -> list[dict[str, Any]]:
        """The statistics whose names match the regular expression, as Envoy's JSON has them. ServerError if it does not answer."""
        answer = await self._get("/stats", {"format": "json", "filter": pattern, **options})
        found: list[dict[str, Any]] = answer["stats"]
        return found

    async def config_errors(self) -> list[str]:
        """Why Envoy refused listeners, in its own words. ServerError if it does not answer."""
        answer = await self._get("/config_dump", {"resource": "dynamic_listeners"})
        states = [config["error_state"] for config in answer.get("configs", ()) if "error_state" in config]
        return [str(state.get("details", "")) for state in states]

    async def _get(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        try:
            response = await self._http.get(path, params=parameters)
            response.raise_for_status()
            answer: dict[str, Any] = json.loads(response.content)
        except (httpx.HTTPError, ValueError) as error:
            raise self._silent(path, error) from error
        return answer

    def _silent(self, path: str, error: Exception) -> ServerError:
        return ServerError(f"Envoy's admin address {self.address} did not answer {path}: {type(error).__name__} {error}")
