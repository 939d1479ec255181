"""The status API with its reading calls over a journal, as the daemon serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from tests.unit.fakes import FakeClock
from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, record, server, snapshot
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.address import Address
from themis_triton.core.decision import PipelineEvidence
from themis_triton.core.estimate import Estimate, ModelEstimate, PipelineEstimate
from themis_triton.core.record import TickRecord
from themis_triton.daemon.api import serving
from themis_triton.daemon.events import EventHub
from themis_triton.daemon.reads_api import Reads
from themis_triton.daemon.samples import Samples
from themis_triton.daemon.status import StatusBoard

EVIDENCE = PipelineEvidence(
    "video", 50.0, 40.0, 90.0, 300.0, 200.0, 150.0, servers_now=1, servers_desired=2, runner_up="3 servers cost more"
)


def tick(at_s: float, rps: float = 40.0, p99_ms: float | None = 200.0, *, decision_id: str = "d", changed: bool = False) -> TickRecord:
    """A tick of the video pipeline with traffic, its median half of its p99."""
    p50_ms = None if p99_ms is None else p99_ms / 4
    models = {name: ModelEstimate(name, rps, rps, rps, 0.0, 0.0, rps, 0.0, p50_ms=p50_ms) for name in (DETECTOR, CLASSIFIER)}
    taken = record(seen=snapshot([server("a", (3, 2))], at_s))
    decision = replace(taken.decision, id=decision_id, at_s=at_s, evidence=(replace(EVIDENCE, demand_fast_rps=rps + 10.0),))
    estimate = Estimate(at_s, models, {"video": PipelineEstimate("video", rps, rps, rps, 0.0, 0.0, p99_ms)})
    return replace(taken, decision=decision, estimate=estimate)


def fill(
    journal: Journal, seconds: int, rps: Callable[[int], float], p99_ms: Callable[[int], float | None], until_s: float = NOW_S
) -> None:
    """Samples of so many seconds with a tick a second, the last of them at `until_s`."""
    samples, settings = Samples(), config()
    for second in range(seconds + 1):
        at_s = NOW_S - seconds + second
        journal.record_samples(samples.take(tick(at_s, rps(second), p99_ms(second)), settings))
        if second % 1000 == 0:
            assert journal.flush()
    assert journal.flush()


@dataclass
class ServedApi:
    """A running API: the client, and what it serves."""

    client: httpx.AsyncClient
    board: StatusBoard
    journal: Journal
    hub: EventHub
    url: str


@asynccontextmanager
async def served(path: Path, *, can_plan: bool = True) -> AsyncIterator[ServedApi]:
    """The API over the journal of that path, at NOW_S."""
    address = Address("127.0.0.1", free_ports(1)[0])
    board, clock, hub = StatusBoard(config(), NOW_S), FakeClock(), EventHub()
    with closing(Journal(path)) as journal:
        reads = Reads(board, clock, path, hub, lambda: can_plan)
        async with (
            serving(address, board, Exporter(), clock, routes=reads.routes()),
            httpx.AsyncClient(trust_env=False, base_url=address.url("/v1"), timeout=30.0) as client,
        ):
            with closing(hub):
                yield ServedApi(client, board, journal, hub, address.url("/v1"))
