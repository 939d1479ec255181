"""Results of `policies.py` as files: each row with the commit, seeds and settings it ran with; and rows that stay of earlier runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import SECTIONS

from themis_triton.core.config import ThemisConfig
from themis_triton.core.policy import PolicyName

Settings = dict[str, dict[str, str]]
"""The constants of policy themis by pipeline and key; those of `demand`, `scale_up` and `scale_down` by their key alone."""


@dataclass(frozen=True, slots=True)
class Result:
    """Rows, and the settings they ran with by the digest that a row has as `settings`. Rows of old results have none."""

    rows: list[dict[str, Any]]
    settings: dict[str, Settings] = field(default_factory=dict)


def result_of(rows: Iterable[dict[str, Any]], commit: str, seeds: int, settings: Settings) -> Result:
    """Rows that have just run, each with what it ran with."""
    key = digest(settings)
    return Result([row | {"commit": commit, "seeds": seeds, "settings": key} for row in rows], {key: settings})


def read_result(path: Path) -> Result:
    """The last result; no rows where there is none."""
    if not path.exists():
        return Result([])
    last = json.loads(path.read_text(encoding="utf-8"))
    rows = [{"commit": last["commit"], "seeds": len(last["seeds"])} | row for row in last["rows"]]
    return Result(rows, last.get("settings", {}))


def added(last: Result, new: Result, order: Sequence[str]) -> Result:
    """The last result with the new rows in place of its own of the same setting and policy; each setting's policies in order."""
    run = {(row["setting"], row["policy"]) for row in new.rows}
    kept = [row for row in last.rows if (row["setting"], row["policy"]) not in run]
    groups = list(dict.fromkeys(row["setting"] for row in (*last.rows, *new.rows)))
    places = {label: place for place, label in enumerate(order)}
    rows = sorted([*kept, *new.rows], key=lambda row: (groups.index(row["setting"]), places.get(row["policy"], -1)))
    used = dict.fromkeys(row["settings"] for row in rows if "settings" in row)
    return Result(rows, {key: (last.settings | new.settings)[key] for key in used})


def settings_of(configs: Mapping[str, ThemisConfig]) -> Settings:
    """The constants of policy themis in each pipeline's settings."""
    return {pipeline: constants(asdict(config.under(PolicyName.THEMIS).policy)) for pipeline, config in configs.items()}


def constants(policy: Mapping[str, Any]) -> dict[str, str]:
    """A policy's constants by their keys, as strings; those of a baseline's section or of `drift` as `SECTION.KEY`."""
    flat: dict[str, str] = {}
    for key, value in policy.items():
        if isinstance(value, dict):
            prefix = "" if key in SECTIONS else f"{key}."
            flat |= {prefix + name: str(each) for name, each in value.items()}
        else:
            flat[key] = str(value)
    return flat


def digest(settings: Settings) -> str:
    """Eight digits that tell settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def differences(settings: Mapping[str, Settings]) -> dict[str, tuple[str, ...]]:
    """What tells each of the settings from the others, as `KEY VALUE`, or `KEY VALUE (PIPELINE)` where its pipelines differ.

    Of keys that all of them have: another version may have other keys.
    """
    shared = set.intersection(*(set(_keys(each)) for each in settings.values())) if settings else set()
    differing = sorted(key for key in shared if len({json.dumps(_values(each, key)) for each in settings.values()}) > 1)
    return {name: tuple(_text(key, _values(each, key)) for key in differing) for name, each in settings.items()}


def _keys(settings: Settings) -> Iterable[str]:
    return (key for constants in settings.values() for key in constants)


def _values(settings: Settings, key: str) -> dict[str, str]:
    """By pipeline; one entry without a pipeline where all have the same."""
    values = {pipeline: constants[key] for pipeline, constants in settings.items() if key in constants}
    return values if len(set(values.values())) > 1 else {"": next(iter(values.values()))}


def _text(key: str, values: Mapping[str, str]) -> str:
    return f"{key} " + ", ".join(f"{value} ({pipeline})" if pipeline else value for pipeline, value in values.items())
