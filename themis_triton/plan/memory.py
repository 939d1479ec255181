"""The memory of servers' devices that steps must fit into: the settings' limits, and what one instance takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.core.observation import Snapshot


@dataclass(frozen=True, slots=True)
class Memory:
    """`limit_bytes` of the instances on a server's device, without an entry where there is none, and what one instance of a model takes.

    The device is as in `ModelState.by_device`.
    """

    limit_bytes: Mapping[tuple[str, str], int]
    instance_bytes: Mapping[str, int]


def memory_limit_bytes(server: Server, device: str, config: ThemisConfig) -> int | None:
    """The memory that the settings give to a slot: the server's own, on another device the smallest one there; None without a limit.

    NVML alone limits a device without a slot.
    """
    slots = config.launch.slots if config.launch is not None else ()
    if device in ("", server.device):
        return next((slot.memory_bytes for slot in slots if slot.name == server.slot), None)
    return min((slot.memory_bytes for slot in slots if slot.device == device and slot.memory_bytes is not None), default=None)


def limits_now(snapshot: Snapshot, config: ThemisConfig) -> Memory | None:
    """The limits of the settings, less what instances hold that are being removed; None where no slot has one.

    What NVML shows free limits the target already.
    """
    if config.launch is None or all(slot.memory_bytes is None for slot in config.launch.slots):
        return None
    devices = [(server, device) for server in snapshot.servers for device in (server.devices if server.reach else ("",))]
    limits = {(server.name, device): memory_limit_bytes(server, device, config) for server, device in devices}
    known = {key: limit for key, limit in limits.items() if limit is not None}
    sizes = {name: model.profile.instance_memory_bytes for name, model in config.models.items()}
    for call in snapshot.open_calls:
        for device, count in call.before.added(call.after).items():
            if (call.server, device) in known:
                known[call.server, device] -= count * sizes[call.model]
    return Memory(known, sizes) if known else None
