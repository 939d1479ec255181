"""The frozen configuration that every stage reads; `settings.py` builds it from YAML, tests build it by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from themis_triton.core.address import Address


class Mode(StrEnum):
    """Whether decisions are carried out or only shown."""

    ACTIVE = "active"
    ADVISORY = "advisory"


class PolicyName(StrEnum):
    """The policies that ship; each one is a `propose` function. All but `themis` are baselines."""

    THEMIS = "themis"
    THEMIS_PAPER = "themis-paper"
    HORIZONTAL = "horizontal"
    VERTICAL = "vertical"
    INFERLINE = "inferline"
    STATIC = "static"


class ForecastName(StrEnum):
    """What foresees the arrival rate; see `forecast/`. NONE: the largest of the last seconds goes on."""

    NONE = "none"
    LINEAR = "linear"
    CLASSIFIER = "classifier"
    QUANTILE = "quantile"


class QueueingModel(StrEnum):
    """How the wait of a request before its batch starts is predicted; see `solver/queueing.py`.

    TRITON: a work-conserving queue on each server. CENTRAL: one for all servers of a stage. SHARE: work-conserving too, but nothing is
    predicted, and the margin of the SLO is what waits may take. The others are the paper's.
    """

    TRITON = "triton"
    CENTRAL = "central"
    SHARE = "share"
    EXPONENTIAL = "exponential"
    GAMMA = "gamma"
    CONSTANT = "constant"

    @property
    def work_conserving(self) -> bool:
        """Whether an instance that frees takes what waits, instead of waiting for a full batch."""
        return self in {QueueingModel.TRITON, QueueingModel.CENTRAL, QueueingModel.SHARE}

    @property
    def predicts_busy(self) -> bool:
        """Whether the wait for a free instance is predicted."""
        return self in {QueueingModel.TRITON, QueueingModel.CENTRAL}


class Placement(StrEnum):
    """COLOCATED: every server holds all stages (Triton). SEPARATE: a server holds one stage (the paper's replicas)."""

    COLOCATED = "colocated"
    SEPARATE = "separate"


class ThroughputRule(StrEnum):
    """INSTANCES: c instances work side by side, each with its own batch. CORES: one batch at a time, on c cores."""

    INSTANCES = "instances"
    CORES = "cores"


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Service time at the SLO's percentile, in ms: `latency_ms[i][k]` for `batches[i]` and `instances[k]` busy on the device.

    With the throughput rule CORES, `instances[k]` are the cores of one replica.
    """

    batches: tuple[int, ...]
    instances: tuple[int, ...]
    latency_ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ProfileOrigin:
    """What a measured profile holds for: hashes of the model's configuration and files (empty: unknown), and the device's kind and name.

    `percentile`: that of its service times.
    """

    config_hash: str
    model_hash: str
    device: str
    percentile: float


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What a model costs, measured or declared. `levers`: by name, whether a probe under load proved that it loses no request.

    `mean_table`: mean service times at the points of `table`, where they were measured.
    """

    table: LatencyTable
    instance_init_s: float = 1.0
    instance_stop_s: float = 1.2
    server_launch_s: float = 5.0
    instance_memory_bytes: int = 0
    origin: ProfileOrigin | None = None
    levers: dict[str, bool] = field(default_factory=dict)
    mean_table: LatencyTable | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Bounds of one model on one server, and its profile; `max_batch` bounds what a plan may choose.

    `instance_price` and, with placement SEPARATE, `server_price` replace those of `Prices` for this model.
    """

    name: str
    profile: ModelProfile
    min_instances: int = 1
    max_instances: int = 8
    max_batch: int = 8
    max_queue_delay_us: int = 0
    server_price: float | None = None
    instance_price: float | None = None
    require_probed_operations: bool = False


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """A chain of models with one end-to-end SLO; a lone model is a chain of one."""

    name: str
    stages: tuple[str, ...]
    slo_ms: float
    percentile: float = 99.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Prices:
    """Cost of one server and of one model instance, in any one unit per second; the rest weighs moves, in that unit times seconds.

    `lost_request`: one request that is not answered inside its SLO. `*_risk`: what may go wrong with one such step.
    """

    server: float = 10.0
    instance: float = 1.0
    lost_request: float = 1.0
    grow_risk: float = 0.1
    shrink_risk: float = 0.2
    rebatch_risk: float = 3.0
    launch_risk: float = 2.0
    retire_risk: float = 1.0


@dataclass(frozen=True, slots=True)
class AdoptedServer:
    """A Triton server that someone else started. `device` is `gpu:N` or `cpu:N`."""

    name: str
    grpc_address: Address
    http_address: Address
    metrics_address: Address
    device: str
    model_control_key: str | None = None
    model_repository: Path | None = None


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """One place where a server may be launched; several slots may share a device. `memory_bytes` None: ask NVML."""

    name: str
    device: str
    memory_bytes: int | None = None


class LaunchKind(StrEnum):
    """Where servers are launched."""

    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """What every kind of launcher needs to start servers; a kind's own keys are in its subclass."""

    slots: tuple[DeviceSlot, ...]
    model_repository: Path
    arguments: tuple[str, ...] = ()
    ready_timeout_s: float = 120.0
    warmup_requests: int = 2
    drain_timeout_s: float = 30.0
    stop_timeout_s: float = 15.0


@dataclass(frozen=True, slots=True)
class LocalLaunchConfig(LaunchConfig):
    """Servers as processes on this machine. `binary` and `backend_directory` None: those of the `local` extra."""

    binary: Path | None = None
    backend_directory: Path | None = None


@dataclass(frozen=True, slots=True)
class EnvoyConfig:
    """The proxy in front. `managed` means that Themis starts it when it is not there."""

    grpc_listen: Address
    http_listen: Address
    admin_address: Address
    directory: Path
    managed: bool = True
    binary: Path | None = None
    max_message_bytes: int = 64 * 2**20
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Constants of the policies; each has its unit in its name and its evidence in the settings reference."""

    name: PolicyName = PolicyName.THEMIS
    tick_s: float = 0.25
    rate_window_s: float = 1.0
    burst_window_s: float = 5.0
    stable_window_s: float = 2.0
    headroom_sigmas: float = 1.0
    slow_actuation_headroom_sigmas: float = 0.0
    slow_headroom_sigmas: float = 0.0
    growth_window_s: float = 2.0
    growth_sigmas: float = 1.0
    trend_window_s: float = 5.0
    trend_sigmas: float = 2.0
    dispersion_max: float = 3.0
    backlog_drain_s: float = 1.0
    backlog_slack_s: float = 0.1
    max_added_instances: int = 8
    shrink_stabilization_s: float = 5.0
    steady_growth_threshold: float = 0.1
    scale_in_stabilization_s: float = 20.0
    survivor_margin_fraction: float = 0.1
    burst_headroom_factor: float = 1.5
    forecast: ForecastName = ForecastName.NONE
    forecast_quantile: float = 0.75
    queueing: QueueingModel = QueueingModel.TRITON
    max_stale_s: float = 3.0
    retry_backoff_s: float = 2.0
    retry_backoff_max_s: float = 60.0
    memory_margin_fraction: float = 0.1
    slo_margin_fraction: float = 0.05
    deprioritize_after_slo_fraction: float | None = None
    plan_horizon_s: float = 60.0
    slot_reallocation_delay_s: float = 5.0
    baseline_stabilization_s: float = 10.0
    vertical_servers: int | None = None
    horizontal_instances: int | None = None
    planned_rps: float | None = None
    drift_window_s: float = 5.0
    drift_min_batches: int = 20
    drift_report_fraction: float = 0.15
    drift_step_fraction: float = 0.05
    drift_max_factor: float = 3.0
    drift_stabilization_s: float = 10.0


@dataclass(frozen=True, slots=True)
class PlanningConfig:
    """What plans are made of. Live servers are always COLOCATED with INSTANCES; the rest is for what-if plans and simulations.

    `paper_rounding`: demand in whole requests/s and a replica's throughput rounded down. `max_servers` None: as many as can exist.
    """

    placement: Placement = Placement.COLOCATED
    throughput: ThroughputRule = ThroughputRule.INSTANCES
    paper_rounding: bool = False
    max_servers: int | None = None


DEFAULT_STATUS = Address("127.0.0.1", 9180)


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """Where the status API and the daemon's own metrics listen; loopback unless told otherwise."""

    address: Address = DEFAULT_STATUS


@dataclass(frozen=True, slots=True)
class ThemisConfig:
    """Everything that the daemon needs to know, validated. `policies`: those that have constants of their own."""

    state_directory: Path
    models: dict[str, ModelConfig]
    pipelines: tuple[PipelineConfig, ...]
    servers: tuple[AdoptedServer, ...]
    envoy: EnvoyConfig
    launch: LaunchConfig | None = None
    prices: Prices = field(default_factory=Prices)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    policies: dict[PolicyName, PolicyConfig] = field(default_factory=dict)
    planning: PlanningConfig = field(default_factory=PlanningConfig)
    mode: Mode = Mode.ACTIVE
    status: StatusConfig = field(default_factory=StatusConfig)
    allow_stale_profiles: bool = False

    def under(self, policy: PolicyName) -> ThemisConfig:
        """These settings with another policy, and the constants that it has of its own."""
        return replace(self, policy=replace(self.policies.get(policy, self.policy), name=policy))

    @property
    def deprioritize_after_s(self) -> dict[str, float]:
        """By model that batches, how long a request waits for it before it lets all others pass: that of its most patient pipeline."""
        fraction, longest_ms = self.policy.deprioritize_after_slo_fraction, dict[str, float]()
        for pipeline in self.pipelines if fraction is not None else ():
            longest_ms |= {stage: max(longest_ms.get(stage, 0.0), pipeline.slo_ms) for stage in pipeline.stages}
        batching = {stage: slo_ms for stage, slo_ms in longest_ms.items() if self.models[stage].max_batch > 1}
        return {stage: slo_ms * (fraction or 0.0) / 1000.0 for stage, slo_ms in batching.items()}
