"""The files that a settings file is read from, with what shows that one of them was edited."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from themis_triton.settings.loading import mapping
from themis_triton.settings.runtime import read_mapping, resolve

FileStamp = tuple[str, int, int]
"""A file's path, its time in ns and its size; of one that cannot be read both are 0."""
Stamp = tuple[FileStamp, ...]


def stamp_of(path: Path) -> Stamp:
    """The stamp of a settings file and of the profile files that it names. Nothing is raised."""
    own = _stamp(path)
    return (own, *map(_stamp, _profiles(path, own)))


@lru_cache(1)
def _profiles(path: Path, _: FileStamp) -> tuple[Path, ...]:
    """The profile files that a settings file names, which is parsed again when its own stamp has changed."""
    return tuple(_named_profiles(path))


def _named_profiles(path: Path) -> Iterator[Path]:
    for model in mapping(mapping(read_mapping(path)).get("models")).values():
        profile = mapping(model).get("profile")
        if isinstance(profile, str):
            yield resolve(path, Path(profile))


def _stamp(path: Path) -> FileStamp:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), found.st_mtime_ns, found.st_size
