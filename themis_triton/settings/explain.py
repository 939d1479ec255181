"""Pydantic's errors as problems: place, error, expected value, fix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from themis_triton.settings.describe import UNITS, kind_at, kind_of, unit_of
from themis_triton.settings.kinds import MODEL_NAME_WORDS
from themis_triton.settings.problem import Problem
from themis_triton.settings.source import NO_VALUE, KeyPath, Source

_PER_SECOND = {"us": 1e6, "µs": 1e6, "ms": 1e3, "s": 1.0, "sec": 1.0, "m": 1 / 60, "min": 1 / 60, "h": 1 / 3600}
_NUMBER = re.compile(r"\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>[a-zµ]*)\s*")


def explain(details: Sequence[ErrorDetails], schema: type[BaseModel], source: Source) -> list[Problem]:
    """One problem per pydantic error, with the place in `source`."""
    return [_problem(detail, schema, source) for detail in details]


def _problem(detail: ErrorDetails, schema: type[BaseModel], source: Source) -> Problem:
    path: KeyPath = detail["loc"]
    if path and path[-1] == "[key]":
        expected = MODEL_NAME_WORDS if path[0] == "models" else "letters, digits, '-', '_' and '.'"
        return source.problem(path[:-1], f'name "{path[-2]}" is invalid', expected, "rename it", at_key=True)
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(path, schema, source)
        case "missing":
            return _missing_key(path, schema, source)
        case "themis":
            context = detail["ctx"]
            return source.problem(path, context.get("error"), context["expected"], context["fix"])
        case _:
            return _wrong_value(path, detail, schema, source)


def _missing_key(path: KeyPath, schema: type[BaseModel], source: Source) -> Problem:
    kind = kind_at(schema, path)
    expected = kind.words(unit_of(path)) if kind is not None else "a value"
    return source.problem(path, "required key is missing", expected, f"add `{path[-1]}:` here", at_key=True)


def _unknown_key(path: KeyPath, schema: type[BaseModel], source: Source) -> Problem:
    key = str(path[-1])
    parent = kind_at(schema, path[:-1])
    known = list(parent.section.model_fields) if parent is not None and parent.section is not None else []
    expected = "one of " + ", ".join(known)
    return source.problem(path, "unknown key", expected, _key_fix(path, key, schema, known, source), at_key=True)


def _key_fix(path: KeyPath, key: str, schema: type[BaseModel], known: list[str], source: Source) -> str:
    base, unit = _split_unit(key)
    for name in known:
        other_base, other_unit = _split_unit(name)
        if base == other_base and other_unit:
            number = _converted(source.place(path).written, UNITS[other_unit], UNITS.get(unit, ""))
            return f"write `{name}: {number}`" if number else f"write `{name}:` and the number in {UNITS[other_unit]}"
    parent = kind_at(schema, path[:-1])
    parts = parent.section.model_fields.items() if parent is not None and parent.section is not None else ()
    for name, field in parts:
        part = kind_of(field).section
        if part is not None and key in part.model_fields:
            return f"move it into the section `{name}`"
    near = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else "remove it"


def _split_unit(key: str) -> tuple[str, str]:
    suffix = next((s for s in UNITS if key.endswith(s)), "")
    return (key.removesuffix(suffix), suffix)


def _wrong_value(path: KeyPath, detail: ErrorDetails, schema: type[BaseModel], source: Source) -> Problem:
    kind = kind_at(schema, path)
    expected = kind.words(unit_of(path)) if kind is not None else detail["msg"]
    return source.problem(path, None, expected, _value_fix(path, detail, source.place(path).written))


def _value_fix(path: KeyPath, detail: ErrorDetails, written: str) -> str:
    match detail["type"]:
        case "float_type" | "int_type":
            return _number_fix(written, unit_of(path))
        case "enum":
            return _choice_fix(written, detail)
        case "string_type" | "path_type" if written not in ("a mapping", "a list", NO_VALUE):
            return f'write it in quotes: "{written}"'
        case "dict_type" | "model_type" if written == NO_VALUE:
            return "write its keys on the lines below, indented, or remove this key"
        case kind:
            return _FIXES.get(kind, "write such a value")


_FIXES = {
    "bool_type": "write true or false without quotes",
    "list_type": "write a list: [first, second]",
    "too_short": "add at least one entry",
    "finite_number": "write a finite number",
    "byte_size": "write an integer and B, KiB, MiB or GiB",
    "byte_size_unit": "write an integer and B, KiB, MiB or GiB",
} | dict.fromkeys(("greater_than", "greater_than_equal", "less_than", "less_than_equal"), "write a number within these bounds")


def _choice_fix(written: str, detail: ErrorDetails) -> str:
    near = get_close_matches(written.strip('"'), re.findall(r"'([^']*)'", detail["ctx"]["expected"]), n=1)
    return f"did you mean {near[0]}?" if near else "write one of these"


def _number_fix(written: str, unit: str) -> str:
    text = written.strip('"')
    number = _converted(text, unit, "")
    if number is None:
        return f"write a number in {unit}" if unit else "write a number"
    if number == written:
        return "write an integer"
    if number == text:
        return f"write {number} without quotes"
    return f"write {number}; the key is in {unit}" if unit else f"write {number}"


def _converted(text: str, unit: str, default_unit: str) -> str | None:
    """The number in `text`, in `unit`. A unit in the text takes precedence over `default_unit`; without either, `unit` is assumed."""
    match = _NUMBER.fullmatch(text.strip('"'))
    if match is None:
        return None
    written = match["unit"] or default_unit or unit
    if written == unit:
        return f"{float(match['number']):.10g}"
    if written not in _PER_SECOND or not unit:
        return None
    return f"{float(match['number']) / _PER_SECOND[written] * _PER_SECOND[unit]:.10g}"
