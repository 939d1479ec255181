"""The GPUs that a running server uses, by its own metrics: for servers on machines whose driver cannot be asked from here."""

from __future__ import annotations

import re

from themis_triton.core.observation import DeviceReading

_MEMORY = re.compile(r'^nv_gpu_memory_(used|total)_bytes\{[^}]*\bgpu_uuid="([^"]+)"[^}]*\} (\S+)', re.MULTILINE)


def gpu_readings(page: str, at_s: float) -> tuple[DeviceReading, ...]:
    """A reading of each GPU that a page of Triton's metrics has, named by its UUID; none for a server without GPUs.

    ValueError when an amount is no number.
    """
    amounts: dict[str, dict[str, int]] = {}
    for match in _MEMORY.finditer(page):
        amounts.setdefault(match[2], {})[match[1]] = int(float(match[3]))
    known = {uuid: each for uuid, each in amounts.items() if len(each) == 2}
    return tuple(DeviceReading(f"gpu:{uuid}", at_s, each["total"], each["total"] - each["used"]) for uuid, each in known.items())
