"""One size of `scale.py`: the work that a sidecar does in each tick on a synthetic fleet, in processor time and bytes."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import percentiles_ms
from scale_pages import metrics_page, proxy_answer, proxy_page, statistics_page
from scale_world import Fleet, settings

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.render import NO_VERSIONS, RenderInput, render
from themis_triton.adapters.envoy.stats import BOUNDS_MS, TURNS, EnvoyStats
from themis_triton.adapters.envoy.xds.resources import ROUTES, Packer, Resources
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.memory import exempt_from_collection
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.triton.metrics import RESTING_CALLS, TritonMetrics, parse_metrics, parse_statistics
from themis_triton.core.address import Address
from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.record import TickRecord
from themis_triton.core.routes import RouteTable
from themis_triton.daemon.events import encode
from themis_triton.daemon.samples import Samples
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.estimate.minutes import Minutes
from themis_triton.plan.routes import route_table
from themis_triton.plan.steps import plan
from themis_triton.tick import EngineState, decided, estimated_input

MOVING = 0.4
PURE = ("estimate", "decide", "plan")
STAGES = (*PURE, "record", "publish")


@dataclass(slots=True)
class Ticks:
    """Processor time of the stages of each tick, in ms by stage, and the last record."""

    rows: list[list[float]] = field(default_factory=list)
    actions: Counter[str] = field(default_factory=Counter)
    last: TickRecord | None = None
    seconds: float = 0.0


class Engine:
    """The one engine and what the daemon does with each of its records, on a synthetic fleet."""

    def __init__(self, config: ThemisConfig, directory: Path) -> None:
        self.config = config
        self.planner, self.state = Planner(build_rules(config)), EngineState()
        self.journal = Journal(directory / "journal.sqlite", replace(config.retention, journal_bytes=2**40, recording_bytes=2**40))
        self.board, self.exporter, self.samples, self.minutes = StatusBoard(config, 0.0), Exporter(), Samples(), Minutes()

    def run(self, fleet: Fleet, ticks: int, until_s: float) -> Ticks:
        """So many ticks, or fewer where the time (of the monotonic clock) comes."""
        done, config, began_s = Ticks(), self.config, fleet.at_s
        for _ in range(ticks):
            observed = fleet.next(config.policy.tick_s, self.state.policy.resting_servers)
            marks = [time.thread_time()]
            history, seen = estimated_input(self.state, observed, self.planner)
            marks.append(time.thread_time())
            policy_state, decision = decided(self.state, seen, self.planner)
            marks.append(time.thread_time())
            planned = plan(decision, seen.snapshot, config)
            marks.append(time.thread_time())
            record = TickRecord(self.state.number + 1, seen.snapshot, seen.estimate, decision, planned)
            before, self.state = self.state, EngineState(self.state.number + 1, history, policy_state)
            self.journal.record_tick(record)
            self.journal.record_decided(before, self.state, record, config)
            self.journal.record_samples(self.samples.take(record, config, record.estimate.ended))
            minute = self.minutes.take(record.snapshot, config, record.estimate.ended)
            if minute is not None:
                self.journal.record_minute(*minute)
            marks.append(time.thread_time())
            self.board.take(record, 0.0, record.estimate.ended)
            self.exporter.take(record, 0.0)
            self.exporter.count_requests(config.pipelines, record.estimate.ended)
            marks.append(time.thread_time())
            self.exporter.show_times(config, 0.0, None)
            done.rows.append((1000.0 * np.diff(marks)).tolist())
            done.actions.update(action.kind.value for action in planned.actions)
            done.last, done.seconds = record, fleet.at_s - began_s
            fleet.apply(planned)
            if time.monotonic() > until_s:
                break
        return done


def measure(models: int, devices: int, warm_up: int, ticks: int, budget_s: float) -> dict[str, Any]:
    """The figures of one size; ticks end early once the budget is used up."""
    with tempfile.TemporaryDirectory(prefix="themis-scale-") as folder:
        return _measured(models, devices, warm_up, ticks, budget_s, Path(folder))


def _measured(models: int, devices: int, warm_up: int, ticks: int, budget_s: float, folder: Path) -> dict[str, Any]:
    bare_mb, began_s = _peak_mb(), time.monotonic()
    config = settings(models, devices, folder)
    built_s = time.process_time()
    engine = Engine(config, folder)
    built_s = time.process_time() - built_s
    fleet = Fleet(config, MOVING)
    exempt_from_collection(len(config.models))
    worst = engine.run(fleet, warm_up, began_s + 0.6 * budget_s)
    engine.journal.flush()
    journal_bytes, writer_s = _journal_bytes(folder), time.process_time() - time.thread_time()
    measured = engine.run(fleet, ticks, began_s + budget_s)
    engine.journal.flush()
    writer_s = time.process_time() - time.thread_time() - writer_s
    grown = _journal_bytes(folder) - journal_bytes
    serving = sum(server.phase is Phase.SERVING for server in fleet.servers.values())
    result = {
        "models": models,
        "devices": devices,
        "pipelines": len(config.pipelines),
        "requests_per_s": round(float(fleet.mean_rps.sum())),
        "servers": serving,
        "warm_up_ticks": len(worst.rows),
        "actions_a_tick": {kind: round(count / len(measured.rows), 2) for kind, count in measured.actions.items()},
        "build_s": round(built_s, 2),
        "tick_ms": _times(measured),
        "warm_up_worst_ms": round(max(map(sum, worst.rows)), 1),
        "writer_ms_a_tick": round(1000.0 * writer_s / len(measured.rows), 2),
        "journal_mb_an_hour": round(grown / measured.seconds * 3600.0 / 2**20, 1),
        "peak_memory_mb": round(_peak_mb(), 1),
        "memory_beyond_start_mb": round(_peak_mb() - bare_mb, 1),
        "pages": _pages(engine),
    }
    return result | {"routes": _routes(engine, fleet), "scrape": _scrape(engine, fleet)}


def _times(ticks: Ticks) -> dict[str, Any]:
    rows = np.array(ticks.rows) / 1000.0
    stages = {name: percentiles_ms(rows[:, n].tolist()) for n, name in enumerate(STAGES)}
    return {"engine": percentiles_ms(rows[:, : len(PURE)].sum(axis=1).tolist()), "all": percentiles_ms(rows.sum(axis=1).tolist()), **stages}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _journal_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("journal.sqlite*"))


def _pages(engine: Engine) -> dict[str, Any]:
    """What a reader of the status or of the sidecar's own metrics costs each time."""
    (status, status_ms), (text, text_ms) = timed(lambda: encode(engine.board.status())), timed(engine.exporter.text)
    return {"status_bytes": len(status), "status_ms": status_ms, "metrics_bytes": len(text), "metrics_ms": text_ms}


