"""The web page with 20 pipelines, 16 servers and 7 days of history, in Chromium, and what ten open pages cost a tick; results/page.json.

`python benchmarks/page.py` takes about three minutes. The ticks are those of a simulated fleet under changing rates, with all that the
sidecar does after one; readings and actions are not in the figures. Blocks with ten pages and with none alternate in one run.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import percentiles_ms, versions, write_result
from playwright.async_api import Browser, Page, async_playwright
from tick import Case, arrivals_of, settings

from tests.e2e.browser import CHROMIUM, FLAGS
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.memory import exempt_from_collection
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.address import Address
from themis_triton.core.config import ThemisConfig
from themis_triton.core.history import PipelineSample
from themis_triton.core.observation import Snapshot
from themis_triton.core.record import TickRecord
from themis_triton.daemon.api import serving
from themis_triton.daemon.events import EventHub, encode
from themis_triton.daemon.reads_api import Reads
from themis_triton.daemon.samples import Samples
from themis_triton.daemon.status import StatusBoard, recall_requests
from themis_triton.decide.correction import with_drift
from themis_triton.decide.planner import Planner
from themis_triton.decide.policies import decide
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput
from themis_triton.estimate.attainment import RequestCounter
from themis_triton.estimate.busy import busy_instances
from themis_triton.estimate.estimate import estimate
from themis_triton.plan.steps import plan
from themis_triton.policies import policy_named
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions, simulated
from themis_triton.tick import EngineState

CASE = Case(20, 2, slots=16, rate_rps=12.0)
PAGES, BLOCK_TICKS, BLOCKS = 10, 40, 8
DAY_S, CHANGES = 86_400, 5_000
SIMULATED_S = 30.0
LOADS, UPDATES = 7, 40
AGES = ((3_600, 5), (26 * 3_600, 60), (7 * DAY_S, 600))
"""Samples younger than the first number of seconds have the second as their width, as the journal joins them."""
READERS = """
import asyncio, sys
from aiohttp import ClientSession
async def one(session, url):
    async with session.get(url + "v1/events") as stream:
        while await stream.content.readany():
            pass
async def history(session, url, wait_s):
    while True:
        await asyncio.sleep(wait_s)
        async with session.get(url + "v1/history?range_s=900&points=400&pipeline=p0") as answer:
            await answer.read()
async def main(url, pages):
    async with ClientSession() as session:
        await asyncio.gather(*(each for n in range(pages) for each in (one(session, url), history(session, url, 30.0 * (n + 1) / pages))))
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
"""Processes that read what open pages read: the stream, and the history every half minute."""
ROWS = "() => document.querySelectorAll('#pipelines tbody tr').length === 20 && document.querySelectorAll('#charts canvas').length > 0"


@dataclass
class Sidecar:
    """What a sidecar does from the readings to the pages, on snapshots that are used again and again at the present time."""

    config: ThemisConfig
    snapshots: Sequence[Snapshot]
    journal: Journal
    board: StatusBoard
    hub: EventHub = field(default_factory=EventHub)
    exporter: Exporter = field(default_factory=Exporter)
    samples: Samples = field(default_factory=Samples)
    requests: RequestCounter = field(default_factory=RequestCounter)
    state: EngineState = field(default_factory=EngineState)

    def __post_init__(self) -> None:
        """Build the planner once."""
        self.planner, self.policy = Planner(build_rules(self.config)), policy_named(self.config.policy.name)

    def begin(self) -> None:
        """Go back to the first snapshot, with nothing known but the plans that the planner remembers."""
        self.state = EngineState()

    async def tick(self) -> tuple[float, float]:
        """One tick; returns the processor seconds of its stages, and those until the next tick may begin, in this thread."""
        number = self.state.number % len(self.snapshots)
        if number == 0:
            self.begin()
        started_s, now_s = time.thread_time(), time.time()
        record = self.decided(moved(self.snapshots[number], now_s))
        decided_s = time.thread_time()
        ended = self.requests.take(record.snapshot, self.config.pipelines)
        self.board.take(record, 1000.0 * (decided_s - started_s), ended)
        self.exporter.take(record, decided_s - started_s)
        self.exporter.count_requests(self.config.pipelines, ended)
        self.journal.record_tick(record)
        self.journal.record_samples(self.samples.take(record, self.config, ended))
        self.hub.publish(self.board.status)
        await asyncio.sleep(self.config.policy.tick_s)
        return decided_s - started_s, time.thread_time() - started_s

    def decided(self, observed: Snapshot) -> TickRecord:
        """The record of a tick, as `tick()` composes it."""
        history, estimated = estimate(self.state.history, observed, self.config)
        snapshot = history.seen
        seen = PolicyInput(snapshot, estimated, busy_instances(snapshot, history.served, self.config))
        policy, decision = decide(self.state.policy, seen, self.planner, self.policy)
        decision = with_drift(decision, estimated)
        self.state = EngineState(self.state.number + 1, history, policy)
        return TickRecord(self.state.number, snapshot, estimated, decision, plan(decision, snapshot, self.config))


