"""The vertical actuator on a real Triton: instance counts and batching over model control (gRPC)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from tritonclient.utils import InferenceServerException

from themis_triton.adapters.triton.client import KEY_HEADER, TritonClients, is_not_explicit, is_restricted, is_silent, silence
from themis_triton.adapters.triton.groups import numbered_devices
from themis_triton.adapters.triton.model_config import Config, parse_config, read_config_text, state_of, to_json, with_state
from themis_triton.core.errors import ChangeRefusedError, ServerError
from themis_triton.core.fleet import ModelState, Server

log = structlog.get_logger()


class TritonModelControl:
    """Implements `ModelControl`.

    Overrides are made from the model's own `config.pbtxt`, so that a change of counts is in place from the first one on. Where that file
    cannot be read here they are made from what the server reports: where Triton had filled something in, the first change is then a full
    reload, and later ones are in place.

    Two things outside our reach also make a first change a reload: a file in the model's folder that changed since it was loaded (Python's
    own cache beside a `model.py` that had never run before, too), and batching that the file leaves for Triton to fill in.

    Changes of one model on one server are made one after the other. Use it from one event loop, and `close` it there.
    """

    def __init__(self, timeout_s: float = 120.0, read_timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._read_timeout_s = read_timeout_s
        self._clients = TritonClients()
        self._locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def read_models(self, server: Server, models: Sequence[str]) -> dict[str, ModelState]:
        """What the server runs now, per model that is READY there; a model that is not is absent. ServerError if unreachable."""
        configs = await asyncio.gather(*(self._served(server, model) for model in models))
        devices = numbered_devices(server)
        return {model: state_of(config, None, devices) for model, config in zip(models, configs, strict=True) if config is not None}

    async def list_ready(self, server: Server) -> tuple[str, ...] | None:
        """The names of all models with a version that is READY, by the repository index; None where the server refuses the call.

        ServerError if unreachable.
        """
        client = self._clients.of(server.grpc_address)
        try:
            index = await client.get_model_repository_index(headers=_key_headers(server), client_timeout=self._read_timeout_s)
        except InferenceServerException as error:
            if is_silent(error):
                raise silence(server.name, server.grpc_address, error) from error
            return None
        return tuple(sorted({model.name for model in index.models if model.state == "READY"}))

    async def change(self, server: Server, model: str, state: ModelState) -> ModelState:
        """Load the model with the given counts and batching; returns the state that the server reports afterwards.

        A count that the model's instance groups cannot give exactly is rounded down, see `model_config.with_state`. A model that has
        the state already is left alone. On a server that may use several devices a state without a spread means the home device.

        Raises:
            ChangeRefusedError: Triton refuses, with its reason; the old state serves on.
            ServerError: it does not answer in time, or it answers OK and runs something else.
            SettingsError: the model's `config.pbtxt` cannot be parsed.
        """
        async with self._locks[server.name, model]:
            return await self._changed(server, model, server.placed(state))

    async def _changed(self, server: Server, model: str, state: ModelState) -> ModelState:
        devices, served = numbered_devices(server), await self._served(server, model)
        before = state_of(served, None, devices) if served is not None else None
        if before == state:
            return before
        override = with_state(await self._base(server, model, served), state, served, devices)
        if before is not None and state_of(override, served, devices) == before:
            return before  # the nearest that its instance groups can give
        await self._load(server, model, override)
        if before is not None and before.joint:
            remedy = "it happens once. Fix: write one instance_group for each GPU in its config.pbtxt to avoid it"
            log.warning("instance_group_divided", server=server.name, model=model, started_anew=state.instances, remedy=remedy)
        return await self._verified(server, model, override)

    async def _base(self, server: Server, model: str, served: Config | None) -> Config:
        repository = Path(server.model_repository) if server.model_repository is not None else None
        own = await asyncio.to_thread(read_config_text, repository, model) if repository is not None else None
        if own is not None:
            return parse_config(*own)
        if served is None:
            raise ChangeRefusedError(
                f"server {server.name} does not serve model {model}, "
                f"and its config.pbtxt cannot be read here ({repository or 'no model_repository'}); "
                "load the model there, or name the server's model_repository"
            )
        return served

    async def _served(self, server: Server, model: str) -> Config | None:
        """What the server reports of a model that is READY; None when it is not."""
        client = self._clients.of(server.grpc_address)
        try:
            if not await client.is_model_ready(model, client_timeout=self._read_timeout_s):
                return None
            return (await client.get_model_config(model, client_timeout=self._read_timeout_s)).config
        except InferenceServerException as error:
            if is_silent(error):
                raise silence(server.name, server.grpc_address, error) from error
            return None  # It answered: the model went away between the two calls.

    async def _load(self, server: Server, model: str, override: Config) -> None:
        client = self._clients.of(server.grpc_address)
        try:
            await client.load_model(model, headers=_key_headers(server), config=to_json(override), client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise self._load_error(server, model, error) from error

    def _load_error(self, server: Server, model: str, error: InferenceServerException) -> ServerError:
        if is_silent(error):
            return silence(server.name, server.grpc_address, error)
        remedy = "; give the server's model_control_key" if is_restricted(error) else ""
        remedy = "; start the server with --model-control-mode=explicit" if is_not_explicit(error) else remedy
        log = f"; log {server.log_file}" if server.log_file else ""
        return ChangeRefusedError(f"server {server.name} refused to change model {model}: {error.message()}{remedy}{log}")

    async def _verified(self, server: Server, model: str, override: Config) -> ModelState:
        served: Any = await self._served(server, model)
        devices = numbered_devices(server)
        result = state_of(served, None, devices) if served is not None else None
        expected = state_of(override, served, devices)
        if result is None or result != expected:
            raise ServerError(
                f"server {server.name} answered OK to changing model {model} to {expected} and runs {result}. "
                "Fix: stop other clients that change it"
            )
        return result

    async def forget(self, server: Server) -> None:
        """Drop what is kept for a server that is gone."""
        await self._clients.forget(server.grpc_address)
        for key in [key for key in self._locks if key[0] == server.name]:
            del self._locks[key]

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()


def _key_headers(server: Server) -> dict[str, str] | None:
    return {KEY_HEADER: server.model_control_key} if server.model_control_key else None
