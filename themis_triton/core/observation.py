"""Readings with their times: one Snapshot per tick. Counters are cumulative as read; `estimate/` turns them into rates."""

from __future__ import annotations

from dataclasses import dataclass, field

from themis_triton.core.construction import quick_init
from themis_triton.core.fleet import ModelState, Server
from themis_triton.core.incident import Incident


@quick_init
@dataclass(frozen=True, slots=True)
class BatchCounters:
    """Executed batches of one size so far, and their compute time (input, inference, output), each batch counted once."""

    size: int
    executions: float
    compute_us: float


@quick_init
@dataclass(frozen=True, slots=True)
class ModelCounters:
    """Cumulative counters of one model on one server (durations in µs); `pending` is a gauge.

    `failure`: requests that the model or its backend failed; `refused`: those that a full queue rejected or their clients cancelled.
    `cached`: successes that a response cache answered. `inferences`: rows of the executed ones.
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
    refused: float = 0.0
    cached: float = 0.0


@quick_init
@dataclass(frozen=True, slots=True)
class ServerReading:
    """One server's metrics at `at_s`; `error`: the reason why they are missing; `batches_error`: the reason why `batches` are missing.

    `batches_skipped`: they were left out of this reading, in which it was not the server's turn.
    `ready`: the names of all models that are READY there; None where that was not read.
    """

    server: str
    at_s: float
    models: dict[str, ModelCounters] = field(default_factory=dict)
    error: str | None = None
    batches_error: str | None = None
    ready: frozenset[str] | None = None
    batches_skipped: bool = False

    @property
    def has_batches(self) -> bool:
        """Whether the executed batches were read."""
        return self.error is None and self.batches_error is None and not self.batches_skipped


@quick_init
@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """Cumulative counts: `counts[i]` requests took at most `bounds_ms[i]`; the last bound is infinite."""

    bounds_ms: tuple[float, ...]
    counts: tuple[float, ...]


@quick_init
@dataclass(frozen=True, slots=True)
class RouteReading:
    """The proxy's view of one model: all arrivals ever, in flight now, failures ever, latency histogram.

    `refused`: arrivals that an admission limit refused, which are no failures. `rest_arrivals`: those of the arrivals that came over REST.
    """

    model: str
    at_s: float
    arrivals: float
    in_flight: float
    failures: float
    latency: LatencyHistogram
    refused: float = 0.0
    rest_arrivals: float = 0.0


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
class ProxyConnection:
    """One proxy that gets its routes over the network. `in_step`: it has the newest ones. `refused`: why it refused what it was sent."""

    name: str
    zone: str | None
    address: str
    in_step: bool
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """The readings of one Observer call: of each server in the given order, of each route, of each device.

    `routes_error`: the reason why the proxy's statistics are missing. `free_places`: by node type, how many more servers find a place
    there; without those of which that is not known.
    """

    servers: tuple[ServerReading, ...] = ()
    routes: tuple[RouteReading, ...] = ()
    routes_error: str | None = None
    devices: tuple[DeviceReading, ...] = ()
    free_places: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call under way that changes one model on one server, since `since_s`."""

    server: str
    model: str
    before: ModelState
    after: ModelState
    since_s: float

    @property
    def grows(self) -> bool:
        """Whether it adds instances."""
        return self.after.grows_from(self.before)

    @property
    def renews_all(self) -> bool:
        """Whether it makes all instances anew beside the old ones, which serve until then."""
        return self.after.renews_all(self.before)


def devices_of(server: str, model: str) -> str:
    """The actuator that puts instances of a model on further devices of its server."""
    return f"{server}/{model}/devices"


def launch_of(slot: str, model: str) -> str:
    """The actuator that launches a model on a slot."""
    return f"{slot}/launch/{model}"


@quick_init
@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one tick observed.

    `busy` names actuators with an action under way and `backing_off` those in back-off, with the time (s) until which:
    `server/model` for a vertical actuator, a server's name for its life cycle, a slot's name for a launch,
    `slot/launch/model` for those with a model.
    `routes_error`: the reason why the proxy's statistics are missing. `routes_unwritten`: the reason why the routes are not
    written yet. `open_calls`: changes of counts under way; `reloads`: those that make all instances of a model anew.
    `resting`: those in back-off until the settings, a model or the server change, with the reason.
    `recently_crashed`: the number of launched servers that crashed or stopped answering in the last minute.
    `incidents`: what happened to servers since the snapshot before; `faults`: what is wrong with servers now, a sentence each.
    `loading`: (server, model) pairs that are being loaded. `free_places`: as in `Readings`.
    """

    at_s: float
    servers: tuple[Server, ...]
    readings: tuple[ServerReading, ...] = ()
    routes: tuple[RouteReading, ...] = ()
    devices: tuple[DeviceReading, ...] = ()
    busy: frozenset[str] = frozenset()
    open_calls: tuple[OpenCall, ...] = ()
    reloads: tuple[OpenCall, ...] = ()
    backing_off: dict[str, float] = field(default_factory=dict)
    resting: dict[str, str] = field(default_factory=dict)
    recently_crashed: int = 0
    routes_error: str | None = None
    routes_unwritten: str | None = None
    incidents: tuple[Incident, ...] = ()
    faults: tuple[str, ...] = ()
    loading: frozenset[tuple[str, str]] = frozenset()
    free_places: dict[str, int] = field(default_factory=dict)

    def backoff_words(self, actuator: str) -> str:
        """For how long an actuator in back-off is left alone, and why."""
        if actuator in self.resting:
            return f"{actuator} rests: {self.resting[actuator]}"
        return f"{actuator} is in back-off after a failure for {max(0.0, self.backing_off[actuator] - self.at_s):.0f} s more"
