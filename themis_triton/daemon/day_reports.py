"""A report of each day, made in the night that follows it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from themis_triton.adapters.store.frozen_values import frozen
from themis_triton.adapters.store.minutes import read_minutes, read_report
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.reader import reading
from themis_triton.core.config import ThemisConfig
from themis_triton.core.day_report import DayReport, day_span, local_day
from themis_triton.core.decoding import decode
from themis_triton.core.encoding import parsed_json
from themis_triton.core.errors import EnvironmentCheckError, ThemisError
from themis_triton.core.fleet import Models
from themis_triton.daemon.components import Components
from themis_triton.daemon.kernels import in_thread
from themis_triton.daemon.status import StatusBoard
from themis_triton.replay.first import first_servers

log = structlog.get_logger()
EVERY_S = 60.0
TIMEOUT_S = 4 * 3600.0
"""For the whole process, whatever else runs on the machine."""
TRIES, RETRY_S = 3, 600.0
"""A report that fails is tried again so often and so much later."""
REPORTED, NOT_REPORTED = "day_reported", "day_not_reported"
PROCESS = "themis_triton.replay.day_process"
"""Not imported here: the sidecar needs no simulator."""


async def keep_reports(components: Callable[[], Components], board: StatusBoard, config: Callable[[], ThemisConfig]) -> None:
    """Report each day that has ended, until cancelled. After a restart too: the journal knows which day has its report."""
    path, settled, failures = journal_path(components().config.state_directory), "", 0
    while True:
        day = local_day(components().clock.now_s(), days_before=1)
        if day != settled and config().retention.report_cpu_s > 0.0:
            done = await report_day(components(), board, config(), path, day)
            failures = 0 if done else failures + 1
            if done or failures >= TRIES:
                settled, failures = day, 0
        await asyncio.sleep(RETRY_S if failures else EVERY_S)


async def report_day(components: Components, board: StatusBoard, config: ThemisConfig, path: Path, day: str) -> bool:
    """Make the report of a day unless the journal has it, or has nothing of that day. Returns whether nothing is left to do.

    An error is logged: nothing depends on it.
    """
    try:
        known, observed = await in_thread(lambda: _stored(path, day))
        if known is not None or not observed:
            board.report = known
            return True
        now_s = components.clock.now_s()
        first = first_servers(board.record.snapshot, config) if board.record is not None else ()
        report = await report_in_process(config, path, day, first, now_s)
    except (ThemisError, OSError, ValueError) as error:
        log.warning(NOT_REPORTED, day=day, message=str(error))
        return False
    except Exception:
        log.exception(NOT_REPORTED, day=day)
        return False
    board.report = report
    components.journal.record_report(report)
    components.journal.record_event(now_s, REPORTED, report.sentence)
    board.add_event(now_s, REPORTED, report.sentence)
    log.info(REPORTED, day=day, message=report.sentence)
    return True


def _stored(path: Path, day: str) -> tuple[DayReport | None, bool]:
    """The report of a day that the journal has, and whether it has minutes of that day."""
    with reading(path) as journal:
        return read_report(journal, day), bool(read_minutes(journal, *day_span(day))[0])


async def report_in_process(config: ThemisConfig, journal: Path, day: str, first: tuple[Models, ...], at_s: float) -> DayReport:
    """The report of a day, made by another process, which ends with this call. EnvironmentCheckError where it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", PROCESS),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        asked = frozen((config, str(journal), day, first, at_s))
        output, errors = await asyncio.wait_for(process.communicate(asked), TIMEOUT_S)
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines() or [f"it ended with {process.returncode}"]
            raise EnvironmentCheckError(f"the report of {day} could not be made: {lines[-1]}")
        return decode(DayReport, parsed_json(output))
    except TimeoutError:
        raise EnvironmentCheckError(f"the report of {day} could not be made in {TIMEOUT_S / 3600.0:g} h") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
