"""Readings with their times: one Snapshot per tick. Counters are cumulative as read; `estimate/` turns them into rates."""

from __future__ import annotations

from dataclasses import dataclass, field

from themis_triton.core.fleet import ModelState, Server


@dataclass(frozen=True, slots=True)
class BatchCounters:
    """Executed batches of one size so far, and their compute time (input, inference, output), each batch counted once."""

    size: int
    executions: float
    compute_us: float


@dataclass(frozen=True, slots=True)
class ModelCounters:
    """Cumulative counters of one model on one server (durations in µs); `pending` is a gauge.

    The sums charge a batch's time to each of its requests; `batches`, by size, charges it once and is empty where it was not read.
    """

    success: float = 0.0
    failure: float = 0.0
    inferences: float = 0.0
    executions: float = 0.0
    request_us: float = 0.0
    queue_us: float = 0.0
    compute_input_us: float = 0.0
    compute_infer_us: float = 0.0
    compute_output_us: float = 0.0
    pending: float = 0.0
    batches: tuple[BatchCounters, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerReading:
    """One server's metrics at `at_s`; `error`: the reason why they are missing; `batches_error`: the reason why `batches` are missing."""

    server: str
    at_s: float
    models: dict[str, ModelCounters] = field(default_factory=dict)
    error: str | None = None
    batches_error: str | None = None


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """Cumulative counts: `counts[i]` requests took at most `bounds_ms[i]`; the last bound is infinite."""

    bounds_ms: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RouteReading:
    """The proxy's view of one model: all arrivals ever, in flight now, failures ever, latency histogram."""

    model: str
    at_s: float
    arrivals: float
    in_flight: float
    failures: float
    latency: LatencyHistogram


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """NVML's view of one device; `error`: the reason why it is missing (a missing driver is a state, not a failure)."""

    device: str
    at_s: float
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilization: float | None = None
    process_memory_bytes: dict[int, int] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """The readings of one Observer call: of each server in the given order, of each route, of each device.

    `routes_error`: the reason why the proxy's statistics are missing.
    """

    servers: tuple[ServerReading, ...] = ()
    routes: tuple[RouteReading, ...] = ()
    routes_error: str | None = None
    devices: tuple[DeviceReading, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call under way that changes one model's instances on one server, since `since_s`."""

    server: str
    model: str
    before: ModelState
    after: ModelState
    since_s: float

    @property
    def grows(self) -> bool:
        """Whether it adds instances."""
        return bool(self.after.added(self.before))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one tick observed.

    `busy` names actuators with an action under way and `backing_off` those in back-off, with the time (s) until which:
    `server/model` for a vertical actuator, a server's name for its life cycle, a slot's name for a launch.
    `routes_error`: the reason why the proxy's statistics are missing. `routes_unwritten`: the reason why the routes are not
    written yet. `open_calls`: changes of counts under way.
    `recently_crashed`: the number of launched servers that crashed in the last minute.
    """

    at_s: float
    servers: tuple[Server, ...]
    readings: tuple[ServerReading, ...] = ()
    routes: tuple[RouteReading, ...] = ()
    devices: tuple[DeviceReading, ...] = ()
    busy: frozenset[str] = frozenset()
    open_calls: tuple[OpenCall, ...] = ()
    backing_off: dict[str, float] = field(default_factory=dict)
    recently_crashed: int = 0
    routes_error: str | None = None
    routes_unwritten: str | None = None
