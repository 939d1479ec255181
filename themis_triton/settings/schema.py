"""The schema of the settings file: sections, keys, types, defaults and descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from themis_triton.core.config import Isolation, LaunchKind, LocalLaunchConfig, Mode, ModelConfig, PipelineConfig
from themis_triton.core.policy import PolicyName
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
    check_distinct,
    one_of,
    refusal,
)
from themis_triton.settings.policy import PlanningSettings, PolicySettings, PriceSettings
from themis_triton.settings.profile import DEFAULT_PROFILE, ProfileSettings
from themis_triton.settings.runtime import DEFAULT_STATE_DIRECTORY, DEFAULT_STATUS_ADDRESS

_LAUNCH = LocalLaunchConfig(slots=(), model_repository=Path())
_MODEL = ModelConfig("", DEFAULT_PROFILE)
_PIPELINE = PipelineConfig("", (), 1.0)
MAX_INSTANCES = 64
MAX_BATCH = 512


class ServerSettings(Section):
    """A running Triton server to adopt."""

    model_config = one_of("device", "devices")

    grpc: HostPort = Field(description="Triton's gRPC address (`--grpc-port`)")
    http: HostPort = Field(description="Triton's HTTP address (`--http-port`)")
    metrics: HostPort = Field(description="Triton's metrics address (`--metrics-port`)")
    device: Device | None = Field(default=None, description="the device that it runs on; servers and slots on one device contend for it")
    devices: list[Device] | None = Field(
        default=None,
        min_length=1,
        description="instead of `device`: all devices that it may use, the one for its first instances first; "
        "under a surge it adds instances on the others too, as far as no other server uses them",
    )
    model_control_key: str | None = Field(
        default=None,
        min_length=1,
        description="the key of `--grpc-restricted-protocol=model-repository:key=KEY`, if that flag is set",
    )
    model_repository: FilePath | None = Field(
        default=None,
        description="its model repository; without it the first change of an instance count reloads the model",
    )

    @model_validator(mode="after")
    def _one_of(self) -> ServerSettings:
        if (self.device is None) == (self.devices is None):
            fault = "neither `device` nor `devices` is set" if self.device is None else "both `device` and `devices` are set"
            raise refusal(fault, "one of `device` and `devices`", "write `device: gpu:0`, or `devices: [gpu:0, gpu:1]` for several")
        if self.devices is not None:
            check_distinct(self.devices)
        return self

    @property
    def all_devices(self) -> tuple[str, ...]:
        """The devices that it may use, that of its first instances first."""
        return tuple(self.devices or ([self.device] if self.device is not None else []))


def _slot(value: object) -> object:
    return {"device": value} if isinstance(value, str) else value


class SlotSettings(Section):
    """A place where one server may be launched."""

    device: Device = Field(description="the device; several slots may share one")
    name: Name | None = Field(default=None, description="the slot's name; by default the device, numbered from its second slot on")
    memory: Size | None = Field(
        default=None, description="device memory that servers on this slot may use; by default the free memory that NVML reports"
    )


Slot = Annotated[
    SlotSettings,
    BeforeValidator(_slot, json_schema_input_type=SlotSettings | Device),
    Allowed("gpu:N, cpu:N, or a mapping with `device`, `name`, `memory`"),
]


class LaunchSettings(Section):
    """How new servers are launched."""

    kind: Annotated[LaunchKind, Field(strict=False)] = Field(
        default=LaunchKind.LOCAL, description="where; local: as processes on this machine"
    )
    slots: list[Slot] = Field(min_length=1, description="where servers may be launched, one server per slot")
    reach: list[Device] = Field(
        default=[],
        description="devices that every launched server can see: under a surge it adds instances on those that no other server uses, "
        "in one instance initialisation, where a new server takes a cold start",
    )
    isolation: Annotated[Isolation, Field(strict=False)] = Field(
        default=Isolation.NONE,
        description="process: once the load has settled, servers of their own take over from further devices of a server, "
        "so that a crash takes one device with it; none: it keeps them",
    )
    model_repository: FilePath | None = Field(
        default=None, description="the model repository of launched servers; by default the emulated models that ship with Themis"
    )
    binary: FilePath | None = Field(default=None, description="`tritonserver`; by default that of the `local` extra")
    backend_directory: FilePath | None = Field(default=None, description="Triton's backends; by default those of the `local` extra")
    arguments: list[str] = Field(default=[], description="further arguments for `tritonserver`")
    ready_timeout_s: PositiveSeconds = Field(
        default=_LAUNCH.ready_timeout_s,
        description="time from process start to ready with all models, after which the launch has failed",
    )
    warmup_requests: int = Field(
        default=_LAUNCH.warmup_requests,
        ge=0,
        description="requests per batch size that a new server answers before it receives traffic",
    )
    drain_timeout_s: Seconds = Field(
        default=_LAUNCH.drain_timeout_s, description="maximum wait for requests in flight after a server left the routes"
    )
    stop_timeout_s: PositiveSeconds = Field(default=_LAUNCH.stop_timeout_s, description="time from SIGTERM to SIGKILL")

    @field_validator("reach")
    @classmethod
    def _distinct(cls, reach: list[str]) -> list[str]:
        check_distinct(reach)
        return reach


class EnvoySettings(Section):
    """The proxy that clients connect to."""

    grpc_listen: Listen = Field(default="127.0.0.1:9001", description="listener for gRPC clients")
    http_listen: Listen = Field(default="127.0.0.1:9000", description="listener for HTTP clients")
    admin: HostPort = Field(default="127.0.0.1:9901", description="Envoy's admin address, loopback unless `allow_non_loopback`")
    allow_non_loopback: bool = Field(
        default=False, description="allow other machines to reach `admin`; any client of that address can stop Envoy"
    )
    directory: FilePath | None = Field(default=None, description="folder of Envoy's files; by default `envoy` in `state_directory`")
    managed: bool = Field(
        default=True,
        description="true: Themis starts Envoy if it does not run; false: you start it, with the bootstrap file in `directory`",
    )
    binary: FilePath | None = Field(default=None, description="`envoy`; by default that of the `local` extra")
    max_message: Size = Field(default=64 * 2**20, validate_default=True, description="maximum size of a request or response")
    concurrency: Count = Field(default=1, description="Envoy's worker threads")


class InstanceBounds(Section):
    """How many instances of a model one server may run."""

    min: Count = Field(default=_MODEL.min_instances, description="minimum on a server that holds the model")
    max: int = Field(default=_MODEL.max_instances, ge=1, le=MAX_INSTANCES, description="maximum on one server")

    @model_validator(mode="after")
    def _ordered(self) -> InstanceBounds:
        if self.min > self.max:
            raise refusal(f"min {self.min} > max {self.max}", "min ≤ max", f"write [{self.max}, {self.min}]")
        return self


def _bounds(value: object) -> object:
    if isinstance(value, list):
        if len(value) != 2:
            raise refusal(f"a list of {len(value)} is invalid", BOUNDS_WORDS, "write [min, max]")
        return {"min": value[0], "max": value[1]}
    return value


Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
BOUNDS_WORDS = f"[min, max] of 1 to {MAX_INSTANCES}, or a mapping with `min` and `max`"


Bounds = Annotated[InstanceBounds, BeforeValidator(_bounds, json_schema_input_type=InstanceBounds | Pair), Allowed(BOUNDS_WORDS)]


class InputSettings(Section):
    """Inputs of the requests that Themis itself sends to a model: warm-up, profile, probe, load."""

    shapes: dict[str, list[Count]] = Field(
        default={}, description="sizes of an input, by its name, without the batch dimension: {INPUT_IDS: [128]}"
    )
    file: FilePath | None = Field(
        default=None, description="instead of `shapes`: an .npz file with one array per input, without the batch dimension"
    )

    @model_validator(mode="after")
    def _one_of(self) -> InputSettings:
        if self.shapes and self.file is not None:
            raise refusal("both `shapes` and `file` are set", "one of `shapes` and `file`", "remove `shapes`; the arrays have shapes")
        return self


class ModelSettings(Section):
    """A model's profile, its bounds on one server, and its prices."""

    profile: ProfileSettings = Field(description="the model's latency and costs: a mapping, or the path of a profile file")
    instances: Bounds = Field(default=InstanceBounds(), description="instances on one server")
    max_batch: int = Field(
        default=_MODEL.max_batch,
        ge=1,
        le=MAX_BATCH,
        description="maximum batch size of plans; at most the `max_batch_size` of the model's config.pbtxt",
    )
    max_queue_delay_us: int = Field(
        default=_MODEL.max_queue_delay_us, ge=0, description="maximum time that Triton's batcher waits for a batch to fill"
    )
    require_probed_operations: bool = Field(
        default=_MODEL.require_probed_operations,
        description="change instances or batching of a running server only by operations that lost no request in `themis probe`",
    )
    inputs: InputSettings = Field(
        default=InputSettings(),
        description="inputs of the requests that Themis sends to the model; by default made up: zeros, and 1 or 32 for free dimensions",
    )
    server_price: float | None = Field(
        default=None, ge=0, description="placement separate: price of one server of this model; by default `prices.server`"
    )
    instance_price: float | None = Field(
        default=None, ge=0, description="price of one instance of this model; by default `prices.instance`"
    )


