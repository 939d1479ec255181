"""Valid settings as the frozen configuration of the stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from themis_triton.core.address import Address
from themis_triton.core.config import (
    AdoptedServer,
    DeviceSlot,
    EnvoyConfig,
    LaunchConfig,
    LocalLaunchConfig,
    ModelConfig,
    ModelInputs,
    PipelineConfig,
    PlanningConfig,
    Prices,
    StatusConfig,
    ThemisConfig,
)
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.settings.checks import max_busy, repository_of
from themis_triton.settings.loading import Loaded
from themis_triton.settings.policy import PolicySettings, with_settings
from themis_triton.settings.schema import LaunchSettings, ModelSettings, ServerSettings, Settings


def build(loaded: Loaded, settings: Settings) -> ThemisConfig:
    """The configuration, with absolute paths, named slots and one latency table per model."""
    state = loaded.resolve(settings.state_directory)
    busy = max_busy(loaded)
    return ThemisConfig(
        state_directory=state,
        models={name: _model(loaded, name, model, busy) for name, model in settings.models.items()},
        pipelines=tuple(PipelineConfig(n, p.chain, p.slo_ms, p.percentile, p.weight) for n, p in settings.pipelines.items()),
        servers=tuple(_server(loaded, name, server) for name, server in settings.servers.items()),
        envoy=_envoy(loaded, settings),
        launch=_launch(loaded, settings, settings.launch) if settings.launch is not None else None,
        prices=with_settings(Prices(), settings.prices),
        policy=with_settings(PolicyConfig(), settings.policy),
        policies={PolicyName(name): _policy(settings, PolicyName(name), own) for name, own in settings.policies.items()},
        planning=with_settings(PlanningConfig(), settings.planning),
        mode=settings.mode,
        status=StatusConfig(Address.parse(settings.status.address)),
        allow_stale_profiles=settings.allow_stale_profiles,
    )


def _policy(settings: Settings, name: PolicyName, own: PolicySettings) -> PolicyConfig:
    """The values of `policy`, overridden by the policy's own section."""
    return replace(with_settings(with_settings(PolicyConfig(), settings.policy), own), name=name)


def _model(loaded: Loaded, name: str, model: ModelSettings, busy: int) -> ModelConfig:
    profile = model.profile.to_core(model.max_batch, busy)
    return ModelConfig(
        name=name,
        profile=profile,
        min_instances=model.instances.min,
        max_instances=model.instances.max,
        max_batch=model.max_batch,
        max_queue_delay_us=model.max_queue_delay_us,
        server_price=model.server_price,
        instance_price=model.instance_price,
        require_probed_operations=model.require_probed_operations,
        inputs=_inputs(loaded, model),
    )


def _inputs(loaded: Loaded, model: ModelSettings) -> ModelInputs:
    shapes = {name: tuple(sizes) for name, sizes in model.inputs.shapes.items()}
    return ModelInputs(shapes, loaded.resolve(model.inputs.file) if model.inputs.file is not None else None)


def _server(loaded: Loaded, name: str, server: ServerSettings) -> AdoptedServer:
    return AdoptedServer(
        name=name,
        grpc_address=Address.parse(server.grpc),
        http_address=Address.parse(server.http),
        metrics_address=Address.parse(server.metrics),
        device=server.all_devices[0],
        reach=server.all_devices[1:],
        model_control_key=server.model_control_key,
        model_repository=loaded.resolve(server.model_repository) if server.model_repository is not None else None,
    )


def _envoy(loaded: Loaded, settings: Settings) -> EnvoyConfig:
    envoy = settings.envoy
    directory = envoy.directory if envoy.directory is not None else settings.state_directory / "envoy"
    return EnvoyConfig(
        grpc_listen=Address.parse(envoy.grpc_listen),
        http_listen=Address.parse(envoy.http_listen),
        admin_address=Address.parse(envoy.admin),
        directory=loaded.resolve(directory),
        managed=envoy.managed,
        binary=loaded.resolve(envoy.binary) if envoy.binary is not None else None,
        max_message_bytes=int(envoy.max_message),
        concurrency=envoy.concurrency,
    )


def _launch(loaded: Loaded, settings: Settings, launch: LaunchSettings) -> LaunchConfig:
    return LocalLaunchConfig(
        slots=tuple(_named_slots(launch)),
        model_repository=repository_of(loaded, launch),
        binary=loaded.resolve(launch.binary) if launch.binary is not None else None,
        backend_directory=loaded.resolve(launch.backend_directory) if launch.backend_directory is not None else None,
        arguments=tuple(launch.arguments),
        ready_timeout_s=launch.ready_timeout_s,
        warmup_requests=launch.warmup_requests,
        drain_timeout_s=launch.drain_timeout_s,
        stop_timeout_s=launch.stop_timeout_s,
        inputs={name: _inputs(loaded, model) for name, model in settings.models.items()},
        reach=tuple(launch.reach),
        isolation=launch.isolation,
    )


def _named_slots(launch: LaunchSettings) -> Iterator[DeviceSlot]:
    """The slots; one without a name gets `cpu-0`, or `cpu-0-2`, `cpu-0-3` if several share a device."""
    taken = {slot.name for slot in launch.slots if slot.name is not None}
    for slot in launch.slots:
        name, number = slot.name, 1
        while name is None or (slot.name is None and name in taken):
            base = slot.device.replace(":", "-")
            name = base if number == 1 else f"{base}-{number}"
            number += 1
        taken.add(name)
        yield DeviceSlot(name, slot.device, int(slot.memory) if slot.memory is not None else None)
