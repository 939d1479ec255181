"""The section `launch` as the frozen configuration of a launcher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from themis_triton.core.address import Address
from themis_triton.core.config import (
    DeviceSlot,
    KedaConfig,
    KubernetesLaunchConfig,
    LaunchConfig,
    LocalLaunchConfig,
    ModelInputs,
    RayLaunchConfig,
    SlurmLaunchConfig,
)
from themis_triton.settings.graph import ensembles
from themis_triton.settings.kubernetes import KedaSettings, KubernetesSettings
from themis_triton.settings.loading import Loaded
from themis_triton.settings.model_files import launch_repositories
from themis_triton.settings.models import ModelSettings
from themis_triton.settings.node_types import slots_of
from themis_triton.settings.ray import RaySettings
from themis_triton.settings.schema import Settings
from themis_triton.settings.servers import LaunchSettings, SlotSettings
from themis_triton.settings.slurm import SlurmSettings


def build_launch(loaded: Loaded, settings: Settings, launch: LaunchSettings) -> LaunchConfig:
    """The launcher's configuration; the cheapest slots come first, of the same price those that the fewest models may use."""
    first, *further = (repository.folder for repository in launch_repositories(loaded, launch))
    bound = [model.node_types for model in settings.models.values() if model.node_types]
    slots = sorted(launch_slots(launch), key=lambda slot: (slot.price_per_hour or 0.0, sum(slot.node_type in types for types in bound)))
    common: dict[str, Any] = {
        "slots": tuple(slots),
        "node_types": {name: dict(each.select) for name, each in launch.node_types.items()},
        "read_nodes_every_s": launch.read_nodes_every_s,
        "model_repository": first,
        "further_repositories": tuple(further),
        "arguments": tuple(launch.arguments),
        "model_config_name": launch.model_config_name,
        "ready_timeout_s": launch.ready_timeout_s,
        "warmup_requests": launch.warmup_requests,
        "drain_timeout_s": launch.drain_timeout_s,
        "stop_timeout_s": launch.stop_timeout_s,
        "tls": launch.tls.to_core(loaded.resolve) if launch.tls is not None else None,
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
        reach=tuple(launch.reach),
        isolation=launch.isolation,
        **common,
        **programs,
    )


def launch_slots(launch: LaunchSettings) -> tuple[DeviceSlot, ...]:
    """The slots in the order of the settings. What an engine places has a device of its own: it gives a device to one server."""
    if launch.kubernetes is not None:
        return slots_of(launch.node_types, "pod", launch.kubernetes.pods, launch.kubernetes.memory)
    if launch.ray is not None:
        return slots_of(launch.node_types, "ray", launch.ray.servers, launch.ray.memory)
    if launch.slurm is not None:
        return slots_of(launch.node_types, "job", launch.slurm.jobs, launch.slurm.memory)
    return tuple(_named_slots(launch.slots or []))


def _pods(loaded: Loaded, pods: KubernetesSettings, common: dict[str, Any]) -> KubernetesLaunchConfig:
    cpu = pods.instance_cpu or "0"
    return KubernetesLaunchConfig(
        namespace=pods.namespace,
        pod_template=loaded.resolve(pods.pod_template) if pods.pod_template is not None else Path(),
        keda=_keda(loaded, pods.keda) if pods.keda is not None else None,
        key_file=loaded.resolve(pods.key_file),
        key_secret=pods.key_secret,
        sidecar=pods.sidecar,
        kubeconfig=loaded.resolve(pods.kubeconfig) if pods.kubeconfig is not None else None,
        context=pods.context,
        owner_deployment=pods.owner_deployment,
        place_timeout_s=pods.place_timeout_s,
        resize_timeout_s=pods.resize_timeout_s,
        proxy=pods.proxy.to_core() if pods.proxy is not None else None,
        instance_cpu_m=int(cpu.removesuffix("m")) * (1 if cpu.endswith("m") else 1000),
        instance_memory_bytes=int(pods.instance_memory or 0),
        **common,
    )


def _keda(loaded: Loaded, keda: KedaSettings) -> KedaConfig:
    tls = keda.tls.to_core(loaded.resolve) if keda.tls is not None else None
    return KedaConfig(Address.parse(keda.listen), tuple(keda.selector.items()), tls)


def _ray(loaded: Loaded, ray: RaySettings, common: dict[str, Any]) -> RayLaunchConfig:
    return RayLaunchConfig(
        address=ray.address,
        namespace=ray.namespace,
        resources=dict(ray.resources),
        node_repositories=tuple(loaded.resolve(folder) for folder in ray.model_repository or ()),
        place_timeout_s=ray.place_timeout_s,
        proxy=ray.proxy.to_core() if ray.proxy is not None else None,
        **common,
    )


def _jobs(loaded: Loaded, jobs: SlurmSettings, common: dict[str, Any]) -> SlurmLaunchConfig:
    return SlurmLaunchConfig(
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
        proxy=jobs.proxy.to_core() if jobs.proxy is not None else None,
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
        memory = int(slot.memory) if slot.memory is not None else None
        yield DeviceSlot(name, slot.device, memory, slot.node_type, slot.price_per_hour)


def build_inputs(loaded: Loaded, model: ModelSettings) -> ModelInputs:
    """The inputs of the requests that Themis sends to a model."""
    shapes = {name: tuple(sizes) for name, sizes in model.inputs.shapes.items()}
    return ModelInputs(shapes, loaded.resolve(model.inputs.file) if model.inputs.file is not None else None)


def _warmup_inputs(loaded: Loaded, model: ModelSettings) -> ModelInputs:
    return ModelInputs(file=loaded.resolve(model.warmup)) if model.warmup is not None else build_inputs(loaded, model)
