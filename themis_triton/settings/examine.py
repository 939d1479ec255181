"""A settings file examined whole: the configuration, or every error with file, line, column, key, expected value and fix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.settings.build import build
from themis_triton.settings.checks import check
from themis_triton.settings.loading import Loaded, load
from themis_triton.settings.problem import Problem, by_place
from themis_triton.settings.runtime import RuntimePaths, runtime_paths
from themis_triton.settings.schema import Settings, StatusSettings


def load_settings(path: Path, *, allow_missing_profiles: bool = False) -> ThemisConfig:
    """The configuration of a settings file.

    With `allow_missing_profiles`, a model whose profile file does not exist has a placeholder of nearly 0 ms (for `themis profile`).

    Raises SettingsError with every error of the file and of its profile files, one per line.
    """
    loaded, errors = _examine(path, allow_missing_profiles=allow_missing_profiles)
    if errors or loaded.settings is None:
        raise _refused(path, errors)
    return build(loaded, loaded.settings)


def checked_runtime_paths(path: Path) -> RuntimePaths:
    """`load_runtime_paths` by the schema: the same values, and every error of the two sections."""
    loaded = load(path)
    if not isinstance(loaded.source.data, dict):
        raise _refused(path, loaded.problems)
    wrong = [problem for problem in loaded.problems if problem.key.split(".")[0] in ("state_directory", "status")]
    if wrong:
        raise _refused(path, wrong)
    data = loaded.source.data
    state = Path(data.get("state_directory", Settings.model_fields["state_directory"].default))
    status = StatusSettings.model_validate(data.get("status", {}))
    address = Address.parse(status.address)
    if status.tls is not None:
        address = replace(address, tls=True, ca=str(loaded.resolve(status.tls.certificate)))
    return runtime_paths(path, state, address, status.token_file)


def problems(path: Path) -> list[Problem]:
    """Every error of the file and of its profile files, ordered by place; empty if `load_settings` succeeds."""
    return _examine(path)[1]


def _refused(path: Path, errors: list[Problem]) -> SettingsError:
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    return SettingsError("\n".join([f"{path}: {count}", *map(str, sorted(errors, key=by_place))]))


def _examine(path: Path, *, allow_missing_profiles: bool = False) -> tuple[Loaded, list[Problem]]:
    loaded = load(path, allow_missing_profiles=allow_missing_profiles)
    errors = list(loaded.problems)
    if loaded.source.data is not None:
        errors += check(loaded)
    return loaded, sorted(errors, key=by_place)