def _routes(engine: Engine, fleet: Fleet) -> dict[str, Any]:
    """Envoy's resources whole, and what a change of one server sends: to an Envoy with files, and to each one over xDS."""
    config, servers = engine.config, tuple(fleet.servers.values())
    names = tuple(config.models)
    last = next(server for server in reversed(servers) if server.phase is Phase.SERVING)
    (whole, table_ms), less = timed(lambda: route_table(servers, names)), route_table([each for each in servers if each is not last], names)
    files, render_ms = timed(lambda: render(config.envoy, whole))
    changed_files = render(config.envoy, less)
    packer = Packer()
    packed, first_ms = timed(lambda: packer.pack(_rendered(config, whole)))
    packed_less, change_ms = timed(lambda: packer.pack(_rendered(config, less)))
    changed = {kind: _changed(packed, packed_less, kind) for kind in packed}
    return {
        "table_ms": table_ms,
        "file_bytes": sum(map(len, files.values())),
        "file_render_ms": render_ms,
        "file_bytes_a_server": sum(len(text) for name, text in changed_files.items() if files.get(name) != text),
        "xds_bytes": sum(len(each.body) for resources in packed.values() for each in resources.values()),
        "xds_resources": sum(map(len, packed.values())),
        "xds_pack_first_ms": first_ms,
        "xds_pack_change_ms": change_ms,
        "xds_bytes_a_server": sum(changed.values()),
        "xds_bytes_a_limit": sum(len(each.body) for each in packed[ROUTES].values()),
    }


