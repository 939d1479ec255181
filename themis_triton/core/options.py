"""Fields of configuration dataclasses that carry their own description and bounds, from which the settings schema is generated."""

from __future__ import annotations

from dataclasses import field
from typing import Any

SECTION = "section"
"""Metadata key: the dataclass of a field that is a section of its own."""


def option(default: Any, description: str, **bounds: float) -> Any:  # noqa: ANN401 - the annotation of the field states the type
    """A field with a default, a description and bounds, which are named `ge`, `gt`, `le` and `lt`."""
    return field(default=default, metadata={"description": description, "bounds": bounds})


def section(config: type, description: str) -> Any:  # noqa: ANN401 - as above
    """A field whose value is a dataclass of options, by default one with all defaults."""
    return field(default_factory=config, metadata={"description": description, SECTION: config})
