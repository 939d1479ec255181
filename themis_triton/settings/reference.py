"""The settings reference: one row a key, built from the schema itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pydantic import BaseModel

from themis_triton.settings.describe import Kind, kind_of, unit_of
from themis_triton.settings.schema import Settings


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One key: dotted path, what it holds and in which unit, its default (`required` when there is none), what it means."""

    key: str
    kind: str
    default: str
    meaning: str


def reference_rows() -> list[ReferenceRow]:
    """All keys in the order of the schema; `NAME` stands for a name of the user's choice, `[]` for each item of a list."""
    return list(_rows(Settings, "", set()))


def _rows(section: type[BaseModel], prefix: str, told: set[type[BaseModel]]) -> Iterator[ReferenceRow]:
    for name, field in section.model_fields.items():
        key, kind = f"{prefix}{name}", kind_of(field)
        default = "required" if field.is_required() else _shown(field.get_default())
        inner = kind.section or (kind.item.section if kind.item is not None else None)
        words = _section_words(kind) if inner is not None else kind.words(unit_of((name,)))
        yield ReferenceRow(key, words, default, field.description or "")
        if inner is not None and inner not in told:
            yield from _rows(inner, f"{key}{_inside(kind)}.", told | {inner})
            told.add(inner)


def _section_words(kind: Kind) -> str:
    if kind.is_named:
        return kind.words()
    if kind.item is None:
        return "a mapping"
    return f"a list, each item {kind.item.words()}" if kind.is_list else "a mapping of names"


def _inside(kind: Kind) -> str:
    if kind.item is None:
        return ""
    return "[]" if kind.is_list else ".NAME"


def _shown(value: object) -> str:
    match value:
        case None | {} | [] | BaseModel():
            return "–"
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case Path() | str() | int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case _:
            raise TypeError(f"a default of type {type(value).__name__} has no words yet")


def reference_markdown() -> str:
    """The rows as a Markdown table, as it stands in the README."""
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for row in reference_rows():
        cells = (f"`{row.key}`", row.kind, row.default, row.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
