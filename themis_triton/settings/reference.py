"""The settings reference: one row per key, generated from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from themis_triton.settings.describe import Kind, kind_of, unit_of
from themis_triton.settings.models import InstanceBounds
from themis_triton.settings.schema import Settings


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One key: dotted path, type with unit, default (`required` without one), description."""

    key: str
    kind: str
    default: str
    meaning: str


_INTRODUCTION = """\
# Settings reference

Generated from the schema by `scripts/reference`. Keys carry their units: `_s` seconds, `_ms` milliseconds, `_us` microseconds.
Sizes are in bytes, or carry a unit: `512MiB`. Relative paths start at the folder of the settings file. Environment variables
are not expanded. An unknown key is an error. `NAME` stands for a name of your choice, `[]` for each item of a list.

For editors: [settings.schema.json](settings.schema.json), a JSON Schema, which `themis schema` prints too.
A settings file names it in its first line: `# yaml-language-server: $schema=settings.schema.json`.
"""


def reference_rows() -> list[ReferenceRow]:
    """All keys in schema order; `NAME` stands for a name of the user's choice, `[]` for each item of a list."""
    return list(_rows(Settings, "", set()))


def _rows(section: type[BaseModel], prefix: str, seen: set[type[BaseModel]]) -> Iterator[ReferenceRow]:
    for name, field in section.model_fields.items():
        key, kind = f"{prefix}{name}", kind_of(field)
        default = shown_default(field)
        inner = kind.section or (kind.item.section if kind.item is not None else None)
        words = _section_words(kind) if inner is not None else kind.words(unit_of((name,)))
        yield ReferenceRow(key, words, default, field.description or "")
        if inner is not None and inner not in seen:
            yield from _rows(inner, f"{key}{_inside(kind)}.", seen | {inner})
            seen.add(inner)


def _section_words(kind: Kind) -> str:
    if kind.is_named:
        return kind.words()
    if kind.item is None:
        return "a mapping"
    return f"a list of: {kind.item.words()}" if kind.is_list else "a mapping from names to sections"


def _inside(kind: Kind) -> str:
    if kind.item is None:
        return ""
    return "[]" if kind.is_list else ".NAME"


def shown_default(field: FieldInfo) -> str:
    """The default as it is written in a settings file; `required` without one, `–` for an empty one or a section."""
    return "required" if field.is_required() else _shown(field.get_default())


def _shown(value: object) -> str:
    match value:
        case InstanceBounds():
            return f"[{value.min}, {value.max}]"
        case list():
            return f"[{', '.join(map(_shown, value))}]"
        case None | {} | BaseModel():
            return "–"
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case Path() | str() | int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case _:
            raise TypeError(f"a default of type {type(value).__name__} has no representation in the reference")


def reference_page() -> str:
    """The settings reference as a Markdown page: one table per top-level key."""
    lines = [_INTRODUCTION]
    for name, group in groupby(reference_rows(), key=lambda row: row.key.partition(".")[0]):
        lines += [f"## {name}", "", "| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        for row in group:
            cells = (f"`{row.key}`", row.kind, row.default, row.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)
