"""`themis load`: open-loop load on a KServe-v2 address, with a progress line, and a table or JSON at the end."""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import asdict
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from themis_triton.commands.terminal import TerminalConsole
from themis_triton.load.generator import run_load
from themis_triton.load.options import LoadOptions
from themis_triton.load.result_files import check_writable, save_results
from themis_triton.load.results import LoadReport, LoadSummary, SecondStats

MAX_LATENESS_MS = 50.0


def load_command(options: LoadOptions, *, as_json: bool = False) -> LoadReport:
    """Run the load and print its results; Ctrl-C ends it early and still prints them.

    Progress goes to standard error. With `as_json` the last line of standard output is one JSON object: the pipeline's summary,
    or for several pipelines `{"pipelines": [summaries]}`. Raises ThemisError before the first request is sent.
    """
    check_writable(options.out)
    report = asyncio.run(_run(options, TerminalConsole(stderr=True)))
    TerminalConsole().print(summary_table(report))
    if as_json:
        # Written to the stream, because Rich would wrap or colour the line.
        TerminalConsole().file.write(json_line(report) + "\n")
    return report


def json_line(report: LoadReport) -> str:
    """The summaries as one line of JSON."""
    summaries = [asdict(summary) for summary in report.summaries]
    return json.dumps(summaries[0] if len(summaries) == 1 else {"pipelines": summaries})


def summary_table(report: LoadReport) -> Table:
    """One row per pipeline, and a caption with warnings about its validity."""
    table = Table(title="Load", title_justify="left", caption=_caption(report), caption_justify="left")
    table.add_column("pipeline")
    for column in ("requests", "failed", "SLO ms", "in SLO", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for summary in report.summaries:
        table.add_row(*_cells(summary), style="red" if summary.failed else None)
    return table


def _cells(summary: LoadSummary) -> tuple[str, ...]:
    return (
        summary.pipeline,
        f"{summary.requests:,}",
        f"{summary.failed:,}",
        f"{summary.slo_ms:g}",
        f"{summary.slo_attainment:.2%}",
        _ms(summary.p50_ms),
        _ms(summary.p99_ms),
    )


def _caption(report: LoadReport) -> str:
    lines = ["stopped early"] if report.stopped_early else []
    for summary in report.summaries:
        lines += [f"{summary.pipeline}: {count} × {kind}: {summary.first_messages.get(kind, '')}" for kind, count in summary.errors.items()]
        if summary.p99_lateness_ms > MAX_LATENESS_MS:
            late = f"1 % of the requests were sent over {summary.p99_lateness_ms:.0f} ms late"
            lines.append(f"{summary.pipeline}: this machine is too busy to keep the schedule: {late}; the latencies include that")
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


async def _run(options: LoadOptions, console: Console) -> LoadReport:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        with LoadProgress(console) as progress:
            report, results = await run_load(options, progress.start, progress.second, stop)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    if options.out is not None:
        save_results(options.out, results)
    return report


class LoadProgress:
    """A progress bar with the last second's results; hidden if standard error is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._figures: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Remove the bar."""
        self._progress.stop()

    def start(self, duration_s: int, requests: int) -> None:
        """Start the clock."""
        self._task = self._progress.add_task(f"{requests:,} requests", total=duration_s, figures="")

    def second(self, stats: SecondStats) -> None:
        """Show one pipeline's last second."""
        if self._task is None:
            return
        failed = f" [red]{stats.failed} failed[/red]" if stats.failed else ""
        self._figures[stats.pipeline] = f"{stats.pipeline} {stats.sent}/s p99 {_ms(stats.p99_ms)} ms{failed}"
        self._progress.update(self._task, completed=stats.at_s, figures=" | ".join(self._figures.values()))
