"""One strict YAML file becomes the frozen configuration; every mistake in it is named with file, line, key, found, allowed and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.settings.build import build
from themis_triton.settings.checks import check
from themis_triton.settings.loading import Loaded, load
from themis_triton.settings.problem import Problem, by_place
from themis_triton.settings.reference import ReferenceRow, reference_rows
from themis_triton.settings.sample import sample
from themis_triton.settings.schema import Settings, StatusSettings

__all__ = ["Problem", "ReferenceRow", "RuntimePaths", "load_runtime_paths", "load_settings", "problems", "reference_rows", "sample"]


def load_settings(path: Path) -> ThemisConfig:
    """Read, check and build. SettingsError lists every mistake of the file and of its profile files, one a line."""
    loaded, found = _examine(path)
    if found or loaded.settings is None:
        raise _refused(path, found)
    return build(loaded, loaded.settings)


@dataclass(frozen=True, slots=True)
class RuntimePaths:
    """Where a sidecar keeps its state, and where it tells its status."""

    state_directory: Path
    status_address: Address


def load_runtime_paths(path: Path) -> RuntimePaths:
    """Only `state_directory` and `status` of a file, whose other mistakes do not matter: what runs must be found and ended all the same.

    SettingsError lists the mistakes of the two keys, or all of them where the file cannot be read.
    """
    loaded = load(path)
    if not isinstance(loaded.source.data, dict):
        raise _refused(path, loaded.problems)
    wrong = [problem for problem in loaded.problems if problem.key.split(".")[0] in ("state_directory", "status")]
    if wrong:
        raise _refused(path, wrong)
    data = loaded.source.data
    state = Path(data.get("state_directory", Settings.model_fields["state_directory"].default))
    return RuntimePaths(loaded.resolve(state), Address.parse(StatusSettings.model_validate(data.get("status", {})).address))


def problems(path: Path) -> list[Problem]:
    """Every mistake of the file and of its profile files, in the order of their places; empty when `load_settings` will succeed."""
    return _examine(path)[1]


def _refused(path: Path, found: list[Problem]) -> SettingsError:
    count = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
    return SettingsError("\n".join([f"{path}: {count}", *map(str, sorted(found, key=by_place))]))


def _examine(path: Path) -> tuple[Loaded, list[Problem]]:
    loaded = load(path)
    found = list(loaded.problems)
    if loaded.source.data is not None:
        found += check(loaded)
    return loaded, sorted(found, key=by_place)
