"""`themis history`: the changes with time and reason, from the journal. Needs no running sidecar."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.reader import reading
from themis_triton.commands.moments import moment, parse_duration
from themis_triton.commands.terminal import write_line
from themis_triton.core.words import without_numbers
from themis_triton.settings.runtime import load_runtime_paths

Row = dict[str, Any]


def history_command(path: Path, since: str, limit: int, *, every: bool, as_json: bool) -> None:
    """Print the changes of the last `since`, oldest first, and the last tick. With `as_json`: one list with a row per tick."""
    now_s = SystemClock().now_s()
    since_s = now_s - parse_duration(since, "--since")
    with reading(journal_path(load_runtime_paths(path).state_directory)) as journal:
        rows = journal.ticks(limit, since_s, changed_only=not every)[::-1]
        newest = journal.ticks(1)
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    for first, last, count in collapse(rows):
        repeated = f" (× {count}, last {moment(last['at_s'], now_s)}: {last['decision_id']})" if count > 1 else ""
        write_line(f"{moment(first['at_s'], now_s)}  {first['decision_id']}  {first['sentence']}{repeated}")
    if not rows:
        write_line(f"nothing was changed in the last {since}")
    for row in newest if not rows or rows[-1] != newest[0] else ():
        write_line(f"{moment(row['at_s'], now_s)}  last tick: {row['sentence']}")


def collapse(rows: Iterable[Row]) -> Iterator[tuple[Row, Row, int]]:
    """Groups of successive ticks whose sentences differ only in the evidence: first tick, last tick, count."""
    run: list[Row] = []
    for row in rows:
        if run and _words(row) != _words(run[-1]):
            yield run[0], run[-1], len(run)
            run = []
        run.append(row)
    if run:
        yield run[0], run[-1], len(run)


def _words(row: Row) -> tuple[str, str]:
    return without_numbers(str(row["sentence"]), str(row["decision_id"]))
