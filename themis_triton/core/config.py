"""The frozen configuration that every stage reads; `settings.py` builds it from YAML, tests build it by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.options import option
from themis_triton.core.policy import PolicyConfig, PolicyName


class Mode(StrEnum):
    """Whether decisions are carried out or only shown."""

    ACTIVE = "active"
    ADVISORY = "advisory"


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
    """The conditions of a measured profile: hashes of the model's configuration and files (empty: unknown), device kind and name.

    `percentile`: the percentile of its service times.
    """

    config_hash: str
    model_hash: str
    device: str
    percentile: float


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model's service times, memory and start times. `operations`: by name, whether a probe under load showed that it loses no request.

    `mean_table`: mean service times at the points of `table`, where they were measured.
    """

    table: LatencyTable
    instance_init_s: float = 1.0
    instance_stop_s: float = 1.2
    server_launch_s: float = 5.0
    instance_memory_bytes: int = 0
    origin: ProfileOrigin | None = None
    operations: dict[str, bool] = field(default_factory=dict)
    mean_table: LatencyTable | None = None


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Inputs of the requests that Themis itself sends to a model (warm-up, profile, probe, load).

    `shapes`: by input, without the batch dimension. `file`: an `.npz` file with one array per input, named `INPUT` or `MODEL.INPUT`.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    file: Path | None = None


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
    inputs: ModelInputs = ModelInputs()

    def may(self, operation: str) -> bool:
        """Whether a running server may be changed by an operation: a probe lost no request, or the settings ask for none."""
        return self.profile.operations.get(operation, not self.require_probed_operations)


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
    """Prices of capacity per second, in one unit of the user's choice, and of changes, in that unit times seconds."""

    server: float = option(10.0, "one server, whatever it holds, or one more device that it has instances on, per second", ge=0)
    instance: float = option(1.0, "one instance of a model, per second", ge=0)
    lost_request: float = option(1.0, "one request outside its SLO", ge=0)
    grow_risk: float = option(0.1, "expected loss by one growth in place", ge=0)
    shrink_risk: float = option(0.2, "expected loss by one shrink in place", ge=0)
    rebatch_risk: float = option(3.0, "expected loss by one reload with other batches", ge=0)
    launch_risk: float = option(2.0, "expected loss by one server launch", ge=0)
    retire_risk: float = option(1.0, "expected loss by one server retirement", ge=0)


@dataclass(frozen=True, slots=True)
class AdoptedServer:
    """A Triton server that Themis did not start. `device` is `gpu:N`, `gpu:UUID` or `cpu:N`; `reach`: further devices that it may use."""

    name: str
    grpc_address: Address
    http_address: Address
    metrics_address: Address
    device: str
    model_control_key: str | None = None
    model_repository: Path | None = None
    reach: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices that it may use."""
        return (self.device, *self.reach)


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """One place where a server may be launched; several slots may share a device. `memory_bytes` None: ask NVML."""

    name: str
    device: str
    memory_bytes: int | None = None


class LaunchKind(StrEnum):
    """Where servers are launched."""

    LOCAL = "local"


class Isolation(StrEnum):
    """Whether settled load stays on all devices of one process. PROCESS: it moves to a process of its own on each device."""

    NONE = "none"
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """The keys of every kind of launcher; a kind's own keys are in its subclass.

    `reach`: the devices that a launched server can see, and may add instances on, besides that of its slot.
    """

    slots: tuple[DeviceSlot, ...]
    model_repository: Path
    arguments: tuple[str, ...] = ()
    ready_timeout_s: float = 120.0
    warmup_requests: int = 2
    drain_timeout_s: float = 30.0
    stop_timeout_s: float = 15.0
    inputs: Mapping[str, ModelInputs] = field(default_factory=dict)
    reach: tuple[str, ...] = ()
    isolation: Isolation = Isolation.NONE

    def reach_from(self, device: str) -> tuple[str, ...]:
        """The further devices of a server that is launched on one."""
        return tuple(other for other in self.reach if other != device)


@dataclass(frozen=True, slots=True)
class LocalLaunchConfig(LaunchConfig):
    """Servers as processes on this machine. `binary` and `backend_directory` None: those of the `local` extra."""

    binary: Path | None = None
    backend_directory: Path | None = None


@dataclass(frozen=True, slots=True)
class EnvoyConfig:
    """The proxy in front. `managed`: Themis starts it if it does not run."""

    grpc_listen: Address
    http_listen: Address
    admin_address: Address
    directory: Path
    managed: bool = True
    binary: Path | None = None
    max_message_bytes: int = 64 * 2**20
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class PlanningConfig:
    """The rules of plans. Live servers are always COLOCATED with INSTANCES; the other rules are for what-if plans and simulations."""

    placement: Placement = option(
        Placement.COLOCATED,
        "colocated: every server holds all stages; separate: a server holds one stage (only `themis plan` and simulations)",
    )
    throughput: ThroughputRule = option(
        ThroughputRule.INSTANCES, "instances: each works on its own batch; cores: all cores of a server work on one batch"
    )
    paper_rounding: bool = option(default=False, description="round demand up, and a server's throughput down, to whole requests/s")
    max_servers: int | None = option(
        None, "largest total number of servers in a plan; by default the adopted servers plus one per slot", ge=1
    )


DEFAULT_STATUS = Address("127.0.0.1", 9180)


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """Where the status API and the daemon's own metrics listen; loopback by default."""

    address: Address = DEFAULT_STATUS


@dataclass(frozen=True, slots=True)
class ThemisConfig:
    """The validated configuration of the daemon. `policies`: overrides of the policy's parameters by policy."""

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

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that a server runs on or may use, each once."""
        adopted = [device for server in self.servers for device in server.devices]
        slots = [slot.device for slot in self.launch.slots] if self.launch is not None else []
        reach = self.launch.reach if self.launch is not None else ()
        return tuple(dict.fromkeys((*adopted, *slots, *reach)))

    def places_on(self, device: str) -> int:
        """How many servers may use a device at a time: one, or as many as the settings put there."""
        adopted = sum(server.device == device for server in self.servers)
        slots = sum(slot.device == device for slot in self.launch.slots) if self.launch is not None else 0
        return max(1, adopted + slots)

    def under(self, policy: PolicyName) -> ThemisConfig:
        """These settings with another policy and its overrides."""
        return replace(self, policy=replace(self.policies.get(policy, self.policy), name=policy))

    @property
    def deprioritize_after_s(self) -> dict[str, float]:
        """By batching model, the waiting time after which a request is served after all others: the maximum over its pipelines."""
        fraction, longest_ms = self.policy.deprioritize_after_slo_fraction, dict[str, float]()
        for pipeline in self.pipelines if fraction is not None else ():
            longest_ms |= {stage: max(longest_ms.get(stage, 0.0), pipeline.slo_ms) for stage in pipeline.stages}
        batching = {stage: slo_ms for stage, slo_ms in longest_ms.items() if self.models[stage].max_batch > 1}
        return {stage: slo_ms * (fraction or 0.0) / 1000.0 for stage, slo_ms in batching.items()}
