"""The servers that a simulated run of recorded arrivals begins with."""

from __future__ import annotations

from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import Models, Phase
from themis_triton.core.observation import Snapshot

SERVING = frozenset({Phase.SERVING, Phase.UNREACHABLE})


def first_servers(snapshot: Snapshot, config: ThemisConfig) -> tuple[Models, ...]:
    """The models of the servers that a simulated run begins with: the adopted ones, or those that were launched where there are none."""
    serving = {server.name: server.models for server in snapshot.servers if server.phase in SERVING}
    if config.servers:
        return tuple(serving.get(server.name, {}) for server in config.servers)
    return tuple(serving.values())[: len(config.launch.slots) if config.launch is not None else 0]
