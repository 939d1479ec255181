"""Core values back from JSON-ready values, by the types of their fields."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from themis_triton.core.address import UNKNOWN_ADDRESS, Address

ValueT = TypeVar("ValueT")


def decode(kind: type[ValueT], data: object) -> ValueT:
    """The value of a dataclass that `encoding.plain` encoded. Unknown keys are ignored; a null number is NaN.

    Raises ValueError that names the field when the data is not such a value.
    """
    return typing.cast("ValueT", _decode(kind, data, kind.__name__))


def _decode(kind: Any, data: object, place: str) -> object:  # noqa: ANN401 - a type expression
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if data is None else _decode(inner[0], data, place)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _address(data, place) if kind is Address else _dataclass(kind, data, place)
    if origin is tuple:
        items, kinds = _expect(list, data, place), typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(items)
        elif len(items) != len(kinds):
            raise ValueError(f"{place}: {len(items)} items instead of {len(kinds)}")
        return tuple(_decode(inner, item, f"{place}[{i}]") for i, (inner, item) in enumerate(zip(kinds, items, strict=True)))
    if origin is dict:
        key, item = typing.get_args(kind)
        return {key(name): _decode(item, value, f"{place}.{name}") for name, value in _expect(dict, data, place).items()}
    return _scalar(kind, data, place)


def _dataclass(kind: type[Any], data: object, place: str) -> object:
    values: Mapping[str, Any] = _expect(dict, data, place)
    hints = field_types(kind)
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{place}.{missing[0]} is missing")
    return kind(**{name: _decode(hint, values[name], f"{place}.{name}") for name, hint in hints.items() if name in values})


def field_types(kind: type[Any]) -> dict[str, Any]:
    """The resolved types of a dataclass's fields by name."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _scalar(kind: Any, data: object, place: str) -> object:  # noqa: ANN401 - a type expression
    if kind is float:
        if data is None:
            return math.nan
        if isinstance(data, bool) or not isinstance(data, (int, float)):
            raise ValueError(f"{place}: {data!r} is not a number")
        return float(data)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(data)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return _expect(kind, data, place)


def _expect(kind: type[ValueT], data: object, place: str) -> ValueT:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise ValueError(f"{place}: {data!r:.60} is not a {kind.__name__}")
    return data


def _address(data: object, place: str) -> Address:
    text = _expect(str, data, place)
    return Address.parse(text) if text != str(UNKNOWN_ADDRESS) else UNKNOWN_ADDRESS