class PipelineSettings(Section):
    """A chain of models with one end-to-end SLO, or a single model."""

    model_config = one_of("stages", "model")

    stages: list[str] | None = Field(default=None, min_length=1, description="the models in the order in which a request passes them")
    model: str | None = Field(default=None, description="a single model, instead of `stages`")
    slo_ms: float = Field(gt=0, description="end-to-end latency SLO")
    percentile: float = Field(default=_PIPELINE.percentile, ge=50, lt=100, description="percentage of requests that must meet the SLO")
    weight: float = Field(default=_PIPELINE.weight, gt=0, description="priority relative to other pipelines when not all SLOs can be met")

    @model_validator(mode="after")
    def _one_of(self) -> PipelineSettings:
        if (self.stages is None) == (self.model is None):
            fault = "neither `stages` nor `model` is set" if self.stages is None else "both `stages` and `model` are set"
            raise refusal(fault, "one of `stages` and `model`", "write `stages: [first, second]`, or `model: name` for a single model")
        return self

    @property
    def chain(self) -> tuple[str, ...]:
        """The stages; a single model is a chain of one."""
        return tuple(self.stages or ([self.model] if self.model else []))


class StatusSettings(Section):
    """The status API and the daemon's own metrics."""

    address: Listen = Field(default=DEFAULT_STATUS_ADDRESS, description="listener, loopback unless `allow_non_loopback`")
    allow_non_loopback: bool = Field(default=False, description="allow other machines to reach it")


