"""A server that hangs while its pipeline rests, in a fleet whose resting servers are read in turn: when it is read, and when it is out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import pytest

from tests.unit.fakes import Bench, FakeClock
from tests.unit.samples import BOUNDS_MS, config, model, table
from tests.unit.test_allocation import holder
from themis_triton.adapters.triton import metrics as metrics_module
from themis_triton.adapters.triton.metrics import TritonMetrics
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.fleet import ModelState, Server
from themis_triton.core.observation import LatencyHistogram, ModelCounters, Readings, RouteReading, ServerReading
from themis_triton.decide import policies, resting, slow_target
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.tick import EngineState, tick

TICK_S, SLO_MS = 0.25, 400.0
NAMES = [f"m{number:02}" for number in range(12)]
MODEL = NAMES[3]
HUNG = f"{MODEL}-0"
BESIDE_A_HUNG_ONE = 4.0
"""Requests that the proxy leaves at a hung server: it sends the next ones to the least busy server."""


def fleet(servers_each: int) -> tuple[ThemisConfig, list[Server]]:
    models = {name: model(name, table(4.0, 8.0, 4.0, 20.0)) for name in NAMES}
    pipelines = tuple(PipelineConfig(name, (name,), SLO_MS, min_servers=servers_each) for name in NAMES)
    cfg = replace(config(slots=len(NAMES)), models=models, pipelines=pipelines)
    places = [(name, number) for name in NAMES for number in range(servers_each)]
    servers = [
        replace(holder(f"{name}-{n}", name, f"cpu:{slot}"), models={name: ModelState(1, 8)}) for slot, (name, n) in enumerate(places)
    ]
    return cfg, servers


class Metrics(TritonMetrics):
    """The turns of the real reader, over servers of which some hang."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.hung: set[str] = set()
        self.ended = 0.0

    async def _read(self, server: Server, *, batches: bool) -> ServerReading:  # noqa: ARG002 - the reader's own argument
        if server.name in self.hung:
            return ServerReading(server.name, self._clock.now_s(), error="no answer within 1 s")
        counters = ModelCounters(self.ended, 0.0, self.ended, self.ended, 4000.0 * self.ended, 0.0, 4000.0 * self.ended, 0.0)
        return ServerReading(server.name, self._clock.now_s(), dict.fromkeys(server.models, counters))


@dataclass
class Observer:
    metrics: Metrics
    clock: FakeClock
    asked: list[frozenset[str]] = field(default_factory=list)
    routes: tuple[RouteReading, ...] = ()

    async def read(self, servers: Sequence[Server], resting: Collection[str] = ()) -> Readings:
        self.asked.append(frozenset(resting))
        return Readings(await self.metrics.read_servers(servers, resting), self.routes)

    async def count_arrivals(self) -> float | None:
        return None

    async def close(self) -> None:
        await self.metrics.close()


@pytest.mark.parametrize(
    ("servers_each", "rps", "turns_s", "read_within_s"),
    [
        (1, 60.0, 60.0, 0.6 + 2 * TICK_S),  # after 32 requests more than usual: eight and those of an SLO; a tick to see it, one to read it
        (1, 20.0, 60.0, 0.8 + 2 * TICK_S),
        (1, 0.0, metrics_module.RESTING_S, metrics_module.RESTING_S + TICK_S),
        (2, 60.0, metrics_module.RESTING_S, metrics_module.RESTING_S + TICK_S),  # its requests go to the other one: nothing shows it
    ],
)
def test_it_is_read_as_soon_as_its_requests_show_it_and_else_in_its_turn_and_leaves_the_routes(
    servers_each: int, rps: float, turns_s: float, read_within_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`turns_s`: after which time a resting server is read whatever happens."""
    monkeypatch.setattr(metrics_module, "RESTING_S", turns_s)
    monkeypatch.setattr(metrics_module, "RESTING_CALLS", 10_000)
    for module in (policies, resting):
        monkeypatch.setattr(module, "SMALL_FLEET", 5)
    monkeypatch.setattr(slow_target, "PIPELINES_A_TICK", 1)
    monkeypatch.setattr(metrics_module, "ALL_AT_ONCE", 5)
    cfg, servers = fleet(servers_each)

    async def work() -> None:
        bench = Bench(*servers, models=tuple(NAMES))
        observer = Observer(Metrics(bench.clock), bench.clock)
        world, planner, state, arrivals = replace(bench.world, observer=observer), Planner(build_rules(cfg)), EngineState(), 0.0
        hung_at_s = read_at_s = out_at_s = math.inf
        waiting = rps * 0.004
        for number in range(140):
            bench.clock.at_s += TICK_S
            arrivals += rps * TICK_S
            observer.metrics.ended = arrivals
            at_s = bench.clock.at_s
            if at_s > hung_at_s:
                waiting = waiting + rps * TICK_S if servers_each == 1 else BESIDE_A_HUNG_ONE
            stuck = {MODEL: waiting} if at_s > hung_at_s else {}
            histogram = LatencyHistogram(BOUNDS_MS, (arrivals, 0.0, 0.0))
            observer.routes = tuple(RouteReading(name, at_s, arrivals, stuck.get(name, rps * 0.004), 0.0, histogram) for name in NAMES)
            state, record = await tick(state, world, planner)
            await bench.turns()
            read = next((reading for reading in record.snapshot.readings if reading.server == HUNG), None)
            turn = (round(at_s / TICK_S) + NAMES.index(MODEL)) % len(NAMES)  # 0: the pipeline plans, and does not rest
            if number >= 80 and turn == 2 and hung_at_s == math.inf:
                assert HUNG in observer.asked[-1]
                hung_at_s = at_s
                observer.metrics.hung.add(HUNG)
                bench.control.silent.add(HUNG)
            if read is not None and read.error is not None and read_at_s == math.inf:
                read_at_s = at_s
            if at_s > hung_at_s and out_at_s == math.inf and bench.routes.tables and HUNG not in bench.routed:
                out_at_s = at_s
        assert 0.0 <= read_at_s - hung_at_s <= read_within_s
        assert out_at_s - read_at_s <= 3.0 + 2 * TICK_S
        assert f"kill {HUNG}" in bench.log
        await bench.executor.cancel()
        await bench.supervisor.close()
        await observer.close()

    asyncio.run(work())
