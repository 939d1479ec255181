"""`themis why`: what was decided and what came of it, out of the journal, whether the sidecar runs or not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.store.reader import JournalReader, reading
from themis_triton.core.errors import SettingsError
from themis_triton.daemon.components import journal_path
from themis_triton.settings import load_runtime_paths

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def why_command(path: Path, decision: str | None, since: str, limit: int, *, every: bool, as_json: bool) -> None:
    """The changes of the last `since`, oldest first, and the last tick; or one decision with its evidence, actions and their ends."""
    since_s = _seconds(since)
    console = Console(soft_wrap=True)
    with reading(journal_path(load_runtime_paths(path).state_directory)) as journal:
        if decision is not None:
            _one(journal, decision, console, as_json=as_json)
            return
        rows = journal.ticks(limit, SystemClock().now_s() - since_s, changed_only=not every)[::-1]
        newest = journal.ticks(1)
    if as_json:
        console.file.write(json.dumps(rows) + "\n")
        return
    for row in rows:
        console.print(f"{_moment(row['at_s'])}  {row['decision_id']}  {row['sentence']}", markup=False, highlight=False)
    if not rows:
        console.print(f"nothing was changed in the last {since}", highlight=False)
    for row in newest if not rows or rows[-1] != newest[0] else ():
        console.print(f"{_moment(row['at_s'])}  last tick: {row['sentence']}", markup=False, highlight=False)


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    try:
        value = float(number) * UNITS_S[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not 0.0 < value < float("inf"):
        raise SettingsError(f"--since {text}: allowed are a number and a unit of {', '.join(UNITS_S)}, such as 10m")
    return value


def _moment(at_s: float) -> str:
    """Local time, and how long ago."""
    ago_s = max(0.0, SystemClock().now_s() - at_s)
    unit = next(unit for unit in ("d", "h", "m", "s") if ago_s >= UNITS_S[unit] or unit == "s")
    return f"{datetime.fromtimestamp(at_s, UTC).astimezone():%d %b %H:%M:%S} ({ago_s / UNITS_S[unit]:.0f} {unit} ago)"


def _one(journal: JournalReader, decision: str, console: Console, *, as_json: bool) -> None:
    record = journal.record(decision)
    if record is None:
        raise SettingsError(
            f"{decision}: no such decision in the journal; `themis why` lists those of the last hour, --since 2d older ones"
        )
    ends = journal.outcomes(1000, decision)[::-1]
    if as_json:
        console.file.write(json.dumps(record | {"ends": ends}) + "\n")
        return
    said = record["decision"]
    words = [f"{_moment(said['at_s'])}  policy {said['policy']}, {said['reason']}" + (", advisory" if record["advisory"] else "")]
    words += [record["sentence"], *(f"held back: {clamp['sentence']}" for clamp in said["clamps"])]
    words += [f"next best of {each['pipeline']}: {each['runner_up']}" for each in said["evidence"] if each["runner_up"]]
    for line in words:
        console.print(line, markup=False, highlight=False)
    console.print(_evidence(said["evidence"]))
    for end in ends:
        detail = f": {end['detail']}" if end["detail"] else ""
        console.print(f"{end['sentence']}: {end['outcome']} after {end['duration_s']:.1f} s{detail}", markup=False, highlight=False)
    if record["plan"]["actions"] and not ends:
        console.print("no action of it has ended yet" if not record["advisory"] else "nothing was changed: advisory")


def _evidence(rows: list[dict[str, Any]]) -> Table:
    table = Table("pipeline", "needs 1/s", "settled 1/s", "capacity 1/s", "p99 ms", "predicted", "SLO ms", "servers", box=box.SIMPLE_HEAD)
    for row in rows:
        keys = ("demand_fast_rps", "demand_slow_rps", "capacity_rps", "measured_p99_ms", "predicted_p99_ms", "slo_ms")
        cells = ["–" if row[key] is None else f"{row[key]:.0f}" for key in keys]
        table.add_row(row["pipeline"], *cells, f"{row['servers_now']} → {row['servers_wanted']}")
    return table
