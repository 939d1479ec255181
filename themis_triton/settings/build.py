"""Valid settings as the frozen configuration of the stages."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.config import (
    AdoptedServer,
    EnvoyConfig,
    ModelConfig,
    PipelineConfig,
    PlanningConfig,
    Prices,
    StageCalls,
    StatusConfig,
    ThemisConfig,
    XdsConfig,
)
from themis_triton.core.graph import is_chain
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.settings.build_launch import build_inputs, build_launch
from themis_triton.settings.caller_times import with_times_of_calls
from themis_triton.settings.graph import expand, graph_of, is_driven_inside
from themis_triton.settings.kinds import parse_web_address
from themis_triton.settings.loading import Loaded
from themis_triton.settings.model_files import is_stateful
from themis_triton.settings.models import ModelSettings
from themis_triton.settings.pipelines import PipelineSettings
from themis_triton.settings.policy import PolicySettings, with_settings
from themis_triton.settings.profiles_check import max_busy
from themis_triton.settings.schema import Settings, StatusSettings, XdsSettings
from themis_triton.settings.servers import ServerSettings
from themis_triton.settings.tls import TlsSettings

_MAX_SOCKET_BYTES = 107
"""The longest path of a Unix socket."""


def build(loaded: Loaded, settings: Settings) -> ThemisConfig:
    """The configuration, with absolute paths, named slots and one latency table per model."""
    state = loaded.resolve(settings.state_directory)
    busy = max_busy(loaded)
    return ThemisConfig(
        state_directory=state,
        models=with_times_of_calls(loaded, {name: _model(loaded, name, model, busy) for name, model in settings.models.items()}),
        pipelines=tuple(_pipeline(loaded, name, pipeline) for name, pipeline in settings.pipelines.items()),
        servers=tuple(_server(loaded, name, server) for name, server in settings.servers.items()),
        envoy=_envoy(loaded, settings),
        launch=build_launch(loaded, settings, settings.launch) if settings.launch is not None else None,
        prices=with_settings(Prices(), settings.prices),
        policy=with_settings(PolicyConfig(), settings.policy),
        policies={PolicyName(name): _policy(settings, PolicyName(name), own) for name, own in settings.policies.items()},
        planning=with_settings(PlanningConfig(), settings.planning),
        mode=settings.mode,
        retention=settings.retention.to_core(),
        standby=settings.standby.to_core(),
        status=_status(loaded, settings.status),
        allow_stale_profiles=settings.allow_stale_profiles,
        callees={model: tuple(stage.model for stage in stages) for model, stages in loaded.calls.items()},
    )


def _pipeline(loaded: Loaded, name: str, pipeline: PipelineSettings) -> PipelineConfig:
    weighted = (pipeline.slo_ms, pipeline.percentile, pipeline.weight)
    if pipeline.model is not None and is_driven_inside(loaded, pipeline.model):
        stages, inside = zip(*expand(loaded, pipeline.model), strict=True)
        order = graph_of(loaded, pipeline.model)
        graph = None if is_chain(order.graph) else order.graph
        built = PipelineConfig(name, stages, *weighted, calls=inside, entry=pipeline.model, graph=graph, bound=order.bound)
        return _with_overload(built, pipeline)
    calls = tuple(stage.calls for stage in pipeline.stages or ())
    counted = calls if any(each != StageCalls() for each in calls) else ()
    return _with_overload(PipelineConfig(name, pipeline.chain, *weighted, counted), pipeline)


def _with_overload(built: PipelineConfig, pipeline: PipelineSettings) -> PipelineConfig:
    if pipeline.classes is None:
        return replace(built, overload=pipeline.overload)
    return replace(built, overload=pipeline.overload, class_header=pipeline.classes.header, classes=tuple(pipeline.classes.values))


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
        inputs=build_inputs(loaded, model),
        stateful=is_stateful(loaded, name),
        rows_per_request=model.rows_per_request,
        node_types=tuple(model.node_types or ()),
    )


def _server(loaded: Loaded, name: str, server: ServerSettings) -> AdoptedServer:
    first, *further = map(loaded.resolve, server.model_repository) if server.model_repository is not None else [None]
    return AdoptedServer(
        name=name,
        grpc_address=_with_tls(loaded, Address.parse(server.grpc), server.tls) if server.tls is not None else Address.parse(server.grpc),
        http_address=_web_address(loaded, server, server.http),
        metrics_address=_web_address(loaded, server, server.metrics),
        device=server.all_devices[0],
        reach=server.all_devices[1:],
        model_control_key=server.model_control_key,
        model_repository=first,
        further_repositories=tuple(folder for folder in further if folder is not None),
        model_config_name=server.model_config_name,
        zone=server.zone,
    )


def _web_address(loaded: Loaded, server: ServerSettings, text: str) -> Address:
    address, tls = parse_web_address(text) or Address.parse(text), server.proxy_tls or server.tls
    return _with_tls(loaded, address, tls) if address.tls and tls is not None else address


def _with_tls(loaded: Loaded, address: Address, tls: TlsSettings) -> Address:
    return tls.to_core(loaded.resolve).at(address)


def _status(loaded: Loaded, status: StatusSettings) -> StatusConfig:
    token_file = loaded.resolve(status.token_file) if status.token_file is not None else None
    return StatusConfig(Address.parse(status.address), token_file, status.tls.to_core(loaded.resolve) if status.tls is not None else None)


def _envoy(loaded: Loaded, settings: Settings) -> EnvoyConfig:
    envoy = settings.envoy
    directory = envoy.directory if envoy.directory is not None else settings.state_directory / "envoy"
    return EnvoyConfig(
        grpc_listen=Address.parse(envoy.grpc_listen),
        http_listen=Address.parse(envoy.http_listen),
        admin_address=Address.parse(envoy.admin) if envoy.admin is not None else _admin_socket(loaded.resolve(directory)),
        directory=loaded.resolve(directory),
        managed=envoy.managed,
        binary=loaded.resolve(envoy.binary) if envoy.binary is not None else None,
        max_message_bytes=int(envoy.max_message),
        concurrency=envoy.concurrency,
        resend_broken=envoy.resend_broken,
        header_timeout_s=envoy.header_timeout_s,
        idle_timeout_s=envoy.idle_timeout_s,
        stream_idle_timeout_s=envoy.stream_idle_timeout_s,
        max_request_s=envoy.max_request_s,
        max_connections=envoy.max_connections,
        max_streams=envoy.max_streams,
        max_memory_bytes=int(envoy.max_memory) if envoy.max_memory is not None else None,
        tls=envoy.tls.to_core(loaded.resolve) if envoy.tls is not None else None,
        api_keys=loaded.resolve(envoy.api_keys) if envoy.api_keys is not None else None,
        jwt=envoy.jwt.to_core(loaded.resolve) if envoy.jwt is not None else None,
        xds=_xds(loaded, envoy.xds) if envoy.xds is not None else None,
    )


def _xds(loaded: Loaded, xds: XdsSettings) -> XdsConfig:
    return XdsConfig(Address.parse(xds.listen), xds.tls.to_core(loaded.resolve) if xds.tls is not None else None)


def _admin_socket(directory: Path) -> Address:
    """A socket in Envoy's directory, or in a folder of its own where that path is longer than the kernel allows."""
    path = directory.absolute() / "admin" / "envoy.sock"
    if len(os.fsencode(path)) > _MAX_SOCKET_BYTES:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        path = Path("/tmp") / f"themis-{os.getuid()}-{digest}" / "envoy.sock"  # noqa: S108 - a folder that only this user can open
    return Address(str(path), 0)
