"""Pydantic's findings as problems: where, what was found, what is allowed and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from themis_triton.settings.describe import UNITS, kind_at, unit_of
from themis_triton.settings.problem import Problem
from themis_triton.settings.source import KeyPath, Source

_PER_SECOND = {"us": 1e6, "µs": 1e6, "ms": 1e3, "s": 1.0, "sec": 1.0, "m": 1 / 60, "min": 1 / 60, "h": 1 / 3600}
_NUMBER = re.compile(r"\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>[a-zµ]*)\s*")


def explain(details: Sequence[ErrorDetails], schema: type[BaseModel], source: Source) -> list[Problem]:
    """One problem for each of pydantic's findings."""
    return [_problem(detail, schema, source) for detail in details]


def _problem(detail: ErrorDetails, schema: type[BaseModel], source: Source) -> Problem:
    path: KeyPath = detail["loc"]
    if path and path[-1] == "[key]":
        return source.problem(path[:-1], f'the name "{path[-2]}"', "a name of letters, digits, '-', '_' and '.'", "rename it", at_key=True)
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(path, schema, source)
        case "missing":
            return _missing_key(path, schema, source)
        case "themis":
            context = detail["ctx"]
            return source.problem(path, context.get("found"), context["allowed"], context["remedy"])
        case _:
            return _wrong_value(path, detail, schema, source)


def _missing_key(path: KeyPath, schema: type[BaseModel], source: Source) -> Problem:
    kind = kind_at(schema, path)
    allowed = kind.words(unit_of(path)) if kind is not None else "a value"
    return source.problem(path, "nothing", allowed, f"add `{path[-1]}:` here", at_key=True)


def _unknown_key(path: KeyPath, schema: type[BaseModel], source: Source) -> Problem:
    key = str(path[-1])
    parent = kind_at(schema, path[:-1])
    known = list(parent.section.model_fields) if parent is not None and parent.section is not None else []
    allowed = "the keys " + ", ".join(known)
    return source.problem(path, f"the unknown key {key}", allowed, _key_remedy(path, key, known, source), at_key=True)


def _key_remedy(path: KeyPath, key: str, known: list[str], source: Source) -> str:
    base, unit = _split_unit(key)
    for name in known:
        other_base, other_unit = _split_unit(name)
        if base == other_base and other_unit:
            number = _converted(source.place(path).found, UNITS[other_unit], UNITS.get(unit, ""))
            return f"write `{name}: {number}`" if number else f"write `{name}:` and the number in {UNITS[other_unit]}"
    near = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else "remove it"


def _split_unit(key: str) -> tuple[str, str]:
    suffix = next((s for s in UNITS if key.endswith(s)), "")
    return (key.removesuffix(suffix), suffix)


def _wrong_value(path: KeyPath, detail: ErrorDetails, schema: type[BaseModel], source: Source) -> Problem:
    kind = kind_at(schema, path)
    allowed = kind.words(unit_of(path)) if kind is not None else detail["msg"]
    return source.problem(path, None, allowed, _value_remedy(path, detail, source.place(path).found))


def _value_remedy(path: KeyPath, detail: ErrorDetails, found: str) -> str:
    match detail["type"]:
        case "float_type" | "int_type":
            return _number_remedy(found, unit_of(path))
        case "enum":
            return _choice_remedy(found, detail)
        case "string_type" | "path_type" if found not in ("a mapping", "a list", "nothing"):
            return f'write it in quotes: "{found}"'
        case "dict_type" | "model_type" if found == "nothing":
            return "write its keys on the lines below, indented; or remove this key"
        case kind:
            return _REMEDIES.get(kind, "write such a value")


_REMEDIES = {
    "bool_type": "write true or false without quotes",
    "list_type": "write a list: [first, second]",
    "too_short": "write at least one",
    "finite_number": "write a finite number",
    "byte_size": "write a whole number and B, KiB, MiB or GiB",
    "byte_size_unit": "write a whole number and B, KiB, MiB or GiB",
} | dict.fromkeys(("greater_than", "greater_than_equal", "less_than", "less_than_equal"), "write a number inside these bounds")


def _choice_remedy(found: str, detail: ErrorDetails) -> str:
    near = get_close_matches(found.strip('"'), re.findall(r"'([^']*)'", detail["ctx"]["expected"]), n=1)
    return f"did you mean {near[0]}?" if near else "write one of these"


def _number_remedy(found: str, unit: str) -> str:
    text = found.strip('"')
    number = _converted(text, unit, "")
    if number is None:
        return f"write a number; the key is in {unit}" if unit else "write a number"
    if number == found:
        return "write a whole number"
    if number == text:
        return f"write {number} without quotes"
    return f"write {number}: the key is in {unit}" if unit else f"write {number}"


def _converted(found: str, unit: str, written_unit: str) -> str | None:
    """The number found, in `unit`; a unit inside the text wins over `written_unit`, and none at all means `unit`."""
    match = _NUMBER.fullmatch(found.strip('"'))
    if match is None:
        return None
    written = match["unit"] or written_unit or unit
    if written == unit:
        return f"{float(match['number']):.10g}"
    if written not in _PER_SECOND or not unit:
        return None
    return f"{float(match['number']) / _PER_SECOND[written] * _PER_SECOND[unit]:.10g}"
