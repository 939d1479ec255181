"""The sharp rises that were seen, in a file of their own: rises recur over weeks, and the journal keeps minutes for three days."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from themis_triton.core.decoding import decode
from themis_triton.core.encoding import parsed_json, plain
from themis_triton.forecast.recurring import SeenRises

RISES_FILE = "rises.json"


@dataclass(frozen=True, slots=True)
class _Kept:
    """`SeenRises` of one pipeline as they are stored."""

    pipeline: str
    at_s: tuple[int, ...]
    peak_rps: tuple[float, ...]
    jump_rps: tuple[float, ...]
    hours: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _File:
    until_s: int
    pipelines: tuple[_Kept, ...]


def save_rises(state_directory: Path, until_s: int, seen: Mapping[str, SeenRises]) -> None:
    """Keep what was seen until a time (s); a reader sees the file before or after. OSError if it cannot be written."""
    kept = tuple(
        _Kept(name, rises.at_s, rises.peak_rps, rises.jump_rps, tuple(sorted(rises.hours))) for name, rises in sorted(seen.items())
    )
    path = state_directory / RISES_FILE
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(plain(_File(until_s, kept))), encoding="utf-8")
    beside.replace(path)


def load_rises(state_directory: Path) -> tuple[int, dict[str, SeenRises]] | None:
    """The time until which rises were seen, and those of each pipeline; None where none were kept.

    OSError if the file cannot be read; ValueError that names it where it holds something else.
    """
    path = state_directory / RISES_FILE
    if not path.exists():
        return None
    try:
        stored = decode(_File, parsed_json(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; what it held is learnt anew from the journal") from error
    return stored.until_s, {
        each.pipeline: SeenRises(each.at_s, each.peak_rps, each.jump_rps, frozenset(each.hours)) for each in stored.pipelines
    }
