"""The frozen configuration that every stage reads; `settings.py` builds it from YAML, tests build it by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from themis_triton.core.address import Address
from themis_triton.core.client_auth import JwtConfig
from themis_triton.core.control import TOKEN_FILE, DrainState, Mode
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.core.model_config import LatencyTable, ModelConfig, ModelInputs, ModelProfile, ProfileOrigin
from themis_triton.core.options import option
from themis_triton.core.pipeline_config import Overload, PipelineConfig, StageCalls
from themis_triton.core.policy import DEPRIORITIZE_AFTER_SLO_FRACTION, PolicyConfig, PolicyName, QueueingModel
from themis_triton.core.retention import RetentionConfig
from themis_triton.core.server_config import (
    AdoptedServer,
    DeviceSlot,
    Isolation,
    KedaConfig,
    KubernetesLaunchConfig,
    LaunchConfig,
    LaunchKind,
    LocalLaunchConfig,
    RayLaunchConfig,
    SlurmLaunchConfig,
    StandbyConfig,
    StandbyKind,
)

__all__ = [
    "DEFAULT_STATUS",
    "AdoptedServer",
    "DeviceSlot",
    "DrainState",
    "EnvoyConfig",
    "Isolation",
    "KedaConfig",
    "KubernetesLaunchConfig",
    "LatencyTable",
    "LaunchConfig",
    "LaunchKind",
    "LocalLaunchConfig",
    "Mode",
    "ModelConfig",
    "ModelInputs",
    "ModelProfile",
    "Overload",
    "PipelineConfig",
    "Placement",
    "PlanningConfig",
    "Prices",
    "ProfileOrigin",
    "RayLaunchConfig",
    "SlurmLaunchConfig",
    "StageCalls",
    "StandbyConfig",
    "StandbyKind",
    "StatusConfig",
    "ThemisConfig",
    "ThroughputRule",
    "XdsConfig",
]


class Placement(StrEnum):
    """COLOCATED: every server holds all stages (Triton). SEPARATE: a server holds one stage (the paper's replicas)."""

    COLOCATED = "colocated"
    SEPARATE = "separate"


class ThroughputRule(StrEnum):
    """INSTANCES: c instances work side by side, each with its own batch. CORES: one batch at a time, on c cores."""

    INSTANCES = "instances"
    CORES = "cores"


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
class XdsConfig:
    """Where Envoys of other machines get their routes from."""

    listen: Address
    tls: ListenerTls | None = None


@dataclass(frozen=True, slots=True)
class EnvoyConfig:
    """The proxy in front. `managed`: Themis starts it if it does not run. `max_memory_bytes` None: a part of what this machine has."""

    grpc_listen: Address
    http_listen: Address
    admin_address: Address
    directory: Path
    managed: bool = True
    binary: Path | None = None
    max_message_bytes: int = 64 * 2**20
    concurrency: int = 1
    resend_broken: bool = True
    header_timeout_s: float = 10.0
    idle_timeout_s: float = 600.0
    stream_idle_timeout_s: float = 3600.0
    max_request_s: float | None = None
    max_connections: int = 10_000
    max_streams: int = 10_000
    max_memory_bytes: int | None = None
    tls: ListenerTls | None = None
    api_keys: Path | None = None
    jwt: JwtConfig | None = None
    xds: XdsConfig | None = None


@dataclass(frozen=True, slots=True)
class PlanningConfig:
    """The rules of plans. Live servers have INSTANCES and no rounding; the other rules are for what-if plans and simulations."""

    placement: Placement = option(
        Placement.COLOCATED,
        "colocated: every server holds all stages of a pipeline; separate: a launched server holds one stage, and each is scaled by itself",
    )
    throughput: ThroughputRule = option(
        ThroughputRule.INSTANCES,
        "instances: each works on its own batch; cores: all cores of a server work on one batch (only `themis plan` and simulations)",
    )
    paper_rounding: bool = option(default=False, description="round demand up, and a server's throughput down, to whole requests/s")
    max_servers: int | None = option(
        None, "largest total number of servers in a plan; by default the adopted servers plus one per slot", ge=1
    )


DEFAULT_STATUS = Address("127.0.0.1", 9180)


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """Where the status API and the daemon's own metrics listen; loopback by default. `token_file` None: `token` in the state directory."""

    address: Address = DEFAULT_STATUS
    token_file: Path | None = None
    tls: ListenerTls | None = None


@dataclass(frozen=True, slots=True)
class ThemisConfig:
    """The validated configuration of the daemon. `policies`: overrides of the policy's parameters by policy.

    `callees`: by model, those that it calls by itself inside the server, as far as the settings name them. `drains`: servers that an
    operator drains.
    """

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
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    allow_stale_profiles: bool = False
    callees: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drains: Mapping[str, DrainState] = field(default_factory=dict)
    standby: StandbyConfig = field(default_factory=StandbyConfig)

    @property
    def token_file(self) -> Path:
        """The token of the status API."""
        return self.status.token_file if self.status.token_file is not None else self.state_directory / TOKEN_FILE

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that a server runs on or may use, each once."""
        adopted = [device for server in self.servers for device in server.devices]
        slots = [slot.device for slot in self.launch.slots] if self.launch is not None else []
        reach = self.launch.reach if self.launch is not None else ()
        return tuple(dict.fromkeys((*adopted, *slots, *reach)))

    @property
    def local_devices(self) -> tuple[str, ...]:
        """The devices that are read on this machine: all but those of servers that are launched elsewhere."""
        elsewhere = {slot.device for slot in self.launch.slots} if self.launch is not None and not self.launch.runs_here else set()
        return tuple(device for device in self.devices if device not in elsewhere)

    def knows(self, pipeline: PipelineConfig) -> bool:
        """Whether the service times of all stages are known: given, or learnt already."""
        return not self.unknown(pipeline)

    def unknown(self, pipeline: PipelineConfig) -> tuple[str, ...]:
        """The stages whose service times are a guess."""
        return tuple(stage for stage in pipeline.stages if self.models[stage].profile.is_guess)

    def is_stateful(self, pipeline: PipelineConfig) -> bool:
        """Whether a stage keeps state between calls, by the model repositories of the settings; the pipeline then has one server."""
        return any(self.models[stage].stateful for stage in pipeline.stages)

    @property
    def called_models(self) -> tuple[str, ...]:
        """The scaled models, and the others that clients call as pipelines."""
        return tuple(dict.fromkeys((*self.models, *(pipeline.front for pipeline in self.pipelines))))

    @property
    def places(self) -> Counter[str]:
        """How many servers the settings put on each device."""
        slots = self.launch.slots if self.launch is not None else ()
        return Counter([*(server.device for server in self.servers), *(slot.device for slot in slots)])

    def places_on(self, device: str) -> int:
        """How many servers may use a device at a time: one, or as many as the settings put there."""
        return max(1, self.places[device])

    def operations_of(self, model: ModelConfig) -> tuple[str, ...]:
        """The operations on a model that plans may contain: on further devices only where a server may use several."""
        several = any(server.reach for server in self.servers) or (self.launch is not None and bool(self.launch.reach))
        devices = ("add_device", "remove_device") if several else ()
        return ("add_one", "remove_one", "add_many", *devices, *(("rebatch",) if model.max_batch > 1 else ()))

    def under(self, policy: PolicyName) -> ThemisConfig:
        """These settings with another policy and its overrides."""
        return replace(self, policy=replace(self.policies.get(policy, self.policy), name=policy))

    @property
    def deprioritize_after_s(self) -> dict[str, float]:
        """By batching model, the waiting time after which a request is served after all others: the maximum over its pipelines.

        A model that a pipeline without it shares is served in turn. Where plans leave a margin for waits and instances take longer than
        a tick, the margin bounds it: a queue that is longer does not become shorter in time.
        """
        longest_ms, in_turn = dict[str, float](), set[str]()
        for pipeline in self.pipelines:
            if self.deprioritizes(pipeline):
                longest_ms |= {stage: max(longest_ms.get(stage, 0.0), pipeline.slo_ms) for stage in pipeline.stages}
            else:
                in_turn.update(pipeline.stages)
        fraction = self.policy.deprioritize_after_slo_fraction or DEPRIORITIZE_AFTER_SLO_FRACTION
        if self.policy.queueing is QueueingModel.SLO_MARGIN and any(
            self.models[stage].profile.instance_init_s > self.policy.tick_s for stage in longest_ms
        ):
            fraction = min(fraction, self.policy.slo_margin_fraction)
        chosen = [stage for stage in longest_ms if stage not in in_turn and self.models[stage].max_batch > 1]
        return {stage: longest_ms[stage] * fraction / 1000.0 for stage in chosen}

    def deprioritizes(self, pipeline: PipelineConfig) -> bool:
        """Whether requests of a pipeline that waited too long are served after all others."""
        if pipeline.overload is None:
            return self.policy.deprioritize_after_slo_fraction is not None
        return pipeline.overload is Overload.DEPRIORITIZE
