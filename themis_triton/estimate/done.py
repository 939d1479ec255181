"""What the servers did of each model, added up over all of them; what did not change since the last tick is not found anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from themis_triton.core.config import ModelConfig
from themis_triton.core.estimate import ONE_ROW, RequestSize
from themis_triton.estimate.served import Served, ServedSeries
from themis_triton.estimate.sizes import measured_size


@dataclass(frozen=True, slots=True)
class ServerWork:
    """What a server did by its series: by model its work of the window and answered requests/s, and whether requests failed."""

    series: ServedSeries
    models: Mapping[str, tuple[Served, float]]
    has_failures: bool


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What all servers did of a model in a window, and what follows from it; the means are None where nothing was executed.

    `size`: of its requests, as plans count them. `waiting`: mean requests in the queues. `batch_rps`: executed batches per second.
    """

    done: Served
    window_s: float
    size: RequestSize
    mean_batch: float | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    waiting: float = 0.0
    batch_rps: float = 0.0


@dataclass(frozen=True, slots=True)
class FleetWork:
    """By model, the work of the window, waiting requests and answered requests/s, of all servers."""

    done: Mapping[str, Served] = field(default_factory=dict)
    pending: Mapping[str, float] = field(default_factory=dict)
    completion_rps: Mapping[str, float] = field(default_factory=dict)


def work_of_servers(
    before: Mapping[str, ServerWork], served: Mapping[str, ServedSeries], now_s: float, windows_s: tuple[float, float]
) -> dict[str, ServerWork]:
    """What each server did; that of `before` stays until the server is read again. `windows_s`: of its work, and of answered requests."""
    return {
        name: known if (known := before.get(name)) is not None and known.series is series else _work_of(series, now_s, windows_s)
        for name, series in served.items()
    }


def _work_of(series: ServedSeries, now_s: float, windows_s: tuple[float, float]) -> ServerWork:
    rps = series.completion_rps(windows_s[1])
    increases = series.increases(now_s - windows_s[0], now_s)
    return ServerWork(series, {model: (work, rps[model]) for model, work in increases.items()}, series.has_failures)


def work_of_fleet(servers: Mapping[str, ServerWork]) -> FleetWork:
    """Increases of all servers are added up before anything is divided, so that idle servers and models do not dilute a mean."""
    done, pending, completion_rps = dict[str, Served](), dict[str, float](), dict[str, float]()
    for server in servers.values():
        for model, (work, rps) in server.models.items():
            if model not in done:
                done[model], completion_rps[model] = work, rps
                continue
            done[model] = Served(*map(sum, zip(done[model], work, strict=True)))
            completion_rps[model] += rps
        for model, waiting in server.series.pending.items():
            pending[model] = pending.get(model, 0.0) + waiting
    return FleetWork(done, pending, completion_rps)


def work_of_model(before: ModelWork | None, done: Served, window_s: float, model: ModelConfig | None) -> ModelWork:
    """A model's work; `before`: that of the last tick. `model` None: one that is no model of the settings, with requests of one row."""
    if before is not None and (done is before.done or done == before.done) and window_s == before.window_s:
        return before  # its size too: to measure the same again changes nothing
    executed = done.executed
    return ModelWork(
        done,
        window_s,
        _size(before, done, model),
        mean_batch=done.inferences / done.executions if done.executions else None,
        queue_ms=done.queue_us / executed / 1000.0 if executed else None,
        compute_ms=done.compute_us / executed / 1000.0 if executed else None,
        waiting=done.queue_us / 1e6 / window_s,
        batch_rps=done.executions / window_s,
    )


def _size(before: ModelWork | None, done: Served, model: ModelConfig | None) -> RequestSize:
    if model is None:
        return ONE_ROW
    return measured_size(RequestSize(model.rows_per_request) if before is None else before.size, done)
