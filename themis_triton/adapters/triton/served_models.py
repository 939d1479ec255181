"""What servers report of their models: configurations, and which models keep state between calls."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

from tritonclient.utils import InferenceServerException

from themis_triton.adapters.triton.client import TritonClients, is_silent, silence
from themis_triton.adapters.triton.groups import numbered_devices
from themis_triton.adapters.triton.model_config import Config, state_of
from themis_triton.adapters.triton.structure import Structure, stateful_models, structure_of
from themis_triton.core.fleet import ModelState, Server

_READS_AT_ONCE = 4
_READ_ANEW = 4
"""Configurations that each listing of stateful models reads again, those that were read the longest ago."""


class ServedModels:
    """Reads the models of servers, and remembers what their configurations say of state.

    Args:
        clients: connections, which the caller closes.
        timeout_s: bound on each call.
        callees: by model, those that it calls by itself inside the server, which no configuration says.
    """

    def __init__(self, clients: TritonClients, timeout_s: float, callees: Mapping[str, tuple[str, ...]]) -> None:
        self._clients = clients
        self._timeout_s = timeout_s
        self._callees = callees
        self._structures: defaultdict[str, dict[str, Structure]] = defaultdict(dict)  # in the order in which they were read
        self._just_read: dict[str, frozenset[str]] = {}

    async def states(self, server: Server, models: Sequence[str]) -> dict[str, ModelState]:
        """What the server runs now, per model that is READY there; a model that is not is absent. ServerError if unreachable."""
        configs = await self._configs(server, models)
        devices, structures = numbered_devices(server), self._structures[server.name]
        for model, config in zip(models, configs, strict=True):
            structures.pop(model, None)
            if config is not None:
                structures[model] = structure_of(config)
        self._just_read[server.name] = frozenset(models)
        return {model: state_of(config, None, devices) for model, config in zip(models, configs, strict=True) if config is not None}

    async def stateful(self, server: Server, models: Sequence[str]) -> tuple[str, ...]:
        """Those of the READY models that keep state between the calls of a sequence, and those that call such a model, in order.

        A model's configuration is read when it first appears, with `states`, and some of those that this has not just read anew
        at each call, because they may be loaded with another one. ServerError if unreachable.
        """
        known = {name: structure for name, structure in self._structures[server.name].items() if name in models}
        just_read = self._just_read.pop(server.name, frozenset())
        longest_ago = [name for name in known if name not in just_read][:_READ_ANEW]
        names = [*longest_ago, *(name for name in models if name not in known)]
        configs = await self._configs(server, names)
        known = {name: structure for name, structure in known.items() if name not in longest_ago}
        known |= {name: structure_of(config) for name, config in zip(names, configs, strict=True) if config is not None}
        self._structures[server.name] = known
        return stateful_models({name: each.calling(self._callees.get(name, ())) for name, each in known.items()})

    async def _configs(self, server: Server, models: Sequence[str]) -> list[Config | None]:
        """What the server reports of each model, a few at a time: hundreds of calls at once would hold up the tick."""
        limit = asyncio.Semaphore(_READS_AT_ONCE)

        async def read(model: str) -> Config | None:
            async with limit:
                return await self.config(server, model)

        return await asyncio.gather(*map(read, models))

    async def config(self, server: Server, model: str) -> Config | None:
        """What the server reports of a model that is READY; None when it is not."""
        client = self._clients.of(server.grpc_address)
        try:
            if not await client.is_model_ready(model, client_timeout=self._timeout_s):
                return None
            return (await client.get_model_config(model, client_timeout=self._timeout_s)).config
        except InferenceServerException as error:
            if is_silent(error):
                raise silence(server.name, server.grpc_address, error) from error
            return None  # It answered: the model went away between the two calls.

    def forget(self, server: Server) -> None:
        """Drop what is kept for a server that is gone."""
        self._structures.pop(server.name, None)
        self._just_read.pop(server.name, None)
