"""Collects the data of the status API: the last tick, the totals and the newest events."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import themis_triton
from themis_triton.adapters.store.history import read_requests
from themis_triton.adapters.store.reader import reading
from themis_triton.core.attainment import NOTHING_ENDED, Ended, EndedRequests, slo_window
from themis_triton.core.config import LaunchConfig, PipelineConfig, ThemisConfig
from themis_triton.core.day_report import DayReport
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.core.estimate import PipelineEstimate
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.lease import Leader
from themis_triton.core.nodes import NodesReading
from themis_triton.core.observation import ProxyConnection
from themis_triton.core.overrides import Overrides
from themis_triton.core.prediction import prediction_words
from themis_triton.core.price import hourly_price, running_price
from themis_triton.core.record import TickRecord, describe, drift_event_words, drift_words, sentence
from themis_triton.core.status import STATUS_VERSION, NodesStatus, NodeTypeStatus, PipelineStatus, Status, StatusEvent
from themis_triton.core.words import without_numbers
from themis_triton.daemon.attainment import PipelineWindows
from themis_triton.daemon.samples import p50_ms
from themis_triton.daemon.usage import UsageTotals

COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})
TICK_FAILED = "tick_failed"
DAY_S = 86_400.0
MAX_EVENTS = 50
MIN_SILENT_S = 10.0
SILENT_TICKS = 10


@dataclass(slots=True)
class StatusBoard:
    """The last tick, its policy input and the totals."""

    config: ThemisConfig
    started_at_s: float
    usage: UsageTotals = field(default_factory=UsageTotals)
    record: TickRecord | None = None
    tick_ms: float = 0.0
    tick_errors: int = 0
    tick_error: str | None = None
    paused: bool = False
    overrides: Overrides = field(default_factory=Overrides)
    journal_trouble: str | None = None
    settings_edited: str | None = None
    report: DayReport | None = None
    proxies: tuple[ProxyConnection, ...] = ()
    windows: dict[str, PipelineWindows] = field(default_factory=dict)
    coming_since_s: dict[str, float] = field(default_factory=dict)
    events: deque[StatusEvent] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    leader: Callable[[], Leader] | None = None
    nodes: NodesReading = field(default_factory=NodesReading)

    def add_requests(self, at_s: float, ended: Ended) -> None:
        """Add requests that ended."""
        for name, each in ended.items():
            self.windows.setdefault(name, PipelineWindows()).add(at_s, each)

    def take(self, record: TickRecord, tick_ms: float, ended: Ended = NOTHING_ENDED, *, paused: bool = False) -> None:
        """Add a tick and the requests that ended; a tick that changes something becomes an event."""
        at_s, decision_id = record.snapshot.at_s, record.decision.id
        self.add_requests(at_s, ended)
        self.paused = paused
        self.usage = self.usage.add(record, self.config)
        self.record = record
        coming = [server.name for server in record.snapshot.servers if server.launched and server.phase in COMING]
        self.coming_since_s = {name: self.coming_since_s.get(name, at_s) for name in coming}
        self.tick_error = None
        self.tick_ms = tick_ms
        if record.plan.actions or any(outcome.detail for outcome in record.outcomes):
            kinds = tuple(sorted({action.kind.value for action in record.started}))
            event = StatusEvent(at_s, decision_id, kinds, sentence(record))
            if record.advisory and self.events and _words(self.events[-1]) == _words(event):
                self.events.pop()  # the same advice is repeated in each tick
            self.events.append(event)
        incidents = record.snapshot.incidents
        self.events.extend(StatusEvent(at_s, decision_id, ("incident", incident.kind.value), incident.sentence) for incident in incidents)
        self.events.extend(StatusEvent(at_s, decision_id, ("drift",), drift_event_words(event)) for event in record.estimate.drift_events)

    def fail(self, at_s: float, error: Exception) -> StatusEvent | None:
        """Take in a tick that failed; returns the event of the first one in a row."""
        first, self.tick_errors = self.tick_error is None, self.tick_errors + 1
        self.tick_error = f"the last tick failed, and nothing is changed until one succeeds: {type(error).__name__}: {error}"
        if not first:
            return None
        self.events.append(StatusEvent(at_s, f"{TICK_FAILED}-{at_s:.0f}", (TICK_FAILED,), self.tick_error))
        return self.events[-1]

    def add_event(self, at_s: float, kind: str, sentence: str) -> None:
        """Add a change of the sidecar itself."""
        self.events.append(StatusEvent(at_s, f"{kind}-{at_s:.0f}", (kind,), sentence))

    def silent_s(self, now_s: float) -> float:
        """Seconds since the last good tick, or since the start before the first."""
        return now_s - (self.record.snapshot.at_s if self.record is not None else self.started_at_s)

    def is_live(self, now_s: float) -> bool:
        """Whether the last good tick is recent: at most ten tick intervals ago, or 10 s if that is longer. A follower has no ticks."""
        if self.leader is not None and not self.leader().here:
            return True
        return self.silent_s(now_s) <= max(MIN_SILENT_S, SILENT_TICKS * self.config.policy.tick_s)

    def status(self) -> Status:
        """The whole status."""
        leader = self.leader() if self.leader is not None else None
        base = Status(
            status_version=STATUS_VERSION,
            version=themis_triton.__version__,
            pid=os.getpid(),
            started_at_s=self.started_at_s,
            mode=self.config.mode.value,
            policy=self.config.policy.name.value,
            paused=self.paused,
            overrides=self.overrides,
            sentence="no tick yet" if leader is None or leader.here else f"stands by; {leader.name or 'no known sidecar'} leads",
            leader=leader,
            tick_ms=self.tick_ms,
            tick_errors=self.tick_errors,
            tick_error=self.tick_error,
            journal_trouble=self.journal_trouble,
            settings_edited=self.settings_edited,
            report=self.report,
            proxies=self.proxies,
            usage=self.usage.status,
            pipelines=tuple(PipelineStatus(p.name, p.stages, p.slo_ms, p.percentile) for p in self.config.pipelines),
            events=tuple(self.events),
        )
        status = base
        if self.record is not None:
            remaining_s = _remaining_s(self.record, self.config, self.coming_since_s)
            nodes = _nodes(self.config.launch, self.record.snapshot.servers, self.nodes)
            status = replace(_with_record(base, self.record, self.config, self.windows), remaining_s=remaining_s, nodes=nodes)
        return status if self.tick_error is None else replace(status, sentence=self.tick_error)


def _with_record(base: Status, record: TickRecord, config: ThemisConfig, windows: Mapping[str, PipelineWindows]) -> Status:
    decision, snapshot = record.decision, record.snapshot
    return replace(
        base,
        tick=record.number,
        at_s=snapshot.at_s,
        stage=decision.stage.value,
        reason=decision.reason.value,
        decision_id=decision.id,
        sentence=sentence(record),
        clamps=decision.clamps,
        stale=record.estimate.stale,
        drift=tuple(words for words in map(drift_words, record.estimate.models.values()) if words),
        predictions=tuple(words for words in map(prediction_words, decision.predictions) if words),
        routes_unwritten=snapshot.routes_unwritten,
        faults=snapshot.faults,
        busy=tuple(sorted(snapshot.busy)),
        backing_off={actuator: until_s for actuator, until_s in snapshot.backing_off.items() if actuator not in snapshot.resting},
        resting=snapshot.resting,
        next_steps=tuple(describe(action) for action in record.started),
        cost_per_s=running_price((server.models for server in snapshot.servers), config),
        price_per_hour=hourly_price(snapshot.servers, config),
        servers=tuple(replace(server, model_control_key=None) for server in snapshot.servers),
        pipelines=tuple(_pipeline(record, pipeline, windows.get(pipeline.name)) for pipeline in config.pipelines),
        models=record.estimate.models,
        devices=snapshot.devices,
    )


def _remaining_s(record: TickRecord, config: ThemisConfig, coming_since_s: Mapping[str, float]) -> dict[str, float]:
    """What is coming, with the seconds that profiles expect it to take on; 0 where it takes longer."""
    at_s, models, remaining = record.snapshot.at_s, config.models, dict[str, float]()
    for server in record.snapshot.servers:
        if server.name in coming_since_s:
            profiles = [models[name].profile for name in server.models if name in models]
            launch_s = max((profile.server_launch_s + profile.instance_init_s for profile in profiles), default=0.0)
            remaining[server.name] = launch_s - (at_s - coming_since_s[server.name])
    for call in record.snapshot.open_calls:
        if call.grows:
            remaining[f"{call.server}/{call.model}"] = models[call.model].profile.instance_init_s - (at_s - call.since_s)
    return {name: round(max(0.0, seconds), 1) for name, seconds in remaining.items()}


def _pipeline(record: TickRecord, pipeline: PipelineConfig, windows: PipelineWindows | None) -> PipelineStatus:
    estimate = record.estimate.pipelines.get(pipeline.name)
    ended = windows.at(record.snapshot.at_s) if windows is not None else (EndedRequests(),) * 3
    minute, hour, day = (slo_window(each, pipeline.percentile) for each in ended)
    return PipelineStatus(
        name=pipeline.name,
        stages=pipeline.stages,
        slo_ms=pipeline.slo_ms,
        percentile=pipeline.percentile,
        estimate=estimate,
        evidence=next((evidence for evidence in record.decision.evidence if evidence.pipeline == pipeline.name), None),
        slo_violated=_violated(estimate, pipeline),
        slo_minute=minute,
        slo_hour=hour,
        slo_day=day,
        order=pipeline.order,
        knowledge=next((each for each in record.estimate.knowledge if each.pipeline == pipeline.name), None),
        p50_ms=p50_ms(record.estimate, pipeline),
        prediction=next((each for each in record.decision.predictions if each.pipeline == pipeline.name), None),
    )


def _nodes(launch: LaunchConfig | None, servers: Iterable[Server], reading: NodesReading) -> NodesStatus | None:
    """The node types of the settings, with their slots' servers and what the engine last said of them."""
    names = dict.fromkeys(slot.node_type for slot in launch.slots if slot.node_type is not None) if launch is not None else {}
    if launch is None or not names:
        return None
    used = {server.slot for server in servers if server.launched}
    rows = []
    for name in names:
        slots, read = [slot for slot in launch.slots if slot.node_type == name], reading.node_types.get(name)
        row = NodeTypeStatus(name, slots[0].price_per_hour, len(slots), sum(slot.name in used for slot in slots))
        if read is not None:
            free = dict(read.free_devices) if read.free_devices is not None else None
            row = replace(row, nodes=read.nodes, devices=dict(read.devices), free_devices=free, free_places=read.places)
        rows.append(row)
    return NodesStatus(tuple(rows), reading.at_s, reading.error)


def _words(event: StatusEvent) -> tuple[str, str]:
    return without_numbers(event.sentence, event.decision_id)


def _violated(estimate: PipelineEstimate | None, pipeline: PipelineConfig) -> bool | None:
    return None if estimate is None or estimate.p99_ms is None else estimate.p99_ms > pipeline.slo_ms


def recall_requests(board: StatusBoard, journal: Path, now_s: float) -> None:
    """Take the requests of the last day from the journal, so that attainment survives a restart; without a journal there are none."""
    with suppress(EnvironmentCheckError), reading(journal) as reader:
        for name, at_s, requests, late in read_requests(reader, now_s - DAY_S):
            if at_s <= now_s:
                board.add_requests(at_s, {name: EndedRequests(requests, late)})
