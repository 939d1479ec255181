"""JSON Schemas of core values, from the types of their fields."""

from __future__ import annotations

import json
import types
import typing
from enum import Enum
from typing import Any

from themis_triton.core.address import Address
from themis_triton.core.decoding import field_types
from themis_triton.core.status import Status

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: dict[type, Any] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"], "description": "null: not finite"},
    str: {"type": "string"},
    Address: {"type": "string", "description": "host:port"},
}


def status_schema_text() -> str:
    """The JSON Schema (draft 2020-12) of `/v1/status`, indented."""
    definitions: dict[str, Any] = {}
    root = schema_of(Status, definitions)
    schema = {"$schema": DIALECT, "title": "Status of Themis for Triton", **root, "$defs": dict(sorted(definitions.items()))}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def schema_of(kind: Any, definitions: dict[str, Any], prefix: str = "#/$defs/") -> dict[str, Any]:  # noqa: ANN401 - a type expression
    """The schema of a type. Dataclasses in it are references that start with `prefix`, and are added to `definitions`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in arguments if option is not type(None)]
        return {"anyOf": [schema_of(inner[0], definitions, prefix), {"type": "null"}]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": schema_of(arguments[0], definitions, prefix)}
    if origin is tuple:
        items = [schema_of(argument, definitions, prefix) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], definitions, prefix)}
    return _plain_schema(kind, definitions, prefix)


def _plain_schema(kind: type[Any], definitions: dict[str, Any], prefix: str) -> dict[str, Any]:
    if kind in _SCALARS:
        return dict(_SCALARS[kind])
    if issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    return _reference(kind, definitions, prefix)


def _reference(kind: type[Any], definitions: dict[str, Any], prefix: str) -> dict[str, Any]:
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}
        hints = field_types(kind)
        definitions[name] = {
            "type": "object",
            "description": " ".join((kind.__doc__ or "").split()),
            "properties": {field: schema_of(hint, definitions, prefix) for field, hint in hints.items()},
            "required": list(hints),
        }
    return {"$ref": f"{prefix}{name}"}
