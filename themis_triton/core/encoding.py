"""Core values as JSON-ready values, and servers back from them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.fleet import ModelState, Phase, ProcessId, Server


def plain(value: object) -> Any:  # noqa: ANN401 - JSON has no narrower type
    """A core value as what `json.dumps` takes: dataclasses as objects, addresses as text, sets sorted, infinities and NaN as null."""
    if isinstance(value, Address):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return _scalar(value)


def _scalar(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def server_from_plain(data: Mapping[str, Any]) -> Server:
    """The server that `plain` encoded. KeyError, TypeError or ValueError when it is not one."""
    process = data["process"]
    return Server(
        **{
            **data,
            **{key: _address(data[key]) for key in ("grpc_address", "http_address", "metrics_address")},
            "phase": Phase(data["phase"]),
            "process": ProcessId(**process) if process is not None else None,
            "models": {name: ModelState(**state) for name, state in data["models"].items()},
        }
    )


def _address(text: str) -> Address:
    return Address.parse(text) if text != str(UNKNOWN_ADDRESS) else UNKNOWN_ADDRESS


def remembered_servers(texts: Iterable[str]) -> tuple[Server, ...]:
    """The servers of JSON texts. A text of another version's form is left out: running servers are found by their mark too."""
    servers = []
    for text in texts:
        try:
            servers.append(server_from_plain(json.loads(text)))
        except (KeyError, TypeError, ValueError):
            continue
    return tuple(servers)
