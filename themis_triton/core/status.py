"""The sidecar's status: one typed, versioned value that the status API serves and every client reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from themis_triton.core.attainment import SloWindow
from themis_triton.core.day_report import DayReport
from themis_triton.core.decision import Clamp, PipelineEvidence
from themis_triton.core.decoding import decode
from themis_triton.core.estimate import ModelEstimate, PipelineEstimate, PipelineKnowledge
from themis_triton.core.fleet import Server
from themis_triton.core.lease import Leader
from themis_triton.core.observation import DeviceReading, ProxyConnection
from themis_triton.core.overrides import Overrides
from themis_triton.core.prediction import PredictionScore

STATUS_VERSION = 1
STATUS_PATH = f"/v{STATUS_VERSION}/status"


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """One change: its time, decision, kinds of actions (or `drift`, or `incident` and its kind), and sentence."""

    at_s: float
    decision_id: str
    kinds: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class UsageStatus:
    """Totals since the sidecar started, at the settings' prices; actions are counted by kind.

    `server_seconds_by_kind`: adopted, launched, starting (until it is in the routes) and draining.
    """

    server_seconds: float = 0.0
    instance_seconds: float = 0.0
    cost: float = 0.0
    max_servers: int = 0
    max_instances: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    failed_actions: dict[str, int] = field(default_factory=dict)
    server_seconds_by_kind: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeTypeStatus:
    """One node type of `launch`: its slots, those that launched servers have, and what the engine said of its usable nodes.

    `free_devices`: those that nothing has asked for. `free_places`: how many more servers find a node. What is null is not known.
    """

    node_type: str
    price_per_hour: float | None
    slots: int
    used_slots: int
    nodes: int | None = None
    devices: dict[str, float] = field(default_factory=dict)
    free_devices: dict[str, float] | None = None
    free_places: int | None = None


@dataclass(frozen=True, slots=True)
class NodesStatus:
    """The node types, in the order in which launches take them. `at_s`: when the engine last said it; `error`: why it has not since."""

    node_types: tuple[NodeTypeStatus, ...] = ()
    at_s: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """One pipeline: its SLO, its estimate and the evidence of the decision; null before the first tick.

    `slo_violated`: the measured percentile exceeds the SLO now; null without traffic. `slo_minute`, `slo_hour`, `slo_day`: the requests
    of the last minute, hour and 24 hours, and how many of them were in time. `order`: the order of the stages where it is no chain, and
    whether latencies are upper bounds. `prediction`: its predictions against what was observed; null where none are scored.
    `knowledge`: what is known of its models without a profile; null where all have one. While it is not `enough`, the capacity and the
    predicted p99 of `evidence` are guesses. `p50_ms`: the measured median; null without traffic.
    """

    name: str
    stages: tuple[str, ...]
    slo_ms: float
    percentile: float
    estimate: PipelineEstimate | None = None
    evidence: PipelineEvidence | None = None
    slo_violated: bool | None = None
    slo_minute: SloWindow = field(default_factory=SloWindow)
    slo_hour: SloWindow = field(default_factory=SloWindow)
    slo_day: SloWindow = field(default_factory=SloWindow)
    order: str = ""
    knowledge: PipelineKnowledge | None = None
    p50_ms: float | None = None
    prediction: PredictionScore | None = None

    @property
    def is_known(self) -> bool:
        """Whether the service times of its models are known; until then its capacity is a guess that says nothing."""
        return self.knowledge is None or self.knowledge.enough


@dataclass(frozen=True, slots=True)
class Status:
    """The sidecar's measurements, decisions and actions. Times are seconds since the epoch.

    `tick_error`: why the last tick failed; `sentence` then says so, and the rest of the status is from the last good tick.
    `tick` 0 and `at_s` null: no tick has ended yet. `cost_per_s`: the price of the running fleet, in the unit of the settings' `prices`.
    `next_steps`: the actions of the newest plan, in words; in advisory mode those that it would start. `busy`: actuators with an action
    under way; `backing_off`: those in back-off after a failure, with the time until which; `resting`: those that rest until a change,
    with the reason. `faults`: what is wrong with servers now. `servers` carry no model-control keys. `overrides`: what an operator has
    put in force over the settings; `mode` is the one in force. `report`: yesterday's; null until it is made. `predictions`: those that
    do not hold, a sentence each. `remaining_s`: by server in launch, and by `server/model` that grows, the seconds that it is expected
    to take on. `proxies`: those that get their routes over the network. `price_per_hour`: of the slots on which launched servers run or
    start; null where slots have no prices. `leader`: which sidecar leads; null without a lease. `settings_edited`: what the settings
    file says that is not in force, and what is to be done; null where it says the same. `nodes`: null where `launch` has no node types.
    """

    status_version: int
    version: str
    pid: int
    started_at_s: float
    mode: str
    policy: str
    paused: bool
    sentence: str
    tick: int = 0
    at_s: float | None = None
    tick_ms: float = 0.0
    tick_errors: int = 0
    tick_error: str | None = None
    journal_trouble: str | None = None
    settings_edited: str | None = None
    stage: str | None = None
    reason: str | None = None
    decision_id: str | None = None
    clamps: tuple[Clamp, ...] = ()
    stale: dict[str, str] = field(default_factory=dict)
    drift: tuple[str, ...] = ()
    routes_unwritten: str | None = None
    faults: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    backing_off: dict[str, float] = field(default_factory=dict)
    resting: dict[str, str] = field(default_factory=dict)
    next_steps: tuple[str, ...] = ()
    cost_per_s: float = 0.0
    price_per_hour: float | None = None
    usage: UsageStatus = UsageStatus()
    servers: tuple[Server, ...] = ()
    pipelines: tuple[PipelineStatus, ...] = ()
    models: dict[str, ModelEstimate] = field(default_factory=dict)
    devices: tuple[DeviceReading, ...] = ()
    proxies: tuple[ProxyConnection, ...] = ()
    events: tuple[StatusEvent, ...] = ()
    overrides: Overrides = field(default_factory=Overrides)
    report: DayReport | None = None
    predictions: tuple[str, ...] = ()
    remaining_s: dict[str, float] = field(default_factory=dict)
    leader: Leader | None = None
    nodes: NodesStatus | None = None


def decode_status(data: object) -> Status:
    """The status of a JSON document. ValueError when it is none, or has a version that this program does not read."""
    version = data.get("status_version") if isinstance(data, dict) else None
    if version is None:
        raise ValueError("the document has no status_version")
    if version != STATUS_VERSION:
        raise ValueError(f"status version {version} is not supported: expected {STATUS_VERSION}")
    return decode(Status, data)
