"""The JSON Schema of the settings file, for editors and other tools."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from themis_triton.settings.describe import kind_of, unit_of
from themis_triton.settings.schema import Settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def settings_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) with the description, unit, bounds and default of every key.

    It accepts every file that `themis validate` accepts; checks across keys are left to `themis validate`.
    """
    schema: dict[str, Any] = Settings.model_json_schema()
    definitions = schema["$defs"]
    for section in _sections(Settings):
        _describe(section, schema if section is Settings else definitions[section.__name__])
    # A path is replaced by the content of its file before validation.
    profile = definitions["ModelSettings"]["properties"]["profile"]
    profile["anyOf"] = [{"$ref": profile.pop("$ref")}, {"type": "string"}]
    return {"$schema": DIALECT, "title": "Settings of Themis for Triton", **_simplified(schema)}


def schema_text() -> str:
    """The JSON Schema as indented JSON."""
    return json.dumps(settings_schema(), indent=2, ensure_ascii=False) + "\n"


def _sections(section: type[BaseModel]) -> list[type[BaseModel]]:
    """The section and all sections inside it, each once."""
    result = [section]
    for field in section.model_fields.values():
        kind = kind_of(field)
        inner = kind.section or (kind.item.section if kind.item is not None else None)
        if inner is not None:
            result += [other for other in _sections(inner) if other not in result]
    return result


def _describe(section: type[BaseModel], definition: dict[str, Any]) -> None:
    """Add what the key's type does not express: the unit, or the accepted values in words."""
    for name, field in section.model_fields.items():
        kind, unit = kind_of(field), unit_of((name,))
        words = kind.words() if kind.is_named else f"in {unit}" if unit else ""
        definition["properties"][name]["description"] = f"{field.description}; {words}" if words else field.description


def _simplified(schema: Any) -> Any:  # noqa: ANN401 - JSON
    """Without generated titles and null defaults; keys outside a name pattern are rejected."""
    if isinstance(schema, list):
        return [_simplified(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _simplified(value) for key, value in schema.items() if not _is_noise(key, value)}
    return result | ({"additionalProperties": False} if "patternProperties" in result else {})


def _is_noise(key: str, value: object) -> bool:
    return (key == "title" and isinstance(value, str)) or (key == "format" and value == "path") or (key == "default" and value is None)
