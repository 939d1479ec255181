"""Checks whether measured profiles are valid for the models, configurations and devices of the settings."""

from __future__ import annotations

from collections.abc import Iterator

from themis_triton.adapters.triton.config_files import ModelRepository
from themis_triton.core.config import ThemisConfig
from themis_triton.core.device_kinds import are_one_kind, declared_kinds, node_types_of
from themis_triton.core.errors import SettingsError
from themis_triton.profile.identity import SERVED, config_hash, device_name, model_config, model_hash


def refuse_stale(config: ThemisConfig) -> list[str]:
    """One sentence per stale profile, if the settings allow stale profiles.

    Raises:
        SettingsError: a profile is stale and `allow_stale_profiles` is not true; the message names all stale profiles.
    """
    stale = list(stale_profiles(config))
    if stale and not config.allow_stale_profiles:
        raise SettingsError("\n".join([*stale, "Fix: measure again with `themis profile`, or set `allow_stale_profiles: true`"]))
    return stale


def stale_profiles(config: ThemisConfig) -> Iterator[str]:
    """One sentence per stale profile, with the change. A profile without a measurement is never stale."""
    repositories = _repositories(config)
    devices: set[str] | None = None
    percentiles = {stage: max(p.percentile for p in config.pipelines if stage in p.stages) for p in config.pipelines for stage in p.stages}
    kinds = declared_kinds(config)
    own_types = {stage: node_types_of(pipeline, config) for pipeline in config.pipelines for stage in pipeline.stages} if kinds else {}
    for name, model in config.models.items():
        origin = model.profile.origin
        if origin is None:
            continue
        devices = _devices(config) if devices is None else devices
        for repository in (each for each in repositories if (each.folder / name).is_dir()):
            folder = repository.folder / name
            now = "" if origin.config_hash.startswith(SERVED) else config_hash(model_config(folder, repository.config_name))
            if now not in ("", origin.config_hash):
                yield f"models.{name}.profile: {repository.config(name)} has changed since it was measured"
            elif origin.model_hash and model_hash(folder) != origin.model_hash:
                yield f"models.{name}.profile: the model's files in {folder} have changed since it was measured"
        if others := devices - {origin.device}:
            yield f"models.{name}.profile: was measured on {origin.device}, and the settings name {', '.join(sorted(others))}"
        for node_type in own_types.get(name, ()):
            if (kind := kinds.get(node_type)) is not None and not are_one_kind(kind, origin.device):
                yield (
                    f"models.{name}.profile: was measured on {origin.device}, and launch.node_types.{node_type} has {kind}; "
                    f"bind the model to node types with its device (`models.{name}.node_types`)"
                )
        if origin.percentile < percentiles.get(name, 0.0):
            yield (
                f"models.{name}.profile: its times are those at the percentile {origin.percentile:g}, and a pipeline promises "
                f"{percentiles[name]:g}"
            )


def _repositories(config: ThemisConfig) -> list[ModelRepository]:
    launch = config.launch
    folders = [launch.model_repository, *launch.further_repositories] if launch is not None else []
    own = [ModelRepository(folder, launch.model_config_name if launch is not None else None) for folder in folders]
    adopted = [
        ModelRepository(folder, server.model_config_name)
        for server in config.servers
        for folder in (server.model_repository, *server.further_repositories)
        if folder is not None
    ]
    return list(dict.fromkeys([*own, *adopted]))


def _devices(config: ThemisConfig) -> set[str]:
    slots = config.launch.slots if config.launch is not None and config.launch.runs_here else ()
    return {device_name(device) for device in {*(slot.device for slot in slots), *(server.device for server in config.servers)}}
