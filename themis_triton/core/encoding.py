"""Core values as JSON-ready values, and servers back from them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from themis_triton.core.address import Address
from themis_triton.core.decoding import decode
from themis_triton.core.fleet import Server


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


def remembered_servers(texts: Iterable[str]) -> tuple[Server, ...]:
    """The servers of JSON texts. A text of another version's form is left out: running servers are found by their mark too."""
    servers = []
    for text in texts:
        try:
            servers.append(decode(Server, json.loads(text)))
        except ValueError:
            continue
    return tuple(servers)
