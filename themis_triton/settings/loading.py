"""One settings file with its profile files, read, parsed and checked as far as each part allows, so that all its mistakes show at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from themis_triton.settings.explain import explain
from themis_triton.settings.policy import PlanningSettings, PolicySettings
from themis_triton.settings.problem import Problem
from themis_triton.settings.schema import LaunchSettings, ModelSettings, PipelineSettings, Settings
from themis_triton.settings.source import KeyPath, Source, read_source

SectionT = TypeVar("SectionT", bound=BaseModel)
FILE_WORDS = "a mapping with " + ", ".join(f"`{name}`" for name in Settings.model_fields)


@dataclass(slots=True)
class Loaded:
    """What is valid of a file. `settings` is None while anything in its shape is wrong; the parts hold what is right nevertheless."""

    path: Path
    source: Source
    problems: list[Problem]
    settings: Settings | None = None
    models: dict[str, ModelSettings] = field(default_factory=dict)
    pipelines: dict[str, PipelineSettings] = field(default_factory=dict)
    launch: LaunchSettings | None = None
    policy: PolicySettings | None = None
    planning: PlanningSettings | None = None

    def resolve(self, path: Path) -> Path:
        """A path as written, from the settings file's folder. A link at its end stays one: a binary may depend on how it is called."""
        joined = self.path.parent / path
        return joined.parent.resolve() / joined.name

    def section(self, name: str) -> Mapping[str, Any]:
        """A top-level section as written; empty where it is absent or not a mapping."""
        return mapping(mapping(self.source.data).get(name))


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def load(path: Path) -> Loaded:
    """Read and parse a settings file; nothing is raised, every mistake in the file's shape is in `problems`."""
    source = read_source(path, str(path), FILE_WORDS)
    unusable = set(_include_profiles(path, source))
    loaded = Loaded(path, source, list(source.problems))
    if source.data is None:
        return loaded
    _place_bounds(source)
    bad: set[KeyPath] = set()
    try:
        loaded.settings = Settings.model_validate(source.data)
    except ValidationError as error:
        details = error.errors()
        loaded.problems += explain([detail for detail in details if detail["loc"] not in unusable], Settings, source)
        bad = {detail["loc"] for detail in details}
    _fill_parts(loaded, bad)
    return loaded


def _include_profiles(path: Path, source: Source) -> Iterator[KeyPath]:
    """Put the content of each profile file in the place of its name, with its own lines; yields those that could not be read."""
    for name, model in mapping(mapping(source.data).get("models")).items():
        included = mapping(model).get("profile")
        if not isinstance(included, str):
            continue
        key: KeyPath = ("models", name, "profile")
        model["profile"] = None
        if (path.parent / included).is_file():
            profile = read_source(path.parent / included, str(path.parent / included), "a mapping with `table` or `surface`")
            source.problems += profile.problems
            source.places.update({(*key, *inner): place for inner, place in profile.places.items()})
            model["profile"] = profile.data
        else:
            source.problems.append(_missing_profile(path, source, key, included))
        if model["profile"] is None:
            yield key


def _missing_profile(path: Path, source: Source, key: KeyPath, included: str) -> Problem:
    hint = "; environment variables and ~ are not expanded" if "$" in included or included.startswith("~") else ""
    remedy = f"mend the path, which starts at {path.parent.resolve()}{hint}, or measure it: `themis profile {key[1]} --repository MODELS`"
    return source.problem(
        key, f"{included}, where no file is", "a mapping with `table` or `surface`, or the path of a file with one", remedy
    )


def _place_bounds(source: Source) -> None:
    """`[min, max]` is checked as a mapping: its keys stand where the list's items do."""
    for name in mapping(mapping(source.data).get("models")):
        for index, key in enumerate(("min", "max")):
            item: KeyPath = ("models", name, "instances", index)
            if item in source.places:
                source.places[(*item[:-1], key)] = source.places[item]


def _fill_parts(loaded: Loaded, bad: set[KeyPath]) -> None:
    data = mapping(loaded.source.data)
    for name, value in loaded.section("models").items():
        if model := _part(ModelSettings, value, ("models", name), bad):
            loaded.models[name] = model
    for name, value in loaded.section("pipelines").items():
        if pipeline := _part(PipelineSettings, value, ("pipelines", name), bad):
            loaded.pipelines[name] = pipeline
    if data.get("launch") is not None:
        loaded.launch = _part(LaunchSettings, data["launch"], ("launch",), bad)
    loaded.policy = _part(PolicySettings, data.get("policy", {}), ("policy",), bad)
    loaded.planning = _part(PlanningSettings, data.get("planning", {}), ("planning",), bad)


def _part(schema: type[SectionT], value: object, path: KeyPath, bad: set[KeyPath]) -> SectionT | None:
    """The section at `path`, or None where something in it is wrong and has been reported."""
    if any(loc[: len(path)] == path for loc in bad):
        return None
    return schema.model_validate(value)
