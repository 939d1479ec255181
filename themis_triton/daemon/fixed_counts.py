"""Adopted servers whose models cannot be changed, such as those with model control `none` or `poll`: planned without changes in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import Phase, Server
from themis_triton.daemon.components import Components

log = structlog.get_logger()


async def find_fixed(components: Components) -> dict[str, str]:
    """The adopted servers that refuse changes, each with the reason and the remedy; said once in the log."""
    fixed = {}
    for server in components.world.executor.fleet.all():
        if server.launched or server.phase is not Phase.SERVING:
            continue
        try:
            reason = await components.control.read_refusal(server)
        except ServerError as error:
            log.warning("server_unreachable", server=server.name, error=str(error))
            continue
        if reason is not None:
            fixed[server.name] = reason
            log.warning("model_control_missing", server=server.name, message=f"{reason}; its instance counts stay as they are")
    return fixed


def fixed_actuators(fixed: Mapping[str, str], servers: Sequence[Server]) -> dict[str, str]:
    """The reasons by actuator, for each model of each of these servers."""
    return {f"{server.name}/{model}": fixed[server.name] for server in servers if server.name in fixed for model in sorted(server.models)}


def with_fixed_counts(config: ThemisConfig, fixed: Mapping[str, str], servers: Sequence[Server]) -> ThemisConfig:
    """The settings with the counts that these servers run as the bounds of their models, so that plans scale by servers alone."""
    models = dict(config.models)
    for name, model in config.models.items():
        measured = model.profile.table.instances[-1]
        counts = [server.models[name].instances for server in servers if server.name in fixed and name in server.models]
        if counts:
            low, high = (min(measured, max(1, count)) for count in (min(counts), max(counts)))
            models[name] = replace(model, min_instances=low, max_instances=high)
    return replace(config, models=models)


def changeable(config: ThemisConfig, components: Components, fixed: Mapping[str, str]) -> ThemisConfig:
    """The settings as far as the adopted servers let models be changed; `fixed`: those that do not, with the reasons."""
    executor = components.world.executor
    servers = executor.fleet.all()
    executor.unchangeable = fixed_actuators(fixed, servers)
    return with_fixed_counts(config, fixed, servers)
