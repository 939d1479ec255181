"""The vertical actuator on a real Triton: instance counts and batching over model control (gRPC)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from tritonclient.utils import InferenceServerException

from themis_triton.adapters.processor_wait import ProcessorWait
from themis_triton.adapters.triton.client import KEY_HEADER, TritonClients, is_not_explicit, is_restricted, is_silent, silence
from themis_triton.adapters.triton.config_files import model_folder
from themis_triton.adapters.triton.groups import numbered_devices
from themis_triton.adapters.triton.model_base import base_of, differing_fields
from themis_triton.adapters.triton.model_config import Config, parse_config, read_config_text, state_of, to_json, with_state
from themis_triton.adapters.triton.sequences import check_in_place
from themis_triton.adapters.triton.served_models import ServedModels
from themis_triton.adapters.triton.structure import structure_of
from themis_triton.core.errors import ChangeRefusedError, ServerError
from themis_triton.core.fleet import ModelState, Server

log = structlog.get_logger()
_HEALTH_TIMEOUT_S = 1.0
_NO_MODEL = "themis/no-such-model"
"""Unloading it changes nothing; a server without explicit model control refuses even that."""


class TritonModelControl:
    """Implements `ModelControl`.

    Overrides are made from the model's own `config.pbtxt`, so that a change of counts is in place from the first one on. Where that file
    cannot be read here they are made from what the server reports: where Triton had filled something in, the first change is then a full
    reload, and later ones are in place. So it is where the server runs other values than the file has (`model_base.differing_fields`).

    Two things outside our reach also make a first change a reload: a file in the model's folder that changed since it was loaded (Python's
    own cache beside a `model.py` that had never run before, too), and batching that the file leaves for Triton to fill in.

    Changes of one model on one server are made one after the other. Use it from one event loop, and `close` it there.

    A load call has no time limit: under a standing backlog it returns only once the model's queue was empty, and a second call would
    wait behind it and hold another of the server's load threads. Every `answer_timeout_s` the server is asked whether it lives.

    `callees`: by model, those that it calls by itself inside the server, which no configuration says.
    """

    def __init__(
        self, answer_timeout_s: float = 60.0, read_timeout_s: float = 5.0, callees: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self._answer_timeout_s = answer_timeout_s
        self._read_timeout_s = read_timeout_s
        self._clients = TritonClients()
        self._models = ServedModels(self._clients, read_timeout_s, callees or {})
        self._locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._differing: dict[tuple[str, str], list[str]] = {}

    async def read_models(self, server: Server, models: Sequence[str]) -> dict[str, ModelState]:
        """As `ServedModels.states`."""
        return await self._models.states(server, models)

    async def read_refusal(self, server: Server) -> str | None:
        """Why the server refuses all changes of its models, with the remedy; None where it takes them. ServerError if unreachable."""
        client = self._clients.of(server.grpc_address)
        try:
            await client.unload_model(_NO_MODEL, headers=_key_headers(server), client_timeout=self._read_timeout_s)
        except InferenceServerException as error:
            if is_not_explicit(error):
                fix = "start it with --model-control-mode=explicit --load-model=*"
                return f"server {server.name} runs without explicit model control. Fix: {fix}"
            if is_restricted(error):
                return f"server {server.name} asks for a key of model control. Fix: set servers.{server.name}.model_control_key"
            if is_silent(error):
                raise silence(server.name, server.grpc_address, error) from error
        return None

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

    async def list_stateful(self, server: Server, models: Sequence[str]) -> tuple[str, ...]:
        """As `ServedModels.stateful`."""
        return await self._models.stateful(server, models)

    async def answers(self, server: Server) -> bool:
        """Whether the server answers a health check over gRPC within a second; any answer counts, a refusal too.

        Silence counts as an answer where the process of this machine waited for a processor for most of that time: it is slow, not hung.
        """
        wait = ProcessorWait(server.process)
        try:
            await self._check_alive(server, _HEALTH_TIMEOUT_S)
        except ServerError:
            return wait.since_last_s() > _HEALTH_TIMEOUT_S / 2.0
        return True

    async def change(self, server: Server, model: str, state: ModelState) -> ModelState:
        """Load the model with the given counts and batching; returns the state that the server reports afterwards.

        A count that the model's instance groups cannot give exactly is rounded down, see `model_config.with_state`. A model that has
        the state already is left alone. On a server that may use several devices a state without a spread means the home device.

        Raises:
            ChangeRefusedError: Triton refuses, with its reason, or the change might cut open sequences; the old state serves on.
            ServerError: it no longer answers at all, or it answers OK and runs something else.
            SettingsError: the model's `config.pbtxt` cannot be parsed.
        """
        async with self._locks[server.name, model]:
            return await self._changed(server, model, server.placed(state))

    async def reload(self, server: Server, model: str, state: ModelState) -> ModelState:
        """Unload the model if it is there, and load it with the given counts and batching; returns the state that the server reports.

        Where neither its `config.pbtxt` nor its configuration in the server can be read, it is loaded as the server's repository has it.

        Raises:
            ChangeRefusedError: Triton refuses, with its reason.
            ServerError: it no longer answers at all, or it answers OK and runs something else.
            SettingsError: the model's `config.pbtxt` cannot be parsed.
        """
        async with self._locks[server.name, model]:
            served = await self._models.config(server, model)
            if served is not None:
                await self._unload(server, model)
            devices = numbered_devices(server)
            try:
                base = await self._base(server, model, served)
            except ChangeRefusedError:
                await self._load(server, model, None)
                return await self._verified(server, model, None)
            override = with_state(base, server.placed(state), served, devices)
            await self._load(server, model, override)
            return await self._verified(server, model, override)

    async def load(self, server: Server, model: str) -> None:
        """Load a model as the server's repository has it; a loaded one, and the loaded members of an ensemble, stay as they are.

        Raises:
            ChangeRefusedError: Triton refuses, with its reason.
            ServerError: it no longer answers at all, or it answers OK and the model is not READY.
        """
        async with self._locks[server.name, model]:
            await self._load(server, model, None)
            await self._verified(server, model, None)

    async def _unload(self, server: Server, model: str) -> None:
        client = self._clients.of(server.grpc_address)
        try:
            await client.unload_model(model, headers=_key_headers(server), client_timeout=self._read_timeout_s)
        except InferenceServerException as error:
            raise self._load_error(server, model, error) from error

    async def _changed(self, server: Server, model: str, state: ModelState) -> ModelState:
        devices, served = numbered_devices(server), await self._models.config(server, model)
        before = state_of(served, None, devices) if served is not None else None
        if before == state:
            return before
        override = with_state(await self._base(server, model, served), state, served, devices)
        if before is not None and state_of(override, served, devices) == before:
            return before  # the nearest that its instance groups can give
        if structure_of(override).stateful:
            await asyncio.to_thread(check_in_place, server, model, self._differing.get((server.name, model), ()))
        await self._load(server, model, override)
        if before is not None and before.joint:
            remedy = "it happens once. Fix: write one instance_group for each GPU in its config.pbtxt to avoid it"
            log.warning("instance_group_divided", server=server.name, model=model, started_anew=state.instances, remedy=remedy)
        return await self._verified(server, model, override)

    async def _base(self, server: Server, model: str, served: Config | None) -> Config:
        folder = await asyncio.to_thread(model_folder, server, model)
        name = server.model_config_name
        own = await asyncio.to_thread(read_config_text, folder.parent, model, name) if folder is not None else None
        config = parse_config(*own) if own is not None else None
        # On several devices an override starts from the server's groups in any case.
        grouped = not numbered_devices(server)
        fields = differing_fields(config, served) if config is not None and served is not None else []
        differing = [field for field in fields if grouped or field != "instance_group"]
        if self._differing.get((server.name, model), []) != differing:
            self._differing[server.name, model] = differing
            self._report_differing(server, model, differing)
        if served is None and config is None:
            raise ChangeRefusedError(
                f"server {server.name} does not serve model {model}, "
                f"and its config.pbtxt cannot be read here ({folder.parent if folder is not None else 'no model_repository'}); "
                "load the model there, or name the server's model_repository"
            )
        if served is None or config is None:
            return config if served is None else served
        return base_of(config, served, differing) if grouped or differing else config

    @staticmethod
    def _report_differing(server: Server, model: str, fields: list[str]) -> None:
        if fields:
            price = "" if fields == ["instance_group"] else ", and its next change is a reload"
            remedy = f"its values are kept{price}. Fix: write them into its config.pbtxt"
            log.warning("model_config_differs_from_file", server=server.name, model=model, fields=fields, remedy=remedy)

    async def _load(self, server: Server, model: str, override: Config | None) -> None:
        client = self._clients.of(server.grpc_address)
        config = to_json(override) if override is not None else None
        call = asyncio.ensure_future(client.load_model(model, headers=_key_headers(server), config=config))
        try:
            while not (await asyncio.wait((call,), timeout=self._answer_timeout_s))[0]:
                await self._check_alive(server, self._answer_timeout_s)
            await call
        except InferenceServerException as error:
            raise self._load_error(server, model, error) from error
        finally:
            call.cancel()

    async def _check_alive(self, server: Server, timeout_s: float) -> None:
        """ServerError if the server does not answer; any answer will do, a refusal too."""
        try:
            await self._clients.of(server.grpc_address).is_server_live(client_timeout=timeout_s)
        except InferenceServerException as error:
            if is_silent(error):
                raise silence(server.name, server.grpc_address, error) from error

    def _load_error(self, server: Server, model: str, error: InferenceServerException) -> ServerError:
        if is_silent(error):
            return silence(server.name, server.grpc_address, error)
        remedy = "; give the server's model_control_key" if is_restricted(error) else ""
        remedy = "; start the server with --model-control-mode=explicit" if is_not_explicit(error) else remedy
        log = f"; log {server.log_file}" if server.log_file else ""
        return ChangeRefusedError(f"server {server.name} refused to change model {model}: {error.message()}{remedy}{log}")

    async def _verified(self, server: Server, model: str, override: Config | None) -> ModelState:
        """What the server runs after a load; without an override, whatever its repository has."""
        served: Any = await self._models.config(server, model)
        devices = numbered_devices(server)
        result = state_of(served, None, devices) if served is not None else None
        expected = state_of(override, served, devices) if override is not None else result
        if result is None or result != expected:
            raise ServerError(
                f"server {server.name} answered OK to changing model {model} to {expected} and runs {result}. "
                "Fix: stop other clients that change it"
            )
        return result

    async def forget(self, server: Server) -> None:
        """Drop what is kept for a server that is gone."""
        await self._clients.forget(server.grpc_address)
        self._models.forget(server)
        for key in [key for key in self._locks if key[0] == server.name]:
            del self._locks[key]
            self._differing.pop(key, None)

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()


def _key_headers(server: Server) -> dict[str, str] | None:
    return {KEY_HEADER: server.model_control_key} if server.model_control_key else None
