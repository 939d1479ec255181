"""The shape of the settings file: sections, keys, types, defaults and what each key means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from themis_triton.core.config import (
    LaunchConfig,
    Mode,
    ModelConfig,
    PipelineConfig,
    PolicyName,
)
from themis_triton.settings.kinds import (
    Allowed,
    Count,
    Device,
    FilePath,
    HostPort,
    Listen,
    Name,
    PositiveSeconds,
    Seconds,
    Section,
    Size,
    refusal,
)
from themis_triton.settings.policy import PlanningSettings, PolicySettings, PriceSettings
from themis_triton.settings.profile import DEFAULT_PROFILE, ProfileSettings

_LAUNCH = LaunchConfig(slots=(), model_repository=Path())
_MODEL = ModelConfig("", DEFAULT_PROFILE)
_PIPELINE = PipelineConfig("", (), 1.0)
MAX_INSTANCES = 64
MAX_BATCH = 512


class ServerSettings(Section):
    """A running Triton server to adopt."""

    grpc: HostPort = Field(description="Triton's gRPC address (`--grpc-port`)")
    http: HostPort = Field(description="Triton's HTTP address (`--http-port`)")
    metrics: HostPort = Field(description="Triton's metrics address (`--metrics-port`)")
    device: Device = Field(description="the device that it serves from; servers and slots with the same device contend")
    model_control_key: str | None = Field(
        default=None,
        min_length=1,
        description="the key of `--grpc-restricted-protocol=model-repository:key=KEY`, if it was given",
    )
    model_repository: FilePath | None = Field(
        default=None,
        description="its model repository; without it the very first change of a count reloads the model",
    )


def _slot(value: object) -> object:
    return {"device": value} if isinstance(value, str) else value


class SlotSettings(Section):
    """A place where one server may be launched."""

    device: Device = Field(description="the device; several slots may share one")
    name: Name | None = Field(
        default=None, description="the slot's name; by default that of the device, numbered from the second slot on it"
    )
    memory: Size | None = Field(default=None, description="device memory that servers on this slot may use; by default what NVML shows")


class LaunchSettings(Section):
    """How more servers are started."""

    slots: list[Annotated[SlotSettings, BeforeValidator(_slot), Allowed("gpu:N, cpu:N, or a mapping with `device`, `name`, `memory`")]] = (
        Field(min_length=1, description="where servers may be started, one server a slot")
    )
    model_repository: FilePath | None = Field(
        default=None, description="the model repository of launched servers; by default the emulated models that ship with Themis"
    )
    binary: FilePath | None = Field(default=None, description="`tritonserver`; by default that of the `local` extra")
    backend_directory: FilePath | None = Field(default=None, description="Triton's backends; by default those of the `local` extra")
    arguments: list[str] = Field(default=[], description="further arguments for `tritonserver`")
    ready_timeout_s: PositiveSeconds = Field(
        default=_LAUNCH.ready_timeout_s, description="from start to ready with all models, before the launch counts as failed"
    )
    warmup_requests: int = Field(
        default=_LAUNCH.warmup_requests, ge=0, description="requests a batch size that a new server must answer before it is routed to"
    )
    drain_timeout_s: Seconds = Field(
        default=_LAUNCH.drain_timeout_s, description="wait for the requests in flight of a server that left the routes"
    )
    stop_timeout_s: PositiveSeconds = Field(default=_LAUNCH.stop_timeout_s, description="from SIGTERM to SIGKILL")


class EnvoySettings(Section):
    """The proxy that clients speak to."""

    grpc_listen: Listen = Field(default="127.0.0.1:9001", description="where clients send gRPC")
    http_listen: Listen = Field(default="127.0.0.1:9000", description="where clients send HTTP")
    admin: HostPort = Field(default="127.0.0.1:9901", description="Envoy's admin address, loopback unless `allow_non_loopback`")
    allow_non_loopback: bool = Field(
        default=False, description="let `admin` be reachable from other machines; whoever reaches it can stop Envoy"
    )
    directory: FilePath | None = Field(default=None, description="where Envoy's files live; by default `envoy` in `state_directory`")
    managed: bool = Field(
        default=True,
        description="true: Themis starts Envoy when it is not there; false: someone else does, with the bootstrap in `directory`",
    )
    binary: FilePath | None = Field(default=None, description="`envoy`; by default that of the `local` extra")
    max_message: Size = Field(default=64 * 2**20, validate_default=True, description="the largest request or response")
    concurrency: Count = Field(default=1, description="Envoy's worker threads")


class InstanceBounds(Section):
    """How many instances of a model one server may run."""

    min: Count = Field(default=_MODEL.min_instances, description="never fewer on a server that holds the model")
    max: int = Field(default=_MODEL.max_instances, ge=1, le=MAX_INSTANCES, description="never more on one server")

    @model_validator(mode="after")
    def _ordered(self) -> InstanceBounds:
        if self.min > self.max:
            raise refusal(f"min {self.min} > max {self.max}", "min ≤ max", f"write [{self.max}, {self.min}]")
        return self


def _bounds(value: object) -> object:
    if isinstance(value, list):
        if len(value) != 2:
            raise refusal(f"a list of {len(value)}", BOUNDS_WORDS, "write [min, max]")
        return {"min": value[0], "max": value[1]}
    return value


BOUNDS_WORDS = f"[min, max] of 1 to {MAX_INSTANCES}, or a mapping with `min` and `max`"


class ModelSettings(Section):
    """Bounds of one model on one server, and what it costs."""

    profile: ProfileSettings = Field(description="the model's latency surface and costs, here or in a file of its own")
    instances: Annotated[InstanceBounds, BeforeValidator(_bounds), Allowed(BOUNDS_WORDS)] = Field(
        default=InstanceBounds(), description="instances on one server"
    )
    max_batch: int = Field(
        default=_MODEL.max_batch,
        ge=1,
        le=MAX_BATCH,
        description="the largest batch that a plan may choose; at most the `max_batch_size` of the model's config.pbtxt",
    )
    max_queue_delay_us: int = Field(
        default=_MODEL.max_queue_delay_us, ge=0, description="how long Triton's batcher may wait for a batch to fill"
    )
    require_probed_operations: bool = Field(
        default=_MODEL.require_probed_operations,
        description="change a running server's instances or batching only in ways that `themis probe` found to lose no request",
    )
    server_price: float | None = Field(
        default=None, ge=0, description="placement separate: one server that holds this model; by default `prices.server`"
    )
    instance_price: float | None = Field(default=None, ge=0, description="one instance of this model; by default `prices.instance`")


class PipelineSettings(Section):
    """A chain of models, one after the other, with one end-to-end objective; or a lone model."""

    stages: list[str] | None = Field(default=None, min_length=1, description="models in the order in which a request passes them")
    model: str | None = Field(default=None, description="instead of `stages`: the lone model")
    slo_ms: float = Field(gt=0, description="end-to-end latency objective")
    percentile: float = Field(
        default=_PIPELINE.percentile, ge=50, lt=100, description="the share of requests, in percent, that must meet the objective"
    )
    weight: float = Field(default=_PIPELINE.weight, gt=0, description="importance against other pipelines when not all can be met")

    @model_validator(mode="after")
    def _one_of(self) -> PipelineSettings:
        if (self.stages is None) == (self.model is None):
            found = "neither `stages` nor `model`" if self.stages is None else "both `stages` and `model`"
            raise refusal(found, "one of `stages` and `model`", "write `stages: [first, second]`, or `model: name` for a lone model")
        return self

    @property
    def chain(self) -> tuple[str, ...]:
        """The stages; a lone model is a chain of one."""
        return tuple(self.stages or ([self.model] if self.model else []))


class StatusSettings(Section):
    """The status API and the daemon's own metrics."""

    address: Listen = Field(default="127.0.0.1:9180", description="where they listen, loopback unless `allow_non_loopback`")
    allow_non_loopback: bool = Field(default=False, description="let other machines reach it")


