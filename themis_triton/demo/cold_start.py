"""The cold start of a demo: the process start of its emulated servers, and the profiles that follow it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from themis_triton.adapters.triton.config_files import CONFIG_FILE
from themis_triton.adapters.triton.model_config import parse_config
from themis_triton.core.config import LocalLaunchConfig, ModelConfig
from themis_triton.core.errors import SettingsError
from themis_triton.emulation.parameters import read_parameters
from themis_triton.settings.loading import mapping


def check_cold_start(cold_start_s: float, models: tuple[str, ...], launch: LocalLaunchConfig) -> None:
    """SettingsError for a value out of range, or a model that is not emulated: its process start cannot be chosen."""
    if math.isnan(cold_start_s) or not 0.0 <= cold_start_s < launch.ready_timeout_s:
        raise SettingsError(
            f"--cold-start: {cold_start_s:g} is invalid: expected at least 0 and less than launch.ready_timeout_s, "
            f"{launch.ready_timeout_s:g} s. Fix: correct it, or raise launch.ready_timeout_s"
        )
    for model in models:
        _check_emulated(model, launch)


def _check_emulated(model: str, launch: LocalLaunchConfig) -> None:
    path = launch.model_repository / model / CONFIG_FILE
    try:
        config = parse_config(path.read_text(encoding="utf-8"), str(path))
        read_parameters(model, json_format.MessageToDict(config, preserving_proto_field_name=True))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--cold-start: model {model} in {launch.model_repository} is not emulated: expected an emulated one, because "
            "the start time of other models cannot be set. Fix: omit --cold-start"
        ) from error


def with_cold_start(section: Mapping[str, Any], model: ModelConfig, cold_start_s: float | None) -> dict[str, Any]:
    """A section `models.NAME` whose profile has the cold start; the section as it is for None.

    Instances initialise after the process start, as `server_launch_s` has it. Triton's own start is part of it, so the profile's own
    duration is the least.
    """
    if cold_start_s is None:
        return dict(section)
    launch_s = max(model.profile.server_launch_s, cold_start_s)
    return dict(section) | {"profile": dict(mapping(section.get("profile"))) | {"server_launch_s": launch_s}}
