"""Envoy's admin address: the few queries that the other Envoy adapters make, and the folder of its socket."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from themis_triton.adapters.envoy.render import BOOTSTRAP
from themis_triton.adapters.http import MAX_BYTES, HttpClient, HttpError
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError

_TIMEOUT_S = 5.0


class EnvoyAdmin:
    """Queries the Envoy of a configuration. Close it when done.

    `version`: what it called itself when `node_id` was asked. `address`: where it answered last. An Envoy that was started with another
    admin address is asked at that one, which its bootstrap names. `tls`: with which an address with TLS is called.
    """

    def __init__(self, config: EnvoyConfig, max_bytes: int = MAX_BYTES, tls: ssl.SSLContext | None = None) -> None:
        self.address = config.admin_address
        self.version = ""
        self._configured = config.admin_address
        self._bootstrap = config.directory / BOOTSTRAP
        self._max_bytes = max_bytes
        self._tls = tls
        self._clients: dict[Address, HttpClient] = {}

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def node_id(self) -> str | None:
        """The node id of the Envoy that answers; None when nothing listens. ServerError when it hangs or is not Envoy."""
        try:
            answer = await self._get_json("/server_info")
            self.version = str(answer.get("version", ""))
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
            await self._client(self.address).get(self.address.url("/ready"))
        except HttpError:
            return False
        return True

    async def stats(self, pattern: str, **options: str) -> list[dict[str, Any]]:
        """The statistics whose names match the regular expression, as Envoy's JSON has them. ServerError if it does not answer them."""
        answer = await self._get("/stats", {"format": "json", "filter": pattern, **options})
        statistics = answer.get("stats")
        if not isinstance(statistics, list) or not all(isinstance(entry, dict) for entry in statistics):
            raise self._silent("/stats", ValueError("the answer has no statistics"))
        return statistics

    async def endpoints(self) -> list[tuple[str, tuple[str, int]]]:
        """Each cluster and address to which Envoy may send requests. ServerError if it does not answer them."""
        answer = await self._get("/clusters", {"format": "json"})
        try:
            return [
                (str(cluster["name"]), (str(address["address"]), int(address["port_value"])))
                for cluster in answer.get("cluster_statuses", ())
                for host in cluster.get("host_statuses", ())
                for address in (host["address"]["socket_address"],)
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._silent("/clusters", error) from error

    async def listeners(self) -> frozenset[Address] | None:
        """The addresses that Envoy listens on; None when no Envoy answers there."""
        try:
            answer = await self._get_json("/listeners", {"format": "json"})
            sockets = [status["local_address"]["socket_address"] for status in answer.get("listener_statuses", [])]
            return frozenset(Address(socket["address"], int(socket["port_value"])) for socket in sockets)
        except (HttpError, ValueError, KeyError, AttributeError):
            return None

    async def config_errors(self) -> list[str]:
        """Why Envoy refused listeners, as it reports it. ServerError if it does not answer."""
        answer = await self._get("/config_dump", {"resource": "dynamic_listeners"})
        states = [config["error_state"] for config in answer.get("configs", ()) if "error_state" in config]
        return [str(state.get("details", "")) for state in states]

    def _client(self, address: Address) -> HttpClient:
        if address not in self._clients:
            self._clients[address] = HttpClient(_TIMEOUT_S, self._max_bytes, address.socket_path, self._tls)
        return self._clients[address]

    async def _get_json(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - JSON
        try:
            return await self._client(self.address).get_json(self.address.url(path), parameters)
        except HttpError as error:
            if not error.refused:
                raise
            for other in await asyncio.to_thread(self._others):
                try:
                    answer = await self._client(other).get_json(other.url(path), parameters)
                except HttpError as failure:
                    if not failure.refused:
                        raise
                else:
                    self.address = other
                    return answer
            raise

    def _others(self) -> list[Address]:
        """Where else this Envoy may answer."""
        candidates = dict.fromkeys([self._configured, *_address_in(self._bootstrap)])
        return [address for address in candidates if address != self.address]

    async def _get(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        try:
            answer = await self._get_json(path, parameters)
        except (HttpError, ValueError) as error:
            raise self._silent(path, error) from error
        if not isinstance(answer, dict):
            raise self._silent(path, ValueError("the answer is no JSON object"))
        return answer

    def _silent(self, path: str, error: Exception) -> ServerError:
        return ServerError(f"Envoy's admin address {self.address} did not answer {path}: {error}")

    def _not_envoy(self) -> ServerError:
        return ServerError(f"envoy.admin: {self.address} is not an Envoy admin address. Fix: choose another address")


def _address_in(bootstrap: Path) -> list[Address]:
    """The admin address that a bootstrap names; none where it cannot be read."""
    try:
        address = json.loads(bootstrap.read_bytes())["admin"]["address"]
        if "pipe" in address:
            return [Address(str(address["pipe"]["path"]), 0)]
        return [Address(str(address["socket_address"]["address"]), int(address["socket_address"]["port_value"]))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def make_socket_folder(address: Address) -> None:
    """Make the folder of an admin socket, which only this user can open. EnvironmentCheckError when another user has it. Blocking."""
    if address.socket_path is None:
        return
    folder = Path(address.socket_path).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise EnvironmentCheckError(
            f"envoy.admin: {folder}, the folder of the admin socket, is not a folder of this user. "
            "Fix: remove it, or set a shorter `state_directory` or another `envoy.directory`"
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)