class Settings(Section):
    """The whole file."""

    models: dict[Name, ModelSettings] = Field(min_length=1, description="every model that Themis may scale, by its name in Triton")
    pipelines: dict[Name, PipelineSettings] = Field(
        min_length=1, description="chains of models with their objectives, by a name of your choice"
    )
    servers: dict[Name, ServerSettings] = Field(
        default={}, description="running Triton servers to adopt, by a name of your choice; they are scaled in place and never stopped"
    )
    launch: LaunchSettings | None = Field(default=None, description="how more servers are started; without it only instances are scaled")
    envoy: EnvoySettings = Field(default=EnvoySettings(), description="the proxy that clients speak to")
    prices: PriceSettings = Field(default=PriceSettings(), description="what capacity and moves cost, in any one unit; only ratios matter")
    policy: PolicySettings = Field(default=PolicySettings(), description="which policy decides, and its parameters")
    policies: dict[Name, PolicySettings] = Field(
        default={},
        description="by a policy's name: keys of `policy` that it has its own values for, in simulations and comparisons; "
        "where planning.placement is separate, all else of a baseline is as published, and not as `policy` says",
    )
    planning: PlanningSettings = Field(default=PlanningSettings(), description="the rules that plans are made by")
    mode: Annotated[Mode, Field(strict=False)] = Field(
        default=Mode.ACTIVE, description="active: decisions are carried out; advisory: they are only shown"
    )
    state_directory: FilePath = Field(default=Path(".themis"), description="where journal, logs and Envoy's files live")
    status: StatusSettings = Field(default=StatusSettings(), description="the status API and the daemon's own metrics")
    allow_stale_profiles: bool = Field(
        default=False, description="start although a measured profile's model, configuration or device has changed since"
    )

    @field_validator("policies")
    @classmethod
    def _known(cls, policies: dict[str, PolicySettings]) -> dict[str, PolicySettings]:
        allowed = [policy.value for policy in PolicyName]
        for name, section in policies.items():
            if name not in allowed:
                raise refusal(name, " or ".join(allowed), "name one of these policies, or remove it")
            if "name" in section.model_fields_set:
                raise refusal(f"name in the section of {name}", "every other key of `policy`", "remove `name`")
        return policies