def moved(snapshot: Snapshot, now_s: float) -> Snapshot:
    """The snapshot as if it were of this time."""
    by_s = now_s - snapshot.at_s
    return replace(
        snapshot,
        at_s=now_s,
        readings=tuple(replace(each, at_s=each.at_s + by_s) for each in snapshot.readings),
        routes=tuple(replace(each, at_s=each.at_s + by_s) for each in snapshot.routes),
        open_calls=tuple(replace(each, since_s=each.since_s + by_s) for each in snapshot.open_calls),
        backing_off={name: until_s + by_s for name, until_s in snapshot.backing_off.items()},
    )


def fill(journal: Journal, config: ThemisConfig, now_s: float) -> int:
    """Samples of 7 days for each pipeline and changes between them; returns the number of samples."""
    rng, rows, from_s = np.random.default_rng(5), 0, 0
    for until_s, width_s in AGES:
        for age_s in range(from_s, until_s, width_s):
            at_s = (now_s - until_s - from_s + age_s) // width_s * width_s
            journal.record_samples(sample(pipeline.name, at_s, width_s, rng) for pipeline in config.pipelines)
            rows += len(config.pipelines)
            if rows % 500 == 0:
                journal.flush()
        from_s = until_s
    for number in range(CHANGES):
        journal.record_event(now_s - 7 * DAY_S * (1.0 - number / CHANGES), "reloaded", f"a change with the number {number} of the settings")
        if number % 500 == 0:
            journal.flush()
    journal.flush()
    return rows


def sample(name: str, at_s: float, width_s: int, rng: np.random.Generator) -> PipelineSample:
    """A sample around a daily wave."""
    rate = 40.0 * (1.2 + np.sin(2 * np.pi * at_s / DAY_S)) * rng.uniform(0.8, 1.2)
    late = rng.random() < 0.01
    return PipelineSample(
        *(name, at_s, width_s, float(width_s), rate, 1.3 * rate, 1.1 * rate, 1.5 * rate, 0.0, 4.0, 12.0, float(width_s)),
        *(width_s / 4 if late else 0.0, 120.0, 520.0 if late else 300.0, rate * width_s, rate * width_s / 50 if late else 0.0),
    )