class Settings(Section):
    """The whole file."""

    models: dict[Name, ModelSettings] = Field(min_length=1, description="the models that Themis scales, by their names in Triton")
    pipelines: dict[Name, PipelineSettings] = Field(min_length=1, description="chains of models with their SLOs, by names of your choice")
    servers: dict[Name, ServerSettings] = Field(
        default={}, description="running Triton servers to adopt, by names of your choice; they are scaled in place and never stopped"
    )
    launch: LaunchSettings | None = Field(default=None, description="how new servers are launched; without it only instances are scaled")
    envoy: EnvoySettings = Field(default=EnvoySettings(), description="the proxy that clients connect to")
    prices: PriceSettings = Field(
        default=PriceSettings(), description="prices of capacity and of changes, in one unit of your choice; only ratios matter"
    )
    policy: PolicySettings = Field(default=PolicySettings(), description="the scaling policy and its parameters")
    policies: dict[Name, PolicySettings] = Field(
        default={},
        description="values of `policy` keys for one policy, by its name, in simulations and comparisons; "
        "its other values are those of `policy`",
    )
    planning: PlanningSettings = Field(default=PlanningSettings(), description="the rules of plans")
    mode: Annotated[Mode, Field(strict=False)] = Field(
        default=Mode.ACTIVE, description="active: Themis carries out its decisions; advisory: it only shows them"
    )
    state_directory: FilePath = Field(
        default=Path(DEFAULT_STATE_DIRECTORY), description="folder of the journal, the logs and Envoy's files"
    )
    status: StatusSettings = Field(default=StatusSettings(), description="the status API and the daemon's own metrics")
    allow_stale_profiles: bool = Field(
        default=False, description="start even if the model, its configuration or the device changed after a profile was measured"
    )

    @field_validator("policies")
    @classmethod
    def _known(cls, policies: dict[str, PolicySettings]) -> dict[str, PolicySettings]:
        names = [policy.value for policy in PolicyName]
        for name, section in policies.items():
            if name not in names:
                raise refusal(f"unknown policy {name}", " or ".join(names), "write one of these policies, or remove it")
            if "name" in section.model_fields_set:
                raise refusal(f"`name` is set in the section of {name}", "the other keys of `policy`", "remove `name`")
        return policies
