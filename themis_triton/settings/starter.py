"""The settings file that `themis init` writes: a short file to start from, with the defaults as generated comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

from themis_triton.settings.describe import kind_of
from themis_triton.settings.kinds import Section
from themis_triton.settings.models import ModelSettings
from themis_triton.settings.pipelines import PipelineSettings
from themis_triton.settings.reference import shown_default
from themis_triton.settings.schema import EnvoySettings, Settings, StatusSettings
from themis_triton.settings.servers import LaunchSettings, ServerSettings

_SECTIONS: tuple[type[Section], ...] = (
    ServerSettings,
    LaunchSettings,
    EnvoySettings,
    ModelSettings,
    PipelineSettings,
    StatusSettings,
    Settings,
)
_PLACEHOLDER = re.compile(r"^(?P<prefix>[ #]*)\{(?P<section>\w+)\}\n", re.MULTILINE)
_ALTERNATIVES = {"stages"}
"""Keys that exclude a key of the template."""
_DESCRIPTION_COLUMN = 44


def starter() -> str:
    """The file's text; it is valid in any folder, because it names no path."""
    template = files("themis_triton.settings").joinpath("starter.yaml").read_text(encoding="utf-8")
    sections = {section.__name__: section for section in _SECTIONS}
    return _PLACEHOLDER.sub(lambda match: "".join(_defaults(sections[match["section"]], match["prefix"], template)), template)


def _defaults(section: type[Section], prefix: str, template: str) -> Iterator[str]:
    """A commented line for each key with a default, except for sections and for keys that the template sets."""
    for name, field in section.model_fields.items():
        kind = kind_of(field)
        inner = kind.section or (kind.item.section if kind.item is not None else None)
        is_set = re.search(rf"^{prefix.removesuffix('# ')}{name}:", template, re.MULTILINE) is not None
        if field.is_required() or is_set or name in _ALTERNATIVES or (inner is not None and not kind.is_named):
            continue
        value = "" if field.default is None else shown_default(field)
        key = f"{prefix}{name}: {value}".rstrip()
        yield f"{key:<{_DESCRIPTION_COLUMN}}# {field.description}\n"
