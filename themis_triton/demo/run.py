"""`themis demo`: a run on this machine with a live view, and a summary and a picture at the end."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import httpx
from rich.console import Console

from themis_triton.core.fleet import Phase
from themis_triton.core.policy import PolicyName
from themis_triton.core.price import device_count
from themis_triton.core.status import Status, StatusEvent, UsageStatus, decode_status
from themis_triton.demo.base import read_base
from themis_triton.demo.folder import own_folder
from themis_triton.demo.frame import DemoFrame, DemoServer, DemoSummary
from themis_triton.demo.stage import DemoStage, staged
from themis_triton.demo.view import LiveView, summary_table
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.results import LoadReport, SecondStats
from themis_triton.load.traces import TraceOptions, load_trace
from themis_triton.report.pictures import draw_run
from themis_triton.report.series import EventKind, RunEvent, RunSeries

EVENTS_SHOWN = 5
EVENT_KINDS = frozenset(kind.value for kind in EventKind)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The options of a demo.

    `settings` None: the shipped settings. `pipeline` None: their first pipeline. `settle_s`: time between the first tick and the load.
    `cold_start_s`: the process start of launched servers; None: that of an emulated server, about a second.
    `peak_rps`: what vertical policies are provisioned for; None: as the settings say. `shows_launches`: see `DemoBase`.
    `prepare`: gets the sidecar's state directory before the sidecar starts.
    """

    directory: Path
    trace: TraceOptions = field(default_factory=TraceOptions)
    policy: PolicyName = PolicyName.THEMIS
    pipeline: str | None = "video"
    seed: int = 0
    as_json: bool = False
    settings: Path | None = None
    settle_s: float = 0.0
    cold_start_s: float | None = None
    peak_rps: float | None = None
    shows_launches: bool = False
    prepare: Callable[[Path], None] | None = None

    @property
    def title(self) -> str:
        """The policy, and the cold start if one is chosen."""
        return self.policy.value + ("" if self.cold_start_s is None else f", cold start {self.cold_start_s:g} s")


@dataclass(slots=True)
class _Seen:
    """The observations of each second, and the totals so far."""

    statuses: list[Status] = field(default_factory=list)
    events: dict[str, StatusEvent] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    violations: int = 0

    def take(self, second: SecondStats, status: Status) -> None:
        self.statuses.append(status)
        self.requests += second.sent
        self.failed += second.failed
        self.violations += second.violations
        for event in status.events:
            self.events[event.decision_id + event.sentence] = event


def run_demo(options: DemoOptions) -> DemoSummary:
    """Run the demo and return its summary. Ctrl-C or SIGTERM stops all its processes and raises KeyboardInterrupt.

    Raises:
        SettingsError: invalid settings, unknown pipeline, unknown trace, or a folder that is not a demo's. Nothing is changed.
        EnvironmentCheckError: another demo runs in the folder.
    """
    read_base(options.settings, options.pipeline, options.cold_start_s)
    load_trace(options.trace, options.seed)
    with own_folder(options.directory.resolve()):
        return asyncio.run(_interruptible(options))


async def _interruptible(options: DemoOptions) -> DemoSummary:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(_run(options))
    interrupted = asyncio.Event()

    def interrupt() -> None:
        if not interrupted.is_set():
            interrupted.set()
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _run(options: DemoOptions) -> DemoSummary:
    console = Console(stderr=options.as_json)
    directory = options.directory.resolve()
    console.print(f"Starting Triton, Envoy and Themis ({options.title}); files and logs in {directory}", markup=False)
    read = read_base(options.settings, options.pipeline, options.cold_start_s)
    base = replace(read, peak_rps=options.peak_rps, shows_launches=options.shows_launches)
    async with staged(directory, base, options.policy, console.print, options.prepare) as stage:
        console.print(f"Watch it in a browser while it runs: {stage.page_url}", markup=False)
        seen, before, report = await _loaded(stage, options, console, directory)
    summary = _summary(options, stage, seen, before, report)
    series = _series(options, seen, report)
    title = f"Themis demo: {stage.pipeline.name}, policy {options.title}"
    picture = directory / "run.png"
    await asyncio.to_thread(draw_run, series, stage.pipeline.slo_ms, title, picture)
    (directory / "summary.json").write_text(summary.json_line() + "\n")
    (directory / "series.json").write_text(json.dumps(asdict(series), default=str) + "\n")
    console.print(summary_table(summary))
    console.print(f"Picture: {picture}", markup=False)
    return summary


