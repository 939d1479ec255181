"""The demo's view: rate, latency and fleet on a terminal, or plain lines without one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from themis_triton.core.fleet import Phase
from themis_triton.core.server_kind import kind_words
from themis_triton.demo.frame import DemoFrame, DemoServer, DemoSummary

PLAIN_EVERY_S = 5.0
SPARK_WIDTH = 44
EVENT_ROWS = 4
DECISION_ROWS = 2
HISTORY_FRAMES = 4096

_BLOCKS = "▁▂▃▄▅▆▇█"
_PHASE_STYLES = {
    Phase.LAUNCHING: "yellow",
    Phase.WARMING: "yellow",
    Phase.SERVING: "green",
    Phase.DRAINING: "magenta",
    Phase.STOPPING: "magenta",
}


class LiveView:
    """Displays frames: in place on a terminal, else one plain line every `PLAIN_EVERY_S` seconds of the run."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._history: deque[DemoFrame] = deque(maxlen=HISTORY_FRAMES)
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        """Start the live display."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the live display."""
        if self._live is not None:
            self._live.stop()

    def update(self, frame: DemoFrame) -> None:
        """Show one frame."""
        self._history.append(frame)
        if self._live is not None:
            self._live.update(render(frame, tuple(self._history)), refresh=True)
        elif frame.at_s >= self._next_line_s:
            self._next_line_s = frame.at_s - frame.at_s % PLAIN_EVERY_S + PLAIN_EVERY_S
            self._console.print(plain_line(frame), soft_wrap=True, highlight=False, markup=False)


def render(frame: DemoFrame, history: Sequence[DemoFrame]) -> RenderableType:
    """The view of one frame. `history` contains the sparklines' frames, oldest first, including this one."""
    parts = [
        _progress(frame),
        _gauges(frame, history),
        _fleet(frame.servers),
        _decision(frame),
        _events(frame.recent_events),
        _totals(frame),
    ]
    return Panel(Group(*parts), title="[bold]Themis for Triton[/bold]", title_align="left", box=box.ROUNDED, border_style="cyan")


def plain_line(frame: DemoFrame) -> str:
    """The frame in one line, for logs and pipes."""
    demand = f"{frame.rate_rps:4.0f} req/s of {_number(frame.capacity_rps)}"
    latency = f"p99 {_number(frame.p99_ms)} ms (SLO {frame.slo_ms:g})"
    fleet = f"servers {frame.serving}/{len(frame.servers)}  instances {frame.instances}"
    at = f"{frame.at_s:4.0f}/{frame.duration_s:.0f} s"
    return f"{at}  {demand}  {latency}  {fleet}  failed {frame.failed}  {frame.mode}: {frame.last_decision}"


def sparkline(values: Sequence[float | None], width: int, top: float, limit: float | None = None) -> Text:
    """A sparkline of at most `width` blocks from 0 to `top`. A block shows the maximum of its values, red above `limit`."""
    text = Text()
    for value in _largest(values, width):
        if value is None:
            text.append(" ")
            continue
        block = _BLOCKS[min(len(_BLOCKS) - 1, max(0, int(value / top * len(_BLOCKS))))] if top > 0.0 else _BLOCKS[0]
        text.append(block, style="red" if limit is not None and value > limit else "cyan")
    return text


def summary_table(summary: DemoSummary) -> Table:
    """The summary of the run: requests, latency, cost and actions."""
    table = Table(title=f"Results of policy '{summary.policy}'", title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    within = "bold green" if summary.slo_attainment >= 0.99 else "bold red"
    table.add_row("requests", f"{summary.requests:,}")
    table.add_row("failed requests", Text(f"{summary.failed:,}", style="bold red" if summary.failed else "bold green"))
    table.add_row(f"answered within the SLO of {summary.slo_ms:g} ms", Text(f"{summary.slo_attainment:.2%}", style=within))
    table.add_row("p50 / p99", f"{_number(summary.p50_ms)} / {_number(summary.p99_ms)} ms")
    if summary.cold_start_s is not None:
        table.add_row("cold start of a launched server", f"{summary.cold_start_s:g} s")
    joined = ", ".join(f"{second}" for second in summary.joined_at_s)
    table.add_row("launched servers served from second", joined or "none")
    table.add_row("server-seconds (max. servers)", f"{summary.server_seconds:,.0f} ({summary.max_servers})")
    if summary.server_seconds_by_kind:
        table.add_row("server-seconds by kind", kind_words(summary.server_seconds_by_kind))
    table.add_row("instance-seconds (max. instances)", f"{summary.instance_seconds:,.0f} ({summary.max_instances})")
    table.add_row("actions", ", ".join(f"{count} × {kind}" for kind, count in summary.actions.items() if count) or "none")
    return table


def _progress(frame: DemoFrame) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=frame.duration_s, completed=min(frame.at_s, frame.duration_s), complete_style="cyan")
    grid.add_row(f"{frame.at_s:.0f} of {frame.duration_s:.0f} s", bar, Text(frame.mode, style="bold reverse"))
    return grid


