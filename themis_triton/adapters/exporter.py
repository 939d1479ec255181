"""The daemon's own metrics in Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest

import themis_triton
from themis_triton.adapters.exporter_predictions import PredictionMetrics
from themis_triton.adapters.exporter_usage import UsageMetrics
from themis_triton.core.action import OutcomeKind
from themis_triton.core.attainment import EndedRequests
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.observation import ProxyConnection
from themis_triton.core.record import TickRecord

TICK_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Exporter:
    """Metrics of decisions, demand, capacity, fleet and actions."""

    def __init__(self) -> None:
        self._newest: TickRecord | None = None
        self._config: ThemisConfig | None = None
        self._percentiles: dict[str, float] = {}
        self._registry = CollectorRegistry()
        registry = self._registry
        disable_created_metrics()  # type: ignore[no-untyped-call]
        ProcessCollector(registry=registry)
        Gauge("themis_build_info", "1; the version is a label", ["version"], registry=registry).labels(themis_triton.__version__).set(1)
        self._last_tick = Gauge("themis_last_tick_timestamp_seconds", "Time of the last good tick, since the epoch", registry=registry)
        self._paused = Gauge("themis_paused", "1 while `themis pause` is in force", registry=registry)
        self._advisory = Gauge("themis_advisory", "1 while the mode is advisory", registry=registry)
        self._leader = Gauge("themis_leader", "1 while this sidecar leads, 0 while it stands by", registry=registry)
        self._leader.set(1)
        self._slo = Gauge("themis_slo_seconds", "The latency SLO", ["pipeline"], registry=registry)
        self._objective = Gauge(
            "themis_slo_objective_ratio", "Part of the requests that must meet the SLO", ["pipeline"], registry=registry
        )
        self._ended = Counter("themis_slo_requests", "Requests that ended", ["pipeline"], registry=registry)
        self._late = Counter("themis_slo_late_requests", "Requests that missed the SLO, or failed", ["pipeline"], registry=registry)
        self._wanted = Gauge("themis_pipeline_servers", "Servers of a pipeline, now and wanted", ["pipeline", "count"], registry=registry)
        self._clamps = Counter("themis_clamps", "Limits that changed a decision's target", ["kind"], registry=registry)
        self._backing_off = Gauge("themis_backing_off", "Actuators in back-off after a failure", registry=registry)
        self._ticks = Counter("themis_ticks", "Ticks by reason of their decision", ["reason"], registry=registry)
        self._tick_errors = Counter("themis_tick_errors", "Ticks that ended in an unexpected error", registry=registry)
        self._tick_s = Histogram("themis_tick_seconds", "Duration of a tick", buckets=TICK_BUCKETS_S, registry=registry)
        self._demand = Gauge("themis_demand_rps", "Demand by time scale", ["pipeline", "scale"], registry=registry)
        self._capacity = Gauge("themis_capacity_rps", "Capacity of the ready servers within the SLO", ["pipeline"], registry=registry)
        self._limit = Gauge("themis_admission_limit_rps", "Requests that are admitted, where not all are", ["pipeline"], registry=registry)
        self._refused = Gauge("themis_refused_rps", "Requests that the admission limit refuses", ["pipeline"], registry=registry)
        self._p99 = Gauge("themis_p99_seconds", "p99, measured at the proxy and predicted", ["pipeline", "kind"], registry=registry)
        self._servers = Gauge("themis_servers", "Servers by phase", ["phase"], registry=registry)
        self._instances = Gauge("themis_instances", "Instances by model and server", ["model", "server"], registry=registry)
        self._actions = Counter("themis_actions", "Ended actions", ["kind", "outcome"], registry=registry)
        self._action_s = Histogram("themis_action_seconds", "Duration of an action", ["kind"], registry=registry)
        self._incidents = Counter("themis_incidents", "Incidents of servers and models", ["kind"], registry=registry)
        self._faults = Gauge("themis_faults", "Servers and models with a fault now", registry=registry)
        self._stale = Gauge("themis_stale_sources", "Sources whose readings are too old to trust", registry=registry)
        self._resting = Gauge(
            "themis_resting", "1 for an actuator that rests until the settings, a model or a server change", ["actuator"], registry=registry
        )
        self._ratio = Gauge("themis_drift_ratio", "Time of executed batches over the profile's", ["model"], registry=registry)
        self._usage = UsageMetrics(registry)
        self._lag = Gauge("themis_tick_lag_seconds", "How much later than due the newest tick began", registry=registry)
        self._take_up = Gauge("themis_route_take_up_seconds", "Time that Envoy took for the newest change of its routes", registry=registry)
        self._proxies = Gauge("themis_proxies", "Envoys that get their routes over xDS, by state", ["state"], registry=registry)
        self._predictions = PredictionMetrics(registry)
        self._correction = Gauge("themis_latency_correction", "Factor on the profile's latency in plans", ["model"], registry=registry)

    def take(self, record: TickRecord, duration_s: float, *, paused: bool = False) -> None:
        """Record a tick."""
        self._paused.set(paused)
        self._advisory.set(record.advisory and not paused)
        for clamp in record.decision.clamps:
            self._clamps.labels(clamp.kind.value).inc()
        self._ticks.labels(record.decision.reason.value).inc()
        self._tick_s.observe(duration_s)
        self._newest = record
        self._usage.take(record.snapshot)
        for incident in record.snapshot.incidents:
            self._incidents.labels(incident.kind.value).inc()
        for outcome in record.outcomes:
            self._actions.labels(outcome.action.kind.value, outcome.kind.value).inc()
            if outcome.kind is OutcomeKind.DONE:
                self._action_s.labels(outcome.action.kind.value).observe(outcome.duration_s)

    def count_requests(self, pipelines: Iterable[PipelineConfig], ended: Mapping[str, EndedRequests]) -> None:
        """Count requests that ended, and show each pipeline's objective."""
        for pipeline in pipelines:
            each = ended.get(pipeline.name)
            if each is None and self._percentiles.get(pipeline.name) == pipeline.percentile:
                continue  # most of many pipelines
            self._percentiles[pipeline.name] = pipeline.percentile
            self._objective.labels(pipeline.name).set(round(pipeline.percentile / 100.0, 6))
            self._ended.labels(pipeline.name).inc(each.requests if each is not None else 0.0)
            self._late.labels(pipeline.name).inc(each.late if each is not None else 0.0)

    def show_times(self, config: ThemisConfig, lag_s: float, take_up_s: float | None) -> None:
        """Show how late the newest tick began, and how long Envoy took for its newest routes; what else is shown is of these settings."""
        self._config = config
        self._lag.set(lag_s)
        if take_up_s is not None:
            self._take_up.set(take_up_s)

    def show_proxies(self, proxies: Sequence[ProxyConnection]) -> None:
        """Show how many Envoys have the newest routes, wait for them, or refused some."""
        states = ["refused" if each.refused is not None else "in_step" if each.in_step else "behind" for each in proxies]
        for state in ("in_step", "behind", "refused"):
            self._proxies.labels(state).set(states.count(state))

    def show_leader(self, *, leads: bool) -> None:
        """Show whether this sidecar leads; it does until it is told otherwise."""
        self._leader.set(leads)

    def tick_failed(self) -> None:
        """Record a tick that ended in an unexpected error."""
        self._tick_errors.inc()

    def text(self) -> bytes:
        """The exposition. Gauges are set here and not at each tick, because they are many where there are many models."""
        if self._newest is not None:
            self._show_gauges(self._newest)
        return generate_latest(self._registry)

    def _show_gauges(self, record: TickRecord) -> None:
        self._stale.set(len(record.estimate.stale))
        self._faults.set(len(record.snapshot.faults))
        self._last_tick.set(record.snapshot.at_s)
        self._backing_off.set(len(record.snapshot.backing_off))
        if self._config is not None:
            self._usage.show(record, self._config)
        self._show_pipelines(record)
        self._predictions.show(record.decision.predictions)
        self._show_fleet(record)
        for name, model in record.estimate.models.items():
            self._ratio.labels(name).set(float("nan") if model.drift_ratio is None else model.drift_ratio)
            self._correction.labels(name).set(model.correction)

    def _show_pipelines(self, record: TickRecord) -> None:
        self._limit.clear()
        self._refused.clear()
        guessed = {known.pipeline for known in record.estimate.knowledge if not known.enough}
        for evidence in record.decision.evidence:
            self._demand.labels(evidence.pipeline, "fast").set(evidence.demand_fast_rps)
            self._demand.labels(evidence.pipeline, "slow").set(evidence.demand_slow_rps)
            self._capacity.labels(evidence.pipeline).set(float("nan") if evidence.pipeline in guessed else evidence.capacity_rps)
            self._slo.labels(evidence.pipeline).set(evidence.slo_ms / 1000.0)
            self._wanted.labels(evidence.pipeline, "now").set(evidence.servers_now)
            self._wanted.labels(evidence.pipeline, "wanted").set(evidence.servers_desired)
            if evidence.limit_rps is not None:
                self._limit.labels(evidence.pipeline).set(evidence.limit_rps)
                self._refused.labels(evidence.pipeline).set(evidence.refused_rps)
            for kind, value in (("measured", evidence.measured_p99_ms), ("predicted", evidence.predicted_p99_ms)):
                self._p99.labels(evidence.pipeline, kind).set(float("nan") if value is None else value / 1000.0)

    def _show_fleet(self, record: TickRecord) -> None:
        self._resting.clear()
        for actuator in record.snapshot.resting:
            self._resting.labels(actuator).set(1)
        self._servers.clear()
        self._instances.clear()
        for server in record.snapshot.servers:
            self._servers.labels(server.phase.value).inc()
            for model, state in server.models.items():
                self._instances.labels(model, server.name).set(state.instances)
