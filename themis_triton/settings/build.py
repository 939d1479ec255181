"""Valid settings as the frozen configuration of the stages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from themis_triton.core.address import Address
from themis_triton.core.config import (
    AdoptedServer,
    DeviceSlot,
    EnvoyConfig,
    KedaConfig,
    KubernetesLaunchConfig,
    LaunchConfig,
    LocalLaunchConfig,
    ModelConfig,
    ModelInputs,
    PipelineConfig,
    PlanningConfig,
    Prices,
    RayLaunchConfig,
    SlurmLaunchConfig,
    StageCalls,
    StatusConfig,
    ThemisConfig,
    XdsConfig,
)
from themis_triton.core.graph import is_chain
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.settings.caller_times import with_times_of_calls
from themis_triton.settings.checks import max_busy
from themis_triton.settings.graph import ensembles, expand, graph_of, is_driven_inside
from themis_triton.settings.loading import Loaded
from themis_triton.settings.model_files import is_stateful, launch_repositories
from themis_triton.settings.models import ModelSettings
from themis_triton.settings.pipelines import PipelineSettings
from themis_triton.settings.policy import PolicySettings, with_settings
from themis_triton.settings.schema import Settings, StatusSettings, XdsSettings
from themis_triton.settings.servers import KubernetesSettings, LaunchSettings, RaySettings, ServerSettings, SlotSettings
from themis_triton.settings.slurm import SlurmSettings

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
        launch=_launch(loaded, settings, settings.launch) if settings.launch is not None else None,
        prices=with_settings(Prices(), settings.prices),
        policy=with_settings(PolicyConfig(), settings.policy),
        policies={PolicyName(name): _policy(settings, PolicyName(name), own) for name, own in settings.policies.items()},
        planning=with_settings(PlanningConfig(), settings.planning),
        mode=settings.mode,
        retention=settings.retention.to_core(),
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
        inputs=_inputs(loaded, model),
        stateful=is_stateful(loaded, name),
        rows_per_request=model.rows_per_request,
    )


def _inputs(loaded: Loaded, model: ModelSettings) -> ModelInputs:
    shapes = {name: tuple(sizes) for name, sizes in model.inputs.shapes.items()}
    return ModelInputs(shapes, loaded.resolve(model.inputs.file) if model.inputs.file is not None else None)


def _warmup_inputs(loaded: Loaded, model: ModelSettings) -> ModelInputs:
    return ModelInputs(file=loaded.resolve(model.warmup)) if model.warmup is not None else _inputs(loaded, model)


def _server(loaded: Loaded, name: str, server: ServerSettings) -> AdoptedServer:
    first, *further = map(loaded.resolve, server.model_repository) if server.model_repository is not None else [None]
    return AdoptedServer(
        name=name,
        grpc_address=_grpc_address(loaded, server),
        http_address=Address.parse(server.http),
        metrics_address=Address.parse(server.metrics),
        device=server.all_devices[0],
        reach=server.all_devices[1:],
        model_control_key=server.model_control_key,
        model_repository=first,
        further_repositories=tuple(folder for folder in further if folder is not None),
        model_config_name=server.model_config_name,
        zone=server.zone,
    )


def _grpc_address(loaded: Loaded, server: ServerSettings) -> Address:
    address, tls = Address.parse(server.grpc), server.tls
    if tls is None:
        return address
    ca, certificate, key = (str(loaded.resolve(file)) if file is not None else None for file in (tls.ca, tls.certificate, tls.key))
    return replace(address, tls=True, server_name=tls.server_name, ca=ca, certificate=certificate, key=key)


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


def _launch(loaded: Loaded, settings: Settings, launch: LaunchSettings) -> LaunchConfig:
    first, *further = (repository.folder for repository in launch_repositories(loaded, launch))
    common: dict[str, Any] = {
        "model_repository": first,
        "further_repositories": tuple(further),
        "arguments": tuple(launch.arguments),
        "model_config_name": launch.model_config_name,
        "ready_timeout_s": launch.ready_timeout_s,
        "warmup_requests": launch.warmup_requests,
        "drain_timeout_s": launch.drain_timeout_s,
        "stop_timeout_s": launch.stop_timeout_s,
        "inputs": {name: _warmup_inputs(loaded, model) for name, model in settings.models.items()},
        "ensembles": {n: needed for p in settings.pipelines.values() if p.model for n, needed in ensembles(loaded, p.model).items()},
    }
    if launch.kubernetes is not None:
        return _pods(loaded, launch.kubernetes, common)
    programs: dict[str, Any] = {
        "binary": loaded.resolve(launch.binary) if launch.binary is not None else None,
        "backend_directory": loaded.resolve(launch.backend_directory) if launch.backend_directory is not None else None,
    }
    if launch.ray is not None:
        return _ray(loaded, launch.ray, common | programs)
    if launch.slurm is not None:
        return _jobs(loaded, launch.slurm, common | programs)
    return LocalLaunchConfig(
        slots=tuple(_named_slots(launch.slots or [])),
        reach=tuple(launch.reach),
        isolation=launch.isolation,
        **common,
        **programs,
    )


def _pods(loaded: Loaded, pods: KubernetesSettings, common: dict[str, Any]) -> KubernetesLaunchConfig:
    """Each pod is a slot with a device of its own: pods do not share one."""
    memory = int(pods.memory) if pods.memory is not None else None
    cpu = pods.instance_cpu or "0"
    return KubernetesLaunchConfig(
        slots=tuple(DeviceSlot(f"pod-{number}", f"pod:{number}", memory) for number in range(1, pods.pods + 1)),
        namespace=pods.namespace,
        pod_template=loaded.resolve(pods.pod_template) if pods.pod_template is not None else Path(),
        keda=KedaConfig(Address.parse(pods.keda.listen), tuple(pods.keda.selector.items())) if pods.keda is not None else None,
        key_file=loaded.resolve(pods.key_file),
        key_secret=pods.key_secret,
        sidecar=pods.sidecar,
        kubeconfig=loaded.resolve(pods.kubeconfig) if pods.kubeconfig is not None else None,
        context=pods.context,
        owner_deployment=pods.owner_deployment,
        place_timeout_s=pods.place_timeout_s,
        resize_timeout_s=pods.resize_timeout_s,
        instance_cpu_m=int(cpu.removesuffix("m")) * (1 if cpu.endswith("m") else 1000),
        instance_memory_bytes=int(pods.instance_memory or 0),
        **common,
    )


def _ray(loaded: Loaded, ray: RaySettings, common: dict[str, Any]) -> RayLaunchConfig:
    """Each server is a slot with a device of its own: Ray gives a device to one actor."""
    memory = int(ray.memory) if ray.memory is not None else None
    return RayLaunchConfig(
        slots=tuple(DeviceSlot(f"ray-{number}", f"ray:{number}", memory) for number in range(1, ray.servers + 1)),
        address=ray.address,
        namespace=ray.namespace,
        resources=dict(ray.resources),
        node_repositories=tuple(loaded.resolve(folder) for folder in ray.model_repository or ()),
        place_timeout_s=ray.place_timeout_s,
        **common,
    )


def _jobs(loaded: Loaded, jobs: SlurmSettings, common: dict[str, Any]) -> SlurmLaunchConfig:
    """Each job is a slot with a device of its own: jobs do not share one."""
    memory = int(jobs.memory) if jobs.memory is not None else None
    return SlurmLaunchConfig(
        slots=tuple(DeviceSlot(f"job-{number}", f"job:{number}", memory) for number in range(1, jobs.jobs + 1)),
        directory=loaded.resolve(jobs.directory),
        sidecar=jobs.sidecar,
        partition=jobs.partition,
        account=jobs.account,
        qos=jobs.qos,
        gres=jobs.gres,
        constraint=jobs.constraint,
        cpus=jobs.cpus,
        host_memory_bytes=int(jobs.host_memory) if jobs.host_memory is not None else None,
        time_limit_min=jobs.time_limit_min,
        options=tuple(jobs.options),
        container=loaded.resolve(jobs.container) if jobs.container is not None else None,
        container_command=tuple(jobs.container_command),
        place_timeout_s=jobs.place_timeout_s,
        poll_s=jobs.poll_s,
        **common,
    )


def _named_slots(slots: Sequence[SlotSettings]) -> Iterator[DeviceSlot]:
    """The slots; one without a name gets `cpu-0`, or `cpu-0-2`, `cpu-0-3` if several share a device."""
    taken = {slot.name for slot in slots if slot.name is not None}
    for slot in slots:
        name, number = slot.name, 1
        while name is None or (slot.name is None and name in taken):
            base = slot.device.replace(":", "-")
            name = base if number == 1 else f"{base}-{number}"
            number += 1
        taken.add(name)
        yield DeviceSlot(name, slot.device, int(slot.memory) if slot.memory is not None else None)