def _rendered(config: ThemisConfig, table: RouteTable) -> RenderInput:
    return RenderInput(config.envoy, table, NO_VERSIONS, None)


def _changed(before: Resources, after: Resources, kind: str) -> int:
    """Bytes of the resources of a type that differ."""
    return sum(len(each.body) for name, each in after[kind].items() if before[kind].get(name) != each)


def _scrape(engine: Engine, fleet: Fleet) -> dict[str, Any]:
    """What is read at each tick, as text, and the time to parse it; `servers_ms`: of all servers, with connections."""
    held = [tuple(server.models) for server in fleet.servers.values()]
    pages, statistics = [metrics_page(models) for models in held], [statistics_page(models) for models in held]
    _, warm_ms = timed(lambda: [parse_metrics(page) for page in pages])
    _, metrics_ms = timed(lambda: [parse_metrics(page) for page in pages])
    _, statistics_ms = timed(lambda: [parse_statistics(json.loads(page)) for page in statistics])
    proxy = proxy_page(tuple(engine.config.models), BOUNDS_MS)
    proxy_ms = asyncio.run(_read_proxy(engine.config, proxy))
    return {
        "server_bytes": sum(map(len, pages)) + sum(map(len, statistics)),
        "first_metrics_ms": warm_ms,
        "metrics_ms": metrics_ms,
        "statistics_ms": statistics_ms,
        "servers_ms": _read_servers(fleet, engine.state.policy.resting_servers),
        "proxy_bytes": len(proxy),
        "proxy_ms": proxy_ms,
    }


def _read_servers(fleet: Fleet, resting: frozenset[str]) -> float:
    """Processor time (ms) of a tick's readings of the servers over real connections, all of them to one process here."""
    command = [sys.executable, str(Path(__file__).parent / "scale_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = Address("127.0.0.1", int(process.stdout.readline() if process.stdout is not None else 0))
            servers = [replace(each, http_address=address, metrics_address=address) for each in fleet.servers.values()]
            return asyncio.run(_reading_ms(servers, resting))
        finally:
            process.terminate()


async def _reading_ms(servers: list[Server], resting: frozenset[str]) -> float:
    """The mean of two rounds, once all servers are known."""
    metrics, times_ms = TritonMetrics(SystemClock(), timeout_s=20.0), []
    for _ in range(RESTING_CALLS):
        await metrics.read_servers(servers, resting)
    for _ in range(2 * RESTING_CALLS):
        began_s = time.thread_time()
        readings = await metrics.read_servers(servers, resting)
        times_ms.append(1000.0 * (time.thread_time() - began_s))
        errors = [reading.error or reading.batches_error for reading in readings]
        if any(errors):
            raise SystemExit(f"not read: {next(filter(None, errors))}")
    await metrics.close()
    return round(float(np.mean(times_ms)), 1)


async def _read_proxy(config: ThemisConfig, page: str) -> float:
    """Processor time (ms) to read all routes of an Envoy that answers at once: the mean of a round, the second one."""
    stats, pages = EnvoyStats(config.envoy, tuple(config.models), SystemClock()), dict[str, str]()

    async def answered(pattern: str, **_: object) -> Any:  # noqa: ANN401 - JSON
        if pattern not in pages:
            pages[pattern] = proxy_answer(page, pattern)
        return json.loads(pages[pattern])["stats"]

    stats._admin.stats = answered  # type: ignore[method-assign] # noqa: SLF001 - without a connection
    for _ in range(1 + TURNS):
        routes, error = await stats.read_routes()
        if error is not None or len(routes) != len(config.models):
            raise SystemExit(f"no statistics of the proxy: {error}")
    began_s = time.thread_time()
    for _ in range(TURNS):
        await stats.read_routes()
    return round(1000.0 * (time.thread_time() - began_s) / TURNS, 2)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the processor time that it took, in ms."""
    began_s = time.thread_time()
    result = work()
    return result, round(1000.0 * (time.thread_time() - began_s), 2)
