"""`themis report`: a day's late requests and cost, and what Themis would have made of the same arrivals."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich import box
from rich.table import Table

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.store.minutes import read_report
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.reader import reading
from themis_triton.commands.terminal import TerminalConsole, write_line
from themis_triton.commands.warm_command import planning_groups, prepare_kernels
from themis_triton.core.day_report import DayReport, day_span, local_day
from themis_triton.core.encoding import plain
from themis_triton.core.errors import SettingsError
from themis_triton.jit import Group
from themis_triton.replay.day import day_report
from themis_triton.replay.day_process import read_day
from themis_triton.settings import load_settings
from themis_triton.settings.runtime import load_runtime_paths


def report_command(settings: Path, day: str | None, *, as_json: bool) -> DayReport:
    """Print a day's report (default: yesterday's): the sidecar's where there is one, else one that is made now by the settings."""
    now_s = SystemClock().now_s()
    chosen = _day(day, now_s)
    path = journal_path(load_runtime_paths(settings).state_directory)
    with reading(path) as journal:
        report = read_report(journal, chosen)
    if report is None:
        config = load_settings(settings)
        prepare_kernels((*planning_groups(config), Group.SIMULATOR))
        report = day_report(read_day(path, chosen, ()), config, now_s, time.process_time)
    if as_json:
        write_line(json.dumps(plain(report)))
    else:
        _print(report)
    return report


def _day(text: str | None, now_s: float) -> str:
    day = text or local_day(now_s, days_before=1)
    try:
        day_span(day)
    except ValueError:
        raise SettingsError(f"--day: {text} is invalid: expected a day such as 2026-03-01") from None
    return day


def _print(report: DayReport) -> None:
    write_line(report.sentence)
    table = Table("", "requests", "late", "server h", "instance h", "cost", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for name, account in (("measured", report.measured), ("simulated", report.simulated)):
        if account is not None:
            late = "–" if account.late is None else f"{account.late:.2%}"
            hours = (f"{account.server_hours:.1f}", f"{account.instance_hours:.1f}")
            table.add_row(name, f"{account.requests:,}", late, *hours, f"{account.cost:,.0f}")
    TerminalConsole(soft_wrap=True).print(table)