def _gauges(frame: DemoFrame, history: Sequence[DemoFrame]) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="bold", width=10)
    grid.add_column(no_wrap=True, justify="right", width=27)
    grid.add_column(no_wrap=True)
    top_rps = max([1.0, *(f.rate_rps for f in history), *(f.capacity_rps or 0.0 for f in history)])
    top_ms = max([1.25 * frame.slo_ms, *(min(f.p99_ms or 0.0, 3.0 * frame.slo_ms) for f in history)])
    top_instances = float(max([1, *(f.instances for f in history)]))
    over = frame.capacity_rps is not None and frame.rate_rps > frame.capacity_rps
    late = frame.p99_ms is not None and frame.p99_ms > frame.slo_ms
    rate = Text(f"{frame.rate_rps:.0f} req/s", style="bold red" if over else "bold cyan")
    latency = Text(f"{_number(frame.p99_ms)} ms", style="bold red" if late else "bold green")
    grid.add_row("rate", rate, sparkline([f.rate_rps for f in history], SPARK_WIDTH, top_rps))
    grid.add_row("capacity", f"{_number(frame.capacity_rps)} req/s", sparkline([f.capacity_rps for f in history], SPARK_WIDTH, top_rps))
    latency.append(f" of SLO {frame.slo_ms:g} ms", style="not bold default")
    grid.add_row("p99", latency, sparkline([f.p99_ms for f in history], SPARK_WIDTH, top_ms, frame.slo_ms))
    counts = f"{frame.instances} on {frame.serving} server{'' if frame.serving == 1 else 's'}"
    grid.add_row("instances", counts, sparkline([float(f.instances) for f in history], SPARK_WIDTH, top_instances))
    return grid


def _fleet(servers: Sequence[DemoServer]) -> RenderableType:
    models = sorted({model for server in servers for model in server.instances})
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    table.add_column("server", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    for model in models:
        table.add_column(model, justify="right")
    for server in servers:
        counts = (str(server.instances[model]) if model in server.instances else "–" for model in models)
        table.add_row(server.name, Text(server.phase.value, style=_PHASE_STYLES[server.phase]), *counts)
    return table


@dataclass(frozen=True, slots=True)
class _Rows:
    """A renderable with a fixed number of rows, so that the view does not move."""

    renderable: RenderableType
    rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich's protocol."""
        for line in console.render_lines(self.renderable, options.update(height=self.rows)):
            yield from line
            yield Segment.line()


def _decision(frame: DemoFrame) -> RenderableType:
    return _Rows(Text.assemble(("decision  ", "bold"), frame.last_decision or "none yet"), DECISION_ROWS)


def _events(events: Sequence[str]) -> RenderableType:
    return _Rows(Group(*(Text(f"  {event}", style="dim", no_wrap=True, overflow="ellipsis") for event in events[-EVENT_ROWS:])), EVENT_ROWS)


def _totals(frame: DemoFrame) -> RenderableType:
    failed = (f"{frame.failed:,} failed", "bold red" if frame.failed else "green")
    within = (f"{frame.attainment:.2%} within the SLO", "red" if frame.attainment < 0.99 else "green")
    return Text.assemble((f"{frame.requests:,} requests", "bold"), "   ", failed, "   ", within, "   ", f"p50 {_number(frame.p50_ms)} ms")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _largest(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width:
        return list(values)
    edges = [round(index * len(values) / width) for index in range(width + 1)]
    shares = ([v for v in values[low:high] if v is not None] for low, high in itertools.pairwise(edges))
    return [max(share) if share else None for share in shares]
