"""The profile file and the resume file beside it: YAML, written whole or not at all."""

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
_RESUME_HEADER = "# An unfinished profile. `themis profile` goes on with it; delete it to begin anew.\n"


SectionT = TypeVar("SectionT", bound=Section)


class Conditions(Section):
    """What must be the same for points to belong to one profile."""

    model: str
    model_version: str
    config_hash: str
    model_hash: str
    triton_version: str
    machine: str
    device: str
    percentile: float
    inputs: str


class Progress(Section):
    """An unfinished measurement."""

    conditions: Conditions
    points: list[PointSettings] = Field(default=[])
    instance_init_s: float | None = None
    instance_stop_s: float | None = None
    launch: LaunchSettingsMeasured | None = None
    memory_bytes: dict[Annotated[int, Field(strict=False)], int] = Field(default={})


def resume_path(profile: Path) -> Path:
    """Where the unfinished measurement of a profile lies."""
    return profile.with_name(f"{profile.name}.resume")


def read_progress(profile: Path, conditions: Conditions) -> Progress:
    """What was measured before under the same conditions; nothing where there is no resume file, or one without a point.

    Raises:
        SettingsError: the file is of other conditions, or broken; it is left as it is.
    """
    path = resume_path(profile)
    if not path.exists():
        return Progress(conditions=conditions)
    progress = _parsed(path, Progress)
    theirs, ours = progress.conditions.model_dump(), conditions.model_dump()
    if not progress.points:
        return Progress(conditions=conditions)
    refuse_other(path, theirs, ours, "go on as then, or delete the file to begin anew")
    return progress


def refuse_other(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], remedy: str) -> None:
    """SettingsError where a file was measured under other conditions; only those of `ours` are compared."""
    if changed := [key for key in ours if ours[key] != theirs[key]]:
        found = "; ".join(f"{key} {theirs[key]!r}, now {ours[key]!r}" for key in changed)
        raise SettingsError(f"{path}: was measured under other conditions ({found}); {remedy}")


def write_progress(profile: Path, progress: Progress) -> None:
    """Keep what was measured so far."""
    _write(resume_path(profile), _RESUME_HEADER + _dumped(progress.model_dump(mode="json", exclude_none=True)))


def write_profile(path: Path, profile: ProfileSettings) -> None:
    """Put the finished profile into place; its resume file goes."""
    replace_profile(path, profile)
    resume_path(path).unlink(missing_ok=True)


def replace_profile(path: Path, profile: ProfileSettings) -> None:
    """Put a profile into place, whole or not at all. SettingsError where it cannot be written."""
    _write(path, _HEADER + _dumped(profile.model_dump(mode="json", exclude_none=True, exclude_defaults=True)))


def read_profile(path: Path) -> ProfileSettings:
    """A profile file. SettingsError when it is missing or not one."""
    return _parsed(path, ProfileSettings)


def check_writable(folder: Path) -> None:
    """SettingsError where profiles cannot be written into the folder; it is made where it is missing."""
    _write(folder / ".writable", "")
    (folder / ".writable").unlink()


def _parsed(path: Path, kind: type[SectionT]) -> SectionT:
    try:
        return kind.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); measure it with `themis profile`, or name its folder with --out"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise SettingsError(f"{path}: not a file of `themis profile` ({first_line(error)}); delete it and measure again") from error


def first_line(error: Exception) -> str:
    """What a parser says, without its further lines: the first key that is wrong, or the place in the file."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}; found {first['input']!r:.60}"
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
        raise SettingsError(f"--out {path.parent}: {path.name} cannot be written ({error.strerror}); give a folder of yours") from error
