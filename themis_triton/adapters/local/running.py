"""What a launched server shows to this machine: that it lives, and its memory."""

from __future__ import annotations

import asyncio

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.adapters.process_connections import has_clients
from themis_triton.adapters.process_end import group_members
from themis_triton.adapters.process_identity import resident_bytes, state_of
from themis_triton.adapters.triton.idle import POLL_S
from themis_triton.core.fleet import Server

_ENDS_WITHIN_S = 3.0
_DRIVER_TIMEOUT_S = 30.0


def is_alive(server: Server) -> bool:
    """Whether the very process that was launched still runs."""
    return server.process is not None and state_of(server.process) is not None


async def is_gone(server: Server) -> bool:
    """Whether it runs no more."""
    return not is_alive(server)


async def has_ended(server: Server) -> bool:
    """Whether its process is gone, or goes within seconds: one that crashed may still write its memory to a file."""
    for _ in range(round(_ENDS_WITHIN_S / POLL_S)):
        if not is_alive(server):
            return True
        await asyncio.sleep(POLL_S)
    return False


async def read_memory(server: Server) -> int:
    """Bytes that the server's processes hold on its devices; 0 where that is unknown."""
    if server.process is None:
        return 0
    members = await asyncio.to_thread(group_members, server.process)
    if not server.device.startswith("gpu:"):
        return sum(resident_bytes(member) for member in members)
    reader = DeviceReader(server.devices, SystemClock(), timeout_s=_DRIVER_TIMEOUT_S)
    try:
        readings = await reader.read_devices()
    finally:
        reader.close()
    own = sum(reading.process_memory_bytes.get(member.pid, 0) for reading in readings for member in members)
    used = [reading for reading in readings if server.runs_on(reading.device)]
    return own or sum((reading.memory_total_bytes or 0) - (reading.memory_free_bytes or 0) for reading in used)


async def has_open_connections(server: Server) -> bool:
    """Whether connections to the server's ports are open."""
    ports = (server.grpc_address.port, server.http_address.port)
    return server.process is not None and await asyncio.to_thread(has_clients, server.process, ports)
