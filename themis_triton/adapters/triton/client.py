"""gRPC clients of Triton servers, one a server, reused."""

from __future__ import annotations

import asyncio
from typing import Any

import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from themis_triton.adapters.pem_files import pem_version
from themis_triton.adapters.triton.tls import credentials, name_options
from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError

KEY_HEADER = "triton-grpc-protocol-key"
"""The header that a call on a restricted protocol must carry."""

# No proxy of the environment; reconnect within a second to a server that is back.
_CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
REPLACED_FOR_S = 900.0
"""For how long a client lives on after one with newer certificates took its place."""
_SILENT = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")
_RESTRICTED = "This protocol is restricted"
_NOT_EXPLICIT = "explicit model load / unload is not allowed"
_ANSWERS = (_RESTRICTED, _NOT_EXPLICIT, "Request for unknown model")


def new_client(address: Address) -> Any:  # noqa: ANN401 - tritonclient has no types
    """A client for one server; the caller closes it. Must be made inside a running event loop.

    Raises:
        ServerError: a PEM file of the address cannot be read.
    """
    options = [*_CHANNEL_OPTIONS, *name_options(address)]
    return tritonclient.grpc.aio.InferenceServerClient(address.authority, creds=credentials(address), channel_args=options)


class TritonClients:
    """Clients by address, created on first use, and anew when a PEM file of the address changed."""

    def __init__(self) -> None:
        self._clients: dict[Address, Any] = {}
        self._versions: dict[Address, str] = {}
        self._replaced: dict[Address, dict[asyncio.Task[None], Any]] = {}

    def of(self, address: Address) -> Any:  # noqa: ANN401 - tritonclient has no types
        """The client for a gRPC address. ServerError if a PEM file of it cannot be read."""
        version = pem_version(address)
        if self._versions.get(address) != version:
            client = new_client(address)
            if address in self._clients:
                self._close_later(address, self._clients[address])
            self._clients[address], self._versions[address] = client, version
        return self._clients[address]

    def _close_later(self, address: Address, client: Any) -> None:  # noqa: ANN401 - tritonclient has no types
        """It may have calls under way, of which a load is the longest."""

        async def close() -> None:
            await asyncio.sleep(REPLACED_FOR_S)
            await client.close()

        task = asyncio.create_task(close())
        replaced = self._replaced.setdefault(address, {})
        replaced[task] = client
        task.add_done_callback(lambda ended: replaced.pop(ended, None))

    async def forget(self, address: Address) -> None:
        """Close the clients of a server that is gone."""
        self._versions.pop(address, None)
        client = self._clients.pop(address, None)
        replaced = dict(self._replaced.pop(address, {}))
        for task in replaced:
            task.cancel()
        for each in (*replaced.values(), *((client,) if client is not None else ())):
            await each.close()

    async def close(self) -> None:
        """Close all."""
        for address in list(self._clients):
            await self.forget(address)


def is_restricted(error: InferenceServerException) -> bool:
    """Whether a call was refused because it lacked the model-control key."""
    return _RESTRICTED in str(error.message())


def is_not_explicit(error: InferenceServerException) -> bool:
    """Whether a load was refused because the server does not run with `--model-control-mode=explicit`."""
    return _NOT_EXPLICIT in str(error.message())


def is_silent(error: InferenceServerException) -> bool:
    """Whether the server did not answer at all: Triton itself uses UNAVAILABLE for a few of its answers."""
    return error.status() in _SILENT and not str(error.message()).startswith(_ANSWERS)


def silence(server: str, address: Address, error: InferenceServerException) -> ServerError:
    """The error for a server that did not answer."""
    return ServerError(
        f"server {server} at {address} did not answer ({error.message()}). Fix: check that it runs and that the address is right"
    )
