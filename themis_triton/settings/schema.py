"""The shape of the settings file: sections, keys, types, defaults and what each key means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from themis_triton.core.config import (
    ForecastName,
    LaunchConfig,
    Mode,
    ModelConfig,
    PipelineConfig,
    Placement,
    PlanningConfig,
    PolicyConfig,
    PolicyName,
    Prices,
    QueueingModel,
    ThroughputRule,
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
from themis_triton.settings.profile import DEFAULT_PROFILE, ProfileSettings

_LAUNCH = LaunchConfig(slots=(), model_repository=Path())
_POLICY = PolicyConfig()
_PLANNING = PlanningConfig()
_PRICES = Prices()
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
    proven_levers_only: bool = Field(
        default=_MODEL.proven_levers_only,
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


class PriceSettings(Section):
    """What capacity costs, in any one unit a second; only the ratio matters."""

    server: float = Field(default=_PRICES.server, ge=0, description="one server, whatever it holds")
    instance: float = Field(default=_PRICES.instance, ge=0, description="one instance of a model")
    lost_request: float = Field(default=_PRICES.lost_request, ge=0, description="a request outside its SLO, in the unit times seconds")
    grow_risk: float = Field(default=_PRICES.grow_risk, ge=0, description="expected loss by one growth in place, likewise")
    shrink_risk: float = Field(default=_PRICES.shrink_risk, ge=0, description="by one shrink in place")
    rebatch_risk: float = Field(default=_PRICES.rebatch_risk, ge=0, description="by one reload with other batches")
    launch_risk: float = Field(default=_PRICES.launch_risk, ge=0, description="by one server started")
    retire_risk: float = Field(default=_PRICES.retire_risk, ge=0, description="by one server drained and stopped")


class PolicySettings(Section):
    """Which policy decides, and its parameters."""

    name: Annotated[PolicyName, Field(strict=False)] = Field(
        default=_POLICY.name, description="themis scales both ways; horizontal and vertical are baselines"
    )
    tick_s: PositiveSeconds = Field(default=_POLICY.tick_s, description="from one observation to the next")
    rate_window_s: PositiveSeconds = Field(default=_POLICY.rate_window_s, description="window of the rate that a surge is seen by")
    peak_window_s: PositiveSeconds = Field(default=_POLICY.peak_window_s, description="window whose largest rate instances must carry")
    settle_window_s: PositiveSeconds = Field(default=_POLICY.settle_window_s, description="window whose rate the number of servers follows")
    headroom_sigmas: float = Field(
        default=_POLICY.headroom_sigmas, ge=0, description="capacity above the rate, in standard deviations of a Poisson second (√rate)"
    )
    slow_headroom_sigmas: float = Field(
        default=_POLICY.slow_headroom_sigmas, ge=0, description="likewise, for the number of servers, whose rate is a mean of many seconds"
    )
    trend_sigmas: float = Field(
        default=_POLICY.trend_sigmas,
        ge=0,
        description="a growth of the rate counts beyond so many standard deviations of what chance makes",
    )
    backlog_drain_s: PositiveSeconds = Field(
        default=_POLICY.backlog_drain_s, description="time in which waiting requests shall be worked off"
    )
    backlog_slack_s: Seconds = Field(
        default=_POLICY.backlog_slack_s, description="arrivals of so long may wait without counting as backlog: batches form of them"
    )
    max_added_instances: Count = Field(
        default=_POLICY.max_added_instances,
        description="instances added in one tick, on all servers together: starting many at once starves those that serve",
    )
    vertical_hold_s: Seconds = Field(default=_POLICY.vertical_hold_s, description="calm time before instances shrink")
    scale_in_hold_s: Seconds = Field(default=_POLICY.scale_in_hold_s, description="calm time before a server goes")
    survivor_margin_fraction: float = Field(
        default=_POLICY.survivor_margin_fraction, ge=0, description="margin above the recent peak that the survivors must carry"
    )
    surge_factor: float = Field(
        default=_POLICY.surge_factor, ge=1, description="servers are kept so that their instances alone could carry so many times the rate"
    )
    forecast: Annotated[ForecastName, Field(strict=False)] = Field(
        default=_POLICY.forecast, description="what foresees the rate while a server starts: nothing, the trend, or a learnt model"
    )
    queueing: Annotated[QueueingModel, Field(strict=False)] = Field(
        default=_POLICY.queueing, description="how the wait before a batch starts is predicted"
    )
    max_stale_s: PositiveSeconds = Field(default=_POLICY.max_stale_s, description="readings older than this lead to holding still")
    retry_backoff_s: PositiveSeconds = Field(default=_POLICY.retry_backoff_s, description="pause after a refused change, doubled each time")
    retry_backoff_max_s: PositiveSeconds = Field(default=_POLICY.retry_backoff_max_s, description="the longest such pause")
    memory_margin_fraction: float = Field(
        default=_POLICY.memory_margin_fraction, ge=0, lt=1, description="part of a device's memory that is never planned with"
    )
    slo_margin_fraction: float = Field(
        default=_POLICY.slo_margin_fraction, ge=0, lt=1, description="part of the SLO that plans leave free, for what a profile cannot know"
    )
    plan_horizon_s: PositiveSeconds = Field(
        default=_POLICY.plan_horizon_s,
        description="how long a plan is expected to hold, so that its saving is weighed against the way to it",
    )
    pool_hold_s: Seconds = Field(
        default=_POLICY.pool_hold_s,
        description="slots short for so long: a pipeline gives a server to one whose lost requests weigh more",
    )
    drift_window_s: PositiveSeconds = Field(
        default=_POLICY.drift_window_s, description="window over which the time of executed batches is compared with the profile"
    )
    drift_min_batches: Count = Field(
        default=_POLICY.drift_min_batches, description="fewest batches for that; the window reaches back for them, a minute at most"
    )
    drift_report_fraction: float = Field(
        default=_POLICY.drift_report_fraction, gt=0, description="a model whose batches take so much longer or shorter is reported to drift"
    )
    drift_step_fraction: float = Field(
        default=_POLICY.drift_step_fraction, gt=0, description="steps in which a drifting model's latency is corrected"
    )
    drift_max_factor: float = Field(
        default=_POLICY.drift_max_factor, ge=1, description="the largest such correction, up or down; 1: drift is only reported"
    )
    drift_hold_s: Seconds = Field(
        default=_POLICY.drift_hold_s, description="so long a smaller correction must have sufficed before plans count with it"
    )
    vertical_servers: Count | None = Field(
        default=None, description="policy vertical: its fixed number of servers; by default all that there are"
    )
    horizontal_instances: Count | None = Field(
        default=None, description="policy horizontal: its fixed instances a model; by default those that carry most for their price"
    )


class PlanningSettings(Section):
    """The rules that plans are made by. What runs live is colocated, with instances; the rest is for `themis plan` and simulations."""

    placement: Annotated[Placement, Field(strict=False)] = Field(
        default=_PLANNING.placement,
        description="colocated: every server holds all stages; separate: a server holds one stage (`themis plan` and simulations only)",
    )
    throughput: Annotated[ThroughputRule, Field(strict=False)] = Field(
        default=_PLANNING.throughput, description="instances: each works on a batch of its own; cores: all of a server's work on one batch"
    )
    paper_rounding: bool = Field(
        default=_PLANNING.paper_rounding, description="demand in whole requests/s, a server's throughput rounded down to whole requests/s"
    )
    max_servers: Count | None = Field(
        default=None,
        description="servers that plans may use, those of all stages together; by default the adopted ones and one a slot",
    )


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
    planning: PlanningSettings = Field(default=PlanningSettings(), description="the rules that plans are made by")
    mode: Annotated[Mode, Field(strict=False)] = Field(
        default=Mode.ACTIVE, description="active: decisions are carried out; advisory: they are only shown"
    )
    state_directory: FilePath = Field(default=Path(".themis"), description="where journal, logs and Envoy's files live")
    status: StatusSettings = Field(default=StatusSettings(), description="the status API and the daemon's own metrics")
    allow_stale_profiles: bool = Field(
        default=False, description="start although a measured profile's model, configuration or device has changed since"
    )
