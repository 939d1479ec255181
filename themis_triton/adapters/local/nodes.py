"""This machine as the one node of servers that are launched here."""

from __future__ import annotations

import socket

import psutil

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.nvml import DeviceReader
from themis_triton.core.config import LocalLaunchConfig
from themis_triton.core.nodes import Node

_TIMEOUT_S = 10.0


async def read_nodes(launch: LocalLaunchConfig) -> tuple[Node, ...]:
    """This machine, with those devices of the slots that it has."""
    reader = DeviceReader((slot.device for slot in launch.slots), SystemClock(), timeout_s=_TIMEOUT_S)
    try:
        readings = await reader.read_devices()
    finally:
        reader.close()
    there = {reading.device for reading in readings if reading.error is None}
    types = dict.fromkeys(slot.node_type for slot in launch.slots if slot.node_type is not None and slot.device in there)
    missing = [reading.device for reading in readings if reading.error is not None]
    return (
        Node(
            socket.gethostname(),
            f"without {', '.join(missing)}" if missing else "here",
            usable=bool(there),
            devices=dict.fromkeys((slot.device for slot in launch.slots if slot.device in there), 1.0),
            memory_bytes=psutil.virtual_memory().total,
            node_types=tuple(types),
        ),
    )