@asynccontextmanager
async def pages(url: str, number: int) -> AsyncIterator[None]:
    """A process that reads as so many open pages do; none for 0."""
    if not number:
        yield
        return
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", READERS, url, str(number))
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def ticks_beside(sidecar: Sidecar, url: str) -> dict[str, Any]:
    """Processor time of a tick's stages, and of all from a tick to the next, with no page and with ten: the same ticks in turn."""
    blocks = [await block_beside(sidecar, url, PAGES * (block % 2)) for block in range(BLOCKS)]
    alone, beside = np.array(blocks[::2]), np.array(blocks[1::2])  # blocks × ticks × (stages, whole)
    slower = np.median(beside[..., 0] / alone[..., 0]) - 1.0
    added_s = float(np.median(beside[..., 1] - alone[..., 1]))
    interval_s = sidecar.config.policy.tick_s + float(np.median(alone[..., 1]))
    figures = {
        name: {f"{number} pages": percentiles_ms(rows[..., column].ravel().tolist()) for number, rows in ((0, alone), (PAGES, beside))}
        for column, name in enumerate(("stages", "tick_to_tick"))
    }
    return {
        "goal_slower_fraction": 0.05,
        "stages_slower_fraction": round(float(slower), 4),
        "interval_longer_fraction": round(added_s / interval_s, 4),
        "added_ms": round(1000.0 * added_s, 3),
        **figures,
    }


async def block_beside(sidecar: Sidecar, url: str, number: int) -> list[tuple[float, float]]:
    """The same ticks beside so many open pages."""
    async with pages(url, number):
        while sidecar.hub.clients != number:
            await sidecar.tick()
        sidecar.begin()
        rows = [await sidecar.tick() for _ in range(BLOCK_TICKS)]
    while sidecar.hub.clients:
        await sidecar.tick()
    return rows


async def in_browser(url: str, ticking: Sidecar) -> dict[str, Any]:
    """First paint and updates of the page in one Chromium, and what it loads."""
    async with async_playwright() as driver:
        chromium = await driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        running = asyncio.create_task(tick_on(ticking))
        try:
            loads = [await load(chromium, url) for _ in range(LOADS)]
            return {"first_paint": painted(loads), "payload_bytes": loads[-1]["bytes"], **await updates(chromium, url)}
        finally:
            running.cancel()
            await asyncio.wait({running})
            await chromium.close()


async def tick_on(sidecar: Sidecar) -> None:
    """Tick until cancelled."""
    while True:
        await sidecar.tick()


async def load(chromium: Browser, url: str) -> dict[str, Any]:
    """One visit with an empty cache: when the first contents and when all pipelines and the charts were drawn, in ms."""
    context = await chromium.new_context(viewport={"width": 1280, "height": 900})
    page, loaded = await context.new_page(), dict[str, int]()
    page.on("requestfinished", lambda request: tasks.append(asyncio.create_task(weigh(request, loaded))))
    tasks: list[asyncio.Task[None]] = []
    await page.goto(url)
    drawn = await page.wait_for_function(f"() => ({ROWS})() && performance.now()", polling="raf")
    painted_ms = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    found = {"first_contents_ms": painted_ms, "drawn_ms": await drawn.json_value(), "bytes": loaded}
    async with page.expect_response(lambda response: "range_s=604800" in response.url) as answer:
        await page.evaluate("document.querySelector('input[name=range][value=\"604800\"]').click()")
    loaded["a week of one pipeline"] = len(await (await answer.value).body())
    await asyncio.gather(*tasks)
    await context.close()
    return found


async def weigh(request: Any, loaded: dict[str, int]) -> None:  # noqa: ANN401 - Playwright's request
    """Add up what the page's files take."""
    if "/v1/" not in request.url:
        sizes = await request.sizes()
        loaded["files"] = loaded.get("files", 0) + sizes["responseBodySize"]


