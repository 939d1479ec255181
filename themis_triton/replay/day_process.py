"""The process that makes a day's report beside a sidecar, at the lowest priority, so that no tick waits for it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

from themis_triton.adapters.store.frozen_values import thawed
from themis_triton.adapters.store.minutes import read_minutes
from themis_triton.adapters.store.reader import reading
from themis_triton.compilation import use_kernel_cache
from themis_triton.core.day_report import day_span
from themis_triton.core.encoding import plain
from themis_triton.core.fleet import Models
from themis_triton.replay.day import LEAD_S, DayData, day_report

NICENESS = 19
PR_SET_PDEATHSIG = 1


def read_day(journal: Path, day: str, first: tuple[Models, ...]) -> DayData:
    """A day from the journal."""
    start_s, end_s = day_span(day)
    with reading(journal) as reader:
        usage, traffic = read_minutes(reader, start_s - LEAD_S, end_s)
    return DayData(day, start_s, end_s, [each for each in usage if each.at_s >= start_s], traffic, first)


def main() -> None:
    """Read what is asked from standard input and write the report to standard output."""
    os.nice(NICENESS)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a sidecar that was killed cannot end it
    config, journal, day, first, at_s = thawed(sys.stdin.buffer.read())
    use_kernel_cache()
    data, budget_s = read_day(Path(journal), day, first), config.retention.report_cpu_s
    report = day_report(data, config, at_s, time.process_time, budget_s=budget_s)
    sys.stdout.write(json.dumps(plain(report)))


if __name__ == "__main__":
    main()
