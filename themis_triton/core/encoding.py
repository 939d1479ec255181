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

_UNCHANGED = frozenset({str, int, bool, type(None)})


class _FieldNames(dict[type[Any], tuple[str, ...]]):
    """The fields of each type of dataclass that is encoded as an object; none for other types. Kept, because records have many values."""

    def __missing__(self, kind: type[Any]) -> tuple[str, ...]:
        names = tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) and kind is not Address else ()
        self[kind] = names
        return names


_field_names = _FieldNames()


def plain(value: object) -> Any:  # noqa: ANN401 - JSON has no narrower type
    """A core value as what `json.dumps` takes: dataclasses as objects, addresses as text, sets sorted, infinities and NaN as null."""
    if type(value) in _UNCHANGED:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    names = _field_names[type(value)]
    if names:
        return {name: plain(getattr(value, name)) for name in names}
    return _collection(value)


def _collection(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, (Address, Path)) else value


def json_text(value: object) -> str:
    """`plain` of a value as compact JSON, in a third of the time where no number is infinite or NaN."""
    try:
        return _compact.encode(value)
    except (TypeError, ValueError):  # a key or a number that JSON does not have
        return json.dumps(plain(value), separators=(",", ":"))


def shallow(value: object) -> dict[str, Any]:
    """The fields of a dataclass by name, as they are."""
    return {name: getattr(value, name) for name in _field_names[type(value)]}


def _encodable(value: object) -> object:
    """What JSON's own encoder takes instead of a value that it does not know."""
    if _field_names[type(value)]:
        return shallow(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (Address, Path)):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False, default=_encodable)


def parsed_json(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text from outside. ValueError when it is none, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def remembered_servers(texts: Iterable[str]) -> tuple[Server, ...]:
    """The servers of JSON texts. A text of another version's form is left out: running servers are found by their mark too."""
    servers = []
    for text in texts:
        try:
            servers.append(decode(Server, parsed_json(text)))
        except ValueError:
            continue
    return tuple(servers)
