"""The GPUs that a running server uses, by its own metrics: for servers on machines whose driver cannot be asked from here."""

from __future__ import annotations

import re

_USED = re.compile(r'^nv_gpu_memory_used_bytes\{[^}]*\bgpu_uuid="([^"]+)"[^}]*\} (\S+)', re.MULTILINE)


def used_gpu_bytes(page: str) -> dict[str, int]:
    """Used bytes by the GPU's UUID, of a page of Triton's metrics; empty for a server without GPUs."""
    return {match[1]: int(float(match[2])) for match in _USED.finditer(page)}