def painted(loads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians and worst of the visits."""
    return {
        "goal_ms": 1000,
        **{name: {"median": round(statistics.median(times), 1), "worst": round(max(times), 1)} for name, times in columns(loads).items()},
    }


def columns(loads: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The times of the visits by their names."""
    return {name: [float(each[name]) for each in loads] for name in ("first_contents_ms", "drawn_ms")}


async def updates(chromium: Browser, url: str) -> dict[str, Any]:
    """Main-thread time of an update of the open page: scripts, styles, layout and painting."""
    page = await chromium.new_page(viewport={"width": 1280, "height": 900})
    await page.add_init_script(
        "window.longTasks = []; new PerformanceObserver((list) => list.getEntries().forEach((each) => longTasks.push(each.duration)))"
        ".observe({type: 'longtask'});"
    )
    await page.goto(url)
    await page.wait_for_function(ROWS)
    await asyncio.sleep(3.0)
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})  # processor time, whatever else runs
    await session.send("Performance.enable")
    await page.evaluate("longTasks.length = 0")
    before, started_s = await metrics(session), time.monotonic()
    seen = await counted_updates(page)
    after, seconds = await metrics(session), time.monotonic() - started_s
    busy_ms = 1000.0 * (after["ThreadTime"] - before["ThreadTime"])
    return {
        "update": {
            "goal_ms": 50,
            "mean_ms": round(busy_ms / seen, 2),
            **{
                name: round(1000.0 * (after[metric] - before[metric]) / seen, 2)
                for name, metric in (("script_ms", "ScriptDuration"), ("style_ms", "RecalcStyleDuration"), ("layout_ms", "LayoutDuration"))
            },
            "updates": seen,
            "seconds": round(seconds, 1),
            "tasks_beyond_50_ms": [round(each) for each in await page.evaluate("longTasks")],
        }
    }


async def metrics(session: Any) -> dict[str, float]:  # noqa: ANN401 - Playwright's session
    """Chromium's own account of its main thread, in seconds."""
    return {each["name"]: each["value"] for each in (await session.send("Performance.getMetrics"))["metrics"]}


async def counted_updates(page: Page) -> int:
    """Wait for so many updates, seen as changes of a cell that differs in each."""
    return int(
        await page.evaluate(
            """(wanted) => new Promise((resolve) => {
              let seen = 0;
              new MutationObserver(() => { seen += 1; if (seen === wanted) resolve(seen); })
                .observe(document.getElementById("headline").parentElement, { childList: true, subtree: true, characterData: true });
              setTimeout(() => resolve(Math.max(1, seen)), 60000);
            })""",
            UPDATES,
        )
    )


def simulated_ticks() -> tuple[ThemisConfig, list[Snapshot]]:
    """The settings, and what a simulated fleet showed under changing rates."""
    config = simulated(settings(CASE), SimOptions())
    arrivals = {p.name: arrivals_of(CASE, number, changing=True) for number, p in enumerate(config.pipelines)}
    ticks = simulate(config, arrivals, SIMULATED_S, SimOptions()).ticks
    return config, [tick.snapshot for tick in ticks[len(ticks) // 2 :]]  # the fleet has grown by then


async def measure(config: ThemisConfig, snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """The whole benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        path, clock, address = Path(folder) / "journal.sqlite", SystemClock(), Address("127.0.0.1", free_ports(1)[0])
        with closing(Journal(path)) as journal:
            samples = fill(journal, config, clock.now_s())
            board = StatusBoard(config, clock.now_s())
            recall_requests(board, path, clock.now_s())
            sidecar = Sidecar(config, snapshots, journal, board)
            reads = Reads(board, clock, path, sidecar.hub)
            exempt_from_collection(len(config.models))
            async with serving(address, board, sidecar.exporter, clock, routes=reads.routes()):
                for _ in range(len(snapshots)):
                    sidecar.decided(moved(snapshots[sidecar.state.number % len(snapshots)], clock.now_s()))  # fills the planner's memory
                url = address.url("/")
                await sidecar.tick()
                beside, shown = await ticks_beside(sidecar, url), await in_browser(url, sidecar)
                shown["payload_bytes"]["a status"] = len(encode(board.status()))
    history = {"samples": samples, "changes": CHANGES, "days": 7}
    servers = max(len(each.servers) for each in snapshots)
    return {"pipelines": CASE.pipelines, "servers": servers, "history": history, "tick": beside, **shown}


def main() -> None:
    """Measure and write the result."""
    measured = asyncio.run(measure(*simulated_ticks()))
    print(write_result("page", {**measured, "versions": versions("numba", "numpy", "aiohttp", "playwright")}))
    for name in ("tick", "first_paint", "update", "payload_bytes"):
        print(name, measured[name])


if __name__ == "__main__":
    main()
