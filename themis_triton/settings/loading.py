"""A settings file with its profile files, parsed section by section, so that all errors are reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from themis_triton.settings.explain import explain
from themis_triton.settings.models import ModelSettings
from themis_triton.settings.pipelines import PipelineSettings, StageSettings
from themis_triton.settings.policy import PlanningSettings, PolicySettings
from themis_triton.settings.problem import Problem
from themis_triton.settings.runtime import resolve
from themis_triton.settings.schema import Settings
from themis_triton.settings.servers import LaunchSettings
from themis_triton.settings.source import KeyPath, Source, read_source

PLACEHOLDER = {"form": "contention", "alpha_ms": 0.0, "beta_ms": 0.0, "gamma_ms": 0.0, "zeta_ms": 0.001}
"""The surface of a model that is not profiled yet; it satisfies every check."""
SectionT = TypeVar("SectionT", bound=BaseModel)
FILE_WORDS = "a mapping with " + ", ".join(f"`{name}`" for name in Settings.model_fields)


@dataclass(slots=True)
class Loaded:
    """The valid parts of a file. `settings` is None if the file has any schema error; the other fields hold the sections without one."""

    path: Path
    source: Source
    problems: list[Problem]
    settings: Settings | None = None
    models: dict[str, ModelSettings] = field(default_factory=dict)
    pipelines: dict[str, PipelineSettings] = field(default_factory=dict)
    launch: LaunchSettings | None = None
    policy: PolicySettings | None = None
    planning: PlanningSettings | None = None
    calls: dict[str, list[StageSettings]] = field(default_factory=dict)

    def resolve(self, path: Path) -> Path:
        """The absolute path, relative to the settings file's folder. A final symbolic link is kept: a binary may depend on its name."""
        return resolve(self.path, path)

    def section(self, name: str) -> Mapping[str, Any]:
        """A top-level section as written; empty if it is absent or not a mapping."""
        return mapping(mapping(self.source.data).get(name))


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def load(path: Path, *, allow_missing_profiles: bool = False) -> Loaded:
    """The parsed settings file, with every schema error in `problems`; nothing is raised."""
    source = read_source(path, str(path), FILE_WORDS)
    unusable = set(_include_profiles(path, source, allow_missing_profiles))
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


def _include_profiles(path: Path, source: Source, allow_missing: bool) -> Iterator[KeyPath]:
    """Replace each profile path by the file's content, with its own lines; yields the key paths of unreadable files."""
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
        elif allow_missing:
            model["profile"] = {"surface": dict(PLACEHOLDER)}
        else:
            source.problems.append(_missing_profile(path, source, key, included))
        if model["profile"] is None:
            yield key


def _missing_profile(path: Path, source: Source, key: KeyPath, included: str) -> Problem:
    hint = " (environment variables and ~ are not expanded)" if "$" in included or included.startswith("~") else ""
    fix = f"measure it with `themis profile {key[1]} -c {path}`, or correct the path, which starts at {path.parent.resolve()}{hint}"
    return source.problem(key, f"{included} does not exist", "a mapping with `table` or `surface`, or the path of a file with one", fix)


def _place_bounds(source: Source) -> None:
    """Give `min` and `max` the places of the items of `[min, max]`, which is validated as a mapping."""
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
    for name, value in loaded.section("calls").items():
        listed = enumerate(value) if isinstance(value, list) else ()
        stages = [_part(StageSettings, each if isinstance(each, dict) else {"model": each}, ("calls", name, i), bad) for i, each in listed]
        loaded.calls[str(name)] = [stage for stage in stages if stage is not None]
    if data.get("launch") is not None:
        loaded.launch = _part(LaunchSettings, data["launch"], ("launch",), bad)
    loaded.policy = _part(PolicySettings, data.get("policy", {}), ("policy",), bad)
    loaded.planning = _part(PlanningSettings, data.get("planning", {}), ("planning",), bad)


def _part(schema: type[SectionT], value: object, path: KeyPath, bad: set[KeyPath]) -> SectionT | None:
    """The section at `path`; None if it has an error, which is reported already."""
    if any(loc[: len(path)] == path for loc in bad):
        return None
    return schema.model_validate(value)
