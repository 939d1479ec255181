"""The profile file and its resume file: YAML, written atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from themis_triton.core.errors import SettingsError
from themis_triton.settings.kinds import Section
from themis_triton.settings.measured import LaunchSettingsMeasured, PointSettings
from themis_triton.settings.profile import ProfileSettings

_HEADER = "# Written by `themis profile`; name it under `models.NAME.profile` of the settings. Times are of batches, in ms.\n"
_RESUME_HEADER = "# An unfinished profile. `themis profile` resumes it; delete it to start again.\n"


SectionT = TypeVar("SectionT", bound=Section)


class Conditions(Section):
    """The conditions that all points of a profile share."""

    model: str
    model_version: str
    config_hash: str
    model_hash: str
    triton_version: str
    machine: str
    device: str
    percentile: float
    inputs: str
    shapes: dict[str, list[int]] = Field(default={})


class Progress(Section):
    """An unfinished measurement."""

    conditions: Conditions
    points: list[PointSettings] = Field(default=[])
    instance_init_s: float | None = None
    instance_stop_s: float | None = None
    launch: LaunchSettingsMeasured | None = None
    drift_ratio: float | None = None
    memory_bytes: dict[Annotated[int, Field(strict=False)], int] = Field(default={})


def resume_path(profile: Path) -> Path:
    """The path of a profile's unfinished measurement."""
    return profile.with_name(f"{profile.name}.resume")


def read_progress(profile: Path, conditions: Conditions) -> Progress:
    """The points of an interrupted measurement under the same conditions; none without a resume file.

    Raises:
        SettingsError: the file has other conditions, or is invalid; it is not changed.
    """
    path = resume_path(profile)
    if not path.exists():
        return Progress(conditions=conditions)
    progress = _parsed(path, Progress)
    theirs, ours = progress.conditions.model_dump(), conditions.model_dump()
    if not progress.points:
        return Progress(conditions=conditions)
    refuse_other(path, theirs, ours, "resume under those conditions, or delete the file to start again")
    return progress


def refuse_other(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], fix: str) -> None:
    """Raise SettingsError if a file was measured under other conditions than `ours`, whose keys are compared."""
    if changed := [key for key in ours if ours[key] != theirs[key]]:
        differences = "; ".join(f"{key} {theirs[key]!r}, now {ours[key]!r}" for key in changed)
        raise SettingsError(f"{path}: was measured under other conditions ({differences}). Fix: {fix}")


def write_progress(profile: Path, progress: Progress) -> None:
    """Write the resume file."""
    _write(resume_path(profile), _RESUME_HEADER + _dumped(progress.model_dump(mode="json", exclude_none=True)))


def write_profile(path: Path, profile: ProfileSettings) -> None:
    """Write the finished profile and remove its resume file."""
    replace_profile(path, profile)
    resume_path(path).unlink(missing_ok=True)


def replace_profile(path: Path, profile: ProfileSettings) -> None:
    """Replace a profile file atomically. Raises SettingsError if it cannot be written."""
    _write(path, _HEADER + _dumped(profile.model_dump(mode="json", exclude_none=True, exclude_defaults=True)))


def read_profile(path: Path) -> ProfileSettings:
    """The content of a profile file. Raises SettingsError if it is missing or invalid."""
    return _parsed(path, ProfileSettings)


def check_writable(folder: Path) -> None:
    """Create the folder if it is missing. Raises SettingsError if profiles cannot be written into it."""
    _write(folder / ".writable", "")
    (folder / ".writable").unlink()


def _parsed(path: Path, kind: type[SectionT]) -> SectionT:
    try:
        return kind.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}). Fix: measure it with `themis profile`, or give its folder with --out"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError, RecursionError) as error:
        raise SettingsError(f"{path}: not a file of `themis profile` ({first_line(error)}). Fix: delete it and measure again") from error


def first_line(error: Exception) -> str:
    """The first error of a parser: the invalid key, or the place in the file."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['input']!r:.60} is invalid: {first['msg']}"
    return " ".join(str(error).split())[:200]


def _dumped(data: Any) -> str:  # noqa: ANN401 - plain values
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=140, default_flow_style=None))


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise SettingsError(
            f"--out {path.parent}: {path.name} cannot be written ({error.strerror}). Fix: give a writable folder"
        ) from error
