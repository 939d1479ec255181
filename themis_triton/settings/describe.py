"""Descriptions of schema fields: type, bounds and unit; for error messages, the reference and the JSON Schema."""

from __future__ import annotations

import types
from dataclasses import dataclass
from enum import Enum, EnumType
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from themis_triton.settings.kinds import Allowed
from themis_triton.settings.source import KeyPath

UNITS = {"_us": "µs", "_ms": "ms", "_s": "s"}
_BOUNDS = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}
_PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A type with its constraints, peeled out of `Annotated` and `| None`."""

    type: Any
    metadata: tuple[object, ...] = ()
    optional: bool = False

    @property
    def section(self) -> type[BaseModel] | None:
        """The schema class, when the value is a mapping with known keys."""
        return self.type if isinstance(self.type, type) and issubclass(self.type, BaseModel) else None

    @property
    def is_named(self) -> bool:
        """Whether the schema describes the accepted values in words of its own."""
        return any(isinstance(part, Allowed) for part in self.metadata)

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return get_origin(self.type) is list

    @property
    def item(self) -> Kind | None:
        """The kind of a list's items or of a mapping's values."""
        origin = get_origin(self.type)
        return peel(get_args(self.type)[-1]) if origin in (list, dict) else None

    def words(self, unit: str = "") -> str:
        """The accepted values, such as `a number > 0, in ms`."""
        if named := [m.words for m in self.metadata if isinstance(m, Allowed)]:
            return named[-1]
        suffix = f", in {unit}" if unit else ""
        return self._type_words() + self._bounds() + suffix

    def _type_words(self) -> str:
        if isinstance(self.type, EnumType):
            members: list[Enum] = list(self.type)
            values = [str(member.value) for member in members]
            return " or ".join(values) if len(values) < 3 else "one of " + ", ".join(values)
        if self.section is not None:
            return "a mapping with " + ", ".join(f"`{name}`" for name in self.section.model_fields)
        if self.item is not None:
            inside = "…" if self.item.section else self.item.words()
            return f"a mapping from names to {inside}" if get_origin(self.type) is dict else f"a list of: {inside}"
        return _PLAIN[self.type]

    def _bounds(self) -> str:
        bounds = {sign: getattr(m, name) for m in self.metadata for kind, (name, sign) in _BOUNDS.items() if isinstance(m, kind)}
        if set(bounds) == {"≥", "≤"}:
            return f" from {bounds['≥']:g} to {bounds['≤']:g}"
        return " " + " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items()) if bounds else ""


def peel(annotation: object, metadata: tuple[object, ...] = ()) -> Kind:
    """The kind behind an annotation."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        flat = [part for m in more for part in (m.metadata if isinstance(m, FieldInfo) else (m,))]
        return peel(inner, (*flat, *metadata))
    if get_origin(annotation) in (Union, types.UnionType):
        inner = next(arg for arg in get_args(annotation) if arg is not type(None))
        kind = peel(inner, metadata)
        return Kind(kind.type, kind.metadata, optional=True)
    return Kind(annotation, metadata)


def kind_of(field: FieldInfo) -> Kind:
    """The kind of a schema field."""
    return peel(field.annotation, tuple(field.metadata))


def kind_at(root: type[BaseModel], path: KeyPath) -> Kind | None:
    """The kind at a key path of the schema; None for an unknown key."""
    kind: Kind | None = Kind(root)
    for part in path:
        if kind is None:
            return None
        if kind.section is not None:
            field = kind.section.model_fields.get(str(part))
            kind = kind_of(field) if field is not None else None
        else:
            kind = kind.item
    return kind


def unit_of(path: KeyPath) -> str:
    """The unit in the name of the path's last key; empty without one."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    return next((unit for suffix, unit in UNITS.items() if key.endswith(suffix)), "")