async def _loaded(stage: DemoStage, options: DemoOptions, console: Console, directory: Path) -> tuple[_Seen, UsageStatus, LoadReport]:
    """Send the load and observe; returns the observations, the usage before the first request, and the load's report."""
    load = PipelineLoad(stage.pipeline.name, stage.pipeline.stages, stage.pipeline.slo_ms, options.trace)
    seen = _Seen()
    await asyncio.sleep(options.settle_s)
    sending = LoadOptions(stage.grpc_address, (load,), options.seed, out=directory / "requests.npz")
    async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client, LoadProcess(sending) as process:
        before = status = decode_status((await client.get(stage.status_url)).json())
        with LiveView(console) as view:
            async for second in process.seconds():
                status = await _status_or(status, client, stage.status_url)
                seen.take(second, status)
                view.update(_frame(second, status, seen, process.duration_s, stage))
        return seen, before.usage, process.report


async def _status_or(last: Status, client: httpx.AsyncClient, url: str) -> Status:
    """The sidecar's status, or the last one on a timeout: a busy machine must not end the demo."""
    try:
        return decode_status((await client.get(url)).json())
    except httpx.HTTPError:
        return last


def _frame(second: SecondStats, status: Status, seen: _Seen, duration_s: int, stage: DemoStage) -> DemoFrame:
    servers = tuple(
        DemoServer(server.name, server.phase, {model: state.instances for model, state in server.models.items()})
        for server in status.servers
    )
    events = sorted(seen.events.values(), key=lambda event: event.at_s)[-EVENTS_SHOWN:]
    good = seen.requests - seen.violations
    return DemoFrame(
        at_s=second.at_s,
        duration_s=duration_s,
        rate_rps=second.sent,
        capacity_rps=_capacity(status),
        p50_ms=second.p50_ms,
        p99_ms=second.p99_ms,
        slo_ms=stage.pipeline.slo_ms,
        servers=servers,
        instances=sum(sum(server.instances.values()) for server in servers),
        mode=status.stage or "starting",
        last_decision=status.sentence,
        recent_events=tuple(event.sentence for event in events),
        requests=seen.requests,
        failed=seen.failed,
        attainment=good / seen.requests if seen.requests else 1.0,
    )


def _capacity(status: Status) -> float | None:
    evidence = status.pipelines[0].evidence
    return evidence.capacity_rps if evidence is not None else None


def _summary(options: DemoOptions, stage: DemoStage, seen: _Seen, before: UsageStatus, report: LoadReport) -> DemoSummary:
    load = report.summaries[0]
    after = seen.statuses[min(len(seen.statuses), report.duration_s) - 1].usage
    actions = {kind: count - before.actions.get(kind, 0) for kind, count in after.actions.items()}
    return DemoSummary(
        policy=options.policy.value,
        requests=load.requests,
        failed=load.failed,
        slo_ms=stage.pipeline.slo_ms,
        slo_attainment=load.slo_attainment,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        server_seconds=after.server_seconds - before.server_seconds,
        instance_seconds=after.instance_seconds - before.instance_seconds,
        max_servers=max(len(status.servers) for status in seen.statuses),
        max_instances=max(_instances(status) for status in seen.statuses),
        actions={kind: count for kind, count in actions.items() if count},
        cost=after.cost - before.cost,
        cold_start_s=options.cold_start_s,
        joined_at_s=joined_at_s(seen.statuses),
        server_seconds_by_kind={
            kind: seconds - before.server_seconds_by_kind.get(kind, 0.0) for kind, seconds in after.server_seconds_by_kind.items()
        },
    )


def joined_at_s(statuses: Sequence[Status]) -> tuple[int, ...]:
    """The seconds in which launched servers were first seen serving, one for each server."""
    serving = [{server.name for server in status.servers if server.launched and server.phase is Phase.SERVING} for status in statuses]
    joined: dict[str, int] = {}
    for second, names in enumerate(serving):
        for name in names:
            joined.setdefault(name, second)
    return tuple(sorted(joined.values()))


def _instances(status: Status) -> int:
    return sum(state.instances for server in status.servers for state in server.models.values())


def _series(options: DemoOptions, seen: _Seen, report: LoadReport) -> RunSeries:
    """The series of the run, limited to the seconds that the load's rows have in common."""
    rows = report.series[0]
    length = min(len(rows.sent), len(seen.statuses))
    statuses = seen.statuses[:length]
    start_s = statuses[0].at_s or 0.0
    return RunSeries(
        label=options.policy.value,
        rate_rps=rows.sent[:length],
        capacity_rps=[_capacity(status) for status in statuses],
        p99_ms=rows.p99_ms[:length],
        servers=[len(status.servers) for status in statuses],
        instances=[_instances(status) for status in statuses],
        devices=[sum(device_count(server.models) for server in status.servers) for status in statuses],
        failed=rows.failed[:length],
        violations=rows.violations[:length],
        events=tuple(_events(seen, start_s, length)),
    )


def _events(seen: _Seen, start_s: float, length: int) -> list[RunEvent]:
    return [
        RunEvent(event.at_s - start_s, EventKind(kind), event.sentence)
        for event in seen.events.values()
        for kind in event.kinds
        if 0 <= event.at_s - start_s < length and kind in EVENT_KINDS
    ]
