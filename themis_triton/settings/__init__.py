"""One strict YAML file becomes the frozen configuration; every mistake in it is named with file, line, key, found, allowed and remedy."""

from __future__ import annotations

from pathlib import Path

from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.settings.build import build
from themis_triton.settings.checks import check
from themis_triton.settings.loading import Loaded, load
from themis_triton.settings.problem import Problem, by_place
from themis_triton.settings.reference import ReferenceRow, reference_rows
from themis_triton.settings.sample import sample

__all__ = ["Problem", "ReferenceRow", "load_settings", "problems", "reference_rows", "sample"]


def load_settings(path: Path) -> ThemisConfig:
    """Read, check and build. SettingsError lists every mistake of the file and of its profile files, one a line."""
    loaded, found = _examine(path)
    if found or loaded.settings is None:
        count = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
        raise SettingsError("\n".join([f"{path}: {count}", *map(str, found)]))
    return build(loaded, loaded.settings)


def problems(path: Path) -> list[Problem]:
    """Every mistake of the file and of its profile files, in the order of their places; empty when `load_settings` will succeed."""
    return _examine(path)[1]


def _examine(path: Path) -> tuple[Loaded, list[Problem]]:
    loaded = load(path)
    found = list(loaded.problems)
    if loaded.source.data is not None:
        found += check(loaded)
    return loaded, sorted(found, key=by_place)
